"""AtlasPatch's files: several encoders in one (formats.md §6; AtlasPatch 1.0)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipelines.errors import CheckFailedError
from pipelines.files import h5_bytes, open_h5, write_bytes

from .slide_features import Given, SlideFeatures, foreign_passport, places, square, two_dimensional

NAME = "atlaspatch"


def looks(file: h5py.File) -> bool:
    """Tell whether an open file is one of AtlasPatch's."""
    return "coords" in file and isinstance(file.get("features"), h5py.Group) and file["coords"].shape[-1] == 5


def read(path: Path, given: Given) -> SlideFeatures:
    """Read one slide.

    Raises:
        CheckFailedError: there are several encoders, and nobody says which is meant.
    """
    with open_h5(path) as file:
        there = list(file["features"])
        wanted = given.encoder or (there[0] if len(there) == 1 else None)
        if wanted not in there:
            raise CheckFailedError(
                f"{path}: holds features of {', '.join(there) or 'no encoder'}. Choose with --encoder."
            )
        features = two_dimensional(file["features"][wanted][()], path.stem)
        xy = places(file["coords"][()][:, :2], path.stem)
        a = dict(file.attrs)
    side, tile = int(a["patch_size_level0"]), int(a["patch_size"])
    own = a.get("slidemil_mpp")
    nominal = float(a.get("level0_magnification") or 0)
    mpp = given.mpp or (float(own) if own else 10 / nominal if nominal else None)
    supposed = not given.mpp and not own and bool(nominal)
    notes = ("µm/px taken from its nominal magnification: give --slide-mpp for the true one",) if supposed else ()
    scale = {"size": tile, "mpp": None if mpp is None else round(side * mpp / tile, 6), "overlap": int(a["overlap"])}
    passport = foreign_passport("AtlasPatch", wanted, features.shape[1], str(features.dtype), tile=scale)
    return SlideFeatures(
        path.stem,
        features,
        xy,
        square(side),
        tile,
        None if mpp is None else (mpp, mpp),
        passport,
        int(a["overlap"]),
        (int(a.get("level0_width", 0)), int(a.get("level0_height", 0))),
        notes,
    )


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write one slide with one encoder; returns the file."""
    mpp = slide.needs_mpp("AtlasPatch's layout")
    side = slide.footprint[0]
    rows = np.concatenate([slide.xy, np.tile([side, slide.footprint[1], 0], (len(slide.xy), 1))], axis=1)

    def fill(file: h5py.File) -> None:
        file.create_dataset("coords", data=rows.astype(np.int32), track_times=False)
        group = file.create_group("features")
        group.create_dataset(slide.encoder.replace("/", "_"), data=slide.features.astype(np.float32), track_times=False)
        told = {
            "patch_size": slide.tile,
            "patch_size_level0": side,
            "level0_magnification": 10 / mpp[0],
            "target_magnification": 10 * slide.tile / (side * mpp[0]),
            "overlap": slide.overlap,
            "level0_width": slide.slide_size[0],
            "level0_height": slide.slide_size[1],
            "wsi_path": "",
            "num_patches": len(rows),
            "slidemil_mpp": mpp[0],
        }
        for name, value in told.items():
            file.attrs[name] = value

    path = folder / "patches" / f"{slide.slide_id}.h5"
    write_bytes(path, h5_bytes(fill))
    return path
