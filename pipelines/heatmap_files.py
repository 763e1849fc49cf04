"""The files of one explained slide: pictures, raw scores, QuPath objects, pyramids, top and bottom tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wsi
from mil.explain import METHODS, Reach
from mil.explain.scale import log_ratio, rank

from . import heatmap
from .errors import JobError
from .explainable import Means, outputs_of
from .feature_sets import bag_of
from .features import FeatureFile, bounds_of
from .files import remove, write_bytes, write_tree
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .members import maps_of
from .predictions import NamedModel
from .records import finish, forget
from .reread import SlideTiles
from .score_files import geojson_gz, scores_h5
from .score_pyramid import ome_tiff, ome_zarr, raster
from .tile_sheet import overlaid, top_tiles_jpeg

_TOP = 8
_ATTENTION_ENDS = (-6.0, 6.0)
"""Ends of the color scale, log2 of attention over that of the average tile; values beyond take the end's color."""
_SIGNED_SHARE = 0.99
"""Share of the tiles whose absolute value lies within the ends of a signed scale."""
SCALES = ("log-ratio", "rank", "raw")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is known of one slide when its files are written.

    Attributes:
        entry: the slide.
        file: its features.
        named: the model.
        target: number of the class that is explained.
        values: by method, (N,).
        facts: by method, what it said of itself.
        logits: of the slide, (C,).
        scale: how attention is shown.
        zarr: whether an OME-Zarr is written, too.
    """

    entry: SlideEntry
    file: FeatureFile
    named: NamedModel
    target: int
    values: Mapping[str, Floats]
    facts: Mapping[str, Mapping[str, Any]]
    logits: NDArray[np.float32]
    scale: str
    zarr: bool


def picture_path(job: JobFolder, named: NamedModel, slide: str, method: str | None = None) -> Path:
    """Return where the picture of a slide lies: of the first method, or of a further one."""
    folder = job.heatmaps(named.name)
    return (folder if method is None else folder / method) / f"{slide}.png"


def write_drawing(
    job: JobFolder, drawing: Drawing, means: Means, parts: Mapping[str, Any], facts: Mapping[str, Any]
) -> str | None:
    """Write everything, the picture of the first method and the record last.

    Returns:
        Why there are no top tiles, None where there are.
    """
    name, folder = drawing.entry.slide_id, job.heatmaps(drawing.named.name)
    first, *others = drawing.values
    files = {**_data(folder, drawing), **{folder / m / f"{name}.png": _picture(job, drawing, m) for m in others}}
    lack = None
    try:
        files |= _tiles(folder, drawing, means, first)
    except wsi.SlideError as error:
        lack = error.what
    forget(job, picture_path(job, drawing.named, name))  # until all are there, none counts
    for path in _could_be(folder, name) - {*files, picture_path(job, drawing.named, name)}:
        remove(path)  # of another class or model, or of methods that are not drawn now
    for path, data in files.items():
        write_bytes(path, data)
    beside = list(files)
    if drawing.zarr:
        tree = folder / f"{name}.scores.ome.zarr"
        write_tree(tree, ome_zarr(_raster(drawing), name))
        beside.append(tree / ".zattrs")
    told = {**facts, "top": lack is None, "methods": list(drawing.values), "target": _class(drawing)}
    finish(job, picture_path(job, drawing.named, name), _picture(job, drawing, first), parts, told, companions=beside)
    return lack


def _could_be(folder: Path, name: str) -> set[Path]:
    """What some drawing of a slide writes, and another may not."""
    pictures = {folder / method / f"{name}.png" for method in METHODS}
    tiles = {folder / kind / f"{name}.jpg" for kind in ("top", "bottom", "gradcam_tiles")}
    return pictures | tiles | {folder / f"{name}.scores.ome.zarr"}


def _data(folder: Path, drawing: Drawing) -> dict[Path, bytes]:
    """Files for other programs."""
    file, name = drawing.file, drawing.entry.slide_id
    coords = {key: value for key, value in file.attributes.items() if key not in ("encoder_passport", "stain_params")}
    coords |= {"target": _class(drawing), "logit": float(drawing.logits[drawing.target]), "model": drawing.named.name}
    box = bounds_of(file.attributes)
    measured = _measurements(drawing)
    return {
        folder / f"{name}.scores.h5": scores_h5(file.xy, coords, drawing.values, drawing.facts),
        folder / f"{name}.geojson.gz": geojson_gz(
            name, file.xy, file.footprint, measured, bounds=box, slide_size=file.slide_size
        ),
        folder / f"{name}.scores.ome.tif": ome_tiff(_raster(drawing), name),
    }


def _measurements(drawing: Drawing) -> dict[str, Floats]:
    """Values by method, and attention also as rank and against the average tile."""
    measured = dict(drawing.values)
    if "attention" in measured:
        measured["attention_rank"] = rank(measured["attention"])
        measured["attention_log_ratio"] = log_ratio(measured["attention"])
    return measured


def _raster(drawing: Drawing) -> Any:
    file = drawing.file
    size, overlap = int(file.attributes["patch_size"]), int(file.attributes["overlap"])
    share = (size - overlap) / size
    mpp = float(file.attributes["mpp_x"]), float(file.attributes["mpp_y"])
    exact = [size * float(file.attributes["tile_mpp"]) / one * share for one in mpp]
    return raster(file.xy, (exact[0], exact[1]), mpp, drawing.values)


def _class(drawing: Drawing) -> str:
    return outputs_of(drawing.named)[drawing.target]


def _title(drawing: Drawing, method: str) -> str:
    """Slide, model, method and class; of an ensemble how many models' mean it is."""
    n = len(drawing.named.members)
    whose = f"{drawing.named.name} (mean of {n} models)" if n else drawing.named.name
    return f"{drawing.entry.slide_id} · {whose} · {method.replace('_', ' ')} for {_class(drawing)}"


def _picture(job: JobFolder, drawing: Drawing, method: str) -> bytes:
    from PIL import Image

    file, name = drawing.file, drawing.entry.slide_id
    try:
        with Image.open(job.thumbnail(name)) as image:
            thumbnail = np.asarray(image.convert("RGB"))
    except OSError as error:
        path = job.thumbnail(name)
        raise JobError(f"{path}: the slide's picture is missing. `slidemil extract` makes it again.") from error
    shown = shown_values(method, drawing.values[method], drawing.scale, _class(drawing))
    return heatmap.draw(
        thumbnail,
        file.slide_size,
        (float(file.attributes["mpp_x"]), float(file.attributes["mpp_y"])),
        file.xy,
        file.footprint,
        shown.values,
        title=_title(drawing, method),
        unit=shown.unit,
        normalization=shown.normalization,
        limits=shown.limits,
        colors=shown.colors,
        outline=_outline(job, name),
        worth=_worth(drawing.facts.get(method, {}), _class(drawing)),
    )


def _worth(facts: Mapping[str, Any], target: str) -> str:
    """Say what deletion and insertion say of the picture, beside a random order; "" where it was not asked."""
    if "deletion" not in facts:
        return ""
    gone, random, come, by_chance = (
        facts[name] for name in ("deletion", "deletion_random", "insertion", "insertion_random")
    )
    return (
        f"highest tiles taken away first: the probability of {target} falls by {gone:.3f} on average "
        f"(in random order {random:.3f}); put in first: {come:.3f} ({by_chance:.3f})"
    )


@dataclass(frozen=True, eq=False)
class Shown:
    """Values as they are colored.

    Attributes:
        values: (N,).
        unit: what they are.
        normalization: what was done to them.
        limits: values at the ends of the color bar, None for those of the slide.
        colors: name of the color map.
    """

    values: Floats
    unit: str
    normalization: str
    limits: tuple[float, float] | None = None
    colors: str = heatmap.COLORS


def shown_values(method: str, values: Floats, scale: str, target: str) -> Shown:
    """Return how the values of a method are colored, for the class `target`: one scale a slide, never one a tile."""
    kind = METHODS[method]
    if method == "attention" and scale == "log-ratio":
        told = "0 = as much attention as the average tile of this slide; the same colors on every slide"
        low, high = _ATTENTION_ENDS
        return Shown(np.clip(log_ratio(values), low, high), "log2 (attention × number of tiles)", told, (low, high))
    if not kind.signed and scale == "rank":
        return Shown(rank(values), f"rank of {kind.unit}", "share of the slide's tiles that lie below", (0.0, 1.0))
    if not kind.signed:
        return Shown(values, kind.unit, "raw values; the colors are of this slide alone")
    finite = np.abs(values[np.isfinite(values)])
    end = float(np.quantile(finite, _SIGNED_SHARE, method="higher")) if len(finite) else 1.0
    end = end or 1.0
    told = f"raw values around 0; red speaks for {target}, blue against; the colors are of this slide alone"
    return Shown(values, kind.unit, told, (-end, end), heatmap.SIGNED)


def _outline(job: JobFolder, name: str) -> list[Any]:
    from shapely.geometry import shape

    path = job.contour_geojson(name)
    if not path.is_file():
        return []
    return [shape(item["geometry"]) for item in json.loads(path.read_text(encoding="utf-8"))["features"]]


def _tiles(folder: Path, drawing: Drawing, means: Means, first: str) -> dict[Path, bytes]:
    """Tiles with the highest and the lowest values, and with Grad-CAM its maps over the highest.

    Raises:
        wsi.SlideError: the slide is gone or unreadable.
    """
    name = drawing.entry.slide_id
    files = {}
    for kind, sign in (("top", -1), ("bottom", 1)):
        rows = _extreme(drawing.values[first], sign)
        title = f"{kind} tiles: {first.replace('_', ' ')} for {_class(drawing)}"
        files[folder / kind / f"{name}.jpg"] = _sheet(drawing, rows, drawing.values[first], title)
    if "gradcam" in drawing.values and means.differentiable:
        rows = _extreme(drawing.values["gradcam"], -1)
        files[folder / "gradcam_tiles" / f"{name}.jpg"] = _cam_sheet(drawing, rows, means)
    return files


def _extreme(values: Floats, sign: int) -> NDArray[np.int64]:
    return np.argsort(sign * values, kind="stable")[:_TOP]


def _sheet(
    drawing: Drawing, rows: NDArray[np.int64], values: Floats, title: str, pixels: NDArray[np.uint8] | None = None
) -> bytes:
    file = drawing.file
    tiles = SlideTiles(drawing.entry, file, rows.tolist(), normalized=False).all() if pixels is None else pixels
    mpp = float(file.attributes["tile_mpp"])
    return top_tiles_jpeg(tiles, file.xy[rows], values[rows], title=title, tile_mpp=mpp)


def _cam_sheet(drawing: Drawing, rows: NDArray[np.int64], means: Means) -> bytes:
    tiles = SlideTiles(drawing.entry, drawing.file, rows.tolist()).all()
    bag, reach = bag_of(drawing.file), Reach(means.encoder, tiles)
    maps = maps_of(drawing.named, bag, drawing.target, rows.tolist(), reach)
    limit = float(np.quantile(np.abs(maps), _SIGNED_SHARE)) if maps.size else 1.0
    pixels = overlaid(tiles, maps, limit)
    return _sheet(drawing, rows, drawing.values["gradcam"], f"Grad-CAM for {_class(drawing)}, all ±{limit:.2g}", pixels)
