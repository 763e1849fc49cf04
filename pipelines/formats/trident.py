"""TRIDENT's features, and ours, which follow its layout and say more (formats.md §3; TRIDENT 0.3.0)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from pipelines.features import coords_bytes, feature_bytes, passport_in
from pipelines.files import open_h5, write_bytes
from pipelines.jobfolder import Tiling, tiling_name

from .slide_features import Given, SlideFeatures, foreign_passport, places, two_dimensional

NAME = "trident"
_NOMINAL = "µm/px taken from its nominal magnification: give --slide-mpp for the true one"


def looks(file: h5py.File) -> bool:
    """Tell whether an open file is one of TRIDENT's, or ours."""
    if not {"features", "coords"} <= set(file) or not isinstance(file["features"], h5py.Dataset):
        return False
    return bool({"patch_size_level0", "target_magnification"} & set(file["coords"].attrs))


def read(path: Path, given: Given) -> SlideFeatures:
    """Read one slide."""
    with open_h5(path) as file:
        coords = file["coords"]
        a: Mapping[str, Any] = {**file.attrs, **file["features"].attrs, **coords.attrs}
        features = two_dimensional(file["features"][()], path.stem)
        xy = places(coords[()], path.stem)
        ours = passport_in(file)
    tile = int(float(a["patch_size"])) if "patch_size" in a else int(given.tile or 0)
    side = int(float(a["patch_size_level0"])) if "patch_size_level0" in a else _recomputed(a)
    footprint = (int(a.get("footprint_x", side)), int(a.get("footprint_y", side)))
    mpp, notes = _mpp(a, given)
    overlap = int(float(a.get("overlap", 0)))
    target = float(a.get("target_magnification") or 0)
    made = foreign_passport(
        "TRIDENT",
        given.encoder or str(a.get("encoder", "")) or path.parent.name.removeprefix("features_"),
        features.shape[1],
        str(features.dtype),
        tile={"size": tile, "mpp": round(10 / target, 6) if target else None, "overlap": overlap},
    )
    size = (int(a.get("level0_width", 0)), int(a.get("level0_height", 0)))
    name = str(a.get("name") or path.stem)
    return SlideFeatures(name, features, xy, footprint, tile, mpp, ours or made, overlap, size, notes)


def _recomputed(a: Mapping[str, Any]) -> int:
    """Return the footprint as TRIDENT computes it from magnifications."""
    return int(float(a["patch_size"]) * float(a["level0_magnification"]) // float(a["target_magnification"]))


def _mpp(a: Mapping[str, Any], given: Given) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    if "mpp_x" in a:
        return (float(a["mpp_x"]), float(a["mpp_y"])), ()
    if given.mpp is not None:
        return (given.mpp, given.mpp), ()
    nominal = float(a.get("level0_magnification") or 0)
    return ((10 / nominal, 10 / nominal), (_NOMINAL,)) if nominal else (None, ())


def attributes_of(slide: SlideFeatures) -> dict[str, Any]:
    """Return the attributes of `coords`, so that TRIDENT computes the true footprint from them.

    Raises:
        CheckFailedError: nobody says the slide's µm/px.
    """
    mpp = slide.needs_mpp("TRIDENT's layout")
    side = slide.footprint[0]
    target = 10 * slide.tile / (side * mpp[0])
    level0 = side * target / slide.tile
    while slide.tile * level0 // target < side:
        level0 = math.nextafter(level0, math.inf)
    return {
        "patch_size": slide.tile,
        "patch_size_level0": side,
        "level0_magnification": level0,
        "target_magnification": target,
        "overlap": slide.overlap,
        "name": slide.slide_id,
        "savetodir": ".",
        "level0_width": slide.slide_size[0],
        "level0_height": slide.slide_size[1],
        "footprint_x": side,
        "footprint_y": slide.footprint[1],
        "mpp_x": mpp[0],
        "mpp_y": mpp[1],
        "mpp_source": "converted",
        "tile_mpp": side * mpp[0] / slide.tile,
    }


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write coordinates and features of one slide below a job folder; returns the feature file."""
    tiling = Tiling(folder / tiling_name(slide.tile, slide.cohort_mpp, slide.overlap))
    attributes = attributes_of(slide)
    write_bytes(tiling.patches(slide.slide_id), coords_bytes(attributes, slide.xy))
    path = tiling.features(_fit(slide.encoder), slide.slide_id)
    write_bytes(path, feature_bytes(attributes, slide.xy, slide.features, (), slide.passport, {}))
    return path


def _fit(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)
