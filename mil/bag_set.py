"""Labeled bags for training and validation, and labels of test slides, which training cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from .bag import Bag
from .errors import TrainingDataError

_APART = 200  # tiles between slides that are put side by side: further than any head's neighborhood reaches


@dataclass(frozen=True, eq=False)
class SealedLabels:
    """Labels of held-out slides: no array, so nothing can be trained on them; `unseal` opens them for scoring.

    Attributes:
        n: number of slides.
    """

    n: int
    _values: NDArray[Any] = field(repr=False)

    @classmethod
    def seal(cls, values: NDArray[Any]) -> SealedLabels:
        """Put labels away."""
        return cls(len(values), np.array(values))

    def unseal(self) -> NDArray[Any]:
        """Return the labels: for scoring a finished model, and for nothing else."""
        return self._values.copy()

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TrainingDataError("labels of test slides are sealed: they score a finished model, and train none.")


@dataclass(frozen=True, eq=False)
class BagSet:
    """Labeled bags of one side of a split.

    Attributes:
        bags: one Bag of length one per slide (or patient); any sequence that gives them when they are asked for, so
            that a cohort may be larger than memory.
        labels: class number of each slide, shape (n,), int64; of other tasks what `mil.tasks` says, with NaN for
            what is not known.
        patients: patient of each slide.
        confounders: of each slide what is to be kept out of the model, e.g. (site, scanner); "" where it is not known.
    """

    bags: Sequence[Bag]
    labels: NDArray[Any]
    patients: tuple[str, ...]
    confounders: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.labels, SealedLabels):
            raise TrainingDataError("these are the labels of test slides: no model is trained or stopped by them.")
        n = len(self.bags)
        if len(self.labels) != n or len(self.patients) != n:
            raise TrainingDataError(
                f"{n} bags, {len(self.labels)} labels and {len(self.patients)} patients. Give one of each per slide."
            )
        if self.confounders and len(self.confounders) != n:
            raise TrainingDataError(f"{n} bags, {len(self.confounders)} rows of confounders. Give one per slide.")
        if isinstance(self.bags, (list, tuple)) and any(len(bag) != 1 for bag in self.bags):
            raise TrainingDataError("each entry of a BagSet is one slide. Split packed bags with Bag.split().")

    def __len__(self) -> int:
        return len(self.bags)

    def by_patient(self, *, strict: bool = True) -> BagSet:
        """Return a set with one bag per patient: the tiles of all slides, in the order of the slides.

        Args:
            strict: refuse patients whose slides have different labels; else they are left out.

        Raises:
            TrainingDataError: slides of a patient have different labels.
        """
        rows: dict[str, list[int]] = {}
        for row, patient in enumerate(self.patients):
            rows.setdefault(patient, []).append(row)
        torn = [p for p, mine in rows.items() if not _alike(self.labels[mine])]
        if torn and strict:
            raise TrainingDataError(
                f"{len(torn)} patient(s) have slides with different labels, e.g. {', '.join(torn[:3])}. One bag per "
                "patient needs one label per patient."
            )
        for patient in torn:
            del rows[patient]
        return replace(
            self,
            bags=_Joined(self.bags, tuple(tuple(mine) for mine in rows.values()), tuple(rows)),
            labels=self.labels[[mine[0] for mine in rows.values()]],
            patients=tuple(rows),
            confounders=tuple(self.confounders[mine[0]] for mine in rows.values()) if self.confounders else (),
        )


class _Joined(Sequence[Bag]):
    """Slides put together to one bag per patient when it is asked for."""

    def __init__(self, bags: Sequence[Bag], rows: tuple[tuple[int, ...], ...], names: tuple[str, ...]) -> None:
        self._bags, self._rows, self._names = bags, rows, names

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return join([self._bags[row] for row in self._rows[i]], self._names[i])


def join(bags: Sequence[Bag], name: str) -> Bag:
    """Put bags together to one; their coordinates lie side by side, far enough apart that no two slides touch."""
    features = torch.cat([bag.features for bag in bags]) if len(bags) > 1 else bags[0].features
    places, right = [], 0
    for bag in bags:
        if bag.xy is None or not bag.n_tiles:
            continue
        low, high = bag.xy.amin(dim=0), bag.xy.amax(dim=0)
        gap = _APART * max(_pitch(bag), 1)
        places.append(bag.xy - torch.stack([low[0] - right, low[1]]) if len(bags) > 1 else bag.xy)
        right += int(high[0] - low[0]) + gap
    whole = all(bag.xy is not None for bag in bags)
    xy = (torch.cat(places) if places else bags[0].xy) if whole else None
    return Bag(features, torch.tensor([0, features.shape[0]]), xy, (name,), _first_known(bags))


def _first_known(bags: Sequence[Bag]) -> torch.Tensor | None:
    """Of each clinical number what the first bag says that knows it."""
    rows = [bag.clinical for bag in bags if bag.clinical is not None]
    if not rows:
        return None
    known = rows[0]
    for row in rows[1:]:
        known = torch.where(torch.isnan(known), row, known)
    return known


def _pitch(bag: Bag) -> int:
    """Distance between neighboring tiles of one slide, in level-0 pixels; 0 where it has one."""
    assert bag.xy is not None
    steps = torch.cat([torch.unique(bag.xy[:, axis]).diff() for axis in (0, 1)])
    return int(steps.max()) if len(steps) else 0


def _alike(labels: NDArray[Any]) -> bool:
    """Say whether all rows are the same; what is not known equals what is not known."""
    return bool(np.array_equal(labels, np.broadcast_to(labels[:1], labels.shape), equal_nan=labels.dtype.kind == "f"))
