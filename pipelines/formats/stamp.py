"""STAMP's tile features: coordinates in µm (formats.md §5; STAMP 2.5.0 and older)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckFailedError
from pipelines.files import h5_bytes, open_h5, write_bytes

from .slide_features import Given, SlideFeatures, foreign_passport, places, two_dimensional

NAME = "stamp"
VERSION = "2.5.0"
_OURS_TO_STAMP = {
    "uni_v1": "uni",
    "uni_v2": "uni2",
    "conch_v1": "conch",
    "conch_v15": "conch1_5",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "virchow": "virchow-full",
    "virchow-token": "virchow",
    "virchow2-token": "virchow2",
    "virchow2": "virchow2-full",
}
"""Encoder names; virchow2 means the class token alone there, so ours gets a name that it does not know."""


def looks(file: h5py.File) -> bool:
    """Tell whether an open file is one of STAMP's."""
    return "feats" in file or "stamp_version" in file.attrs


def read(path: Path, given: Given) -> SlideFeatures:
    """Read one slide.

    Raises:
        CheckFailedError: features of a whole slide, or nobody says the slide's µm/px.
    """
    with open_h5(path) as file:
        if "feats" not in file or "coords" not in file:
            raise CheckFailedError(f"{path}: no tile features (datasets {', '.join(file)}).")
        kind = str(file.attrs.get("feat_type", "tile"))
        if kind != "tile":
            raise CheckFailedError(f"{path}: features of a {kind}, not of tiles.")
        features = two_dimensional(file["feats"][()], path.stem)
        a = dict(file.attrs)
        microns, side = _microns(file["coords"][()].astype(np.float64).reshape(-1, 2), a)
    mpp = _mpp(a, given, path)
    tile = int(a.get("tile_size_px", given.tile or 224))
    known = {theirs: ours for ours, theirs in _OURS_TO_STAMP.items()}
    extractor = str(a.get("extractor", "")) or path.parent.name.rpartition("-")[0]
    name = given.encoder or known.get(extractor, extractor)
    scale = {"size": tile, "mpp": round(side / tile, 6), "overlap": 0}
    passport = foreign_passport("STAMP", name, features.shape[1], str(features.dtype), tile=scale)
    xy = places(microns / np.array(mpp), path.stem)
    footprint = (round(side / mpp[0]), round(side / mpp[1]))
    return SlideFeatures(path.stem, features, xy, footprint, tile, mpp, passport)


def _microns(coords: NDArray[np.float64], a: dict[str, object]) -> tuple[NDArray[np.float64], float]:
    """Return coordinates and side of a tile in µm, by the order of cases that STAMP itself tries."""
    if "tile_size" in a and a.get("unit") == "um":
        return coords, float(str(a["tile_size"]))
    if "tile_size_um" in a:
        return coords, float(str(a["tile_size_um"]))
    stride = float(str(a["tile_size"])) if "tile_size" in a else _stride(coords)
    if round(stride) == 224:
        return coords * (256 / 224), 256.0
    if round(stride) == 256:
        return coords, 256.0
    raise CheckFailedError(f"coordinates of an unknown unit: tiles are {stride:g} apart, and the file names no unit.")


def _stride(coords: NDArray[np.float64]) -> float:
    """Return the least distance between two columns or rows of tiles."""
    steps = np.concatenate([np.diff(np.unique(coords[:, axis])) for axis in (0, 1)])
    steps = steps[steps > 0]
    return float(steps.min()) if len(steps) else 0.0


def _mpp(a: dict[str, object], given: Given, path: Path) -> tuple[float, float]:
    if given.mpp is not None:
        return given.mpp, given.mpp
    if "slidemil_mpp_x" in a:
        return float(str(a["slidemil_mpp_x"])), float(str(a["slidemil_mpp_y"]))
    raise CheckFailedError(
        f"{path}: its coordinates are in µm, and nobody says how many µm a pixel of the slide is. "
        "Give it with --slide-mpp, or a column mpp in --slides CSV."
    )


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write one slide below `<extractor>-<hash>`; returns the file."""
    mpp = slide.needs_mpp("STAMP's layout")
    extractor = _OURS_TO_STAMP.get(slide.encoder, slide.encoder)
    code = hashlib.sha256(repr(sorted(slide.passport.items())).encode()).hexdigest()
    microns = (slide.xy * np.array(mpp)).astype(np.float32)

    def fill(file: h5py.File) -> None:
        file.create_dataset("feats", data=slide.features.astype(np.float16), track_times=False)
        file.create_dataset("coords", data=microns, track_times=False)
        told = {
            "stamp_version": VERSION,
            "extractor": extractor,
            "unit": "um",
            "tile_size_um": float(slide.footprint[0] * mpp[0]),
            "tile_size_px": slide.tile,
            "code_hash": code,
            "feat_type": "tile",
            "slidemil_mpp_x": mpp[0],
            "slidemil_mpp_y": mpp[1],
        }
        for name, value in told.items():
            file.attrs[name] = value

    path = folder / f"{extractor}-{code[:8]}" / f"{slide.slide_id}.h5"
    write_bytes(path, h5_bytes(fill))
    return path
