"""Training bags as the head takes them: transformed once, kept in memory as far as that goes, else made anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from .bag import Bag

_PIECE = 1024  # tiles transformed at a time: what is made in between stays in the processor's cache


class PreparedBags(Sequence[Bag]):
    """Transformed bags of one side; up to `budget` bytes of them are kept, the others are read again at every visit."""

    def __init__(
        self, bags: Sequence[Bag], transform: Callable[[Bag], Bag], dtype: torch.dtype, budget: float, device: str
    ) -> None:
        self._bags, self._transform, self._device = bags, transform, device
        self.dtype = dtype
        self._kept: dict[int, Bag] = {}
        self._left = budget

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, i: Any) -> Any:
        kept = self._kept.get(i)
        if kept is not None:
            return kept
        bag = self._make(self._bags[i])
        size = bag.features.numel() * bag.features.element_size()
        if size <= self._left:
            self._kept[i], self._left = bag, self._left - size
        return bag

    def pack(self, rows: Sequence[int]) -> Bag:
        """Return some bags packed; a single one is not copied."""
        bags: list[Bag] = [self[i] for i in rows]
        return bags[0] if len(bags) == 1 else Bag.from_list(bags)

    def _make(self, bag: Bag) -> Bag:
        """Transform one bag piece by piece."""
        out = torch.empty(bag.features.shape, dtype=self.dtype)
        for start in range(0, bag.n_tiles, _PIECE):
            rows = bag.features[start : start + _PIECE]
            piece = Bag(rows, torch.tensor([0, len(rows)]), None, bag.ids)
            out[start : start + _PIECE] = self._transform(piece).features
        return replace(bag, features=out).to(self._device)
