"""A model's head trained once more from another seed, in memory: what its explanations owe to chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

import mil

from .feature_sets import FeatureSet
from .predictions import NamedModel


def retrained(
    named: NamedModel, features: FeatureSet, rows: Mapping[str, Mapping[str, Any]], seed: int
) -> mil.Head | None:
    """Train on the slides that the model was trained on, with its settings and another seed.

    Args:
        named: the model.
        features: of the job.
        rows: slide → its row of the prediction table, with `label`, `split` and `case_id`.
        seed: added to that of the model.

    Returns:
        The head; None where the job does not know the model's training or validation slides.
    """
    told: dict[str, Any] = named.model.config.get("training", {}).get("settings", {})
    known = {field.name for field in fields(mil.TrainSettings)}
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in told.items() if key in known
    }
    sides = [_bags(named, features, rows, side) for side in ("train", "val")]
    if not settings or any(side is None for side in sides):
        return None
    settings |= {"seed": int(told.get("seed", 0)) + seed, "device": "cpu", "adapt": "none"}
    try:
        asked, variables = mil.TrainSettings(**settings), named.model.variables
        return mil.train(sides[0], sides[1], named.model.classes, asked, variables=variables).head  # type: ignore[arg-type]
    except mil.TrainingDataError:
        return None


def _bags(
    named: NamedModel, features: FeatureSet, rows: Mapping[str, Mapping[str, Any]], side: str
) -> mil.BagSet | None:
    classes = named.model.classes
    mine = [
        row
        for name, row in sorted(rows.items())
        if row.get("split") == side and row.get("label") in classes and name in features and features.n_tiles(name)
    ]
    if not mine:
        return None
    labels = np.array([classes.index(str(row["label"])) for row in mine], np.int64)
    bags = [named.joined(features.bag(str(row["slide_id"]))) for row in mine]
    return mil.BagSet(bags, labels, tuple(str(row["case_id"]) for row in mine))
