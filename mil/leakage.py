"""Is a test slide known from training? Copies, and slides that look too much alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .bag import Bag

COPY = 0.05  # share of equal tiles from which two slides are told
ALIKE = 0.1  # of the usual distance to the nearest slide


@dataclass(frozen=True)
class Suspicion:
    """Two slides on different sides that may be one.

    Attributes:
        first: a slide.
        second: a slide of another side.
        shared: share of the smaller one's tiles whose features are the same numbers.
        distance: between their summaries, over the median distance of a slide to its nearest.
    """

    first: str
    second: str
    shared: float
    distance: float


@dataclass(frozen=True, eq=False)
class Signature:
    """What of a slide is compared.

    Attributes:
        tiles: hash of each tile's features, sorted, (N,) uint64.
        summary: mean and standard deviation of the features, (2 D,).
    """

    tiles: NDArray[np.uint64]
    summary: NDArray[np.float64]


def signature(bag: Bag) -> Signature:
    """Summarize one slide; features are gone through once, in chunks."""
    total = squares = torch.zeros(bag.dim, dtype=torch.float64)
    hashes = []
    for chunk in bag.chunks(4096):
        x = chunk.features.to(torch.float64)
        total, squares = total + x.sum(dim=0), squares + x.square().sum(dim=0)
        hashes.append(_hash(chunk.features.to(torch.float16)))
    n = max(bag.n_tiles, 1)
    mean = total / n
    spread = (squares / n - mean.square()).clamp(min=0).sqrt()
    return Signature(np.unique(np.concatenate(hashes)), torch.cat([mean, spread]).numpy())


def suspicions(names: Sequence[str], sides: Sequence[str], signatures: Sequence[Signature]) -> list[Suspicion]:
    """Pairs of slides on different sides that share tiles, or lie much closer than slides usually do.

    Args:
        names: of the slides.
        sides: of each: its fold, or train, val, test; "" for none.
        signatures: of each.
    """
    summary = np.stack([s.summary for s in signatures])
    z = (summary - summary.mean(axis=0)) / np.where(summary.std(axis=0) > 0, summary.std(axis=0), 1)
    gaps = np.sqrt(np.maximum((z**2).sum(1)[:, None] + (z**2).sum(1) - 2 * z @ z.T, 0))
    np.fill_diagonal(gaps, np.inf)
    usual = float(np.median(gaps.min(axis=1))) or 1.0
    shared, at = _shared([s.tiles for s in signatures]), np.array(sides)
    apart = (at[:, None] != at) & (at != "") & (at != "")[:, None]
    suspect = np.triu(apart & ((shared >= COPY) | (gaps < ALIKE * usual)), k=1)
    return [
        Suspicion(names[i], names[j], float(shared[i, j]), float(gaps[i, j] / usual)) for i, j in np.argwhere(suspect)
    ]


def _shared(tiles: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """Share of equal tiles of each two slides, (n, n), of the smaller one's; all pairs at once.

    Args:
        tiles: different hashes of each slide.
    """
    from scipy.sparse import csr_array

    sizes = np.array([len(one) for one in tiles])
    values, column = np.unique(np.concatenate(tiles), return_inverse=True)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    has = csr_array((np.ones(len(column), np.int32), column, edges), shape=(len(tiles), len(values)))
    count: NDArray[np.float64] = (has @ has.T).toarray() / np.maximum(np.minimum.outer(sizes, sizes), 1)
    return count


def _hash(rows: torch.Tensor) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of half-precision numbers (N, D)."""
    bits = np.ascontiguousarray(rows.numpy()).view(np.uint16).astype(np.uint64)
    odd = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    with np.errstate(over="ignore"):
        mixed: NDArray[np.uint64] = (bits * odd).sum(axis=1, dtype=np.uint64)
    return mixed
