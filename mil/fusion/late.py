"""The slide and the clinical variables each say what they say; what they say is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.fusing import Fusion, VariableEncoder
from mil.heads.output import MILOutput

from .middle import WIDTH

_STEPS = 20  # of `share`, from 0 to 1
_PRIOR = 1.0  # nats a step of 1 costs: few validation slides change little


class Late(Fusion):
    """logits = s(slide) + share (t(variables) - t(nothing)); without a variable the slide speaks alone, unchanged.

    In a classification this is log p(y|slide) + log p(y|variables) - log p(y): Bayes' rule where slide and variables
    are independent within a class. Slide and variables are trained apart, each on the labels by itself, so that either
    is calibrated alone: a sum that was trained as a sum is not, once a term is dropped. t is asked about subsets of
    the variables in training (`hide`), and the empty one has numbers of its own. Where slide and variables say the
    same thing twice, the sum would be too sure: `share`, 1 in training, is then lowered on the validation slides.

    Source: products of experts, Hinton 2002, doi:10.1162/089976602760128018.
    """

    kind = "late"
    additive = True
    share: Tensor

    def build(self, hidden: int, embedding: int, classes: int) -> None:
        """The variables' own model."""
        del hidden, embedding
        self.encoder = VariableEncoder(self.sizes, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)
        self.nothing = nn.Parameter(torch.zeros(classes))
        self.register_buffer("share", torch.ones(()))

    def finish(self, out: MILOutput, bag: Bag) -> MILOutput:
        """Add; `parts` holds what slide and variables say by themselves."""
        alone, some = self._alone(bag)
        term = torch.where(some, alone - self.nothing, torch.zeros_like(alone))
        parts = torch.stack([out.logits, alone.to(out.logits.dtype)], dim=1)
        return replace(out, logits=out.logits + self.share * term, parts=parts)

    def offset(self, bag: Bag) -> Tensor:
        """What is added: `share` times t(variables) - t(nothing)."""
        alone, some = self._alone(bag)
        return self.share * torch.where(some, alone - self.nothing, torch.zeros_like(alone))

    def settle(self, slide: Tensor, joint: Tensor, loss: Callable[[Tensor], float]) -> None:
        """Choose `share` on validation slides.

        Args:
            slide: what the slides say, (n, C).
            joint: what both say with a share of 1, (n, C).
            loss: mean loss of logits (n, C).
        """
        spoken = int(((joint - slide) != 0).any(dim=1).sum())

        def cost(share: float) -> float:
            return spoken * loss(slide + share * (joint - slide)) + _PRIOR * (1 - share) ** 2

        self.share.fill_(min((i / _STEPS for i in range(_STEPS, -1, -1)), key=cost))

    def _alone(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """What the variables say, (B, C), and of which bags any is known, (B, 1)."""
        values, known = self.rows(bag)
        some = known.any(dim=1, keepdim=True)
        said = self.classifier(self.encoder(values, known))
        return torch.where(some, said, self.nothing.to(said.dtype).expand_as(said)), some
