"""Mask → outlines with holes, in level-0 px."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from shapely import box, unary_union
from shapely.geometry import Polygon, mapping

_SEAL = "sha256_as_detected"
"""What the outlines were when they were written; QuPath and others drop it when they save their own."""


def polygons_of(mask: NDArray[np.bool_], scale: tuple[float, float]) -> list[Polygon]:
    """Return the regions of a mask as polygons along the edges of its pixels, level-0 px, largest first.

    Args:
        mask: (h, w) bool.
        scale: level-0 px per mask px, (x, y).
    """
    pieces = pieces_of(mask)
    polygons = []
    for number, window in enumerate(ndimage.find_objects(pieces + 1)):
        region = pieces[window] == number
        merged = unary_union(_row_boxes(region, window[1].start, window[0].start, scale))
        polygons.append(merged if isinstance(merged, Polygon) else max(merged.geoms, key=lambda p: p.area))
    return polygons


def pieces_of(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the number of the piece that each pixel belongs to, largest piece first, -1 where none, (h, w) int32.

    Pieces are joined by edges, as polygons are: corners alone do not join.
    """
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    place = np.empty(count + 1, np.int32)
    place[0] = -1
    place[1 + np.argsort(-areas, kind="stable")] = np.arange(count)
    return np.asarray(place[labels])


def largest_piece(
    pieces: NDArray[np.int32], scale: tuple[float, float], xy: NDArray[np.int64], footprint: tuple[int, int]
) -> NDArray[np.int32]:
    """Return the piece that each tile has most of, (N,) int32; -1 where it has none.

    Args:
        pieces: (h, w), from `pieces_of`.
        scale: level-0 px per px of `pieces`, (x, y).
        xy: (N, 2), top-left corners of the tiles, level-0 px.
        footprint: width and height of a tile, level-0 px.
    """
    low = np.floor(xy / scale).astype(int)
    high = np.maximum(np.ceil((xy + footprint) / scale).astype(int), low + 1)
    out = np.full(len(xy), -1, np.int32)
    for row, ((x0, y0), (x1, y1)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        inside = pieces[y0:y1, x0:x1]
        found = inside[inside >= 0]
        if len(found):
            first = found[0]
            out[row] = first if (found == first).all() else np.bincount(found).argmax()
    return out


def _row_boxes(region: NDArray[np.bool_], left: int, top: int, scale: tuple[float, float]) -> list[Polygon]:
    """Return one rectangle per run of True in each row."""
    edges = np.diff(np.pad(region, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    x0, x1 = np.round((starts + left) * scale[0]), np.round((ends + left) * scale[0])
    y0, y1 = np.round((rows + top) * scale[1]), np.round((rows + top + 1) * scale[1])
    return list(box(x0, y0, x1, y1))


def feature_collection(polygons: list[Polygon], *, drawn: bool = False) -> dict[str, Any]:
    """Return tissue outlines as TRIDENT writes them (its `crs` is meaningless and expected).

    Args:
        polygons: largest first.
        drawn: they were drawn by hand; others are sealed, so that it shows whether someone changed them.
    """
    features = [
        {"type": "Feature", "properties": {"tissue_id": i}, "geometry": _whole(mapping(polygon))}
        for i, polygon in enumerate(polygons)
    ]
    return {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        **({} if drawn else {_SEAL: _digest(features)}),
        "features": features,
    }


def is_as_detected(collection: Any) -> bool:
    """Say whether a parsed GeoJSON is an outline that `feature_collection` sealed, to the last number."""
    return (
        isinstance(collection, dict)
        and _SEAL in collection
        and collection[_SEAL] == _digest(collection.get("features"))
    )


def _digest(features: Any) -> str:
    return hashlib.sha256(json.dumps(features, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _whole(geometry: Any) -> dict[str, Any]:
    rings = [[[round(x), round(y)] for x, y in ring] for ring in geometry["coordinates"]]
    return {"type": geometry["type"], "coordinates": rings}
