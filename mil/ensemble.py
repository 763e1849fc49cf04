"""Several models of one task answer together, and teach a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .bag import Bag
from .bag_set import BagSet
from .errors import ModelError
from .model import TrainedModel
from .predict import predict
from .tasks import Array, Classification
from .tasks.distillation import Distillation, softened
from .train import train
from .train_settings import TrainSettings


@dataclass(frozen=True, eq=False)
class Together:
    """What an ensemble says of one bag.

    Attributes:
        id: of the bag.
        answer: mean of the members' answers, shape (P,).
        spread: standard deviation over the members, shape (P,): where they disagree, none knows.
        attention: mean of their attention, shape (N,).
    """

    id: str
    answer: Array
    spread: Array
    attention: Array


def predict_together(models: Sequence[TrainedModel], bag: Bag) -> list[Together]:
    """Predict with all members; answers are averaged (of a classification: probabilities).

    Raises:
        ModelError: no member, or members of different tasks.
    """
    _check(models)
    return [
        Together(
            rows[0].id,
            np.mean([row.answer for row in rows], axis=0),
            np.std([row.answer for row in rows], axis=0),
            np.mean([row.attention for row in rows], axis=0),
        )
        for rows in zip(*(predict(model, bag) for model in models), strict=True)
    ]


def distill(
    teachers: Sequence[TrainedModel],
    train_side: BagSet,
    validation: BagSet,
    settings: TrainSettings | None = None,
    *,
    temperature: float = 2.0,
    share: float = 0.7,
    **more: Any,
) -> TrainedModel:
    """Train one small head on what an ensemble says of the slides, and on their labels.

    Args:
        teachers: models of one classification; they must not have seen the test slides either.
        train_side: slides to learn from; labels may be NaN, then the ensemble alone teaches.
        validation: slides of other patients, for early stopping.
        settings: of the small head.
        temperature: by which logits are divided.
        share: of the ensemble in the loss.
        more: of `mil.train`: who is told of epochs, checkpoints, clinical variables of the small head.

    Raises:
        ModelError: no teacher, teachers of different tasks, or of no classification.
    """
    _check(teachers)
    base = teachers[0].task
    if not isinstance(base, Classification):
        raise ModelError(f"an ensemble for {base.kind} cannot be distilled: its answers are no probabilities.")
    task = Distillation(replace(base, weights=()), temperature, share)
    sides = [replace(side, labels=_taught(teachers, side, temperature)) for side in (train_side, validation)]
    model = train(sides[0], sides[1], task, settings, **more)
    fitted = model.task
    assert isinstance(fitted, Distillation)
    config = {**model.config, "task": base.kind, "task_spec": fitted.base.spec(), "classes": list(base.classes)}
    config["taught_by"] = {"members": len(teachers), "temperature": temperature, "share": share}
    config |= {"threshold": _shared_threshold(teachers), "threshold_rule": "mean of those of the models that taught it"}
    counts = [[int((np.asarray(s.labels) == c).sum()) for s in (train_side, validation)] for c in range(base.outputs)]
    config["training"] = config["training"] | {
        "slides_per_class": {
            name: {"train": count[0], "validation": count[1]} for name, count in zip(base.classes, counts, strict=True)
        }
    }
    return replace(model, task=fitted.base, config=config)


def _shared_threshold(teachers: Sequence[TrainedModel]) -> float | None:
    """Mean of the members' thresholds: the student imitates their probabilities."""
    cuts = [model.threshold for model in teachers if model.threshold is not None]
    return float(np.mean(cuts)) if cuts else None


def _taught(teachers: Sequence[TrainedModel], side: BagSet, temperature: float) -> Array:
    """Labels and the ensemble's probabilities, (n, 1 + C)."""
    said = np.array([[predict(model, bag)[0].logits for model in teachers] for bag in side.bags], np.float64)
    return np.column_stack([np.asarray(side.labels, np.float64), softened(said.swapaxes(0, 1), temperature)])


def _check(models: Sequence[TrainedModel]) -> None:
    if not models or len({(model.task.kind, model.task.columns) for model in models}) > 1:
        raise ModelError("an ensemble is one or several models of the same task and classes.")
