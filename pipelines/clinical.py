"""Clinical variables: cells of a table for a training, and for the slides that a model predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

import mil
from mil.clinical import Variables

from .files import csv_bytes, read_csv
from .jobfolder import JobFolder

Cells: TypeAlias = Mapping[str, Mapping[str, str]]
"""Slide → column → cell."""

KEPT = "clinical.csv"


class Joined(Sequence[mil.Bag]):
    """Bags that get their clinical numbers when they are asked for.

    Args:
        bags: one per slide.
        variables: how cells become numbers.
        rows: the cells of each.
    """

    def __init__(self, bags: Sequence[mil.Bag], variables: Variables, rows: Sequence[Mapping[str, str]]) -> None:
        self._bags, self._numbers = bags, [torch.from_numpy(variables.encode(row))[None] for row in rows]

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, i: Any) -> Any:
        return replace(self._bags[i], clinical=self._numbers[i])


def kept_cells(job: JobFolder, name: str) -> dict[str, dict[str, str]]:
    """Return the cells that a model's last prediction was made with; empty without."""
    path = job.predictions(name) / KEPT
    if not path.is_file():
        return {}
    rows = read_csv(path, strip=False)
    return {row["slide_id"]: {key: cell for key, cell in row.items() if key != "slide_id"} for row in rows}


def cells_file(cells: Cells) -> bytes:
    """Return the cells as the table that `kept_cells` reads."""
    columns = sorted({name for row in cells.values() for name in row})
    return csv_bytes(["slide_id", *columns], [{"slide_id": name, **row} for name, row in sorted(cells.items())])


def columns_of(models: Sequence[mil.TrainedModel]) -> tuple[str, ...]:
    """Clinical columns that some of the models take."""
    asked = [model.variables for model in models]
    return tuple(dict.fromkeys(name for one in asked if one is not None for name in one.names))


def notes_on(models: Sequence[mil.TrainedModel], cells: Cells, slides: Sequence[str]) -> list[str]:
    """Say of how many slides nothing is known, and which cells the models do not understand."""
    columns, rows = columns_of(models), [cells.get(name, {}) for name in slides]
    variables = [model.variables for model in models]
    if not columns:
        return []
    notes = []
    silent = sum(not any(row.get(name, "").strip() for name in columns) for row in rows)
    if silent:
        notes.append(
            f"{silent} of {len(rows)} slides have no clinical variable ({', '.join(columns)}) and are predicted "
            "without: give a table with --clinical-table"
        )
    strange = sorted({one for mine in variables if mine is not None for one in mine.strange(rows)})
    notes += [
        f"`{column}` says {cell!r}, which the model has not met: taken as missing" for column, cell in strange[:3]
    ]
    return notes
