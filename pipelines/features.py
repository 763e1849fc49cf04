"""The feature file of one slide: a layout that TRIDENT's readers take, and what more we say about it.

`coords` (N, 2) int64 level-0 pixels, `features` (N, D) contiguous, `missing` (x, y, cause) for tiles that
could not be read; row i of `features` belongs to row i of `coords`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .errors import CheckFailedError, JobError
from .files import h5_bytes, open_h5

if TYPE_CHECKING:
    from wsi import TileGrid

_TOLD = ("versions", "device", "weights", "revision", "licence")
_BOX = ("x", "y", "width", "height")
_CAUSE_BYTES = 240
_MISSING = np.dtype([("x", "<i8"), ("y", "<i8"), ("cause", f"S{_CAUSE_BYTES}")])


@dataclass(frozen=True)
class FeatureFile:
    """What a feature file holds.

    Attributes:
        slide_id: name of the slide.
        features: (N, D), as stored.
        xy: (N, 2) int64, level-0 pixels, top-left corners.
        footprint: (width, height) of a tile in level-0 pixels.
        slide_size: (width, height) of the canvas in level-0 pixels.
        passport: the encoder passport.
        attributes: everything else the file says of itself.
    """

    slide_id: str
    features: NDArray[Any]
    xy: NDArray[np.int64]
    footprint: tuple[int, int]
    slide_size: tuple[int, int]
    passport: dict[str, Any]
    attributes: dict[str, Any]


def coords_attributes(slide_id: str, grid: TileGrid, bounds: tuple[int, int, int, int] | None = None) -> dict[str, Any]:
    """Return the attributes that TRIDENT puts on `coords`.

    `level0_magnification` is not the scanner's nominal one but the value from which TRIDENT computes the true
    footprint: it reads `patch_size * level0_magnification // target_magnification`.
    """
    target = 10 / grid.spec.mpp
    level0 = grid.footprint * target / grid.spec.size
    while grid.spec.size * level0 // target < grid.footprint:
        level0 = math.nextafter(level0, math.inf)
    box = {} if bounds is None else {f"bounds_{key}": side for key, side in zip(_BOX, bounds, strict=True)}
    return {
        **box,
        "patch_size": grid.spec.size,
        "patch_size_level0": grid.footprint,
        "level0_magnification": level0,
        "target_magnification": target,
        "overlap": grid.spec.overlap,
        "name": slide_id,
        "savetodir": ".",
        "level0_width": grid.slide_size[0],
        "level0_height": grid.slide_size[1],
        "footprint_x": grid.footprint_xy[0],
        "footprint_y": grid.footprint_xy[1],
        "mpp_x": grid.mpp.x,
        "mpp_y": grid.mpp.y,
        "mpp_source": grid.mpp.source,
        "tile_mpp": grid.spec.mpp,
    }


def bounds_of(attributes: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Return the box that was scanned, level-0 px, from the attributes of `coords`; None where the slide has none."""
    names = [f"bounds_{key}" for key in _BOX]
    if not all(name in attributes for name in names):
        return None
    x, y, width, height = (int(attributes[name]) for name in names)
    return x, y, width, height


def coords_bytes(
    attributes: Mapping[str, Any],
    xy: NDArray[np.int64],
    layers: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]] | None = None,
) -> bytes:
    """Return the bytes of a coordinates file.

    Args:
        attributes: of `coords`, from `coords_attributes`.
        xy: (N, 2) int64.
        layers: what else is known of each tile: name → values (N, …) and attributes of the dataset.
    """

    def fill(file: h5py.File) -> None:
        _put(file, "coords", xy, attributes)
        for name, (values, more) in (layers or {}).items():
            _put(file, name, values, more)

    return h5_bytes(fill)


def feature_bytes(
    attributes: Mapping[str, Any],
    xy: NDArray[np.int64],
    features: NDArray[Any],
    missing: Sequence[tuple[int, int, str]],
    passport: Mapping[str, Any],
    more: Mapping[str, Any],
) -> bytes:
    """Return the bytes of a feature file.

    Args:
        attributes: of `coords`, from `coords_attributes`.
        xy: (N, 2) int64.
        features: (N, D) float16 or float32.
        missing: x, y and cause of each tile that could not be read.
        passport: how the features were made; the same for all slides of a run.
        more: what else is true of this slide alone (reader, stain parameters, hash …).
    """

    def fill(file: h5py.File) -> None:
        _put(file, "coords", xy, attributes)
        _put(
            file,
            "features",
            features,
            {"name": attributes["name"], "savetodir": ".", "encoder": str(passport.get("id", ""))},
        )
        rows = np.array([(x, y, cause.encode()[:_CAUSE_BYTES]) for x, y, cause in missing], dtype=_MISSING)
        _put(file, "missing", rows, {})
        file.attrs["encoder_passport"] = json.dumps(passport, sort_keys=True, ensure_ascii=False)
        for name, value in more.items():
            file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)

    return h5_bytes(fill)


def read_features(path: Path, *, mapped: bool = False) -> FeatureFile:
    """Read a feature file of ours.

    Args:
        path: the file.
        mapped: map the features into memory instead of reading them: only what is looked at is read, and what is
            written to them stays in memory. Features that are chunked or compressed are read.

    Raises:
        JobError: the file is no feature file, or is damaged.
    """
    try:
        with open_h5(path) as file:
            coords, features = file["coords"], file["features"]
            attributes = {**coords.attrs, **file.attrs}
            return FeatureFile(
                slide_id=str(attributes.get("name", path.stem)),
                features=_mapped(path, features) if mapped else features[()],
                xy=coords[()].astype(np.int64).reshape(-1, 2),
                footprint=_footprint(attributes),
                slide_size=(int(attributes.get("level0_width", 0)), int(attributes.get("level0_height", 0))),
                passport=json.loads(str(attributes.get("encoder_passport", "{}"))),
                attributes=attributes,
            )
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def map_tiles(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Map the features (N, D) of a file into memory, and read where its tiles lie, (N, 2); nothing else is looked at.

    Raises:
        JobError: the file is no feature file, or is damaged.
    """
    try:
        with open_h5(path) as file:
            return _mapped(path, file["features"]), file["coords"][()].astype(np.int64, copy=False).reshape(-1, 2)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _mapped(path: Path, features: h5py.Dataset) -> NDArray[Any]:
    """Map a dataset that lies in one piece; HDF5 says where it begins."""
    offset = features.id.get_offset()
    if offset is None or features.size == 0 or not features.dtype.isnative:
        whole: NDArray[Any] = features[()]
        return whole
    return np.memmap(path, dtype=features.dtype, mode="c", offset=offset, shape=features.shape)


def read_passport(path: Path) -> dict[str, Any]:
    """Read only how a feature file was made.

    Raises:
        JobError: the file is no feature file, or is damaged.
    """
    try:
        with open_h5(path) as file:
            return dict(json.loads(str(file.attrs.get("encoder_passport", "{}"))))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def passport_in(file: h5py.File) -> dict[str, Any] | None:
    """Return the passport of an open file, None where it is not of ours."""
    found = json.loads(str(file.attrs["encoder_passport"])) if "encoder_passport" in file.attrs else None
    return found if isinstance(found, dict) else None


def decisive(passport: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a passport decides which features may be mixed.

    Library versions and the device are told, not compared: a patch release must not make a cohort worthless. Nor is
    what the weights are called: their hash is. OpenVINO counts as a device: it is held to torch's numbers first.
    """
    found = {name: value for name, value in passport.items() if name not in _TOLD}
    return found | {"backend": "torch"} if found.get("backend") == "openvino" else found


def same_passport(known: Mapping[str, Any], found: Mapping[str, Any], *, what: str, but: Collection[str] = ()) -> None:
    """Refuse to mix features that were made differently.

    Args:
        known: one passport.
        found: the other.
        what: whose it is, for the message.
        but: fields that may differ.

    Raises:
        CheckFailedError: names the fields that differ.
    """
    known, found = _flat(decisive(known)), _flat(decisive(found))
    names = (name for name in known.keys() | found.keys() if name.split(" of part ")[0] not in but)
    differ = sorted(name for name in names if known.get(name) != found.get(name))
    if differ:
        shown = "; ".join(f"{name}: {known.get(name)!r} against {found.get(name)!r}" for name in differ[:3])
        raise CheckFailedError(
            f"{what}: its features were made differently ({shown}). "
            "Extract the slides with the same settings, or use a model that was trained on these features."
        )


def _flat(passport: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a passport; those of joined features are told part by part."""
    parts = passport.get("joined", ())
    inner = {f"{name} of part {n}": value for n, part in enumerate(parts, 1) for name, value in part.items()}
    return {name: value for name, value in passport.items() if name != "joined"} | inner


def _unreadable(path: Path, error: Exception) -> JobError:
    return JobError(f"{path}: not a readable feature file ({error}). Delete it and run `slidemil extract` again.")


def _put(file: h5py.File, name: str, data: NDArray[Any], attributes: Mapping[str, Any]) -> None:
    dataset = file.create_dataset(name, data=data, track_times=False)
    for key, value in attributes.items():
        dataset.attrs[key] = value


def _footprint(attributes: Mapping[str, Any]) -> tuple[int, int]:
    side = int(attributes.get("patch_size_level0", 0))
    return int(attributes.get("footprint_x", side)), int(attributes.get("footprint_y", side))
