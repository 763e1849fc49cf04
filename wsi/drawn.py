"""GeoJSON drawn by hand → tissue: outlines that QuPath (or anything else) edited replace what was detected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import Polygon

from wsi.errors import MaskError, printable
from wsi.slide import Slide
from wsi.thumbnail import thumbnail
from wsi.tissue import Tissue, TissueSettings, check_brightfield, ink_on, mask_mpp

KEPT = ("tissue", "roi", "region", "core", "annotation")
LEFT_OUT = ("exclude", "ignore", "artifact", "artefact", "hole", "background", "pen", "fold", "blur", "bubble")
"""Beginnings of class names, in lower case: regions that are tissue, and regions that are cut out of it."""

_ORIGINS = ("canvas", "bounds")
_MOST_OUTSIDE = 0.01
_MOST_MENDED = 1e-3
_MEND_CLASS = "Call it Tissue (or give it no class), or Exclude to cut it out, or delete it."


@dataclass(frozen=True)
class Drawn:
    """What a file holds.

    Attributes:
        kept: polygons of tissue, with holes, in the file's pixels.
        left_out: polygons that are cut out of the tissue.
    """

    kept: tuple[Polygon, ...]
    left_out: tuple[Polygon, ...]


def read_tissue(slide: Slide, path: Path, *, origin: str = "canvas", settings: TissueSettings | None = None) -> Tissue:
    """Return the tissue that a GeoJSON file outlines on a slide.

    The mask has the resolution that detection would give it; a pixel is tissue where its middle lies in a kept region
    and in none that is left out. An outline that `Tissue.to_geojson` wrote comes back as the very same mask.

    Args:
        slide: the slide; its thumbnail is read.
        path: a FeatureCollection, a list of Features, one Feature or a bare geometry.
        origin: `canvas` where coordinates count from the corner of the whole canvas, `bounds` where they count from
            the corner of the scanned box, as QuPath shows MIRAX slides.
        settings: gives the resolution.

    Raises:
        MaskError: the file cannot be used; says why, and what helps.
        NotBrightfieldError: as `find_tissue`.
    """
    if origin not in _ORIGINS:
        raise ValueError(f"origin must be one of {', '.join(_ORIGINS)}, not {origin}")
    drawn = read_drawn(path, slide.name)
    left, top = slide.bounds[:2] if origin == "bounds" and slide.bounds else (0, 0)
    _check_inside(drawn, slide, (left, top), path.name)
    settings = settings or TissueSettings()
    picture, scale = thumbnail(slide, settings)
    check_brightfield(picture, slide.name)
    shape = picture.shape[:2]
    mask = _painted(drawn.kept, (left, top), scale, shape) & ~_painted(drawn.left_out, (left, top), scale, shape)
    pen = ink_on(picture, mask_mpp(slide, scale) or settings.mpp) & ~mask
    reason = None if mask.any() else f"no tissue: {path.name} leaves none"
    return Tissue(slide.name, mask, pen, scale, picture, reason, drawn=True)


def read_drawn(path: Path, slide: str) -> Drawn:
    """Return the polygons of a GeoJSON file, in its own pixels.

    Raises:
        MaskError: no GeoJSON, no area in it, a class that says nothing, or outlines that cross themselves.
    """
    try:
        drawn = _read(path, slide)
    except RecursionError as error:
        raise MaskError(slide, f"{path.name} is nested too deeply", "Export it anew.") from error
    if not drawn.kept:
        raise MaskError(
            slide,
            f"{path.name} holds no region of tissue",
            "Draw one, or take the file out of the folder: the tissue is then detected.",
        )
    return drawn


def _read(path: Path, slide: str) -> Drawn:
    kept: list[Polygon] = []
    left_out: list[Polygon] = []
    for number, feature in enumerate(_features(_load(path, slide), path, slide), start=1):
        where = f"{path.name}, region {number}"
        properties = feature.get("properties") or {}
        kind = properties.get("objectType") if isinstance(properties, dict) else None
        if kind in ("detection", "tile", "cell"):
            raise MaskError(slide, f"{where}: it is a {kind}, no outline of tissue", "Export only the annotations.")
        if kind == "root" or (kind == "tmaCore" and properties.get("isMissing")):
            continue
        polygons = list(_polygons(feature.get("geometry"), where, slide))
        (left_out if _is_left_out(properties, where, slide) else kept).extend(polygons)
    return Drawn(tuple(kept), tuple(left_out))


def rasterize(rings: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of (h, w) have their middle inside rings (n, 2) in pixels, x and y, by the even-odd rule.

    Every edge flips what lies right of it in the rows it crosses; what is flipped an odd number of times is inside.
    """
    height, width = shape
    flips = np.zeros((height, width + 1), np.int32)
    for ring in rings:
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(int)
        last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(int)
        many = last - first
        edge = np.repeat(np.arange(len(ring)), many)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(many) - many, many)
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
        np.add.at(flips, (row, column), 1)
    return np.asarray(flips.cumsum(1)[:, :width] % 2 == 1)


def _painted(
    polygons: Sequence[Polygon], offset: tuple[int, int], scale: tuple[float, float], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    out = np.zeros(shape, bool)
    for polygon in polygons:
        rings = [
            (shapely.get_coordinates(ring)[:-1] + offset) / scale for ring in (polygon.exterior, *polygon.interiors)
        ]
        low = np.clip(np.floor(rings[0].min(0)).astype(int), 0, shape[::-1])
        high = np.clip(np.ceil(rings[0].max(0)).astype(int), 0, shape[::-1])
        window = out[low[1] : high[1], low[0] : high[0]]
        window |= rasterize([ring - low for ring in rings], window.shape)
    return out


def _load(path: Path, slide: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        what = f"{path.name} cannot be read as GeoJSON ({error})"
        raise MaskError(slide, what, "Export it anew: in QuPath, File > Export objects as GeoJSON.") from error


def _features(tree: Any, path: Path, slide: str) -> Iterator[dict[str, Any]]:
    """Yield features from whatever holds them; a bare geometry is a feature without properties."""
    if isinstance(tree, list):
        for item in tree:
            yield from _features(item, path, slide)
    elif isinstance(tree, dict) and tree.get("type") == "FeatureCollection":
        yield from _features(tree.get("features") or [], path, slide)
    elif isinstance(tree, dict) and tree.get("type") == "Feature":
        yield tree
    elif isinstance(tree, dict) and ("coordinates" in tree or "geometries" in tree):
        yield {"geometry": tree}
    else:
        found = tree.get("type") if isinstance(tree, dict) else type(tree).__name__
        raise MaskError(
            slide,
            f"{path.name} is no GeoJSON: found {printable(str(found), limit=40)} where a Feature is expected",
            "Export it anew: in QuPath, File > Export objects as GeoJSON.",
        )


def _polygons(geometry: Any, where: str, slide: str) -> Iterator[Polygon]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Polygon":
        yield _polygon(geometry.get("coordinates"), where, slide)
    elif kind == "MultiPolygon" and isinstance(geometry.get("coordinates"), list):
        for part in geometry["coordinates"]:
            yield _polygon(part, where, slide)
    elif kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        for part in geometry["geometries"]:
            yield from _polygons(part, where, slide)
    else:
        named = printable(str(kind), limit=40) if kind else "nothing"
        raise MaskError(slide, f"{where}: {named} has no area", "Keep only polygons; delete points and lines.")


def _polygon(rings: Any, where: str, slide: str) -> Polygon:
    try:
        arrays = [np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in rings]
        if not arrays or not all(len(ring) >= 3 and np.isfinite(ring).all() for ring in arrays):
            raise ValueError("a ring needs at least three points, all of them numbers")
        polygon = Polygon(arrays[0], arrays[1:])
    except (TypeError, ValueError, KeyError) as error:
        raise MaskError(slide, f"{where}: its coordinates are no outline ({error})", "Export it anew.") from error
    mended = polygon.area if polygon.is_valid else shapely.make_valid(polygon).area
    if mended == 0:
        raise MaskError(slide, f"{where}: its outline has no area", "Delete it.")
    if abs(mended - polygon.area) > _MOST_MENDED * polygon.area:  # rounding alone can make a hair's breadth cross
        cause = shapely.is_valid_reason(polygon)
        raise MaskError(
            slide,
            f"{where}: its outline crosses itself ({cause})",
            "Draw that part anew; in QuPath, Shift and the brush join what overlaps.",
        )
    return polygon


def _is_left_out(properties: Any, where: str, slide: str) -> bool:
    name = _class_name(properties)
    low = name.lower().rstrip("*")
    if low.startswith(LEFT_OUT):
        return True
    if name and not low.startswith(KEPT):
        raise MaskError(slide, f"{where}: the class {printable(name, limit=40)} says neither", _MEND_CLASS)
    return False


def _class_name(properties: Any) -> str:
    """Return the class as QuPath writes it: a text, or an object with `name` or `names`."""
    value = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(value, dict):
        value = value.get("name") or ": ".join(str(name) for name in value.get("names") or ())
    return str(value).strip() if value else ""


def _check_inside(drawn: Drawn, slide: Slide, offset: tuple[int, int], file: str) -> None:
    """Refuse outlines of another slide, or counted from another corner."""
    width, height = slide.size
    for number, polygon in enumerate(drawn.kept, start=1):
        x0, y0, x1, y1 = np.array(polygon.bounds) + np.tile(offset, 2)
        inside = max(0.0, min(x1, width) - max(x0, 0)) * max(0.0, min(y1, height) - max(y0, 0))
        if not math.isfinite(inside) or inside < (1 - _MOST_OUTSIDE) * (x1 - x0) * (y1 - y0):
            hint = " or, where QuPath shows only the scanned box, give --set mask_origin=bounds" if slide.bounds else ""
            raise MaskError(
                slide.name,
                f"{file}, tissue region {number} lies outside the slide: x {x0:.0f} to {x1:.0f}, y {y0:.0f} to "
                f"{y1:.0f} on {width} x {height} px",
                f"Check that it was drawn on this slide, at full resolution{hint}.",
            )
