"""Train, validation and test by patient: no patient is ever on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingDataError, did_you_mean

FOLDS = ("train", "validation", "test")
_ALIASES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_ATTEMPTS = 200  # only patients with slides of several classes can make more than one necessary


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the slides on each side.

    Attributes:
        train: int64, sorted.
        validation: int64, sorted; early stopping and thresholds look at these.
        test: int64, sorted; may be empty.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    def column(self) -> list[str]:
        """Return the side of each row as text: "train", "validation", "test", or "" for a row on no side."""
        sides = {int(i): fold for fold in FOLDS for i in getattr(self, fold)}
        return [sides.get(i, "") for i in range(max(sides, default=-1) + 1)]

    @classmethod
    def from_column(cls, column: Sequence[str]) -> Split:
        """Read a column of "train", "val" or "validation", "test"; an empty cell is a row on no side.

        Raises:
            TrainingDataError: another word stands there.
        """
        sides = [_fold_of(value, row) for row, value in enumerate(column)]
        return cls(*(np.flatnonzero(np.array(sides) == fold).astype(np.int64) for fold in FOLDS))


def split_by_patient(
    patients: Sequence[str],
    labels: Sequence[int] | NDArray[np.integer] | None,
    *,
    test: float = 0.3,
    validation: float = 0.2,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Split:
    """Share slides out by patient, with every class on every side.

    Args:
        patients: patient of each slide.
        labels: class number of each slide, shape (n,); None where there are no classes to keep alike.
        test: share of the patients of each class that is held out; 0 for none.
        validation: share of the patients of each class for early stopping; more than 0.
        seed: the same seed gives the same split.
        names: of the classes, for what is said of them.

    Raises:
        TrainingDataError: one class only, or a class with fewer patients than sides.
    """
    _check_shares(test, validation)
    y = np.zeros(len(patients), np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    if len(patients) != y.size:
        raise TrainingDataError(f"{len(patients)} patients for {y.size} labels. Give one patient per slide.")
    classes_of = {p: frozenset(y[np.array(patients) == p].tolist()) for p in sorted(set(patients))}
    shares = {"test": test, "validation": validation}
    sides = [fold for fold in FOLDS if fold == "train" or shares[fold] > 0]
    _check_enough(classes_of, sides, 1 if labels is None else 2, names)
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        side_of = _deal(classes_of, shares, rng)
        if _every_class_everywhere(side_of, classes_of, sides):
            return Split.from_column([side_of[p] for p in patients])
    raise TrainingDataError(
        "no split was found that has every class on every side: too many patients have slides of several classes. "
        "Give the split yourself, in a column `split`."
    )


def check_split(split: Split | Sequence[str], patients: Sequence[str]) -> None:
    """Raise unless every patient is on one side only.

    Args:
        split: the row numbers, or a column of side names.
        patients: patient of each row.

    Raises:
        TrainingDataError: a patient on two sides (the first are named), or a split of another length.
    """
    column = split.column() if isinstance(split, Split) else [_fold_of(v, i) for i, v in enumerate(split)]
    if len(column) > len(patients) or (not isinstance(split, Split) and len(column) != len(patients)):
        raise TrainingDataError(f"the split has {len(column)} rows, there are {len(patients)} slides.")
    seen: dict[str, set[str]] = {}
    for patient, side in zip(patients, column, strict=False):
        if side:
            seen.setdefault(patient, set()).add(side)
    torn = {p: sorted(sides, key=FOLDS.index) for p, sides in sorted(seen.items()) if len(sides) > 1}
    if torn:
        examples = "; ".join(f"{p} is in {' and '.join(sides)}" for p, sides in list(torn.items())[:3])
        raise TrainingDataError(
            f"{len(torn)} patient(s) on two sides of the split: {examples}. Slides of one patient resemble each "
            "other, so the test would be too easy. Put all slides of a patient on one side."
        )


def _fold_of(value: str, row: int) -> str:
    """Return the side that a cell names, "" for an empty cell."""
    word = value.strip().lower()
    if word and word not in _ALIASES:
        raise TrainingDataError(
            f"row {row}: the split says {value!r}.{did_you_mean(word, _ALIASES)} Use train, val, test or an empty cell."
        )
    return _ALIASES.get(word, "")


def _check_shares(test: float, validation: float) -> None:
    """Raise unless there is something left to train on and something to stop by."""
    if not (0 <= test < 1 and 0 < validation < 1 and test + validation < 1):
        raise TrainingDataError(
            f"shares test={test}, validation={validation} cannot be: validation must be over 0, both together under 1."
        )


def few_in_words(few: Mapping[int, int], names: Sequence[str]) -> str:
    """Class → number of patients, as an error tells it: the first three."""
    said = [f"class {names[c] if c < len(names) else c} has {n} patient(s)" for c, n in few.items()]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more classes" if len(said) > 3 else "")


def _check_enough(
    classes_of: dict[str, frozenset[int]], sides: Sequence[str], classes: int, names: Sequence[str]
) -> None:
    """Raise when there are too few classes, or one has fewer patients than there are sides."""
    count = Counter(c for classes in classes_of.values() for c in classes)
    if len(count) < classes:
        raise TrainingDataError(
            f"{len(classes_of)} patients, but only {len(count)} class among their labels: nothing can be told apart. "
            "Label slides of at least two classes."
        )
    few = {c: n for c, n in sorted(count.items()) if n < len(sides)}
    if few:
        raise TrainingDataError(
            f"{few_in_words(few, names)}, but {' and '.join(sides)} need one each ({len(sides)}). Label more patients "
            "of that class, or hold out no test patients."
        )


def _deal(classes_of: dict[str, frozenset[int]], shares: dict[str, float], rng: np.random.Generator) -> dict[str, str]:
    """Shuffle the patients of each kind (the set of classes they have) and cut the row by the shares."""
    kinds: dict[tuple[int, ...], list[str]] = {}
    for patient, classes in classes_of.items():
        kinds.setdefault(tuple(sorted(classes)), []).append(patient)
    side_of: dict[str, str] = {}
    for kind in sorted(kinds):
        group = [kinds[kind][i] for i in rng.permutation(len(kinds[kind]))]
        counts = {fold: max(1, round(share * len(group))) if share else 0 for fold, share in shares.items()}
        # Small groups: training keeps one patient, then test is served before validation.
        while sum(counts.values()) >= len(group) and max(counts.values()) > 0:
            largest = max(counts, key=lambda fold: (counts[fold], fold == "validation"))
            counts[largest] -= 1
        test_end, validation_end = counts["test"], counts["test"] + counts["validation"]
        for i, patient in enumerate(group):
            side_of[patient] = "test" if i < test_end else "validation" if i < validation_end else "train"
    return side_of


def _every_class_everywhere(
    side_of: dict[str, str], classes_of: dict[str, frozenset[int]], sides: Sequence[str]
) -> bool:
    """Say whether each class has a patient on each side."""
    wanted = frozenset().union(*classes_of.values())
    return all(
        wanted == frozenset().union(*(classes_of[p] for p, at in side_of.items() if at == side)) for side in sides
    )
