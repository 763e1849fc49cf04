"""Tiles → features → bag → prediction → explanation.

The names below are loaded when they are first used, so that `import mil` is light.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bag import Bag
    from .bag_set import BagSet, SealedLabels
    from .encoder import DEFAULT_ENCODER, Encoder, check_batch_invariance, create_encoder
    from .epoch import Epoch
    from .errors import (
        BagError,
        MilError,
        ModelError,
        TrainingDataError,
        UnknownEncoderError,
        UnknownHeadError,
        WeightsError,
    )
    from .explain import explain
    from .heads import HEADS, Contract, Head, MILOutput, check_head, create_head
    from .metrics import auc, bootstrap_interval, evaluate
    from .model import TrainedModel, load_model
    from .predict import Prediction, predict
    from .splits import Split, check_split, split_by_patient
    from .tasks import Task, task_from
    from .train import train
    from .train_settings import TrainSettings

_HOME = {
    "DEFAULT_ENCODER": "encoder",
    "HEADS": "heads",
    "Bag": "bag",
    "BagError": "errors",
    "BagSet": "bag_set",
    "Contract": "heads",
    "Encoder": "encoder",
    "Epoch": "epoch",
    "Head": "heads",
    "MILOutput": "heads",
    "MilError": "errors",
    "ModelError": "errors",
    "Prediction": "predict",
    "SealedLabels": "bag_set",
    "Split": "splits",
    "Task": "tasks",
    "TrainSettings": "train_settings",
    "TrainedModel": "model",
    "TrainingDataError": "errors",
    "UnknownEncoderError": "errors",
    "UnknownHeadError": "errors",
    "WeightsError": "errors",
    "auc": "metrics",
    "bootstrap_interval": "metrics",
    "check_batch_invariance": "encoder",
    "check_head": "heads",
    "check_split": "splits",
    "create_encoder": "encoder",
    "create_head": "heads",
    "evaluate": "metrics",
    "explain": "explain",
    "load_model": "model",
    "predict": "predict",
    "split_by_patient": "splits",
    "task_from": "tasks",
    "train": "train",
}

__all__ = [
    "DEFAULT_ENCODER",
    "HEADS",
    "Bag",
    "BagError",
    "BagSet",
    "Contract",
    "Encoder",
    "Epoch",
    "Head",
    "MILOutput",
    "MilError",
    "ModelError",
    "Prediction",
    "SealedLabels",
    "Split",
    "Task",
    "TrainSettings",
    "TrainedModel",
    "TrainingDataError",
    "UnknownEncoderError",
    "UnknownHeadError",
    "WeightsError",
    "auc",
    "bootstrap_interval",
    "check_batch_invariance",
    "check_head",
    "check_split",
    "create_encoder",
    "create_head",
    "evaluate",
    "explain",
    "load_model",
    "predict",
    "split_by_patient",
    "task_from",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'mil' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Python binds a loaded submodule to its package; `mil.train` stays the function nevertheless."""

    def __setattr__(self, name: str, value: Any) -> None:
        hides = isinstance(value, ModuleType) and name in _HOME
        super().__setattr__(name, getattr(value, name) if hides else value)


sys.modules[__name__].__class__ = _Package
