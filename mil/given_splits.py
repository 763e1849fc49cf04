"""Splits that others wrote: CLAM, Patho-Bench, STAMP, and columns of one's own table; rows of text in, splits out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from .errors import TrainingDataError
from .splits import Split

Rows = Sequence[Mapping[str, str]]
_SIDES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def from_columns(rows: Rows, slides: Sequence[str], patients: Sequence[str]) -> list[Split]:
    """Read Patho-Bench's table or one's own: a row per slide (or case), columns `fold_0` … with train, val, test.

    Raises:
        TrainingDataError: no such columns, no such rows, or another word in a cell.
    """
    columns = sorted((c for c in rows[0] if re.fullmatch(r"fold_\d+", c)), key=lambda c: int(c[5:])) if rows else []
    if not columns:
        raise TrainingDataError("the split has no column fold_0, fold_1 … Patho-Bench and tables of your own have.")
    side_of: list[dict[str, str]] = [{} for _ in columns]
    for row in rows:
        for name in [row.get("slide_id", "")] if row.get("slide_id") else [row.get("case_id", "")]:
            for sides, column in zip(side_of, columns, strict=True):
                sides[name] = _side(row.get(column, ""), f"{name}, {column}")
    return [_split(sides, slides, patients) for sides in side_of]


def from_clam(rows: Rows, slides: Sequence[str], patients: Sequence[str]) -> Split:
    """Read one `splits_<k>.csv` (columns train, val, test of slide names) or `splits_<k>_bool.csv`.

    Raises:
        TrainingDataError: other columns, or no slide of the cohort.
    """
    if not rows or not {"train", "val", "test"} <= set(rows[0]):
        raise TrainingDataError("a CLAM split has the columns train, val and test.")
    sides: dict[str, str] = {}
    index = next((c for c in rows[0] if c not in ("train", "val", "test")), None)
    boolean = {v for row in rows for c in ("train", "val", "test") for v in [row[c].lower()] if v} <= {"true", "false"}
    for row in rows:
        for side in ("train", "val", "test"):
            if boolean and index is not None and row[side].lower() == "true":
                sides[row[index]] = side
            elif not boolean and row[side]:
                if row[side] in sides:
                    raise TrainingDataError(f"{row[side]} is on two sides of the split: {sides[row[side]]} and {side}.")
                sides[row[side]] = side
    return _split(sides, slides, patients)


def from_stamp(text: str, slides: Sequence[str], patients: Sequence[str]) -> list[Split]:
    """Read `splits.json`: training and test patients per fold; validation is then to be taken from training.

    Raises:
        TrainingDataError: other JSON, or no patient of the cohort.
    """
    try:
        folds = json.loads(text)["splits"]
        pairs = [(set(map(str, fold["train_patients"])), set(map(str, fold["test_patients"]))) for fold in folds]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingDataError(f"no STAMP split: {error}. It holds splits: train_patients, test_patients.") from error
    sides = [dict.fromkeys(train, "train") | dict.fromkeys(test, "test") for train, test in pairs]
    return [_split(one, slides, patients) for one in sides]


def _side(value: str, where: str) -> str:
    word = value.strip().lower()
    if word and word not in _SIDES:
        raise TrainingDataError(f"{where}: {value!r} is no side. Use train, val, test or an empty cell.")
    return _SIDES.get(word, "")


def _split(sides: Mapping[str, str], slides: Sequence[str], patients: Sequence[str]) -> Split:
    """Rows of the slides on each side, known by slide or by patient."""
    found = [sides.get(slide, sides.get(patient, "")) for slide, patient in zip(slides, patients, strict=True)]
    if not any(found):
        raise TrainingDataError(
            f"the split names no slide of the job: it says {', '.join(list(sides)[:3])}, the job {slides[0]}."
        )
    at = np.array(found)
    return Split(*(np.flatnonzero(at == side).astype(np.int64) for side in ("train", "val", "test")))
