"""Tile values → image pyramids that lie on the slide in physical space: OME-TIFF and OME-Zarr. Arrays in, bytes out.

One pixel is one step of the tile grid. A pixel's own place is its top-left corner: level 0 of the slide begins at 0 µm.
"""

from __future__ import annotations

import io
import json
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NAMESPACE = uuid.UUID("0e0f7a0c-3d0b-5a2b-9a53-60e1d1a3c0de")
_CHUNK, _SMALLEST = 256, 32
_COLORS = ("FDE725", "D7191C", "2C7BB6", "1A9641", "FF7F00", "984EA3", "A65628", "F781BF", "999999")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Raster:
    """Values on the grid of tiles.

    Attributes:
        names: of the channels.
        levels: (C, H, W) each, NaN where there is no tile, every one half as fine as the one before.
        step_um: (x, y), µm from one pixel of the first level to the next.
        origin_um: (x, y), µm from the corner of the slide to that of the first pixel.
    """

    names: tuple[str, ...]
    levels: tuple[Floats, ...]
    step_um: tuple[float, float]
    origin_um: tuple[float, float]


def raster(
    xy: NDArray[np.int64], step: tuple[float, float], mpp: tuple[float, float], methods: Mapping[str, ArrayLike]
) -> Raster:
    """Lay tile values on their grid.

    Args:
        xy: Top-left corners, (N, 2), level-0 pixels.
        step: From one tile to the next in level-0 pixels, (x, y); less than a tile where tiles overlap.
        mpp: µm per level-0 pixel, (x, y).
        methods: Values by name, (N,).
    """
    corners = np.asarray(xy, np.float64).reshape(-1, 2)
    first = corners.min(axis=0) if len(corners) else np.zeros(2)
    cells = np.rint((corners - first) / step).astype(np.int64)
    width, height = (cells.max(axis=0) + 1).tolist() if len(cells) else (1, 1)
    whole = np.full((len(methods), height, width), np.nan, np.float32)
    for channel, values in enumerate(methods.values()):
        whole[channel, cells[:, 1], cells[:, 0]] = np.asarray(values, np.float32)
    step_um, origin_um = np.multiply(step, mpp).tolist(), np.multiply(first, mpp).tolist()
    return Raster(tuple(methods), _levels(whole), (step_um[0], step_um[1]), (origin_um[0], origin_um[1]))


def ome_tiff(image: Raster, name: str) -> bytes:
    """Return an OME-TIFF: the first level in the main directories, the lower ones as their SubIFDs.

    Source: OME-TIFF specification, sub-resolutions; positions as `Plane` attributes.
    """
    import tifffile

    channels, out = len(image.names), io.BytesIO()
    plane = {"PositionX": [image.origin_um[0]] * channels, "PositionY": [image.origin_um[1]] * channels}
    metadata = {
        "axes": "CYX",
        "Name": name,
        "UUID": str(uuid.uuid5(_NAMESPACE, f"{name}\n{zlib.crc32(image.levels[0].tobytes())}")),
        "PhysicalSizeX": image.step_um[0],
        "PhysicalSizeY": image.step_um[1],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(image.names)},
        "Plane": {**plane, "PositionXUnit": ["µm"] * channels, "PositionYUnit": ["µm"] * channels},
    }
    kind: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib", "tile": (_CHUNK, _CHUNK)}
    with tifffile.TiffWriter(out, ome=True) as file:
        file.write(image.levels[0], subifds=len(image.levels) - 1, metadata=metadata, software="slidemil", **kind)
        for level in image.levels[1:]:
            file.write(level, subfiletype=1, software=False, **kind)
    return out.getvalue()


def ome_zarr(image: Raster, name: str) -> dict[str, bytes]:
    """Return the files of an OME-Zarr image by path inside its folder, version 0.4 (what QuPath and napari read).

    Source: OME-NGFF 0.4; Zarr version 2 storage specification.
    """
    files = {".zgroup": _json({"zarr_format": 2})}
    for number, level in enumerate(image.levels):
        files |= {f"{number}/{path}": data for path, data in _zarr_array(level).items()}
    files[".zattrs"] = _json(_multiscales(image, name))
    return files


def _levels(whole: Floats) -> tuple[Floats, ...]:
    levels = [whole]
    while max(levels[-1].shape[1:]) > _SMALLEST:
        levels.append(_halved(levels[-1]))
    return tuple(levels)


def _halved(level: Floats) -> Floats:
    """Mean of the tiles among two by two pixels; NaN where there is none."""
    channels, height, width = level.shape
    padded = np.full((channels, -(-height // 2) * 2, -(-width // 2) * 2), np.nan, np.float32)
    padded[:, :height, :width] = level
    blocks = padded.reshape(channels, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    there = np.isfinite(blocks)
    count = there.sum(axis=(2, 4))
    total = np.where(there, blocks, 0).sum(axis=(2, 4), dtype=np.float64)
    half: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).astype(np.float32)
    return half


def _multiscales(image: Raster, name: str) -> dict[str, Any]:
    datasets = []
    for number in range(len(image.levels)):
        scale = [1.0, image.step_um[1] * 2**number, image.step_um[0] * 2**number]
        shift = [0.0, image.origin_um[1], image.origin_um[0]]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    axes = [{"name": "c", "type": "channel"}, *space]
    channels = [
        {"label": label, "color": _COLORS[k % len(_COLORS)], "active": k == 0, "window": _window(image.levels[0][k])}
        for k, label in enumerate(image.names)
    ]
    return {
        "multiscales": [{"version": "0.4", "name": name, "axes": axes, "datasets": datasets, "type": "mean"}],
        "omero": {"version": "0.4", "name": name, "channels": channels, "rdefs": {"model": "color"}},
    }


def _window(values: Floats) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return {"min": low, "max": high, "start": low, "end": high}


def _zarr_array(level: Floats) -> dict[str, bytes]:
    """Files of one array, a chunk per channel and 256 × 256 pixels."""
    channels, height, width = level.shape
    side = (min(_CHUNK, height), min(_CHUNK, width))
    about = {
        "zarr_format": 2,
        "shape": [channels, height, width],
        "chunks": [1, *side],
        "dtype": "<f4",
        "compressor": {"id": "zlib", "level": 6},
        "fill_value": "NaN",
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }
    files = {".zarray": _json(about)}
    for channel in range(channels):
        for row in range(-(-height // side[0])):
            for column in range(-(-width // side[1])):
                part = level[channel, row * side[0] : (row + 1) * side[0], column * side[1] : (column + 1) * side[1]]
                chunk = np.full(side, np.nan, "<f4")
                chunk[: part.shape[0], : part.shape[1]] = part
                files[f"{channel}/{row}/{column}"] = zlib.compress(chunk.tobytes(), 6)
    return files


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
