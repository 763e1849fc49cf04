"""Settings of a training, chosen on inner folds of its own training patients: the held-out ones have no say.

Trials are suggested by optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011). Each trial trains a
model per inner fold and is judged by the loss on that fold's own held-out patients: a proper score, with fewer ties on
few slides than the AUC. Every trial has a seed of its own and finished trials are kept, so that a search that was
stopped goes on to the same end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mil
from mil.folds import nested_folds

from .config import LearnSettings
from .errors import EnvironmentFault
from .feature_sets import FeatureSet
from .files import csv_bytes, json_bytes, write_bytes
from .jobfolder import JobFolder
from .progress import Progress
from .questions import Question
from .records import key_of
from .sides import Sides
from .trainer import train_settings

SEARCH = "search.csv"
RANGES: dict[str, tuple[float, float, bool]] = {
    "lr": (1e-4, 5e-3, True),
    "weight_decay": (1e-4, 1e-1, True),
    "dropout": (0.0, 0.6, False),
    "feature_dropout": (0.0, 0.4, False),
}
"""Setting → least, largest, and whether it is drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Trial:
    """One set of settings and what came of it.

    Attributes:
        number: from 0.
        values: setting → value.
        losses: on the held-out patients of each inner fold.
    """

    number: int
    values: Mapping[str, float]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean over the inner folds."""
        return float(np.mean(self.losses))


def open_settings(settings: LearnSettings) -> list[str]:
    """Name the settings that are searched: those of `RANGES` that the user left as they were."""
    left = LearnSettings()
    return [n for n in RANGES if getattr(settings, n) == getattr(left, n) and n not in settings.of_head]


def choose(
    job: JobFolder,
    name: str,
    features: FeatureSet,
    sides: Sides,
    settings: LearnSettings,
    progress: Progress,
    parts: Mapping[str, Any],
) -> tuple[LearnSettings, list[Trial]]:
    """Return the settings with those of the best trial, and all trials.

    Raises:
        EnvironmentFault: optuna is not installed.
        UsageError: every setting was given: nothing is left to search.
        mil.TrainingDataError: too few patients for inner folds.
    """
    wanted, path = open_settings(settings), job.root / ".state" / "search" / f"{name}.{key_of(parts)[:16]}.json"
    folds = inner_folds(sides, settings)
    done = _read(path)
    for number in range(len(done), settings.search):
        values = suggest(done, wanted, settings.seed)
        losses = tuple(_loss(features, sides, fold, with_values(settings, values)) for fold in folds)
        done.append(Trial(number, values, losses))
        write_bytes(path, json_bytes([{"values": dict(one.values), "losses": list(one.losses)} for one in done]))
        progress.advance(0, note=f"{name}: trial {number + 1} of {settings.search}, loss {done[-1].loss:.3f}")
    best = min(done, key=lambda one: (one.loss, one.number))
    path.unlink(missing_ok=True)
    return with_values(settings, best.values), done


def with_values(settings: LearnSettings, values: Mapping[str, Any]) -> LearnSettings:
    """Settings with those of a trial, and nothing left to search."""
    return replace(settings, search=0, **values)


def inner_folds(sides: Sides, settings: LearnSettings) -> list[mil.Split]:
    """Folds of the training and validation slides, by patient, and by site where the outer ones are."""
    target = {slide: tuple(row) for slide, row in zip(sides.slides, sides.known.tolist(), strict=True)}
    outer = np.sort(np.concatenate([sides.split.train, sides.split.validation]))
    mine = [sides.slides[row] for row in outer], [sides.patients[row] for row in outer]
    strata = Question(sides.task, target).strata(*mine, settings.inner_folds)
    y = None
    if strata is not None:
        y = np.zeros(len(sides.slides), np.int64)
        y[outer] = strata
    sites = sides.sites or None
    return nested_folds(sides.split, sides.patients, y, k=settings.inner_folds, sites=sites, seed=settings.seed)


def suggest(done: Sequence[Trial], wanted: Sequence[str], seed: int) -> dict[str, float]:
    """Values of the next trial; the same trials and seed give the same values."""
    try:
        import optuna
    except ImportError as error:
        raise EnvironmentFault(
            "the search needs optuna. Install it: pip install 'slidemil[search]', or train without search."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=log)
        for name, (low, high, log) in RANGES.items()
        if name in wanted
    }
    seeds = np.random.SeedSequence([seed, len(done)]).generate_state(1)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(seeds[0])))
    for one in done:
        params = {key: one.values[key] for key in ranges}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=one.loss))
    return {key: float(f"{value:.6g}") for key, value in study.ask(ranges).params.items()}


def table(trials: Sequence[Trial]) -> bytes:
    """Return the trials as a table."""
    folds = [f"loss_{i}" for i in range(len(trials[0].losses))]
    names = list(trials[0].values)
    rows = [{"trial": t.number, **t.values, "loss": t.loss, **dict(zip(folds, t.losses, strict=True))} for t in trials]
    return csv_bytes(["trial", *names, "loss", *folds], rows)


def _loss(features: FeatureSet, sides: Sides, fold: mil.Split, settings: LearnSettings) -> float:
    """Train on an inner fold, and say how it does on the fold's own held-out slides."""
    inner = replace(sides, split=fold, sealed=mil.SealedLabels.seal(sides.known[fold.test]))
    variables = inner.variables(settings)
    fit, stop, judge = (
        inner.bag_set(features, rows, per_patient=settings.per_patient, variables=variables)
        for rows in (fold.train, fold.validation, fold.test)
    )
    model = mil.train(fit, stop, sides.task, train_settings(settings), variables=variables)
    logits = [mil.predict(model, judge.bags[i])[0].logits for i in range(len(judge))]
    return model.task.full_loss(torch.from_numpy(np.stack(logits)).double(), torch.from_numpy(judge.labels))


def _read(path: Path) -> list[Trial]:
    """Finished trials of a search that was stopped."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Trial(i, one["values"], tuple(one["losses"])) for i, one in enumerate(found)]
