"""What every multiple-instance head takes, gives and promises."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.errors import BagError, MilError
from mil.pooling import KeptRows, accumulation_dtype

from .fusing import Fusion
from .output import MILOutput

__all__ = ["CHUNK", "Contract", "Head", "MILOutput", "RowThrough", "Standardize", "tile_embedding"]

RowThrough = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(row (n,), queries (H, n, d), keys (H, n, d)) → the row times the attention of the two, (n,)."""

CHUNK = 4096  # tiles that statistics take in at a time: 64 MB in float64 for features of width 2048


@dataclass(frozen=True)
class Contract:
    """What a head promises; one test over the registry holds each head to it.

    Attributes:
        permutation_invariant: the order of the tiles (each with its coordinates) does not matter.
        duplicate_invariant: every tile repeated the same number of times changes no logit.
        needs_coords: the bag has to carry `xy`.
        min_instances: smallest bag; 0 means that an empty bag has a defined answer.
        instance_logits: the output has per-tile class logits.
        class_weights: the weights have one column per class; else all columns serve every class.
        streams: `stream` gives the same answer from chunks of a bag, whatever their size.
        attention: the weights tell tiles apart; a head without it has no map of where it looked.
        linear: time grows with the number of tiles, not with its square.
        standard_mil: class 0 means "no tile of another class": more tiles never make it more probable.
        contributions: with its weights held constant a logit is a sum over the tiles; `contributions` gives the terms.
        rollout: attention runs through layers; `rollout` multiplies them.
    """

    permutation_invariant: bool = True
    duplicate_invariant: bool = True
    needs_coords: bool = False
    min_instances: int = 0
    instance_logits: bool = False
    class_weights: bool = False
    streams: bool = False
    attention: bool = True
    linear: bool = True
    standard_mil: bool = False
    contributions: bool = False
    rollout: bool = False


class Standardize(nn.Module):
    """(x - mean) * factor per feature; identity until `fit` is called. The numbers are stored with the model."""

    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (T, D) → (T, D), float32 or wider."""
        z = x.to(accumulation_dtype(x)) - self.mean
        return z * self.factor if torch.is_grad_enabled() else z.mul_(self.factor)

    def fit(self, *parts: Tensor, common: bool = False) -> None:
        """Take mean and spread from training tiles, each part (T, D); a feature that never varies is switched off.

        With `common` all features are divided by one number, the root of their mean variance: right for features of
        one unit (pixels), where a small spread means that a feature says little. The parts are gone through twice, a
        chunk at a time, so no copy of all tiles is made, and large means cost no digits of the spread.
        """
        tiles = sum(part.shape[0] for part in parts)
        mean = sum((rows.sum(dim=0) for rows in _chunks(parts)), torch.zeros_like(self.mean, dtype=torch.float64))
        mean /= tiles
        spread = sum(((rows - mean).square_().sum(dim=0) for rows in _chunks(parts)), torch.zeros_like(mean))
        spread = (spread / tiles).sqrt()
        # The spread of a constant column is rounding noise: to divide by it would make the noise a feature.
        varies = spread > 1e-6 * mean.abs().clamp(min=1e-6)
        if common:
            spread = spread.square().mean().sqrt().expand_as(spread)
        factor = torch.where(varies, 1.0 / spread.clamp(min=1e-30), torch.zeros_like(spread))
        self.mean.copy_(mean)
        self.factor.copy_(factor)


class Head(nn.Module, abc.ABC):
    """A multiple-instance head: packed bags in, `MILOutput` out.

    A subclass states `name` and `contract`, puts its arguments into `options` (what `create_head` needs to build it
    anew), begins with the linear layer of `embed`, and implements `pool`.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract] = Contract()
    embed: nn.Sequential
    prepared: bool = False  # features come standardized
    fused: bool = False  # where the head has a faster way to the same gradients

    def __init__(self, in_dim: int, classes: int, **options: float) -> None:
        super().__init__()
        self.in_dim, self.classes = in_dim, classes
        self.options: dict[str, float] = options
        self.input = Standardize(in_dim)
        self.fusion: Fusion | None = None  # clinical variables, see `mil.fusion.attach`

    @abc.abstractmethod
    def pool(self, bag: Bag) -> MILOutput:
        """Compute the output for a bag that fits the head."""

    def forward(self, bag: Bag) -> MILOutput:
        """Return the output for B bags.

        Raises:
            BagError: the features have another width, coordinates are missing, or a bag is too small.
        """
        self._check(bag)
        smallest = int(bag.sizes.min())
        if smallest < self.contract.min_instances:
            raise BagError(f"the head {self.name} needs {self.contract.min_instances} tiles, found {smallest}.")
        return self._joined(self.pool(bag), bag)

    def stream(self, chunks: Sequence[Bag]) -> MILOutput:
        """Return the output for one bag that is given in chunks, gone through once or twice; only rows are kept.

        Args:
            chunks: the tiles of one bag in order, e.g. from `Bag.chunks`; each may be read from disk when it is asked.

        Raises:
            MilError: the head needs all tiles at once.
            BagError: as for the whole bag.
        """
        if not self.contract.streams:
            raise MilError(f"the head {self.name} needs all tiles at once. Call head(bag), or use a head that streams.")
        for chunk in chunks:
            self._check(chunk)
        return self._joined(self.pool_chunks(chunks), chunks[0])

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """Compute the output for one bag from its chunks; heads whose contract says `streams` implement it."""
        raise NotImplementedError

    def contributions(self, bag: Bag, target: int) -> tuple[Tensor, Tensor]:
        """Terms (N,) of one bag, and the bias: together the logit of `target`; for heads whose contract says so."""
        raise NotImplementedError

    def rollout(self, bag: Bag, through: RowThrough) -> Tensor:
        """Share of the class token itself and of each tile of one bag, (1 + N,); for heads whose contract says so."""
        raise NotImplementedError

    @property
    def sums_up(self) -> bool:
        """A logit is a sum over the tiles, and numbers that no tile changes: see `contributions`."""
        return self.contract.contributions and (self.fusion is None or self.fusion.additive or not self.fusion.joins)

    def _joined(self, out: MILOutput, bag: Bag) -> MILOutput:
        """With what the clinical variables say, where the head takes any."""
        return out if self.fusion is None else self.fusion.finish(out, bag)

    def _check(self, bag: Bag) -> None:
        """Raise BagError unless the features have the right width and coordinates are there where needed."""
        if bag.dim != self.in_dim:
            raise BagError(
                f"the head {self.name} takes features of width {self.in_dim}, these have {bag.dim}. "
                "Use features of the encoder that the head was made for."
            )
        if self.contract.needs_coords and bag.xy is None:
            raise BagError(f"the head {self.name} needs tile coordinates. Give xy to Bag.from_list.")

    def fit_input(self, features: Tensor) -> None:
        """Fix the input standardization from training tiles, shape (T, D). Mixed scales become one."""
        self.input.fit(features)

    @contextmanager
    def takes_prepared(self, *, fused: bool) -> Iterator[None]:
        """In training features are standardized once, not at every visit: the head's own input step is left out."""
        self.prepared, self.fused = True, fused
        try:
            yield
        finally:
            self.prepared = self.fused = False

    def embedded(self, bag: Bag) -> Tensor:
        """Tile embeddings (T, E). Where no gradient is wanted, no copy of all the features is made in float32."""
        shift = None if self.fusion is None else self.fusion.shift(bag)
        of_tile = None if shift is None else bag.segments.to(shift.device)
        if torch.is_grad_enabled() or bag.n_tiles <= CHUNK:
            return self._embed(bag.features, None if shift is None else shift[of_tile])
        kept = KeptRows(bag.n_tiles)
        for start in range(0, bag.n_tiles, CHUNK):
            mine = None if shift is None or of_tile is None else shift[of_tile[start : start + CHUNK]]
            kept.add(self._embed(bag.features[start : start + CHUNK], mine))
        return kept.result()

    def _embed(self, features: Tensor, shift: Tensor | None) -> Tensor:
        """Embeddings of some tiles, each with what is added after the first layer."""
        x = features if self.prepared else self.input(features)
        whole: Tensor = self.embed(x) if shift is None else self.embed[1:](self.embed[0](x) + shift)
        return whole

    @property
    def first_linear(self) -> nn.Linear:
        """The layer that the standardized features meet first; a linear input transform can be folded into it."""
        layer = self.embed[0]
        assert isinstance(layer, nn.Linear)
        return layer


def _chunks(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of all parts as float64, `CHUNK` at most at a time."""
    for part in parts:
        for rows in torch.split(part, CHUNK):
            yield rows.to(torch.float64)


def tile_embedding(in_dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout: (T, D) → (T, hidden)."""
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
