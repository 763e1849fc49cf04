"""The slide asks the clinical variables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.fusing import Fusion
from mil.heads.output import MILOutput

from .middle import WIDTH, Joint

TOKENS, LANES = 4, 2


class CrossAttention(Fusion):
    """Tokens made of the slide's embedding are queries, variables keys and values; what they hear joins the slide.

    A variable's token is its name's vector plus its value along a learned direction; a missing variable is no token.
    One token that says nothing is always there, so that a slide without any variable has an answer, too.

    Source: Vaswani et al. 2017 (attention); Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data",
    NeurIPS 2021, §3.3 (variables as tokens).
    """

    kind = "cross_attention"

    def build(self, hidden: int, embedding: int, classes: int) -> None:
        """Queries from the slide; keys and values from the variables."""
        del hidden
        self.query = nn.Linear(embedding, TOKENS * WIDTH)
        self.direction = nn.Parameter(torch.randn(sum(self.sizes), WIDTH) / WIDTH**0.5)
        self.own = nn.Parameter(torch.randn(len(self.sizes) + 1, WIDTH) / WIDTH**0.5)
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.joint = Joint(embedding, TOKENS * WIDTH, classes)

    def finish(self, out: MILOutput, bag: Bag) -> MILOutput:
        """Ask, and join what was heard."""
        values, known = self.rows(bag)
        context = self._heard(out.embedding, values, known)
        joined: MILOutput = self.joint(out, context)
        return joined

    def _heard(self, embedding: Tensor, values: Tensor, known: Tensor) -> Tensor:
        b, lane = len(embedding), WIDTH // LANES
        said = values.new_zeros(b, len(self.sizes), WIDTH)
        said = said.index_add(1, self.variable_of, values[:, :, None] * self.direction)
        tokens = torch.cat([said, said.new_zeros(b, 1, WIDTH)], dim=1) + self.own  # (B, n + 1, W)
        there = torch.cat([known, known.new_ones(b, 1)], dim=1).bool()
        q = self.query(embedding).view(b, TOKENS, LANES, lane).transpose(1, 2)
        k, v = (layer(tokens).view(b, -1, LANES, lane).transpose(1, 2) for layer in (self.key, self.value))
        scores = (q @ k.transpose(2, 3)).float() / lane**0.5  # (B, lanes, tokens, n + 1)
        weights = torch.softmax(scores.masked_fill(~there[:, None, None], -torch.inf), dim=-1)
        heard = weights.to(v.dtype) @ v
        context: Tensor = heard.transpose(1, 2).reshape(b, TOKENS * WIDTH)
        return context
