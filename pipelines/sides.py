"""The labelled slides of a training: who is learned from, who stops it, and who is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import mil
from mil.clinical import Variables
from mil.tasks import Classification, Task

from .clinical import Cells, Joined
from .config import LearnSettings
from .feature_sets import FeatureSet
from .labels import Labels
from .questions import Question

_SIDE_NAMES = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Sides:
    """Which labelled slide is on which side of the split.

    Attributes:
        slides: names, in the order of the rows.
        patients: patient of each.
        split: rows of train, validation and test.
        task: what is asked, not yet fitted.
        known: targets (n, W) of the slides to learn from; those of test slides are NaN.
        sealed: targets of the test slides, in the order of `split.test`: nothing can be trained on them.
        clinical: slide → column → cell of the clinical variables; empty without.
        confounders: of each slide the cells of what is to be kept out of the model; empty without.
        sites: of each slide, where folds keep the slides of a site together; else empty.
        target: the column, or columns, of the label table that were asked for.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...]
    split: mil.Split
    task: Task
    known: NDArray[np.float64]
    sealed: mil.SealedLabels
    clinical: Cells = field(default_factory=dict)
    confounders: tuple[tuple[str, ...], ...] = ()
    sites: tuple[str, ...] = ()
    target: str = "label"

    @classmethod
    def of(
        cls,
        slides: Sequence[str],
        patients: Sequence[str],
        split: mil.Split,
        question: Question,
        labels: Labels,
        settings: LearnSettings,
    ) -> Sides:
        """Seal the targets of the test slides away."""
        target = question.targets(slides)
        sealed = mil.SealedLabels.seal(target[split.test])
        target[split.test] = np.nan
        clinical = {name: dict(labels.clinical.get(name, {})) for name in slides} if settings.variables else {}
        adapts = settings.adapt != "none"
        confounders = tuple(tuple(labels.cell(s, c) for c in settings.kept_out) for s in slides) if adapts else ()
        sites = tuple(labels.cell(s, settings.site) for s in slides) if settings.site and settings.folds else ()
        known = (tuple(slides), tuple(patients), split, question.task, target, sealed)
        return cls(*known, clinical, confounders, sites, labels.target)

    def variables(self, settings: LearnSettings) -> Variables | None:
        """Clinical variables as the training slides have them; None where none are wanted."""
        if not settings.variables:
            return None
        return Variables.fit(settings.variables, [self.clinical[self.slides[row]] for row in self.split.train])

    def bag_set(
        self,
        features: FeatureSet,
        rows: NDArray[np.int64],
        *,
        per_patient: bool,
        variables: Variables | None = None,
    ) -> mil.BagSet:
        """Labelled bags of some slides, read when they are asked for."""
        names = [self.slides[row] for row in rows]
        bags = features.bags(names)
        if variables is not None:
            bags = Joined(bags, variables, [self.clinical[name] for name in names])
        confounders = tuple(self.confounders[row] for row in rows) if self.confounders else ()
        whole = mil.BagSet(bags, self.known[rows], tuple(self.patients[row] for row in rows), confounders)
        return whole.by_patient() if per_patient else whole

    def side_of(self) -> dict[str, str]:
        """Return slide → `train`, `val` or `test`."""
        names = ("train", "validation", "test")
        return {self.slides[row]: _SIDE_NAMES[name] for name in names for row in getattr(self.split, name)}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return slides and patients per side."""
        rows = {_SIDE_NAMES[name]: getattr(self.split, name) for name in ("train", "validation", "test")}
        return {
            name: {"slides": len(some), "patients": len({self.patients[row] for row in some})}
            for name, some in rows.items()
        }

    def held_out(self) -> list[bool]:
        """Of each slide whether nothing was learned from it."""
        learned = set(self.split.train.tolist())
        return [row not in learned for row in range(len(self.slides))]

    def strata(self) -> list[str]:
        """Class of each slide, for judging a finished model; nothing where there are no classes."""
        if not isinstance(self.task, Classification):
            return [""] * len(self.slides)
        target = self.known[:, 0].copy()
        target[self.split.test] = self.sealed.unseal()[:, 0]
        return [f"{value:g}" for value in target]
