"""The agreement between the queue and whoever reads for it: requests, each of which gives one or several tiles.

The stream knows only this face; `wsi.plan` says what stands behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.errors import TileReadError

Place = Callable[[int], NDArray[np.uint8]]
"""Give the row of a tile in its grid, get the (S, S, 3) view to write it to.

Ask only when all bytes of the request are at hand: from then on a batch waits for it.
"""


class StoppedError(Exception):
    """The stream was closed while a read waited, for room or for another process."""


@dataclass(frozen=True)
class ReadRequest:
    """One read: the rows of the grid that it gives."""

    rows: tuple[int, ...]


class ReadPlan(Protocol):
    """How the tiles of one slide are read."""

    most_rows: int
    """The most tiles that one request gives."""

    scratch_bytes: int
    """What one request needs in memory while it runs, besides the tiles it gives."""

    def requests(self) -> Iterator[ReadRequest]:
        """Yield the requests; together they give each row of the grid once."""

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Read the tiles of a request and write each to `place(row)`; called from several threads.

        Returns:
            The rows that cannot be read, and why. They may have been placed or not.

        Raises:
            SlideError: none of the request's tiles can be read.
        """
