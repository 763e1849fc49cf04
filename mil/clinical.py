"""What is known of a patient beside the slide: cells of a table → one row of numbers, NaN where nothing is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, TrainingDataError

_NOTHING = ("", "nan", "na", "n/a", "none", "null", "unknown", "missing", "?")
_FARTHEST = 4.0  # standard deviations: an age of 650 is a slip of the pen, and is not to decide the answer
_LEVELS = 12  # categories of one variable; of rarer ones each says too little to be learned


@dataclass(frozen=True)
class Variable:
    """One column of the table, as the training slides had it.

    Attributes:
        name: of the column.
        categories: names in order; empty for a number.
        mean: of a number, over the training slides.
        spread: its standard deviation.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    spread: float = 1.0

    @property
    def size(self) -> int:
        """How many numbers stand for it: one, or one per category."""
        return len(self.categories) or 1

    @classmethod
    def fit(cls, name: str, cells: Sequence[str]) -> Self:
        """Take a column for a number where every cell that says something is one; else for categories.

        Raises:
            TrainingDataError: it says nothing of the training slides.
        """
        said = [cell.strip() for cell in cells if not _empty(cell)]
        if not said:
            raise TrainingDataError(
                f"the clinical variable `{name}` says nothing of any training slide: fill it in, or leave it out."
            )
        numbers = [value for value in map(_number, said) if value is not None]
        if len(numbers) == len(said):
            spread = float(np.std(numbers))
            return cls(name, (), float(np.mean(numbers)), spread if spread > 1e-12 else 1.0)
        often = Counter(said).most_common(_LEVELS)
        return cls(name, tuple(sorted(level for level, _ in often)))

    def encode(self, cell: str) -> list[float]:
        """Numbers that stand for a cell; NaN where it is empty, no number, or a category that was never seen."""
        nothing = [math.nan] * self.size
        if _empty(cell):
            return nothing
        if self.categories:
            word = cell.strip()
            return [float(word == level) for level in self.categories] if word in self.categories else nothing
        value = _number(cell)
        if value is None:
            return nothing
        return [float(np.clip((value - self.mean) / self.spread, -_FARTHEST, _FARTHEST))]

    def understands(self, cell: str) -> bool:
        """Say whether a cell is empty, or says what the model knows."""
        return _empty(cell) or not math.isnan(self.encode(cell)[0])


@dataclass(frozen=True)
class Variables:
    """The columns that a model takes, in order."""

    items: tuple[Variable, ...]

    @classmethod
    def fit(cls, names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Self:
        """Take scales and categories from the rows of the training slides, and from no others.

        Raises:
            TrainingDataError: a column says nothing of them.
        """
        return cls(tuple(Variable.fit(name, [row.get(name, "") for row in rows]) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the table."""
        return tuple(item.name for item in self.items)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers stand for each variable."""
        return tuple(item.size for item in self.items)

    def encode(self, row: Mapping[str, str] | None) -> NDArray[np.float32]:
        """Return the numbers of one slide, (V,); all NaN where nothing is known of it."""
        row = row or {}
        return np.array([x for item in self.items for x in item.encode(row.get(item.name, ""))], np.float32)

    def strange(self, rows: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
        """Return column and cell of what counts as missing though it says something."""
        found = {
            (item.name, row[item.name])
            for row in rows
            for item in self.items
            if item.name in row and not item.understands(row[item.name])
        }
        return sorted(found)

    def spec(self) -> list[dict[str, Any]]:
        """What JSON can hold."""
        return [{**asdict(item), "categories": list(item.categories)} for item in self.items]

    @classmethod
    def from_spec(cls, spec: Sequence[Mapping[str, Any]]) -> Self:
        """The counterpart of `spec`.

        Raises:
            ModelError: damaged.
        """
        try:
            return cls(
                tuple(
                    Variable(str(s["name"]), tuple(s["categories"]), float(s["mean"]), float(s["spread"])) for s in spec
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the clinical variables of the model are damaged ({error}). Train it again.") from error


def _empty(cell: str) -> bool:
    return cell.strip().lower() in _NOTHING


def _number(cell: str) -> float | None:
    text = cell.strip()
    text = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
