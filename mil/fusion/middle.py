"""Clinical variables beside the embedding of the slide."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.fusing import Fusion, VariableEncoder
from mil.heads.output import MILOutput

WIDTH = 16


class Joint(nn.Module):
    """What a hidden layer over both adds to the logits of the slide: it can learn what holds only together."""

    def __init__(self, embedding: int, context: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(embedding + context, 2 * WIDTH)
        self.classifier = nn.Linear(2 * WIDTH, classes)

    def forward(self, out: MILOutput, context: Tensor) -> MILOutput:
        """Slide (B, E) and context (B, W)."""
        both = torch.relu(self.layer(torch.cat([out.embedding, context], dim=1)))
        logits = out.logits + self.classifier(both)
        return replace(out, logits=logits, embedding=torch.cat([out.embedding, both], dim=1))


class Middle(Fusion):
    """logits = slide's + U relu(W [slide embedding; variable embedding]), trained together."""

    kind = "middle"

    def build(self, hidden: int, embedding: int, classes: int) -> None:
        """Encoder and joint layer."""
        del hidden
        self.encoder = VariableEncoder(self.sizes, WIDTH)
        self.joint = Joint(embedding, WIDTH, classes)

    def finish(self, out: MILOutput, bag: Bag) -> MILOutput:
        """Join."""
        joined: MILOutput = self.joint(out, self.encoder(*self.rows(bag)))
        return joined
