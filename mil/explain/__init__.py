"""Explanations: one method per file, all (head, bag, target) → one number per tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.bag import Bag
from mil.errors import MilError, did_you_mean
from mil.heads import Head

from .attention import attention

__all__ = ["METHODS", "explain"]

METHODS: dict[str, Callable[[Head, Bag, int], NDArray[np.float32]]] = {"attention": attention}


def explain(
    method: str,
    head: Head,
    bag: Bag,
    target: int,
    *,
    encoder: Any = None,
    tiles: Iterable[Any] | None = None,
) -> NDArray[np.float32]:
    """Say how much each tile mattered.

    Args:
        method: a key of `METHODS`.
        head: the trained head.
        bag: one or several bags.
        target: class number that is explained.
        encoder: for methods that reach pixels; none does yet.
        tiles: re-iterable in bag order, for methods that reach pixels.

    Returns:
        Shape (T,), float32; its meaning and unit are the method's.

    Raises:
        MilError: no such method or class.
    """
    del encoder, tiles  # agreed for the methods to come
    if method not in METHODS:
        raise MilError(
            f"no explanation is called {method!r}.{did_you_mean(method, METHODS)} There are: {', '.join(METHODS)}."
        )
    if not 0 <= target < head.classes:
        raise MilError(f"class {target} does not exist; the head has classes 0 to {head.classes - 1}.")
    return METHODS[method](head, bag, target)
