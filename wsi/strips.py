"""A picture worked on strip by strip, so that what is in between never lies in memory whole.

For operations that look at a pixel and its neighbours within some reach: each strip is worked on with so many more
rows above and below, which are then cut off, so that the results are the same bits as those of the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any], ...]
Given = TypeVar("Given", bound=Arrays)
ROWS = 192
"""Rows of a strip, without those around it."""


def by_strips(work: Callable[..., Arrays], *given: NDArray[Any], reach: int, rows: int = ROWS) -> Arrays:
    """Return what `work` gives for whole arrays, having given it some rows at a time.

    Args:
        work: takes the rows of each array, gives arrays of as many rows.
        given: arrays of the same height.
        reach: how many rows away a pixel may have a say.
        rows: of a strip; the results do not depend on it.
    """
    out: list[NDArray[Any]] = []
    height = len(given[0])
    for top, bottom, above, below in strips(height, reach, rows):
        parts = work(*(one[above:below] for one in given))
        if not out:
            out = [np.empty((height, *part.shape[1:]), part.dtype) for part in parts]
        for whole, part in zip(out, parts, strict=True):
            whole[top:bottom] = part[top - above : bottom - above]
    return tuple(out)


def strips(height: int, reach: int, rows: int = ROWS) -> Iterator[tuple[int, int, int, int]]:
    """Yield first and last row of each strip, then the same with the rows around it."""
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        yield top, bottom, max(0, top - reach), min(height, bottom + reach)


def reach_of(sigma: float) -> int:
    """Return how far a Gaussian blur of scipy reaches, px."""
    return int(4.0 * sigma + 0.5)
