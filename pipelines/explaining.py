"""Why a model says what it says, slide by slide: values of several methods, pictures, and data for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
import wsi
from mil.explain import METHODS
from mil.tasks import Classification

from .errors import JobError
from .explainable import Means, check_prediction, outputs_of, target_of
from .feature_sets import FeatureSet, bag_of
from .features import FeatureFile
from .heatmap_files import Drawing, picture_path, write_drawing
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .members import explained, faithfulness_of
from .outcome import Failure
from .predictions import NamedModel, read_predictions
from .progress import Progress
from .records import Record, current, read_record
from .reread import SlideTiles
from .score_files import read_scores
from .units import counted

FORMAT = 4
"""Raised when what lies in a drawn slide's files changes: they are then drawn again."""


@dataclass(frozen=True)
class Wish:
    """What is asked of each slide.

    Attributes:
        methods: names, in the order of `METHODS`.
        target: name of the class, None for the positive or predicted one.
        scale: how attention is shown: `log-ratio`, `rank` or `raw`.
        zarr: write an OME-Zarr, too.
    """

    methods: tuple[str, ...]
    target: str | None = None
    scale: str = "log-ratio"
    zarr: bool = False


@dataclass
class Heatmaps:
    """What was drawn.

    Attributes:
        drawn: slides drawn by this run.
        skipped: slides that were drawn already, from the same features and model.
        failed: slides that could not be explained.
        without_tiles: slide → why its top tiles could not be read.
        facts: slide → method → what it said of itself.
        warnings: what the user should know.
    """

    drawn: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    without_tiles: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def draw_heatmaps(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    wish: Wish,
    means: Means,
    progress: Progress,
    *,
    damaged: Mapping[str, JobError] | None = None,
    force: bool = False,
) -> Heatmaps:
    """Explain and draw each slide that has tiles. Methods that were drawn before stay beside the new ones.

    Slides whose features are `damaged`, or whose files cannot be read, fail alone.

    Raises:
        CheckFailedError: the model does not say here what it said when it predicted.
    """
    result = Heatmaps(failed=[_of_slide(name, error) for name, error in (damaged or {}).items()])
    stored = {row["slide_id"]: row for row in read_predictions(job, named.name, named.sha256)}
    mine = [entry for entry in slides if entry.slide_id in features and features.n_tiles(entry.slide_id)]
    progress.total(len(mine))
    for entry in mine:
        try:
            _draw_one(job, named, features, entry, wish, means, stored.get(entry.slide_id), result, force=force)
        except wsi.SlideError as error:
            result.failed.append(Failure(entry.slide_id, error.what, _MOVED))
        except JobError as error:
            result.failed.append(_of_slide(entry.slide_id, error))
        progress.advance(1)
    result.warnings += _not_drawn(features, slides, damaged or {})
    _tell(result)
    return result


def _not_drawn(features: FeatureSet, slides: Sequence[SlideEntry], damaged: Mapping[str, JobError]) -> list[str]:
    """Say of which slides nothing could be drawn, though nothing failed."""
    names = [entry.slide_id for entry in slides if entry.slide_id not in damaged]
    lacks = {
        f"no features in {features.folder}": [name for name in names if name not in features],
        "no tiles": [name for name in names if name in features and not features.n_tiles(name)],
    }
    return [
        f"not drawn, {why}: {counted(len(some), 'slide')}, {', '.join(some[:5])}" for why, some in lacks.items() if some
    ]


def _of_slide(slide_id: str, error: JobError) -> Failure:
    """Return what is wrong with a slide's files as its failure; errors of the run, of kinds of their own, end it."""
    if type(error) is not JobError:
        raise error
    cause, _, mend = str(error).rpartition(". ")
    return Failure(slide_id, cause, mend)


_MOVED = "Put the slide where manifest.csv says it lies, and run this again."


def _draw_one(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    entry: SlideEntry,
    wish: Wish,
    means: Means,
    stored: Mapping[str, Any] | None,
    result: Heatmaps,
    *,
    force: bool,
) -> None:
    name = entry.slide_id
    base: dict[str, Any] = {"model": named.sha256, "features": features.digest(name), "format": FORMAT}
    base |= {"mean_of_models": len(named.members)} if named.members else {}
    base |= {"clinical": dict(named.cells[name])} if name in named.cells else {}
    known, facts = ({}, {}) if force else _known(job, named, name, base)
    asked = {"target": wish.target, "scale": wish.scale, "zarr": wish.zarr}
    picture = picture_path(job, named, name)
    methods = [method for method in METHODS if method in {*wish.methods, *known}]
    record = None if force else current(job, picture, base | asked | {"methods": methods})
    if record is not None and (record.facts.get("top") or not entry.path.exists()):
        check_prediction(named, name, record.facts["p"], stored)
        result.skipped.append(name)
        result.facts[name] = facts
        return
    file = features.read(name)
    bag = bag_of(file)
    answer, logits = named.said_of(bag)
    chances = [float(value) for value in answer]
    check_prediction(named, name, chances, stored)
    target = target_of(named, wish.target, answer)
    if any(found.get("target") != outputs_of(named)[target] for found in facts.values()):
        known, facts = {}, {}  # drawn for another class
    for method in wish.methods:
        if method not in known:
            known[method], facts[method] = _explained(method, named, bag, target, means, entry, file)
    drawing = Drawing(entry, file, named, target, _in_order(known), _in_order(facts), logits, wish.scale, wish.zarr)
    parts = base | asked | {"methods": list(drawing.values)}
    folders = [one.folder.as_posix() for one in (features, *features.beside)]
    top = write_drawing(job, drawing, means, parts, {"p": chances, "features": folders})
    if top is not None:
        result.without_tiles[name] = top
    result.drawn.append(name)
    result.facts[name] = facts


def _known(
    job: JobFolder, named: NamedModel, name: str, base: Mapping[str, Any]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
    """Return the values that an earlier run left of the same features and model."""
    record: Record | None = read_record(job, picture_path(job, named, name))
    if record is None or any(record.parts.get(key) != value for key, value in base.items()):
        return {}, {}
    values, facts = read_scores(job.heatmaps(named.name) / f"{name}.scores.h5")
    known = {method: found for method, found in values.items() if method in METHODS}
    return known, {method: facts[method] for method in known}


def _explained(
    method: str,
    named: NamedModel,
    bag: mil.Bag,
    target: int,
    means: Means,
    entry: SlideEntry,
    file: FeatureFile,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    tiles = SlideTiles(entry, file) if METHODS[method].pixels else None
    found = explained(named, method, bag, target, means.encoder, tiles)
    facts = {**found.facts, "target": outputs_of(named)[target], "unit": METHODS[method].unit}
    if isinstance(named.model.task, Classification) and bag.n_tiles > 1:
        facts |= asdict(faithfulness_of(named, bag, target, found.values, steps=_STEPS, orders=1))
    return found.values, facts


_STEPS = 10
"""Of the deletion and the insertion that stand beside each picture; `--compare` takes more, and more random orders."""


def _in_order(values: Mapping[str, Any]) -> dict[str, Any]:
    return {method: values[method] for method in METHODS if method in values}


def _tell(result: Heatmaps) -> None:
    if result.without_tiles:
        names = list(result.without_tiles)
        result.warnings.append(
            f"no top tiles for {len(names)} slides, e.g. {names[0]}: {result.without_tiles[names[0]]}. "
            "Put the slides where manifest.csv says they lie, and run this again."
        )
    loose = [
        (name, found["integrated_gradients"]["completeness_error"])
        for name, found in result.facts.items()
        if "integrated_gradients" in found and found["integrated_gradients"]["completeness_error"] > _COMPLETE
    ]
    if loose:
        name, error = max(loose, key=lambda one: one[1])
        result.warnings.append(
            f"integrated gradients of {len(loose)} slides do not quite sum up (most on {name}: {error:.2g})"
        )


_COMPLETE = 2e-4
