"""Memory that processes share: no name, so nothing is left behind however a process ends."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Ring:
    """Shared memory that grows; the process that owns it."""

    def __init__(self) -> None:
        self.descriptor = _nameless_file()
        self._stretches: list[tuple[int, int, Bytes]] = []
        """Of each: where it begins in the file, its address, its bytes."""
        self._size = self._used = 0

    def take(self, size: int) -> Bytes:
        """Return so many new bytes, shape (size,)."""
        if self._used + size > self._size:
            self._grow(size)
        start, _, stretch = self._stretches[-1]
        begin = self._used - start
        self._used += size
        return stretch[begin : begin + size]

    def offset_of(self, view: Bytes) -> int:
        """Return where an array lies in the shared memory.

        Raises:
            ValueError: it lies elsewhere, or not in one piece.
        """
        address = view.__array_interface__["data"][0]
        for start, base, stretch in self._stretches:
            offset = address - base
            if offset >= 0 and offset + view.nbytes <= len(stretch) and view.flags.c_contiguous:
                return int(start + offset)
        raise ValueError("a slab must lie in the shared memory that its allocator was given, in one piece")

    def close(self) -> None:
        """Let go of the file; the memory goes with the last array that lies in it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _grow(self, size: int) -> None:
        """Double it: a few mappings whatever the number of slabs. Pages that nobody writes to cost nothing."""
        page = mmap.ALLOCATIONGRANULARITY
        more = -(-max(size, self._size) // page) * page
        os.ftruncate(self.descriptor, self._size + more)
        stretch = np.frombuffer(mmap.mmap(self.descriptor, more, offset=self._size), np.uint8)
        self._stretches.append((self._size, stretch.__array_interface__["data"][0], stretch))
        self._used = self._size
        self._size += more


class RingReader:
    """The same memory in another process, which writes where it is told to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._memory: Bytes = np.zeros(0, np.uint8)

    def tile(self, offset: int, side: int) -> Bytes:
        """Return the place of a tile, shape (side, side, 3)."""
        end = offset + 3 * side * side
        memory = self._memory
        if end > len(memory):
            with self._lock:
                memory = self._memory = np.frombuffer(mmap.mmap(self._descriptor, 0), np.uint8)
        return memory[offset:end].reshape(side, side, 3)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slidemil-tiles")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
