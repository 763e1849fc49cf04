"""What joins clinical variables to a head: at the tiles, the slide, or the answer. The kinds are in `mil.fusion`."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn

from mil.bag import Bag

from .output import MILOutput


class Fusion(nn.Module, abc.ABC):
    """Clinical variables of each bag (`Bag.clinical`, NaN where missing) and a head's output → the joint output.

    Args:
        sizes: how many numbers stand for each variable, V together.
        hidden: width of the head's tile embedding.
        embedding: width E of its slide embedding.
        classes: number of its outputs C.
        hide: share of the variables, and of whole rows, that training does not show, so that the model knows what to
            say without them.
    """

    kind: ClassVar[str]
    additive: ClassVar[bool] = False  # a logit is that of the slide plus a number that no tile changes
    joins: ClassVar[bool] = True  # changes the head's output; else only what the head sees
    variable_of: Tensor

    def __init__(self, sizes: tuple[int, ...], hidden: int, embedding: int, classes: int, *, hide: float = 0.0) -> None:
        super().__init__()
        self.sizes, self.hide = sizes, hide
        self.register_buffer(
            "variable_of", torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), persistent=False
        )
        self.build(hidden, embedding, classes)

    @abc.abstractmethod
    def build(self, hidden: int, embedding: int, classes: int) -> None:
        """Make the layers."""

    def shift(self, bag: Bag) -> Tensor | None:
        """What is added to every tile of a bag after the head's first linear layer, (B, hidden); None for nothing."""
        del bag
        return None

    def finish(self, out: MILOutput, bag: Bag) -> MILOutput:
        """The joint output."""
        del bag
        return out

    def offset(self, bag: Bag) -> Tensor:
        """Of an additive fusion: what is added to the logits, (B, C)."""
        raise NotImplementedError

    def rows(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Values (B, V), 0 where missing, and which variables are known, (B, number of variables), 0 or 1."""
        like, count = self.variable_of, int(self.variable_of.numel())
        given = bag.clinical
        if given is None:
            given = torch.full((len(bag), count), torch.nan, device=like.device)
        given = given.to(like.device, torch.float32)
        known = torch.zeros(len(bag), len(self.sizes), device=like.device)
        known.index_add_(1, like, (~torch.isnan(given)).float())
        known = (known > 0).float()
        if self.training and self.hide:
            shown = torch.rand(known.shape, device=like.device) >= self.hide
            shown &= torch.rand((len(bag), 1), device=like.device) >= self.hide
            known = known * shown
        return torch.nan_to_num(given) * known[:, like], known


class VariableEncoder(nn.Module):
    """Values and which of them are known → (B, width): one hidden layer."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(sum(sizes) + len(sizes), width)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(B, V) and (B, number of variables) → (B, width)."""
        return torch.relu(self.layer(torch.cat([values, known], dim=1)))
