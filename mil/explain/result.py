"""What every explanation gives: one number per tile, and what has to be known to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bag import Bag
from mil.heads import Head

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """One number per tile.

    Attributes:
        values: shape (T,), float32.
        facts: what the method found out about itself, e.g. `baseline`, `completeness_error`, `bias`; plain values.
    """

    values: Floats
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reach:
    """What a method may need besides head and bag.

    Attributes:
        encoder: that made the features, for methods that reach pixels and for the features of white.
        tiles: re-iterable in bag order; RGB (S, S, 3) or batches (b, S, S, 3), uint8, as the encoder saw them.
        options: of the method, e.g. `steps` of integrated gradients.
    """

    encoder: Any = None
    tiles: Iterable[NDArray[np.uint8]] | None = None
    options: dict[str, Any] = field(default_factory=dict)


Run = Callable[[Head, Bag, int, Reach], Explanation]


def bag_by_bag(run: Callable[[Head, Bag, int, Reach], Explanation]) -> Run:
    """Make a method for one bag one for several, each by itself, as `predict` takes them."""

    def whole(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
        parts = [run(head, one, target, reach) if one.n_tiles else _NOTHING for one in bag.split()]
        values = np.concatenate([part.values for part in parts])
        return Explanation(values, parts[0].facts if len(parts) == 1 else _listed([part.facts for part in parts]))

    return whole


_NOTHING = Explanation(np.zeros(0, np.float32))


def as_values(rows: Tensor) -> Floats:
    """Float32 on the CPU."""
    values: Floats = rows.detach().to(torch.float32).cpu().numpy()
    return values


def _listed(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of several bags: a list where they differ."""
    names = dict.fromkeys(name for one in facts for name in one)
    every = {name: [one.get(name) for one in facts] for name in names}
    return {name: found[0] if all(one == found[0] for one in found) else found for name, found in every.items()}
