"""What the user asks of the slides: columns of the label table → a task, and its targets.

`--target grade,time+event --task ordinal,cox` asks two questions; `+` joins the columns of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.folds import strata
from mil.tasks import Classification, Cox, DiscreteHazard, MultiLabel, MultiTask, Ordinal, Regression, Task

from .errors import UsageError
from .labels import Labels, class_order, is_label

KINDS = ("classification", "multilabel", "ordinal", "regression", "cox", "discrete_hazard")
_YES, _NO = ("1", "yes", "true", "positive", "pos"), ("0", "no", "false", "negative", "neg")
_NAN = float("nan")


@dataclass(frozen=True)
class Question:
    """A task, and what the table says of each slide.

    Attributes:
        task: not yet fitted.
        target: slide → its row of targets, NaN for what is not known.
    """

    task: Task
    target: Mapping[str, tuple[float, ...]]

    def targets(self, slides: Sequence[str]) -> NDArray[np.float64]:
        """Targets of some slides, (n, W)."""
        return np.array([self.target[name] for name in slides], np.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes that `strata` numbers; empty where these are no classes of the table's."""
        first = next(iter(self.task.tasks.values())) if isinstance(self.task, MultiTask) else self.task
        return (*first.classes, "(no label)") if isinstance(first, (Classification, Ordinal)) else ()

    def strata(self, slides: Sequence[str], patients: Sequence[str], sides: int) -> NDArray[np.int64] | None:
        """Classes that a split keeps alike on its sides: those asked for, events, or bins of a number.

        None where there are none to keep: a number or events of so few patients that some side would lack some.
        """
        y = self._strata(slides)
        if isinstance(self.task, (Classification, Ordinal)):
            return y
        of = {c: len({p for p, mine in zip(patients, y, strict=True) if mine == c}) for c in set(y.tolist())}
        return y if len(of) > 1 and min(of.values()) >= sides else None

    def _strata(self, slides: Sequence[str]) -> NDArray[np.int64]:
        values = self.targets(slides)
        first = next(iter(self.task.tasks.values())) if isinstance(self.task, MultiTask) else self.task
        if isinstance(first, (Classification, Ordinal)):
            missing = len(first.classes)
            return np.where(np.isnan(values[:, 0]), missing, np.nan_to_num(values[:, 0])).astype(np.int64)
        if isinstance(first, (Cox, DiscreteHazard)):
            return np.nan_to_num(values[:, 1], nan=2).astype(np.int64)
        return strata(values[:, 0]) if isinstance(first, Regression) else np.nan_to_num(values[:, 0]).astype(np.int64)


def ask(labels: Labels, kinds: str = "classification") -> Question:
    """Make the question of a label table.

    Args:
        labels: with the cells of the target columns.
        kinds: one of `KINDS` per question, joined by commas.

    Raises:
        UsageError: an unknown kind, too few or too many columns, or a cell that is no answer.
    """
    columns = [tuple(part.split("+")) for part in labels.target.split(",")]
    wanted = [kind.strip().replace("-", "_") for kind in kinds.split(",")]
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise UsageError(f"--task {kinds}: {unknown[0]!r} is no task. There are: {', '.join(KINDS)}.")
    if len(wanted) != len(columns):
        raise UsageError(f"--target {labels.target} asks {len(columns)} questions, --task {kinds} names {len(wanted)}.")
    parts = [_one(kind, names, labels) for kind, names in zip(wanted, columns, strict=True)]
    if len(parts) == 1:
        return parts[0]
    slides = list(labels.label)
    tasks = {"+".join(names): part.task for names, part in zip(columns, parts, strict=True)}
    return Question(MultiTask(tasks), {s: tuple(v for part in parts for v in part.target[s]) for s in slides})


def _one(kind: str, columns: tuple[str, ...], labels: Labels) -> Question:
    """One question."""
    survival = kind in ("cox", "discrete_hazard")
    if (survival and len(columns) != 2) or (kind in ("classification", "ordinal", "regression") and len(columns) != 1):
        need = "time+event, two columns joined by +" if survival else "one column"
        raise UsageError(f"--target {'+'.join(columns)}: {kind} takes {need}.")
    cells = {slide: tuple(labels.cell(slide, column) for column in columns) for slide in labels.label}
    if kind in ("classification", "ordinal"):
        classes = tuple(sorted({row[0] for row in cells.values() if is_label(row[0])}, key=class_order))
        place = {name: float(i) for i, name in enumerate(classes)}
        target = {slide: (place.get(row[0], _NAN),) for slide, row in cells.items()}
        return Question(Ordinal(classes) if kind == "ordinal" else Classification(classes), target)
    if kind == "regression":
        return Question(Regression(columns[0]), {s: (number(row[0], s, columns[0]),) for s, row in cells.items()})
    if kind == "multilabel":
        flags = {s: tuple(flag(v, s, c) for v, c in zip(row, columns, strict=True)) for s, row in cells.items()}
        return Question(MultiLabel(columns), flags)
    pairs = {s: (_time(row[0], s, columns[0]), flag(row[1], s, columns[1])) for s, row in cells.items()}
    return Question(Cox() if kind == "cox" else DiscreteHazard(), pairs)


def number(cell: str, slide: str, column: str) -> float:
    """Read a number; NaN where the cell says nothing.

    Raises:
        UsageError: it is none.
    """
    if not is_label(cell):
        return _NAN
    try:
        value = float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise UsageError(f"{slide}: `{column}` says {cell!r}, wanted a number or an empty cell.")
    return value


def _time(cell: str, slide: str, column: str) -> float:
    """Read a time.

    Raises:
        UsageError: it is none, or not over 0.
    """
    value = number(cell, slide, column)
    if value <= 0:
        raise UsageError(f"{slide}: `{column}` says {cell!r}, wanted a time over 0 or an empty cell.")
    return value


def flag(cell: str, slide: str, column: str) -> float:
    """Read yes or no as 1 or 0; NaN where the cell says nothing.

    Raises:
        UsageError: it is neither.
    """
    word = cell.strip().lower().removesuffix(".0")
    if not is_label(cell):
        return _NAN
    if word not in (*_YES, *_NO):
        raise UsageError(f"{slide}: `{column}` says {cell!r}, wanted 1 or 0, yes or no, or an empty cell.")
    return float(word in _YES)
