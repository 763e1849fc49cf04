"""Settings of the user → settings of the trainer."""

from __future__ import annotations

from dataclasses import replace

import mil

from .config import LearnSettings
from .errors import UsageError


def check_head(settings: LearnSettings) -> None:
    """Refuse a head that there is not, and options that it does not take, before anything is read.

    Raises:
        UsageError: says which heads, or which options, there are.
    """
    try:
        mil.check_head(settings.head, settings.of_head)
    except mil.MilError as error:
        where = f"head_options={settings.head_options}: " if settings.head in mil.HEADS else ""
        raise UsageError(f"{where}{error}") from error


def train_settings(settings: LearnSettings) -> mil.TrainSettings:
    """Return the trainer's settings; what the user did not set keeps the trainer's default."""
    given = {name: getattr(settings, name) for name in ("epochs", "lr", "weight_decay", "dropout", "patience")}
    chosen = {name: value for name, value in given.items() if value is not None}
    same = "schedule clip ema feature_dropout mixup class_weights task_weights surgery precision"
    same += " clinical_dropout adapt adapt_weight"
    chosen |= {name: getattr(settings, name) for name in same.split()}
    chosen |= {"fusion": settings.fusion if settings.variables else "none"}
    chosen |= {"batch_size": settings.train_batch, "memory_gb": settings.train_memory_gb}
    own = settings.of_head
    chosen |= {"dropout": own.pop("dropout")} if "dropout" in own else {}  # one place for it, however it was given
    return replace(mil.TrainSettings(head=settings.head, head_options=own, seed=settings.seed), **chosen)
