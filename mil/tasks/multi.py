"""Several questions to the same slide, answered by one head; each may be unanswered for a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .base import Array, Task, mean_known


@dataclass(frozen=True)
class MultiTask(Task):
    """Outputs and targets of the tasks side by side.

    Attributes:
        tasks: name → task, in order.
    """

    tasks: Mapping[str, Task]
    kind = "multi"
    score_name = "mean_score"

    def target_width(self) -> int:
        """Columns of all tasks together."""
        return sum(task.target_width() for task in self.tasks.values())

    @property
    def outputs(self) -> int:
        """Those of all tasks."""
        return sum(task.outputs for task in self.tasks.values())

    @property
    def columns(self) -> tuple[str, ...]:
        """<task>:<column>."""
        return tuple(f"{name}:{column}" for name, task in self.tasks.items() for column in task.columns)

    @property
    def output_names(self) -> tuple[str, ...]:
        """<task>:<output>."""
        return tuple(f"{name}:{one}" for name, task in self.tasks.items() for one in task.output_names)

    def parts(self, logits: Any, target: Any) -> dict[str, tuple[Task, Any, Any]]:
        """Cut logits (n, C) and targets (n, W) into those of each task; either may be None."""
        cut: dict[str, tuple[Task, Any, Any]] = {}
        c = w = 0
        for name, task in self.tasks.items():
            mine = None if logits is None else logits[:, c : c + task.outputs]
            wanted = None if target is None else target[:, w : w + task.target_width()]
            cut[name] = (task, mine, wanted)
            c, w = c + task.outputs, w + task.target_width()
        return cut

    def encode(self, labels: Any) -> Array:
        """Check every part."""
        target = super().encode(labels)
        return np.concatenate([task.encode(y) for task, _, y in self.parts(None, target).values()], axis=1)

    def fitted(self, target: Array) -> Self:
        """Fit every task."""
        return replace(self, tasks={name: task.fitted(y) for name, (task, _, y) in self.parts(None, target).items()})

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum of the tasks' losses."""
        return torch.stack([task.loss(x, y) for task, x, y in self.parts(logits, target).values()]).sum(dim=0)

    def full_loss(self, logits: Tensor, target: Tensor) -> float:
        """Sum of the tasks' mean losses."""
        return sum(task.full_loss(x, y) for task, x, y in self.parts(logits, target).values())

    def answer(self, logits: Array) -> Array:
        """Answers of the tasks side by side."""
        return np.concatenate([task.answer(x) for task, x, _ in self.parts(logits, None).values()], axis=1)

    def answers(self, answer: Array) -> dict[str, tuple[Task, Array]]:
        """Cut answers (n, P) into those of each task."""
        cut, start = {}, 0
        for name, task in self.tasks.items():
            cut[name] = (task, answer[:, start : start + len(task.columns)])
            start += len(task.columns)
        return cut

    def score(self, target: Array, answer: Array) -> float | None:
        """Mean of the tasks' scores."""
        mine = self.answers(answer)
        return mean_known([task.score(y, mine[name][1]) for name, (task, _, y) in self.parts(None, target).items()])

    def spec(self) -> dict[str, Any]:
        """The tasks' own."""
        return {"kind": self.kind, "tasks": {name: task.spec() for name, task in self.tasks.items()}}
