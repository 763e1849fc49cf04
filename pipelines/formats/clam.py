"""CLAM's features and coordinates (formats.md §4; April 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckFailedError
from pipelines.files import h5_bytes, open_h5, write_bytes

from .slide_features import Given, SlideFeatures, foreign_passport, nominal, places, square, two_dimensional
from .torch_files import read_tensor, tensor_bytes

NAME = "clam"


def looks(file: h5py.File) -> bool:
    """Tell whether an open file holds features in CLAM's way: two bare datasets."""
    if not {"features", "coords"} <= set(file) or not isinstance(file["features"], h5py.Dataset):
        return False
    return not file["coords"].attrs and file["coords"].shape[-1] == 2


def read(path: Path, given: Given) -> SlideFeatures:
    """Read one slide: an `.h5` of `h5_files`, or a `.pt` of `pt_files`; tiles' sizes come from `patches` beside them.

    Raises:
        CheckFailedError: nobody says where the tiles lie, or how large they are.
    """
    if path.suffix == ".pt":
        features, xy = two_dimensional(read_tensor(path), path.stem), _coords_of(path)
    else:
        with open_h5(path) as file:
            features = two_dimensional(file["features"][()], path.stem)
            xy = places(file["coords"][()], path.stem)
    side, canvas = _footprint(path, given)
    mpp = None if given.mpp is None else (given.mpp, given.mpp)
    tile = given.tile or side
    scale = None if mpp is None else nominal(side * mpp[0] / tile)  # tiles of one level: the true one varies
    passport = foreign_passport(
        "CLAM",
        given.encoder,
        features.shape[1],
        str(features.dtype),
        tile={"size": tile, "mpp": scale, "overlap": 0},
    )
    return SlideFeatures(path.stem, features, xy, square(side), tile, mpp, passport, slide_size=canvas)


def _beside(path: Path) -> list[Path]:
    """Return where coordinates may lie: the results folder may be called anything, `patches` is inside it."""
    roots = (path.parent.parent, path.parent.parent.parent)
    folders = [root / "patches" for root in roots]
    folders += [one for root in roots if root.is_dir() for one in sorted(root.glob("*/patches"))]
    return [folder / f"{path.stem}.h5" for folder in folders]


def _coords_of(path: Path) -> NDArray[np.int64]:
    for candidate in (path.parent.parent / "h5_files" / f"{path.stem}.h5", *_beside(path)):
        if candidate.is_file():
            with open_h5(candidate) as file:
                return places(file["coords"][()], path.stem)
    raise CheckFailedError(
        f"{path}: no coordinates beside it (h5_files/{path.stem}.h5 or patches/{path.stem}.h5). "
        "A .pt alone does not say where its tiles lie."
    )


def _footprint(path: Path, given: Given) -> tuple[int, tuple[int, int]]:
    """Return side of a tile in level-0 pixels, and the canvas where it is known."""
    for candidate in _beside(path):
        if candidate.is_file():
            with open_h5(candidate) as file:
                a = file["coords"].attrs
                if "patch_size" in a:
                    down = np.atleast_1d(a.get("downsample", (1.0, 1.0)))
                    side = int(a["patch_size"]) * int(down[0]) * int(a.get("custom_downsample", 1))
                    canvas = np.atleast_1d(a.get("level_dim", (0, 0)))
                    return given.footprint or side, (int(canvas[0]), int(canvas[-1]))
    if given.footprint is None:
        raise CheckFailedError(
            f"{path}: its tiles' size lies in patches/{path.stem}.h5, which is not there. Give it: --footprint 512."
        )
    return given.footprint, (0, 0)


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write `patches`, `h5_files` and `pt_files` of one slide; returns the `.h5`."""
    features, xy = slide.features.astype(np.float32), slide.xy.astype(np.int32)
    attributes: dict[str, Any] = {
        "patch_size": slide.footprint[0],
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "downsampled_level_dim": slide.slide_size,
        "level_dim": slide.slide_size,
        "name": slide.slide_id,
        "save_path": ".",
    }

    def coordinates(file: h5py.File) -> None:
        dataset = file.create_dataset("coords", data=xy, track_times=False)
        for name, value in attributes.items():
            dataset.attrs[name] = value

    def both(file: h5py.File) -> None:
        file.create_dataset("features", data=features, track_times=False)
        file.create_dataset("coords", data=xy, track_times=False)

    write_bytes(folder / "patches" / f"{slide.slide_id}.h5", h5_bytes(coordinates))
    write_bytes(folder / "pt_files" / f"{slide.slide_id}.pt", tensor_bytes(features))
    path = folder / "h5_files" / f"{slide.slide_id}.h5"
    write_bytes(path, h5_bytes(both))
    return path
