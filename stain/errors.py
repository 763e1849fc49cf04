"""The errors of this package.

StainError
├── UnknownMethodError       no normalizer of that name
├── UnknownReferenceError    no built-in reference of that name
├── UnusableReferenceError   the reference given cannot be fitted, or belongs to another method
├── PixelFormatError         not uint8 RGB in the last axis: a mistake of the caller, not of the slide
└── ParametersError          JSON that does not hold stain parameters

Pixels never raise: what a slide looks like ends in `StainParams.status`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StainError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownMethodError(StainError):
    """No normalizer of that name."""


class UnknownReferenceError(StainError):
    """No built-in reference of that name."""


class UnusableReferenceError(StainError):
    """The reference cannot be fitted, or was fitted by another method."""


class PixelFormatError(StainError):
    """Pixels that are not uint8 with red, green, blue in the last axis."""


class ParametersError(StainError):
    """JSON that does not hold stain parameters."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the unknown thing, the closest known one, and all known ones."""
    names = list(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names)}."
