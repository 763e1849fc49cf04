"""What a freshly trained probe can tell of the site from the embeddings of a model: before and after adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.predict import infer
from stain.batch_effect import difference_p, probe
from stain.errors import StainError

PERMUTATIONS = 199
Bags = Callable[[mil.TrainedModel], Sequence[mil.Bag]]


def embeddings(model: mil.TrainedModel, bags: Sequence[mil.Bag]) -> NDArray[np.float64]:
    """What the model's classifier sees of each slide, (n, E)."""
    rows = [infer(model.head, bag).embedding[0].detach().double().cpu().numpy() for bag in bags]
    return np.stack(rows)


def before_and_after(
    plain: mil.TrainedModel,
    adapted: mil.TrainedModel,
    bags: Bags,
    columns: Mapping[str, Sequence[str]],
    cases: Sequence[str],
    strata: Sequence[str],
    held_out: Sequence[bool],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Probe both models with a linear probe of their own, cross-validated by patient.

    Args:
        plain: the same training without adaptation.
        adapted: the model.
        bags: model → the slides as that model takes them.
        columns: confounder → its level for each slide, "" where it is not known.
        cases: patient of each slide.
        strata: class of each slide: what it alone gives away counts as chance.
        held_out: whether the model was not trained on the slide: these are probed apart, too.
        seed: of folds and permutations.

    Returns:
        Confounder → which slides (`all`, `held_out`) → `before`, `after` (balanced accuracy with interval, chance and
        p) and `p_difference`; or why there is no answer.
    """
    before, after = (embeddings(model, bags(model)) for model in (plain, adapted))
    found: dict[str, Any] = {}
    for column, levels in columns.items():
        known = np.array([bool(level) for level in levels])
        sets = {"all": known, "held_out": known & np.asarray(held_out, bool)}
        found[column] = {name: _asked(before, after, levels, cases, strata, rows, seed) for name, rows in sets.items()}
    return found


def _asked(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    levels: Sequence[str],
    cases: Sequence[str],
    strata: Sequence[str],
    rows: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    chosen = [int(row) for row in np.flatnonzero(rows)]
    sites, patients, classes = ([some[i] for i in chosen] for some in (levels, cases, strata))
    try:
        one, two = (
            probe(z[chosen], sites, patients, strata=classes, permutations=PERMUTATIONS, seed=seed)
            for z in (before, after)
        )
    except StainError as error:
        return {"slides": len(chosen), "reason": str(error)}
    p = difference_p(one, two, patients, permutations=PERMUTATIONS, seed=seed)
    return {"slides": len(chosen), "before": one.to_json(), "after": two.to_json(), "p_difference": round(p, 4)}
