"""What may be asked of a slide: one kind of question per file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mil.errors import MilError

from .base import Array, Task
from .classification import Classification
from .multi import MultiTask
from .multilabel import MultiLabel
from .ordinal import Ordinal
from .regression import Regression
from .survival import Cox, DiscreteHazard, Survival

__all__ = [
    "TASKS",
    "Array",
    "Classification",
    "Cox",
    "DiscreteHazard",
    "MultiLabel",
    "MultiTask",
    "Ordinal",
    "Regression",
    "Survival",
    "Task",
    "as_task",
    "said",
    "task_from",
]

TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (Classification, MultiLabel, Ordinal, Regression, Cox, DiscreteHazard, MultiTask)
}


def as_task(wanted: Task | Sequence[str], class_weights: str | tuple[float, ...] = "balanced") -> Task:
    """Return a task as it is; class names stand for a classification."""
    return wanted if isinstance(wanted, Task) else Classification(tuple(wanted), class_weights)


def said(task: Task, answer: Array) -> str:
    """Say one answer (P,) in a word: the most probable class or grade, the labels over 1/2, the number, the risk."""
    if isinstance(task, MultiTask):
        return "; ".join(f"{name}: {said(part, rows[0])}" for name, (part, rows) in task.answers(answer[None]).items())
    if isinstance(task, (Classification, Ordinal)):
        return task.classes[int(answer.argmax())]
    if isinstance(task, MultiLabel):
        return "|".join(name for name, p in zip(task.labels, answer, strict=True) if p >= 0.5)
    return f"{answer[0]:.6g}"


def task_from(spec: Mapping[str, Any]) -> Task:
    """Build a task from what `Task.spec` gave.

    Raises:
        MilError: no such task, or values it does not take.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "kind"}
    kind = str(spec.get("kind"))
    if kind not in TASKS:
        raise MilError(f"no task is called {kind!r}. There are: {', '.join(sorted(TASKS))}.")
    if kind == MultiTask.kind:
        return MultiTask({name: task_from(part) for name, part in spec["tasks"].items()})
    try:
        return TASKS[kind](**values)
    except TypeError as error:
        raise MilError(f"the task {kind} cannot be built with {sorted(values)}: {error}") from error
