"""What a head can be told beside features and classes: read off its constructor, and held against what can be meant."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING

from mil.errors import MilError, did_you_mean

if TYPE_CHECKING:
    from .base import Head

RANGES: dict[str, tuple[float, float]] = {
    "hidden": (1, 65536),
    "attention": (1, 65536),
    "branches": (1, 256),
    "groups": (1, 4096),
    "heads": (1, 256),
    "landmarks": (1, 4096),
    "layers": (1, 64),
    "neighbors": (1, 1024),
    "rank": (1, 4096),
    "mask_top": (0, 1_000_000),
    "mask_share": (0, 1),
    "dropout": (0, 0.99),
}
"""Option → least and largest value that a head is built with."""


def options_of(head: type[Head]) -> dict[str, float]:
    """Return option → its default; an int where the head wants a whole number."""
    found = inspect.signature(head).parameters.values()
    return {one.name: one.default for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY}


def checked(head: type[Head], options: Mapping[str, float]) -> dict[str, float]:
    """Return options as the head takes them: `256.0` as `256` where that is a whole number.

    Raises:
        MilError: lists the names that the head does not know, the values out of range, and what there is.
    """
    known = options_of(head)
    unknown = [f"no option is called {name!r}.{did_you_mean(name, known)}" for name in options if name not in known]
    wrong = unknown + [_misfit(name, value, known[name]) for name, value in options.items() if name in known]
    if any(wrong):
        takes = ", ".join(f"{name}={value:g}" for name, value in known.items())
        raise MilError(f"the head {head.name}: {' '.join(filter(None, wrong))} By default: {takes}.")
    return {name: type(known[name])(value) for name, value in options.items()}


def _misfit(name: str, value: object, default: float) -> str:
    """Say what is wrong with a value; nothing where it fits."""
    (low, high), whole = RANGES[name], isinstance(default, int)
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if low <= number <= high and (not whole or number.is_integer()):
        return ""
    return f"{name}={value} is no {'whole number' if whole else 'number'} from {low:g} to {high:g}."
