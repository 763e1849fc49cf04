"""The errors of this package.

MilError
├── UnknownEncoderError     no encoder of that name
├── WeightsError            weights missing, refused, or of another architecture
├── UnknownHeadError        no multiple-instance head of that name
├── BagError                features, offsets or coordinates that do not fit together
├── TrainingDataError       labels or patients that cannot be trained on
└── ModelError              a model folder that cannot be used, or features it was not made for
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MilError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownEncoderError(MilError):
    """No encoder of that name."""


class WeightsError(MilError):
    """Encoder weights are missing, refused, or belong to another architecture."""


class UnknownHeadError(MilError):
    """No head of that name."""


class BagError(MilError):
    """Features, offsets, coordinates or ids that do not fit together."""


class TrainingDataError(MilError):
    """Labels, patients or folds from which nothing can be learned honestly."""


class ModelError(MilError):
    """A model folder that cannot be used, or features of another kind than the model's."""


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return " Did you mean a, b?" for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
