"""Settings of the user → settings of the trainer."""

from __future__ import annotations

from dataclasses import replace

import mil

from .config import LearnSettings


def train_settings(settings: LearnSettings) -> mil.TrainSettings:
    """Return the trainer's settings; what the user did not set keeps the trainer's default."""
    given = {name: getattr(settings, name) for name in ("epochs", "lr", "weight_decay", "dropout", "patience")}
    chosen = {name: value for name, value in given.items() if value is not None}
    same = "schedule clip ema feature_dropout mixup class_weights task_weights surgery precision"
    same += " clinical_dropout adapt adapt_weight"
    chosen |= {name: getattr(settings, name) for name in same.split()}
    chosen |= {"fusion": settings.fusion if settings.variables else "none"}
    chosen |= {"batch_size": settings.train_batch, "memory_gb": settings.train_memory_gb}
    return replace(mil.TrainSettings(head=settings.head, seed=settings.seed), **chosen)
