"""Which explanation is worth most on the user's own slides: curves, stability, sanity, and truth where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.explain import METHODS, explanation
from mil.explain.faithfulness import Faithfulness
from mil.explain.sanity import agreement, randomized_head, stability

from .explainable import Means, target_of
from .feature_sets import FeatureSet, bag_of
from .features import FeatureFile
from .files import csv_bytes
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .members import faithfulness_of
from .predictions import NamedModel, read_predictions
from .progress import Progress
from .records import publish
from .reread import SlideTiles
from .retraining import retrained
from .score_files import read_scores
from .true_regions import true_regions

MOST_SLIDES = 12
SEEDS = 2
_PIXEL_SLIDES = 2
"""Slides on which a method that reaches pixels is run again with other heads: each run encodes the whole slide."""
TRUE_SHARE = 0.25
"""A tile counts as part of a true region where at least this share of it lies inside."""
COLUMNS = (
    "rank",
    "method",
    "deletion",
    "deletion_random",
    "deletion_ratio",
    "insertion",
    "insertion_random",
    "stability",
    "randomized",
    "localization_auc",
    "n_slides",
    "n_truth",
    "class",
    "model",
    "model_sha256",
)


@dataclass(frozen=True)
class Comparison:
    """The methods, best first.

    Attributes:
        rows: one for each method, with `COLUMNS`.
        slides: on which they were compared.
        path: of the table.
        notes: what the user should know.
    """

    rows: tuple[Mapping[str, Any], ...]
    slides: tuple[str, ...]
    path: Path
    notes: tuple[str, ...]


def compare(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    methods: Sequence[str],
    target: str | None,
    truth: Path | None,
    means: Means,
    progress: Progress,
) -> Comparison:
    """Score every method on slides of the class, and write `methods.csv`.

    Raises:
        UsageError: a file of true regions cannot be read.
    """
    told = {row["slide_id"]: row for row in read_predictions(job, named.name, named.sha256)}
    chosen = _slides(named, features, slides, target, told)
    regions = true_regions(truth or job.truth, [entry.slide_id for entry in chosen])
    heads, notes = _other_heads(named, features, told)
    if truth is not None and not regions:
        notes.append(f"no truth: none of these slides has a file in {truth}, e.g. SLIDE.geojson")
    case = _Case(named, features, target, regions, means, heads)
    progress.total(len(chosen))
    found: dict[str, list[_OnSlide]] = {method: [] for method in methods}
    explained: set[str] = set()
    for number, entry in enumerate(chosen):
        drawn, facts = read_scores(job.heatmaps(named.name) / f"{entry.slide_id}.scores.h5")
        explained |= {facts[method].get("target", "") for method in methods if method in drawn}
        values = {method: drawn[method] for method in methods if method in drawn}
        for method, one in _on_slide(case, entry, values, again=number < _PIXEL_SLIDES):
            found[method].append(one)
        progress.advance(1)
    whose = {"class": "; ".join(sorted(explained)), "model": named.name, "model_sha256": named.sha256}
    rows = ranked({method: _row(method, ones) | whose for method, ones in found.items() if ones})
    path = job.heatmaps(named.name) / "methods.csv"
    publish(job, path, csv_bytes(COLUMNS, rows))
    return Comparison(tuple(rows), tuple(entry.slide_id for entry in chosen), path, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Case:
    """What is the same for all slides."""

    named: NamedModel
    features: FeatureSet
    target: str | None
    regions: Mapping[str, list[Any]]
    means: Means
    heads: Sequence[mil.Head]


@dataclass(frozen=True)
class _OnSlide:
    """What one method is worth on one slide."""

    curves: Faithfulness
    stability: float | None
    randomized: float | None
    localization: float | None


def _slides(
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    target: str | None,
    told: Mapping[str, Mapping[str, Any]],
) -> list[SlideEntry]:
    """Slides that the model calls by the class that is explained, held-out ones first."""
    classes = named.model.classes
    wanted = target or (classes[1] if len(classes) == 2 else None)

    def place(entry: SlideEntry) -> tuple[Any, ...]:
        row = told.get(entry.slide_id, {})
        return (wanted is not None and row.get("pred") != wanted, row.get("split") != "test", entry.slide_id)

    mine = [entry for entry in slides if entry.slide_id in features and features.n_tiles(entry.slide_id) > 1]
    called = [entry for entry in mine if wanted is None or told.get(entry.slide_id, {}).get("pred") == wanted]
    return sorted(called or mine, key=place)[:MOST_SLIDES]


def _other_heads(
    named: NamedModel, features: FeatureSet, told: Mapping[str, Mapping[str, Any]]
) -> tuple[list[mil.Head], list[str]]:
    """Heads trained again from other seeds on the model's slides; none for an ensemble, which is several already."""
    if named.members:
        return [], []  # its members are compared with one another
    heads = [head for head in (retrained(named, features, told, seed) for seed in range(1, SEEDS + 1)) if head]
    if heads:
        return heads, []
    return [], ["no stability over seeds: the slides the model was trained on, with their labels, are not in this job"]


def _on_slide(
    case: _Case, entry: SlideEntry, values: Mapping[str, NDArray[np.float32]], *, again: bool
) -> Iterator[tuple[str, _OnSlide]]:
    """Yield each method that was drawn on a slide, with what it is worth there."""
    file = case.features.read(entry.slide_id)
    bag = bag_of(file)
    target = target_of(case.named, case.target, case.named.answer(bag))
    inside = inside_truth(case.regions.get(entry.slide_id, []), file)
    tiles = SlideTiles(entry, file)
    for method, mine in values.items():
        others = _others(case, method, bag, target, tiles) if again or not METHODS[method].pixels else []
        alone = [] if case.named.members else [mine]
        yield (
            method,
            _OnSlide(
                faithfulness_of(case.named, bag, target, mine),
                stability([*alone, *others[1:]]),
                agreement(mine, others[0]) if others else None,
                None if inside is None else mil.auc(inside, mine),
            ),
        )


def _others(case: _Case, method: str, bag: mil.Bag, target: int, tiles: SlideTiles) -> list[NDArray[np.float32]]:
    """The same map by a head of random weights, then by other heads: of an ensemble its members."""
    named = case.named
    first = named.model
    models = [(model, model.head) for model in named.members] or [(first, head) for head in case.heads]
    return [
        explanation(method, head, named.joined(bag, model), target, encoder=case.means.encoder, tiles=tiles).values
        for model, head in [(first, randomized_head(first.head)), *models]
    ]


def inside_truth(region: list[Any], file: FeatureFile) -> NDArray[np.bool_] | None:
    """Return which tiles lie in a true region; None without a region, or where all tiles do."""
    from .demo_cohort import region_share

    inside: NDArray[np.bool_] = region_share(file.xy, file.footprint, region) >= TRUE_SHARE
    return inside if inside.any() and not inside.all() else None


def _row(method: str, ones: Sequence[_OnSlide]) -> dict[str, Any]:
    """Means over the slides."""
    curves = [one.curves for one in ones]
    deletion, random = (float(np.mean([getattr(c, name) for c in curves])) for name in ("deletion", "deletion_random"))
    truth = [one.localization for one in ones if one.localization is not None]
    return {
        "method": method,
        "deletion": deletion,
        "deletion_random": random,
        "deletion_ratio": deletion / random if random > 0 else None,
        "insertion": float(np.mean([c.insertion for c in curves])),
        "insertion_random": float(np.mean([c.insertion_random for c in curves])),
        "stability": _mean([one.stability for one in ones]),
        "randomized": _mean([one.randomized for one in ones]),
        "localization_auc": _mean(truth),
        "n_slides": len(ones),
        "n_truth": len(truth),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def ranked(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Order methods by their mean place in deletion, insertion, and localization where truth is known."""
    places: dict[str, list[float]] = {method: [] for method in rows}
    for column in ("deletion", "insertion", "localization_auc"):
        known = {method: row[column] for method, row in rows.items() if row[column] is not None}
        if len(known) < len(rows):
            continue
        for method, value in known.items():  # equal values share a place
            higher = sum(other > value for other in known.values())
            equal = sum(other == value for other in known.values())
            places[method].append(higher + (equal - 1) / 2)
    order = sorted(rows, key=lambda method: (np.mean(places[method] or [0.0]), list(METHODS).index(method)))
    return [{"rank": number, **rows[method]} for number, method in enumerate(order, 1)]


def lines(found: Comparison) -> list[str]:
    """Return the table for people."""

    def cell(value: Any) -> str:
        return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    names = {
        "method": "method",
        "deletion": "deletion",
        "deletion_ratio": "× random",
        "insertion": "insertion",
        "stability": "stable",
        "randomized": "sanity",
        "localization_auc": "truth AUC",
    }
    table = [[names[key] for key in names], *([cell(row[key]) for key in names] for row in found.rows)]
    width = [max(len(row[k]) for row in table) for k in range(len(names))]
    text = ["  ".join(f"{c:<{w}}" if k == 0 else f"{c:>{w}}" for k, (c, w) in enumerate(zip(row, width, strict=True)))
            for row in table]  # fmt: skip
    return [
        *text,
        f"on {len(found.slides)} slides, best first → {found.path}",
        "deletion: fall of the probability when the highest tiles are taken away (× random: against random order); "
        "stable: agreement with heads trained from other seeds, or on other folds; sanity: agreement with a head of "
        "random weights, which should be near 0; truth AUC: tiles in true regions against the rest",
        *found.notes,
    ]
