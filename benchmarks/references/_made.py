"""Bags made by known laws, so that what can be reached is known."""

from __future__ import annotations

import numpy as np
from _sets import bag
from numpy.typing import NDArray
from scipy.special import logsumexp

import mil

Array = NDArray[np.float64]
POISON = -10.0


def single_concept(n: int, *, test: bool, seed: int, dim: int = 16, negatives: int = 10) -> mil.BagSet:
    """Bags that are positive where 1 to 3 tiles are of the concept, and a tile that misleads who breaks the assumption.

    Other tiles are N(0, 1); those of the concept N(0, 3²) or N(1, 1). A tile at -10 ("poison") is in every *negative*
    bag, in test bags in every *positive* one: to say "negative" for its sake is wrong, for it is no sign of the concept
    and a tile more cannot make a bag negative. Such a model scores an AUC below 1/2 in the test.

    Source: Raff and Holt, NeurIPS 2023, algorithm 1.
    """
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n):
        tiles = [rng.normal(size=(negatives, dim))]
        if i % 2:
            wide = rng.random(rng.integers(1, 4)) < 0.5
            tiles += [np.where(wide[:, None], rng.normal(0, 3, (len(wide), dim)), rng.normal(1, 1, (len(wide), dim)))]
        if bool(i % 2) == test:
            tiles.append(rng.normal(POISON, 0.1, (1, dim)))
        mixed = rng.permutation(np.concatenate(tiles))
        bags.append(bag(mixed, f"{seed}-{i}"))
    return mil.BagSet(bags, np.arange(n) % 2, tuple(b.ids[0] for b in bags))


def correlated(n: int, *, informative: int, shift: float, seed: int, dim: int = 8, run: int = 3) -> mil.BagSet:
    """Rows of 15 to 45 tiles of N(0, 1); in positive ones `run` neighbors are shifted in the first features.

    Source: Harvey et al. 2025, "Synthetic Data Reveals Generalization Gaps in Correlated Multiple Instance Learning",
    arXiv 2510.25759.
    """
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n):
        tiles = rng.normal(size=(rng.integers(15, 46), dim))
        if i % 2:
            start = rng.integers(0, len(tiles) - run + 1)
            tiles[start : start + run, :informative] += shift
        bags.append(bag(tiles, f"{seed}-{i}"))
    return mil.BagSet(bags, np.arange(n) % 2, tuple(b.ids[0] for b in bags))


def evidence(tiles: Array, informative: int, shift: float) -> Array:
    """Log likelihood ratio of each tile, shifted against not, (N,)."""
    return tiles[:, :informative].sum(axis=1) * shift - informative * shift**2 / 2


def bayes_score(tiles: Array, informative: int, shift: float, run: int = 3) -> float:
    """Log likelihood ratio of a bag: the mean over where the run may start; in logarithms, where densities underflow.

    No score has a higher AUC in expectation (Neyman and Pearson).
    """
    ratio = evidence(np.asarray(tiles, np.float64), informative, shift)
    starts = np.lib.stride_tricks.sliding_window_view(ratio, run).sum(axis=1)
    return float(logsumexp(starts) - np.log(len(starts)))


def digit_bags(
    images: Array, labels: NDArray[np.int64], n: int, seed: int
) -> tuple[mil.BagSet, list[NDArray[np.bool_]]]:
    """Bags of about 10 digits (N(10, 2), at least 3), every second one with one or two nines; and where the nines are.

    Source: MNIST-bags of Ilse, Tomczak, Welling, ICML 2018, on scikit-learn's 8 x 8 digits.
    """
    rng = np.random.default_rng(seed)
    nines, others = np.flatnonzero(labels == 9), np.flatnonzero(labels != 9)
    bags, truth = [], []
    for i in range(n):
        size, hits = max(3, round(rng.normal(10, 2))), rng.integers(1, 3) if i % 2 else 0
        rows = rng.permutation(np.concatenate([rng.choice(nines, hits), rng.choice(others, size - hits)]))
        bags.append(bag(images[rows], f"{seed}-{i}"))
        truth.append(labels[rows] == 9)
    return mil.BagSet(bags, np.arange(n) % 2, tuple(b.ids[0] for b in bags)), truth
