"""What a head is trained on beside the loss of the slide: one paper per file, apart from the heads.

An objective takes what the head gave and the loss of the task, and returns one number per slide. The task's loss is
handed in as a function of logits, so that a branch or a pseudo-bag can be held to the same task as the slide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from mil.bag import Bag
from mil.heads import Head, MILOutput

from .acmil import acmil
from .clam import clam
from .dsmil import dsmil
from .dtfd import dtfd

__all__ = ["OBJECTIVES", "Objective", "SlideLoss", "acmil", "clam", "dsmil", "dtfd", "objective_of", "plain"]

SlideLoss: TypeAlias = Callable[[Tensor], Tensor]
"""Logits (B, C) → loss of each slide (B,); it knows the labels and the weights of their classes."""

Objective: TypeAlias = Callable[[MILOutput, Bag, Tensor | None, SlideLoss], Tensor]
"""Output of the head, its input, class number of each slide (B,) or None, the task's loss → what to minimize, (B,)."""


def plain(out: MILOutput, bag: Bag, target: Tensor | None, slide_loss: SlideLoss) -> Tensor:
    """The loss of the slide and nothing else."""
    del bag, target
    return slide_loss(out.logits)


OBJECTIVES: dict[str, Objective] = {"clam_sb": clam, "clam_mb": clam, "dsmil": dsmil, "dtfd": dtfd, "acmil": acmil}
"""Head → its objective; a head that is not named here has `plain`."""


def objective_of(head: Head) -> Objective:
    """Return what a head is trained on."""
    return OBJECTIVES.get(head.name, plain)
