"""The registry of multiple-instance heads: one paper per file, all with one kind of input and output."""

from __future__ import annotations

from mil.errors import MilError, UnknownHeadError, did_you_mean

from .abmil import ABMIL, GatedABMIL
from .base import Contract, Head, MILOutput
from .max import MaxHead
from .mean import MeanHead

__all__ = ["ABMIL", "HEADS", "Contract", "GatedABMIL", "Head", "MILOutput", "MaxHead", "MeanHead", "create_head"]

HEADS: dict[str, type[Head]] = {head.name: head for head in (MeanHead, MaxHead, ABMIL, GatedABMIL)}


def create_head(name: str, in_dim: int, classes: int, **options: float) -> Head:
    """Build a head with fresh weights (torch's random state decides them).

    Args:
        name: a key of `HEADS`.
        in_dim: width D of the features.
        classes: number of classes C.
        options: what the head's own constructor takes, e.g. `hidden`, `attention`, `dropout`.

    Raises:
        UnknownHeadError: no head of that name.
        MilError: the head does not take one of the options.
    """
    if name not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise UnknownHeadError(f"no head is called {name!r}.{did_you_mean(name, HEADS)} There are: {known}.")
    try:
        return HEADS[name](in_dim, classes, **options)
    except TypeError as error:
        raise MilError(f"the head {name} cannot be built with {options}: {error}") from error
