"""An array (N, …) in a sharded zarr v3 store, whose rows are written in any order straight to their final place.

Each row is one chunk, uncompressed: float16 features do not get smaller. So it is known beforehand where a row lies,
nothing is gathered in memory, and nothing is written twice. A shard is a file of chunks with an index at its end.

Source: Zarr v3, sharding-indexed codec, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 64 << 20
"""Bytes of a shard, about: one file, and one object in the cloud."""
_POLYNOMIAL = 0x82F63B78
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class Shards:
    """The shards of one array of which each row is a chunk.

    Attributes:
        folder: of the array, with its `zarr.json`.
        shape: of one row.
        dtype: of its values, little-endian.
        each: rows of a shard.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    each: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def put(self, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
        """Write some rows (B, …), in any order."""
        data = np.ascontiguousarray(values, self.dtype).reshape(len(rows), -1)
        shards = rows // self.each
        for shard in np.unique(shards):
            with _opened(self._file(int(shard))) as fd:
                for i in np.flatnonzero(shards == shard):
                    _write_at(fd, memoryview(data[i]).cast("B"), int(rows[i] % self.each) * self.row_bytes)

    def move_up(self, kept: NDArray[np.int64]) -> None:
        """Close the gaps that rows left which are not there; `kept` are the others, in order."""
        for row in np.flatnonzero(kept != np.arange(len(kept))):
            with _opened(self._file(int(kept[row] // self.each))) as fd:
                data = os.pread(fd, self.row_bytes, int(kept[row] % self.each) * self.row_bytes)
            with _opened(self._file(int(row // self.each))) as fd:
                _write_at(fd, memoryview(data), int(row % self.each) * self.row_bytes)

    def close(self, rows: int) -> None:
        """Cut the shards to the rows there are, and write their indexes."""
        for shard, file in self._files():
            inside = min(self.each, rows - shard * self.each)
            if inside <= 0:
                file.unlink()
                continue
            with _opened(file) as fd:
                os.ftruncate(fd, inside * self.row_bytes)
                _write_at(fd, memoryview(index(inside, self.each, self.row_bytes)), inside * self.row_bytes)

    def _file(self, shard: int) -> Path:
        return self.folder.joinpath("c", str(shard), *("0" for _ in self.shape))

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Yield number and file of each shard that was begun."""
        begun = sorted(int(folder.name) for folder in self.folder.glob("c/*"))
        yield from ((shard, self._file(shard)) for shard in begun)


def rows_of_shard(row_bytes: int, rows: int) -> int:
    """Return how many rows go into a shard."""
    return max(1, min(rows, SHARD_BYTES // max(1, row_bytes)))


def index(inside: int, each: int, row_bytes: int) -> bytes:
    """Return the index of a shard that holds the first `inside` of `each` chunks: place and size of each, CRC-32C."""
    table = np.full((each, 2), _ABSENT, "<u8")
    table[:inside, 0] = np.arange(inside, dtype=np.uint64) * np.uint64(row_bytes)
    table[:inside, 1] = row_bytes
    data = table.tobytes()
    return data + crc32c(data).to_bytes(4, "little")


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes, as zarr puts it behind an index."""
    found = 0xFFFFFFFF
    for byte in data:
        found = _TABLE[(found ^ byte) & 0xFF] ^ (found >> 8)
    return found ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file to read and write at any place of it, by its number; it is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_at(fd: int, data: memoryview, place: int) -> None:
    while len(data):
        written = os.pwrite(fd, data, place)
        data, place = data[written:], place + written
