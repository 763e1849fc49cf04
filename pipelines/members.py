"""Explanations of a model; of an ensemble (the folds of a cross-validation) the mean over its members.

The mean of the members' values explains the mean of their logits: what sums up for each sums up for all. The
prediction of an ensemble is the mean of the members' probabilities, and deletion curves are averaged likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.explain import METHODS, Reach, explanation
from mil.explain.faithfulness import Faithfulness, faithfulness
from mil.explain.gradcam import tile_maps
from mil.explain.result import Explanation

from .predictions import NamedModel

_WORST = ("completeness_error", "features_apart")
"""Errors, of which the largest of the members is told."""


def explained(
    named: NamedModel, method: str, bag: mil.Bag, target: int, encoder: Any = None, tiles: Any = None
) -> Explanation:
    """Return values and facts of a method for one slide.

    Args:
        named: the model.
        method: a key of `METHODS`.
        bag: of the slide, without clinical variables.
        target: class number.
        encoder: that made the features, or None.
        tiles: re-iterable in bag order, for methods that reach pixels.
    """
    found = [
        explanation(
            method,
            model.head,
            named.joined(bag, model),
            target,
            encoder=encoder,
            tiles=tiles if METHODS[method].pixels else None,
        )
        for model in named.each
    ]
    if len(found) == 1:
        return found[0]
    return Explanation(
        _mean([one.values for one in found]), {**_together([one.facts for one in found]), "mean_of_models": len(found)}
    )


def maps_of(named: NamedModel, bag: mil.Bag, target: int, rows: Sequence[int], reach: Reach) -> NDArray[np.float32]:
    """Return Grad-CAM maps (n, h, w) of some tiles, on the scale of the whole slide."""
    maps = [tile_maps(model.head, named.joined(bag, model), target, rows, reach) for model in named.each]
    return maps[0] if len(maps) == 1 else _mean(maps)


def faithfulness_of(
    named: NamedModel, bag: mil.Bag, target: int, values: NDArray[np.float32], **how: int
) -> Faithfulness:
    """Return what a map is worth on one slide: the curves of the mean probability are the mean of the curves.

    Args:
        named: a model of classes.
        bag: of the slide, without clinical variables.
        target: class number.
        values: of the tiles, (N,).
        how: `steps` and `orders` of `mil.explain.faithfulness`.
    """
    each = [faithfulness(model.head, named.joined(bag, model), target, values, **how) for model in named.each]
    return Faithfulness(*(float(np.mean([getattr(one, field.name) for one in each])) for field in fields(Faithfulness)))


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)


def _together(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of all members: numbers as their mean, errors as their largest, words as the first says them."""
    every = list(facts)
    told: dict[str, Any] = {}
    for name, first in every[0].items():
        numbers = [one[name] for one in every]
        if isinstance(first, int | float) and not isinstance(first, bool):
            told[name] = max(numbers) if name in _WORST else float(np.mean(numbers))
        else:
            told[name] = first
    return told
