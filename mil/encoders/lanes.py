"""How a batch of any size gets through a network in parts of one shape: on a CPU, and on a CUDA device.

On a CPU the shape never depends on what the caller asks for, so features are the same bytes for any batch size. On
CUDA pixels go as uint8 from pinned memory on a stream of their own, while the part before is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU_PART = 8
"""Tiles of one pass on a CPU: measured 5 to 25 % faster than 32, for what a layer gives stays in the cache."""

_NO_MEMORY = "no memory for "

Run = Callable[[Tensor, int], Tensor]
"""Tiles of one pass, and the row of the batch at which they begin → what is wanted of them."""

Pixels = NDArray[np.uint8] | NDArray[np.float32]


class Lane:
    """Takes batches through a network, part by part, each filled up to the same shape.

    When the device has no memory for a part, parts are halved from then on, and `notes` says so once.

    Attributes:
        part: tiles in one pass.
        notes: what the user should know.
    """

    def __init__(self, part: int) -> None:
        self.part = part
        self.notes: list[str] = []

    def __call__(self, pixels: Pixels, run: Run, width: int) -> NDArray[np.float32]:
        """Return the features (B, width) of tiles (B, …).

        Raises:
            torch.OutOfMemoryError: there is no memory even for one tile.
        """
        features = np.empty((len(pixels), width), np.float32)
        while len(pixels):
            try:
                self._through(pixels, run, features)
                return features
            except torch.OutOfMemoryError:
                if self.part == 1:
                    raise
                self._halve()
        return features

    def _halve(self) -> None:
        """Take smaller parts from now on."""
        before, self.part = self.part, self.part // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        text = f"{_NO_MEMORY}{before} tiles at once: the encoder takes {self.part} (--batch-size {self.part})"
        self.notes[:] = [*(note for note in self.notes if not note.startswith(_NO_MEMORY)), text]

    def _through(self, pixels: Pixels, run: Run, out: NDArray[np.float32]) -> None:
        for start in range(0, len(pixels), self.part):
            part = pixels[start : start + self.part]
            if len(part) < self.part:
                slab = np.zeros((self.part, *part.shape[1:]), part.dtype)
                slab[: len(part)] = part
            else:
                slab = np.ascontiguousarray(part)
            if not slab.flags.writeable:  # torch warns of memory that it may not write to
                slab = slab.copy()
            out[start : start + len(part)] = run(torch.from_numpy(slab), start)[: len(part)].float().numpy()


class CudaLane(Lane):
    """The same with two pinned slabs and a side stream: one part is copied while another is computed."""

    def __init__(self, part: int, device: str) -> None:
        super().__init__(part)
        self.device = torch.device(device)
        self._copying: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._slabs: list[Tensor] = []
        self._free: list[Any] = []

    def _through(self, pixels: Pixels, run: Run, out: NDArray[np.float32]) -> None:
        pending: list[tuple[int, int, Tensor]] = []
        computing = torch.cuda.current_stream(self.device)
        for number, start in enumerate(range(0, len(pixels), self.part)):
            part = pixels[start : start + self.part]
            there, copied = self._copy(number % 2, part)
            computing.wait_event(copied)
            there.record_stream(computing)
            pending.append((start, len(part), run(there, start)))
        for start, rows, values in pending:
            out[start : start + rows] = values[:rows].float().cpu().numpy()

    def _copy(self, number: int, part: Pixels) -> tuple[Tensor, Any]:
        """Copy a part to the device on the side stream, through a pinned slab that the copy before has left."""
        shape, dtype = (self.part, *part.shape[1:]), torch.from_numpy(part[:0].copy()).dtype
        if not self._slabs or self._slabs[0].shape != shape or self._slabs[0].dtype != dtype:
            self._slabs = [torch.zeros(shape, dtype=dtype).pin_memory() for _ in range(2)]
            self._free = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        slab, free = self._slabs[number], self._free[number]
        free.synchronize()  # an event that was never recorded counts as reached
        slab.numpy()[: len(part)] = part
        slab.numpy()[len(part) :] = 0
        with torch.cuda.stream(self._copying):
            there = slab.to(self.device, non_blocking=True)
            free.record(self._copying)
        return there, free


def lane_of(device: str, batch_size: int) -> Lane:
    """Return the lane of a device."""
    return CudaLane(batch_size, device) if device.startswith("cuda") else Lane(CPU_PART)


def largest_part(cost: Callable[[int], int], free: int, *, share: float = 0.8, most: int = 1024) -> int:
    """Return how many tiles fit into memory at once, a multiple of 8 from 8 on.

    Args:
        cost: tiles → bytes that a pass over so many takes at its peak, above what lies there anyway.
        free: bytes that are free.
        share: of them that may be used.
        most: tiles, more of which do not fill a device better.
    """
    few, more = cost(2), cost(4)
    each = max((more - few) / 2, 1.0)
    fixed = max(few - 2 * each, 0.0)
    fit = int((free * share - fixed) / each)
    return max(1, min(most, fit // 8 * 8 if fit >= 8 else fit))


def probe_cuda(run: Run, shape: tuple[int, int, int], device: str) -> int:
    """Return how many uint8 tiles of that shape fit on a CUDA device at once, by passing 2 and then 4 of them."""

    def cost(tiles: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(torch.zeros((tiles, *shape), dtype=torch.uint8, device=device), 0)
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)

    cost(1)  # what is set up once would count as the tile's
    free, _ = torch.cuda.mem_get_info(device)
    return largest_part(cost, free)
