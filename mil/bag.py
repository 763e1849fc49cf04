"""Bag: the tile features of one or several slides, packed end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import BagError

Features: TypeAlias = "Tensor | NDArray[np.floating] | Bag"


@dataclass(frozen=True, eq=False)
class Bag:
    """Tile features of B bags (slides or patients), packed end to end and never padded.

    Attributes:
        features: shape (T, D), floating point; bag b owns rows `offsets[b]` to `offsets[b + 1]`.
        offsets: shape (B + 1,), int64, from 0 to T, never decreasing; equal neighbors are an empty bag.
        xy: shape (T, 2), int64, top-left corner in level-0 pixels, or None.
        ids: one text per bag.
        clinical: shape (B, V), what is known of each bag beside its tiles (`mil.clinical`), NaN where missing; or None.
    """

    features: Tensor
    offsets: Tensor
    xy: Tensor | None = None
    ids: tuple[str, ...] = ()
    clinical: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", tuple(f"bag {b}" for b in range(self.offsets.numel() - 1)))
        _check(self)

    @classmethod
    def from_list(
        cls,
        items: Sequence[Features],
        *,
        xy: Sequence[Tensor | NDArray[np.integer]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Bag:
        """Pack arrays (N, D), tensors (N, D) or other bags, in order.

        Args:
            items: one entry per bag; a Bag among them brings all its bags, coordinates and ids.
            xy: one (N, 2) array per entry; not together with Bags, which bring their own.
            ids: one name per resulting bag; by default those of the Bags, else "bag 0", "bag 1" …

        Raises:
            BagError: nothing to pack, widths differ, or coordinates and ids do not fit.
        """
        if not items:
            raise BagError("no bags to pack: the list is empty. Give at least one (N, D) array.")
        if xy is not None and len(xy) != len(items):
            raise BagError(f"{len(items)} bags but {len(xy)} coordinate arrays. Give one (N, 2) array per bag.")
        bags = [
            item if isinstance(item, Bag) else _single(item, None if xy is None else xy[i], f"bag {i}")
            for i, item in enumerate(items)
        ]
        widths = sorted({bag.dim for bag in bags})
        if len(widths) > 1:
            raise BagError(
                f"features of different width cannot share a bag: D = {', '.join(map(str, widths))}. "
                "They come from different encoders; use features of one encoder."
            )
        names = tuple(ids) if ids is not None else tuple(name for bag in bags for name in bag.ids)
        sizes = torch.cat([bag.sizes for bag in bags])
        places = [bag.xy for bag in bags if bag.xy is not None]
        rows = [bag.clinical for bag in bags if bag.clinical is not None]
        return cls(
            features=torch.cat([bag.features for bag in bags]),
            offsets=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
            xy=torch.cat(places) if len(places) == len(bags) else None,
            ids=names,
            clinical=torch.cat(rows) if len(rows) == len(bags) else None,
        )

    def __len__(self) -> int:
        """Number of bags B."""
        return self.offsets.numel() - 1

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return int(self.features.shape[1])

    @property
    def n_tiles(self) -> int:
        """Number of tiles T of all bags together."""
        return int(self.features.shape[0])

    @property
    def sizes(self) -> Tensor:
        """Number of tiles of each bag, shape (B,), int64, on the CPU."""
        return self.offsets.cpu().diff()

    @property
    def segments(self) -> Tensor:
        """Bag number of each tile, shape (T,), int64."""
        sizes = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(self), device=sizes.device), sizes)

    def split(self) -> list[Bag]:
        """Return the bags one by one; their features are views."""
        features, xy = self.per_bag(self.features), None if self.xy is None else self.per_bag(self.xy)
        return [
            Bag(
                features=rows,
                offsets=torch.tensor([0, rows.shape[0]]),
                xy=None if xy is None else xy[b],
                ids=(self.ids[b],),
                clinical=None if self.clinical is None else self.clinical[b : b + 1],
            )
            for b, rows in enumerate(features)
        ]

    def per_bag(self, values: Tensor, *, axis: int = 0) -> tuple[Tensor, ...]:
        """Cut per-tile values, whose tiles lie along `axis`, into one view per bag."""
        return torch.split(values, self.sizes.tolist(), dim=axis)

    def chunks(self, size: int) -> list[Bag]:
        """Cut one bag into views of `size` tiles at most; an empty bag is one empty chunk.

        Raises:
            BagError: there are several bags; split them first.
        """
        if len(self) != 1:
            raise BagError(f"{len(self)} bags cannot be cut into chunks of one. Use Bag.split() first.")
        places = [None] * self.n_tiles if self.xy is None else torch.split(self.xy, size)
        return [
            Bag(rows, torch.tensor([0, rows.shape[0]]), xy, self.ids, self.clinical)
            for rows, xy in zip(torch.split(self.features, size), places or [None], strict=False)
        ]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return features (B, N_max, D), zero where there is no tile, and the mask (B, N_max), True on tiles."""
        longest = int(self.sizes.max()) if len(self) else 0
        x = self.features.new_zeros((len(self), longest, self.dim))
        mask = torch.zeros((len(self), longest), dtype=torch.bool, device=self.features.device)
        for b, rows in enumerate(self.per_bag(self.features)):
            x[b, : rows.shape[0]] = rows
            mask[b, : rows.shape[0]] = True
        return x, mask

    def to(self, device: str | torch.device) -> Bag:
        """Return the same bags on another device."""
        xy = None if self.xy is None else self.xy.to(device)
        rows = None if self.clinical is None else self.clinical.to(device)
        return Bag(self.features.to(device), self.offsets.to(device), xy, self.ids, rows)


def _single(item: Tensor | NDArray[np.floating], xy: Tensor | NDArray[np.integer] | None, name: str) -> Bag:
    """Make a bag of one (N, D) array."""
    features = as_tensor(item)
    if features.ndim != 2:
        raise BagError(f"{name}: features have shape {tuple(features.shape)}, wanted (N, D): one row per tile.")
    places = None if xy is None else as_tensor(xy).to(torch.int64)
    return Bag(features, torch.tensor([0, features.shape[0]]), places, (name,))


def as_tensor(values: Tensor | NDArray[np.generic]) -> Tensor:
    """Return a tensor over the same memory; a read-only array is copied, for torch cannot promise not to write."""
    if isinstance(values, Tensor):
        return values
    array = np.ascontiguousarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check(bag: Bag) -> None:
    """Raise BagError unless shapes, order and dtypes of all the parts agree."""
    if bag.features.ndim != 2:
        raise BagError(f"features have shape {tuple(bag.features.shape)}, wanted (T, D): one row per tile.")
    if not bag.features.is_floating_point():
        raise BagError(f"features are {bag.features.dtype}, wanted float16 or float32.")
    tiles, offsets = bag.n_tiles, bag.offsets
    if offsets.ndim != 1 or offsets.numel() < 2 or offsets.dtype != torch.int64:
        raise BagError(f"offsets are {tuple(offsets.shape)} {offsets.dtype}, wanted (B + 1,) int64 with B >= 1.")
    ends = offsets.cpu()
    if int(ends[0]) != 0 or int(ends[-1]) != tiles or bool((ends.diff() < 0).any()):
        raise BagError(f"offsets must rise from 0 to the {tiles} feature rows, found {ends.tolist()[:8]} …")
    if bag.xy is not None and (bag.xy.shape != (tiles, 2) or bag.xy.dtype != torch.int64):
        raise BagError(f"xy is {tuple(bag.xy.shape)} {bag.xy.dtype}, wanted ({tiles}, 2) int64 level-0 pixels.")
    if bag.clinical is not None and (bag.clinical.ndim != 2 or len(bag.clinical) != len(bag)):
        raise BagError(f"clinical is {tuple(bag.clinical.shape)}, wanted ({len(bag)}, V): one row per bag.")
    if len(bag.ids) != len(bag):
        raise BagError(f"{len(bag)} bags but {len(bag.ids)} ids. Give one id per bag.")
