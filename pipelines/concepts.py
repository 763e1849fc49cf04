"""Concepts of the user's (folders of example tiles) tested against the classes of a model: TCAV on a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.explain.tcav import ConceptScore, tcav_of_several

from .errors import UsageError
from .explainable import Means, outputs_of, target_of
from .feature_sets import FeatureSet
from .files import csv_bytes
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .predictions import NamedModel, read_predictions
from .records import publish

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
COUNTERS, COUNTER_TILES = 30, 50
_MOST_SLIDES = 100


def score_concepts(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    folder: Path,
    target: str | None,
    means: Means,
    *,
    seed: int = 0,
) -> tuple[list[ConceptScore], Path]:
    """Score each concept, and write `concepts.csv`.

    Counter-concepts are random tiles of the job itself.

    Raises:
        UsageError: no encoder, no class, no concepts, or pictures that cannot be read.
    """
    outputs = outputs_of(named)
    if means.encoder is None:
        raise UsageError(f"--concepts needs the encoder, which could not be had: {means.lack} Give --weights.")
    if target is None and len(outputs) > 2:
        raise UsageError(f"--concepts asks for one class: say which with --class, one of {', '.join(outputs)}.")
    concepts = {name: means.encoder(tiles) for name, tiles in read_concepts(folder, means.encoder.input_size).items()}
    mine = [entry.slide_id for entry in slides if entry.slide_id in features and features.n_tiles(entry.slide_id)]
    wanted = target_of(named, target, np.zeros(1))
    told = {row["slide_id"]: row for row in read_predictions(job, named.name, named.sha256)}
    called = [name for name in mine if told.get(name, {}).get("pred") == outputs[wanted]]
    bags = [features.bag(name) for name in (called or mine)[:_MOST_SLIDES]]
    members = [(model.head, [named.joined(bag, model) for bag in bags]) for model in named.each]
    found = tcav_of_several(members, wanted, concepts, _counters(features, mine, seed), seed=seed)
    path = job.heatmaps(named.name) / "concepts.csv"
    whose = {"n_models": len(members), "model": named.name, "model_sha256": named.sha256}
    rows: list[dict[str, Any]] = [
        {"class": outputs[wanted], **asdict(one), "n_slides": len(bags), **whose} for one in found
    ]
    publish(job, path, csv_bytes(list(rows[0]), rows))
    return found, path


def read_concepts(folder: Path, side: int) -> dict[str, NDArray[np.uint8]]:
    """Read the example tiles of each concept, (n, S, S, 3), resized to the encoder's side.

    Raises:
        UsageError: there are none.
    """
    from PIL import Image

    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    concepts = {}
    for path in folders:
        tiles = []
        for picture in sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES):
            try:
                with Image.open(picture) as image:
                    tiles.append(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)))
            except OSError as error:
                raise UsageError(f"{picture}: no readable picture ({error}). Remove it, or save it anew.") from error
        if tiles:
            concepts[path.name] = np.stack(tiles)
    if not concepts:
        raise UsageError(
            f"--concepts {folder}: no folder with pictures in it. Make one folder for each concept, with example tiles "
            f"({', '.join(PICTURES[:3])}) of the size and resolution of the job's tiles."
        )
    return concepts


def _counters(features: FeatureSet, slides: Sequence[str], seed: int) -> list[NDArray[Any]]:
    """Random tiles of the job, in sets."""
    rng = np.random.default_rng(seed)
    chosen = [slides[k] for k in rng.permutation(len(slides))[:_MOST_SLIDES]]
    rows = np.concatenate([_some(features.bag(name), rng) for name in chosen])
    size = min(COUNTER_TILES, max(5, len(rows) // 4))
    return [rows[rng.choice(len(rows), size, replace=False)] for _ in range(COUNTERS)]


def _some(bag: mil.Bag, rng: np.random.Generator) -> NDArray[Any]:
    rows = rng.permutation(bag.n_tiles)[:500]
    found: NDArray[Any] = bag.features.numpy()[np.sort(rows)]
    return found


def lines(found: Sequence[ConceptScore], path: Path, named: NamedModel) -> list[str]:
    """Return what people read."""
    out = []
    for one in found:
        side = "speaks for" if one.score > one.random else "speaks against"
        told = f"{side} the class (p {one.p:.2g})" if one.p < 0.05 else f"no more than chance (p {one.p:.2g})"
        weak = "; its examples are hardly told from random tiles" if one.accuracy < 0.6 else ""
        apart = f" ± {one.apart:.2f} between the models" if named.members else ""
        out.append(
            f"concept {one.concept}: {one.score:.2f}{apart} against {one.random:.2f} of random concepts: {told}{weak}"
        )
    whose = f"{named.name} (mean of its {len(named.members)} models)" if named.members else named.name
    return [*out, f"concepts of {whose} → {path}"]
