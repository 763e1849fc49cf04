"""Where a model looks on each slide: picture, raw scores, QuPath objects, top tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
import wsi

from . import heatmap
from .errors import CheckFailedError, JobError, NoAttentionError, UsageError
from .feature_sets import FeatureSet, bag_of
from .features import FeatureFile, bounds_of
from .files import write_bytes
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .predictions import NamedModel, read_predictions
from .progress import Progress
from .records import current, finish, forget

METHODS = ("attention",)
_TOP = 8
_COLORS = (-6.0, 6.0)
"""Ends of the color scale, log2 of attention over that of the average tile; values beyond take the end's color."""
_SAME_PROBABILITY = 1e-4


@dataclass
class Heatmaps:
    """What was drawn.

    Attributes:
        drawn: slides drawn by this run.
        skipped: slides that were drawn already, from the same features and model.
        without_tiles: slide → why its top tiles could not be read.
        warnings: what the user should know.
    """

    drawn: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    without_tiles: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def draw_heatmaps(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    method: str,
    progress: Progress,
    *,
    force: bool = False,
) -> Heatmaps:
    """Draw the heatmap of each slide that has tiles.

    Raises:
        UsageError: there is no such method.
        NoAttentionError: the head weighs all tiles alike.
        CheckFailedError: the model does not say here what it said when it predicted.
    """
    if method not in METHODS:
        raise UsageError(f"--method {method}: there is {', '.join(METHODS)}.")
    if not named.model.head.contract.attention:
        raise NoAttentionError(
            f"no heatmaps: the head {named.model.head.name} of model {named.name} weighs all tiles alike. Train one "
            "with attention, e.g. `slidemil train JOB -l labels.csv --head gated-abmil`."
        )
    result = Heatmaps()
    stored = {row["slide_id"]: row for row in read_predictions(job, named.name, named.sha256)}
    mine = [entry for entry in slides if entry.slide_id in features and features.n_tiles(entry.slide_id)]
    progress.total(len(mine))
    for entry in mine:
        name = entry.slide_id
        parts = {"model": named.sha256, "features": features.digest(name), "method": method}
        if not force and _is_drawn(job, named, entry, parts):
            result.skipped.append(name)
        else:
            file = features.read(name)
            bag = bag_of(file)
            chances = mil.predict(named.model, bag)[0].probabilities
            _check_prediction(named, name, chances, stored.get(name))
            values = mil.explain(method, named.model.head, bag, _target(named, chances))
            _write(job, named, file, entry, method, np.asarray(values, np.float32), result, parts)
            result.drawn.append(name)
        progress.advance(1)
    if result.without_tiles:
        names = list(result.without_tiles)
        result.warnings.append(
            f"no top tiles for {len(names)} slides, e.g. {names[0]}: {result.without_tiles[names[0]]}. "
            "Put the slides where manifest.csv says they lie, and run this again."
        )
    return result


def _is_drawn(job: JobFolder, named: NamedModel, entry: SlideEntry, parts: Mapping[str, Any]) -> bool:
    """Tell whether a heatmap is there; one without top tiles is drawn again when the slide is back."""
    record = current(job, job.heatmaps(named.name) / f"{entry.slide_id}.png", parts)
    return record is not None and (bool(record.facts.get("top")) or not entry.path.exists())


def _target(named: NamedModel, chances: NDArray[Any]) -> int:
    """Return the class a heatmap is drawn for: in a two-class task the positive one, else the predicted one."""
    if len(named.model.classes) == 2:
        return 1
    return int(np.argmax(chances))


def _check_prediction(
    named: NamedModel, slide_id: str, chances: NDArray[Any], stored: Mapping[str, Any] | None
) -> None:
    if stored is None:
        return
    for name, value in zip(named.model.classes, chances, strict=True):
        kept = stored.get(f"p_{name}")
        if kept and abs(float(kept) - float(value)) > _SAME_PROBABILITY:
            raise CheckFailedError(
                f"{slide_id}: the model gives p_{name} = {value:.4f}, its stored prediction says {float(kept):.4f}. "
                "Predict anew: slidemil predict JOB --model " + named.name
            )


def _write(
    job: JobFolder,
    named: NamedModel,
    file: FeatureFile,
    entry: SlideEntry,
    method: str,
    values: NDArray[np.float32],
    result: Heatmaps,
    parts: Mapping[str, Any],
) -> None:
    name, folder = entry.slide_id, job.heatmaps(named.name)
    coords = {key: value for key, value in file.attributes.items() if key not in ("encoder_passport", "stain_params")}
    box = bounds_of(file.attributes)
    files = {
        folder / f"{name}.scores.h5": heatmap.scores_h5(file.xy, coords, {method: values}),
        folder / f"{name}.geojson.gz": heatmap.geojson_gz(
            name, file.xy, file.footprint, {method: values}, bounds=box, slide_size=file.slide_size
        ),
    }
    top = _top_tiles(entry, file, values, result)
    if top is not None:
        files[folder / "top" / f"{name}.jpg"] = top
    forget(job, folder / f"{name}.png")  # until all are there, none counts
    for path, data in files.items():
        write_bytes(path, data)
    picture = _picture(job, named, file, name, values)
    finish(job, folder / f"{name}.png", picture, parts, {"top": top is not None}, companions=files)


def _picture(job: JobFolder, named: NamedModel, file: FeatureFile, name: str, values: NDArray[np.float32]) -> bytes:
    from PIL import Image

    try:
        with Image.open(job.thumbnail(name)) as image:
            thumbnail = np.asarray(image.convert("RGB"))
    except OSError as error:
        path = job.thumbnail(name)
        raise JobError(f"{path}: the slide's picture is missing. `slidemil extract` makes it again.") from error
    low, high = _COLORS
    ratio = np.log2(np.clip(values * len(values), 2.0**low, 2.0**high))
    return heatmap.draw(
        thumbnail,
        file.slide_size,
        (float(file.attributes["mpp_x"]), float(file.attributes["mpp_y"])),
        file.xy,
        file.footprint,
        ratio.astype(np.float32),
        title=f"{name} · {named.name}",
        unit="log2 (attention × number of tiles)",
        normalization="0 = as much attention as the average tile of this slide; the same colors on every slide",
        limits=_COLORS,
        outline=_outline(job, name),
    )


def _outline(job: JobFolder, name: str) -> list[Any]:
    from shapely.geometry import shape

    path = job.contour_geojson(name)
    if not path.is_file():
        return []
    return [shape(item["geometry"]) for item in json.loads(path.read_text(encoding="utf-8"))["features"]]


def _top_tiles(entry: SlideEntry, file: FeatureFile, values: NDArray[np.float32], result: Heatmaps) -> bytes | None:
    """Read the tiles with the highest values from the slide, where it still lies there."""
    order = np.argsort(-values, kind="stable")[:_TOP]
    try:
        tiles = read_tiles(entry, file, file.xy[order])
    except wsi.SlideError as error:
        result.without_tiles[entry.slide_id] = error.what
        return None
    return heatmap.top_tiles_jpeg(tiles, file.xy[order], values[order])


def read_tiles(entry: SlideEntry, file: FeatureFile, xy: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read some tiles of a feature file from its slide again, (n, S, S, 3).

    Raises:
        wsi.SlideError: the slide is gone or unreadable.
    """
    a = file.attributes
    mpp, source = float(a["mpp_x"]), str(a["mpp_source"])
    given: dict[str, Any] = {"manifest": {"manifest_mpp": mpp}, "--slide-mpp": {"slide_mpp": mpp}}.get(source, {})
    spec = wsi.TileSpec(size=int(a["patch_size"]), mpp=float(a["tile_mpp"]), overlap=int(a["overlap"]))
    with wsi.open_slide(entry.path, icc=str(file.passport.get("icc", "none")), **given) as slide:
        grid = wsi.tile_grid(slide, None, spec, allow_upsampling=True)
        row_of = {(int(x), int(y)): row for row, (x, y) in enumerate(grid.xy)}
        missing = [(int(x), int(y)) for x, y in xy if (int(x), int(y)) not in row_of]
        if missing:
            what = f"it has no tile at {missing[0]}: this is another slide than the one encoded"
            raise wsi.SlideError(slide.name, what)
        return np.stack([wsi.read_tile(slide, grid, row_of[int(x), int(y)]) for x, y in xy])
