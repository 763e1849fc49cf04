"""How features are made, as the settings ask: what decides which of them may be mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import stain

from .augmenting import augmentation
from .config import ExtractSettings
from .stain_target import reference_identity

if TYPE_CHECKING:
    from mil import Encoder


def passport_of(encoder: Encoder, settings: ExtractSettings) -> dict[str, Any]:
    """Return how features are made: the encoder's passport, the tile, its colors and the stain normalization.

    How JPEG 2000 is read stands there only where it is not read in full.
    """
    reading = {} if settings.jpeg2000 == "full" else {"jpeg2000": settings.jpeg2000}
    return {
        **encoder.passport(),
        "device": encoder.device.partition(":")[0],
        **colors_of(settings),
        "stain": settings.stain,
        **stain_of(settings),
        **augment_of(settings),
        "tile": {"size": settings.tile, "mpp": settings.mpp, "overlap": settings.overlap},
        "stored_dtype": settings.dtype,
        **reading,
    }


def stain_of(settings: ExtractSettings) -> dict[str, Any]:
    """Return what else decides normalized pixels; nothing where they are left alone."""
    if settings.stain == "none":
        return {}
    identity = reference_identity(settings)
    return {"stain_bytes": stain.BYTES, **({} if identity is None else {"stain_reference": identity})}


def augment_of(settings: ExtractSettings) -> dict[str, str]:
    """Return how colors were changed by chance; nothing where they were not."""
    how = augmentation(settings.augment)
    return {} if how is None else {"augment": str(how)}


def colors_of(settings: ExtractSettings) -> dict[str, str]:
    """Return what was done about color profiles; nothing where pixels are as the scanner wrote them."""
    return {} if settings.icc == "none" else {"icc": settings.icc}
