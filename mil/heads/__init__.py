"""The registry of multiple-instance heads: one paper per file, all with one kind of input and output."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mil.errors import UnknownHeadError, did_you_mean

from .abmil import ABMIL, GatedABMIL
from .acmil import ACMIL
from .additive import AdditiveMIL
from .base import Contract, Head, MILOutput
from .clam import ClamMB, ClamSB
from .dsmil import DSMIL
from .dtfd import DTFD
from .graph import GraphHead
from .hybrid import Hybrid
from .ilra import ILRA
from .instance_max import InstanceMax
from .max import MaxHead
from .mean import MeanHead
from .options import checked
from .standard_mil import StandardMIL
from .transmil import TransMIL
from .vit import ViT

__all__ = ["HEADS", "Contract", "Head", "MILOutput", "check_head", "create_head"]

_ALL: tuple[type[Head], ...] = (
    MeanHead,
    MaxHead,
    InstanceMax,
    StandardMIL,
    ABMIL,
    GatedABMIL,
    AdditiveMIL,
    ClamSB,
    ClamMB,
    DSMIL,
    DTFD,
    ACMIL,
    ILRA,
    TransMIL,
    ViT,
    Hybrid,
    GraphHead,
)
HEADS: dict[str, type[Head]] = {head.name: head for head in _ALL}


def create_head(name: str, in_dim: int, classes: int, **options: float) -> Head:
    """Build a head with fresh weights (torch's random state decides them).

    Args:
        name: a key of `HEADS`.
        in_dim: width D of the features.
        classes: number of classes C.
        options: what the head's own constructor takes, e.g. `hidden`, `attention`, `dropout`.

    Raises:
        UnknownHeadError: no head of that name.
        MilError: the head does not take one of the options, or not such a value.
    """
    return _known(name)(in_dim, classes, **checked(_known(name), options))


def check_head(name: str, options: Mapping[str, float]) -> None:
    """Refuse what `create_head` would refuse, at no cost: nothing is allocated and no random number drawn.

    Raises:
        UnknownHeadError: no head of that name.
        MilError: the options do not fit the head, or one another.
    """
    own = checked(_known(name), options)
    with torch.device("meta"):
        HEADS[name](1, 2, **own)


def _known(name: str) -> type[Head]:
    """Return the head of a name."""
    if name not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise UnknownHeadError(f"no head is called {name!r}.{did_you_mean(name, HEADS)} There are: {known}.")
    return HEADS[name]
