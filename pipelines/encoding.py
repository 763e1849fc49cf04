"""The encoder that the settings ask for, and the device it computes on."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from .config import ExtractSettings
from .errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from mil import Encoder

OPENVINO = "openvino"


def devices_of(name: str) -> list[str]:
    """Return the devices that `--device` names: several with commas, or "all" CUDA devices."""
    if name not in ("all", "cuda:all"):
        return [one.strip() for one in name.split(",")]
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]


def check_device(name: str, *, encodes: bool = False) -> None:
    """Refuse devices that are not there before anything is read.

    Args:
        name: as in `devices_of`.
        encodes: an encoder is to compute there, for which OpenVINO will do, too.

    Raises:
        UsageError: there is no such kind of device.
        EnvironmentFault: this machine lacks it.
    """
    for one in devices_of(name):
        if encodes and one == OPENVINO:
            _check_openvino()
        else:
            _check_one(one, f"auto, cpu, cuda, {'openvino, ' * encodes}or cuda:1 …")


def _check_openvino() -> None:
    if importlib.util.find_spec(OPENVINO) is None:
        raise EnvironmentFault(
            f"--device {OPENVINO}: the package is not installed. Install it: pip install 'slidemil[openvino]', or use "
            "--device cpu."
        )


def _check_one(name: str, known: str) -> None:
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"--device {name}: write {known}")
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
    check_device(settings.device, encodes=True)
    if settings.commercial_only:
        from .encoder_verbs import permitted

        permitted(settings.encoder)
    import mil

    encoder = mil.create_encoder(
        settings.encoder,
        weights=settings.weights,
        device=devices_of(settings.device)[0],
        batch_size=settings.batch_size,
        precision=settings.precision,
        compile=settings.compile,
    )
    fit = getattr(encoder, "fit_memory", None)
    if fit is not None:
        fit(settings.tile)
    self_check(encoder)
    return encoder


def encoders_of(settings: ExtractSettings, *, offline: bool) -> list[Encoder]:
    """Return all encoders that `--encoder a,b` asks for, with the weights of `--weights x,y` in the same order.

    Raises:
        UsageError: weights for some encoders only, or maps of one that has none.
    """
    names = [name.strip() for name in settings.encoder.split(",")]
    files: list[str | None] = [None] * len(names)
    if settings.weights is not None and len(names) > 1:
        files = [one.strip() or None for one in settings.weights.split(",")]
    elif settings.weights is not None:
        files = [settings.weights]
    if len(files) != len(names):
        raise UsageError(
            f"--weights names {len(files)} files for {len(names)} encoders: separate them with commas, in the same "
            "order, and leave a place empty where none is needed: --encoder descriptors,resnet18 --weights ,FILE"
        )
    if len(set(names)) < len(names):
        raise UsageError(f"--encoder {settings.encoder}: the same encoder twice.")
    encoders = [
        encoder_of(replace(settings, encoder=name, weights=file), offline=offline)
        for name, file in zip(names, files, strict=True)
    ]
    if settings.dense:
        from .maps import check_maps

        check_maps(encoders)
    return encoders


def self_check(encoder: Encoder) -> None:
    """Look whether features depend on the batch around a tile; if so, the batch size enters the passport.

    It takes two passes, the first of which warms up what the run needs anyway. `slidemil encoders verify` looks closer.
    """
    tie = getattr(encoder, "tie_batch_size", None)
    if tie is None:
        return
    import mil

    try:
        mil.check_batch_invariance(encoder, tiles=2, quick=True)
    except mil.MilError as error:
        tie(str(error))


def settled(settings: ExtractSettings, encoder: Encoder) -> ExtractSettings:
    """Return the settings with the batch size that was found where none was asked for."""
    found = settings.batch_size or max(64, int(getattr(encoder, "batch_size", 64)))
    return replace(settings, batch_size=found)
