"""Does a map say what the model uses? Tiles are taken away, or put in, in its order, and the model is asked again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mil.bag import Bag
from mil.heads import Head
from mil.predict import infer

STEPS, RANDOM_ORDERS = 40, 5


@dataclass(frozen=True, eq=False)
class Curve:
    """How the probability of a class changes along an order of the tiles.

    Attributes:
        shares: share of the tiles taken away (or put in), shape (S,), rising.
        probabilities: of the class, shape (S,).
    """

    shares: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Mean of the probability over the shares."""
        width = float(self.shares[-1] - self.shares[0])
        if not width:
            return float(self.probabilities[0])
        middles = (self.probabilities[1:] + self.probabilities[:-1]) / 2
        return float(middles @ np.diff(self.shares)) / width

    @property
    def drop(self) -> float:
        """How far the curve lies below where it began, on average: large for a deletion that hits what counts."""
        return float(self.probabilities[0]) - self.area


@dataclass(frozen=True)
class Faithfulness:
    """What a map is worth on one bag, beside random orders.

    Attributes:
        deletion: `drop` when the highest tiles go first.
        deletion_random: the same in random orders, mean.
        insertion: `area` when the highest tiles come first.
        insertion_random: the same in random orders, mean.
    """

    deletion: float
    deletion_random: float
    insertion: float
    insertion_random: float


def faithfulness(
    head: Head,
    bag: Bag,
    target: int,
    values: ArrayLike,
    *,
    steps: int = STEPS,
    orders: int = RANDOM_ORDERS,
    seed: int = 0,
) -> Faithfulness:
    """Compare the order that a map gives with random orders, on one bag."""
    best_first = np.argsort(-np.asarray(values, np.float64), kind="stable")
    rng = np.random.default_rng(seed)
    random = [rng.permutation(bag.n_tiles) for _ in range(orders)]
    return Faithfulness(
        deletion(head, bag, target, best_first, steps=steps).drop,
        float(np.mean([deletion(head, bag, target, order, steps=steps).drop for order in random])),
        insertion(head, bag, target, best_first, steps=steps).area,
        float(np.mean([insertion(head, bag, target, order, steps=steps).area for order in random])),
    )


def deletion(head: Head, bag: Bag, target: int, order: NDArray[np.int64], *, steps: int = STEPS) -> Curve:
    """Take tiles away in an order, down to one tile.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018, §4.2; on instances Early et al., ICLR 2022.
    """
    counts = _counts(bag.n_tiles, steps, last=bag.n_tiles - 1)
    return _curve(head, bag, target, counts, [order[n:] for n in counts])


def insertion(head: Head, bag: Bag, target: int, order: NDArray[np.int64], *, steps: int = STEPS) -> Curve:
    """Put tiles in, from the first one to all."""
    counts = _counts(bag.n_tiles, steps, last=bag.n_tiles - 1) + 1
    return _curve(head, bag, target, counts, [order[:n] for n in counts])


def _counts(n: int, steps: int, *, last: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to `last`, evenly."""
    return np.unique(np.rint(np.linspace(0, last, min(steps, n - 1) + 1)).astype(np.int64))


@torch.inference_mode()
def _curve(head: Head, bag: Bag, target: int, counts: NDArray[np.int64], kept: list[NDArray[np.int64]]) -> Curve:
    """Ask the head for each selection; rows keep their order in the bag, for it may matter."""
    chances = []
    for rows in kept:
        logits = infer(head, subset(bag, np.sort(rows))).logits[0].double()
        chances.append(float(torch.softmax(logits, dim=0)[target]))
    return Curve(counts / bag.n_tiles, np.array(chances))


def subset(bag: Bag, rows: NDArray[np.int64]) -> Bag:
    """Some tiles of one bag."""
    index = torch.from_numpy(np.ascontiguousarray(rows))
    xy = None if bag.xy is None else bag.xy[index]
    return replace(bag, features=bag.features[index], offsets=torch.tensor([0, len(index)]), xy=xy)
