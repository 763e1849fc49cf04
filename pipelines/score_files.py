"""Tile values → what other programs read: raw scores in HDF5, QuPath objects. Arrays in, bytes out, always the same."""

from __future__ import annotations

import gzip
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import h5_bytes, open_h5

_NAMESPACE = uuid.UUID("5b1f3f5e-9d5c-5c5d-8a55-4c6d2f2f7a11")

Floats = NDArray[np.float32]


def scores_h5(
    xy: NDArray[np.int64],
    attrs: Mapping[str, Any],
    methods: Mapping[str, ArrayLike],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    """Return an HDF5 file with `coords` and one (N,) float32 dataset for each method.

    Args:
        xy: Top-left corners, (N, 2), level-0 pixels.
        attrs: Attributes of `coords`, those of the feature file.
        methods: Raw values by method name, each (N,).
        facts: What a method says of itself, by method name; JSON in the attribute `facts` of its dataset.

    Raises:
        ValueError: a method does not have one value per tile, or is called `coords`.
    """
    corners = np.asarray(xy, np.int64).reshape(-1, 2)
    columns = _columns(corners, methods)

    def fill(file: h5py.File) -> None:
        coords = file.create_dataset("coords", data=corners)
        for name, value in attrs.items():
            coords.attrs[name] = value
        for name, column in columns.items():
            dataset = file.create_dataset(name, data=column)
            if facts and name in facts:
                dataset.attrs["facts"] = json.dumps(facts[name], sort_keys=True, ensure_ascii=False)

    return h5_bytes(fill)


def geojson_gz(
    slide_id: str,
    xy: NDArray[np.int64],
    footprint_xy: tuple[int, int],
    methods: Mapping[str, ArrayLike],
    bounds: tuple[int, int, int, int] | None = None,
    *,
    slide_size: tuple[int, int] | None = None,
) -> bytes:
    """Return tiles as QuPath objects of type `tile` with measurements, gzipped.

    Args:
        slide_id: Goes into the ids, so that a second import is known as such.
        xy: Top-left corners, (N, 2), level-0 pixels of the full canvas.
        footprint_xy: Width and height of a tile in level-0 pixels.
        methods: Values by method name, each (N,).
        bounds: The box (x, y, width, height) that QuPath shows of the canvas; its corner is QuPath's (0, 0).
        slide_size: Width and height of the canvas. With it the box counts only where QuPath crops to it:
            when both of its sides differ from the canvas.

    Source: QuPath 0.6 to 0.8, OpenSlide server and GeoJSON reader.
    """
    corners = np.asarray(xy, np.int64).reshape(-1, 2)
    columns = _columns(corners, methods)
    cropped = bounds is not None and (slide_size is None or (bounds[2] != slide_size[0] and bounds[3] != slide_size[1]))
    left, top = bounds[:2] if bounds is not None and cropped else (0, 0)
    features = []
    for row, (x, y) in enumerate(corners.tolist()):
        x0, y0 = x - left, y - top
        x1, y1 = x0 + footprint_xy[0], y0 + footprint_xy[1]
        numbers = {name: _json_number(float(column[row])) for name, column in columns.items()}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{slide_id}/{x},{y}/{footprint_xy[0]}x{footprint_xy[1]}")),
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
                },
                "properties": {"objectType": "tile", "measurements": numbers},
            }
        )
    whole = {"type": "FeatureCollection", "features": features}
    data = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()
    return gzip.compress(data, compresslevel=6, mtime=0)


def read_scores(path: Path) -> tuple[dict[str, Floats], dict[str, dict[str, Any]]]:
    """Read the values and the facts by method name; empty where the file is not there or is damaged."""
    try:
        with open_h5(path) as file:
            names = [name for name in file if name != "coords"]
            values = {name: file[name][()].astype(np.float32) for name in names}
            return values, {name: json.loads(file[name].attrs.get("facts", "{}")) for name in names}
    except (OSError, KeyError, ValueError, RuntimeError):
        return {}, {}


def _columns(xy: NDArray[np.int64], methods: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Return the methods' values as float32, checked against the number of tiles."""
    columns = {name: np.asarray(values, np.float32).ravel() for name, values in methods.items()}
    for name, column in columns.items():
        if name == "coords" or not name or "/" in name:
            raise ValueError(f"a method cannot be called {name!r}")
        if len(column) != len(xy):
            raise ValueError(f"{name}: {len(column)} values for {len(xy)} tiles: there must be one for each")
    return columns


def _json_number(value: float) -> float | str:
    """Return a number as QuPath reads it: what JSON cannot hold becomes text."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.9g}")
