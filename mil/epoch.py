"""What one epoch came to, and how fast it learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .train_settings import TrainSettings


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        train_loss: mean over the slides of what the head is trained on (`mil.losses`), by default cross-entropy times
            class weight; with dropout.
        validation_loss: the task's loss over all validation slides, without dropout.
        validation_score: the task's own figure (`Task.score_name`), e.g. AUC; None where it is not defined.
        best: the validation loss is the lowest so far.
        lr: learning rate of the last step.
        gradient_norm: mean over the steps, before it is clipped.
        conflict: of several tasks, the share of pairs of gradients that point against one another; else None.
        cosine: mean cosine of those pairs.
        leak: what the embeddings of the training slides say of the confounders (`mil.adaptation`), without dropout;
            None where none is fought. Epochs are compared by validation loss plus `adapt_weight` times this.
    """

    number: int
    train_loss: float
    validation_loss: float
    validation_score: float | None
    best: bool
    lr: float
    gradient_norm: float
    conflict: float | None = None
    cosine: float | None = None
    leak: float | None = None


def lr_share(step: int, steps_each: int, settings: TrainSettings) -> float:
    """Share of the learning rate at a step from 0: rising over `warmup`, then half a cosine down to 0.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5, without restarts.
    """
    if settings.schedule == "constant":
        return 1.0
    total = settings.epochs * steps_each
    rise = max(1, round(settings.warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))
