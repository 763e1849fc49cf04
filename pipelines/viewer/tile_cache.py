"""Finished tiles in memory, up to a number of bytes; the one that was longest unasked goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable


class TileCache:
    """Bytes by key.

    Args:
        most_bytes: all together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> bytes | None:
        """Return what is kept under a key."""
        with self._lock:
            data = self._kept.get(key)
            if data is not None:
                self._kept.move_to_end(key)
            return data

    def put(self, key: Hashable, data: bytes) -> None:
        """Keep bytes; what is larger than all the room is not kept."""
        if len(data) > self.most_bytes:
            return
        with self._lock:
            self.bytes += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self.bytes > self.most_bytes:
                self.bytes -= len(self._kept.popitem(last=False)[1])
