"""Features of several folders joined tile by tile: the same tiles at several µm/px, or seen by several encoders.

Each tile of the first folder keeps its place and gets, behind its own features, those of that tile of each further one
in which its middle lies; where that one holds too little tissue to be there, those of the nearest tile.

Source: Li, Li, Eliceiri, CVPR 2021 (DSMIL), doi:10.1109/CVPR46437.2021.01409, where features of a low magnification are
put behind those of the higher one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import FeatureFile, decisive


def joined(first: FeatureFile, others: Sequence[FeatureFile]) -> NDArray[Any]:
    """Return the features (N, D + D₂ + …) of the tiles of the first file; those of an empty file are (0, 0)."""
    if not len(first.xy):
        return np.zeros((0, 0), np.float32)
    parts = [first.features, *(other.features[nearest(first, other)] for other in others)]
    return np.concatenate(parts, axis=1)


def nearest(fine: FeatureFile, coarse: FeatureFile) -> NDArray[np.int64]:
    """Return for each tile of `fine` the row of the tile of `coarse` whose middle is nearest, by the longer side.

    By that measure a tile in which the middle lies is nearer than any in which it does not.
    """
    from scipy.spatial import KDTree

    _, rows = KDTree(_middles(coarse)).query(_middles(fine), p=np.inf)
    found: NDArray[np.int64] = np.asarray(rows, np.int64)
    return found


def joined_passport(passports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how joined features were made: each part's passport, and what readers of one passport look for."""
    first = passports[0]
    return {
        "id": " + ".join(_named(passport) for passport in passports),
        "kind": "joined",
        "dim": sum(int(passport.get("dim", 0)) for passport in passports),
        "tile": first.get("tile", {}),
        "joined": [decisive(passport) for passport in passports],
        **{name: first[name] for name in ("versions", "device") if name in first},
    }


def _named(passport: Mapping[str, Any]) -> str:
    mpp = passport.get("tile", {}).get("mpp")
    return str(passport.get("id", "unknown")) + (f" at {mpp:g} µm/px" if mpp else "")


def _middles(file: FeatureFile) -> NDArray[np.float64]:
    """Return the middle of each tile (N, 2), level-0 pixels."""
    return file.xy + np.asarray(file.footprint) / 2
