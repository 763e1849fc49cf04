"""The encoder that the settings ask for, and the device it computes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .config import ExtractSettings
from .errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from mil import Encoder


def check_device(name: str) -> None:
    """Refuse a device that is not there before anything is read.

    Raises:
        UsageError: there is no such kind of device.
        EnvironmentFault: this machine lacks it.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"--device {name}: write auto, cpu, cuda, or cuda:1 …")
    if kind != "cuda":
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise EnvironmentFault(
            f"--device {name}: this machine has {count} CUDA devices that torch {torch.__version__} can use. "
            "Use --device cpu, or mend the driver: `slidemil doctor` says what is seen."
        )


def encoder_of(settings: ExtractSettings, *, offline: bool) -> Encoder:
    """Return the encoder that the settings ask for, on their device.

    Raises:
        mil.WeightsError: it has no weights.
        UsageError: there is no such kind of device.
        EnvironmentFault: this machine lacks it.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    check_device(settings.device)
    import mil

    return mil.create_encoder(
        settings.encoder, weights=settings.weights, device=settings.device, batch_size=settings.batch_size
    )
