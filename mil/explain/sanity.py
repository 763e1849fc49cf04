"""Does a map depend on what was learned, and would it be the same had training begun elsewhere?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike

from mil.fusion import attach
from mil.heads import Head, create_head

from .scale import ranks


def agreement(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's correlation of two maps of the same tiles; 0 where one of them is flat."""
    a, b = (ranks(values) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def stability(maps: Sequence[ArrayLike]) -> float | None:
    """Mean agreement of the maps of several models (seeds, folds), pair by pair; None with fewer than two."""
    pairs = [agreement(one, other) for one, other in combinations(maps, 2)]
    return float(np.mean(pairs)) if pairs else None


def randomized_head(head: Head, seed: int = 0) -> Head:
    """The same head with fresh weights and the same standardization: a map must not look the same with it.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (model parameter randomization).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = create_head(head.name, head.in_dim, head.classes, **head.options)
        if head.fusion is not None:
            attach(fresh, head.fusion.kind, head.fusion.sizes)
    fresh.input.load_state_dict(head.input.state_dict())
    return fresh.to(head.input.mean.device).eval()
