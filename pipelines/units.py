"""Amounts as people write them on a command line."""

from __future__ import annotations

import re

from .errors import UsageError

_FACTORS = {"": 1.0, "K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}


def gigabytes(text: str) -> float:
    """Return the GB meant by `8G`, `500M`, `1.5` (GB) or `2GB`.

    Raises:
        UsageError: the text is no amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"--memory {text}: no amount of memory. Write it like 8G or 500M.")
    return float(match[1]) * _FACTORS[match[2].upper()]


def worker_count(text: str) -> int:
    """Return the number of reading threads; 0 means that they are chosen by measurement.

    Raises:
        UsageError: the text is neither `auto` nor a whole number from 1.
    """
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--workers {text}: write auto, or a whole number from 1.")
    return int(text)


def counted(number: float, what: str) -> str:
    """Return `1 core`, `1,200 tiles`, `1.5 cores`."""
    return f"{number:{',' if isinstance(number, int) else 'g'}} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
