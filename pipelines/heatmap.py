"""Tile values → what people and other programs look at: picture, raw scores, QuPath objects, top tiles.

Arrays in, bytes out, the same bytes each time; nothing here reads a slide or writes a file.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import INK, PAPER, fitted, font, jpeg, length_text, nice_length, resized, rings, stroke

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

COLORS = "viridis"
"""Perceptually even, readable by color-blind people and in gray print."""
FRAME_KEY = "slidemil:frame"
"""PNG text entry that says where the slide lies in the picture: JSON with left, top, width, height (px)
and slide_size (level-0 px)."""

_LEAST, _MOST = 900, 1600
_TRIM_FROM = 100
_TRIM = 0.01
_NAMESPACE = uuid.UUID("5b1f3f5e-9d5c-5c5d-8a55-4c6d2f2f7a11")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Range:
    """The values that the two ends of the color bar stand for."""

    low: float
    high: float
    below: bool
    """Whether some values lie under `low`."""
    above: bool

    def position(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return where values lie on the bar, 0 to 1; outside values at its ends, NaN stays NaN."""
        width = self.high - self.low
        if width <= 0:
            return np.where(np.isfinite(values), 0.5, np.nan)
        with np.errstate(over="ignore"):
            return np.clip((np.asarray(values, np.float64) - self.low) / width, 0, 1)


def draw(
    thumbnail: NDArray[np.uint8],
    slide_size: tuple[int, int],
    mpp: tuple[float, float] | None,
    xy: NDArray[np.int64],
    footprint_xy: tuple[int, int],
    values: ArrayLike,
    *,
    title: str,
    unit: str,
    normalization: str,
    outline: Sequence[Any] = (),
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Draw tile values over the grayed slide.

    Where tiles overlap, their mean is shown. From 100 tiles on, the outermost 1 % of the values on each side
    share the end color; the bar says so with a pointed end and in words. With `limits` the same color means the
    same value on every slide.

    Args:
        thumbnail: RGB of the whole slide, (h, w, 3) uint8.
        slide_size: Width and height of level 0 in pixels.
        mpp: Micrometers per level-0 pixel, (x, y); None leaves the scale bar out and says so.
        xy: Top-left corners of the tiles, (N, 2), level-0 pixels.
        footprint_xy: Width and height of a tile in level-0 pixels.
        values: One number per tile, (N,); tiles with NaN stay uncolored.
        title: Slide and model, shown on top.
        unit: What the numbers are, shown at the color bar.
        normalization: What was done to them, shown at the color bar.
        outline: Tissue as shapely polygons in level-0 pixels.
        limits: Values at the two ends of the color bar; by default those of this slide.

    Returns:
        PNG bytes. The text entry `FRAME_KEY` says where the slide lies in the picture.

    Raises:
        ValueError: `values` and `xy` do not have the same length.
    """
    numbers = np.asarray(values, np.float32).ravel()
    corners = np.asarray(xy, np.int64).reshape(-1, 2)
    if len(numbers) != len(corners):
        raise ValueError(f"{len(numbers)} values for {len(corners)} tiles: there must be one for each")
    image = resized(thumbnail, least=_LEAST, most=_MOST)
    scale = (image.width / slide_size[0], image.height / slide_size[1])
    spread = _range_of(numbers, limits)
    painted = _painted(numbers, corners, footprint_xy, scale, (image.height, image.width))
    image = _blended(image, spread.position(painted))
    _draw_outline(image, outline, scale)
    return _framed(image, slide_size, mpp, spread, numbers, title, unit, normalization)


def scores_h5(xy: NDArray[np.int64], attrs: Mapping[str, Any], methods: Mapping[str, ArrayLike]) -> bytes:
    """Return an HDF5 file with `coords` and one (N,) float32 dataset for each method.

    Args:
        xy: Top-left corners, (N, 2), level-0 pixels.
        attrs: Attributes of `coords`, those of the feature file.
        methods: Raw values by method name, each (N,).

    Raises:
        ValueError: a method does not have one value per tile, or is called `coords`.
    """
    import h5py

    from .files import h5_bytes

    corners = np.asarray(xy, np.int64).reshape(-1, 2)
    columns = _columns(corners, methods)

    def fill(file: h5py.File) -> None:
        coords = file.create_dataset("coords", data=corners)
        for name, value in attrs.items():
            coords.attrs[name] = value
        for name, column in columns.items():
            file.create_dataset(name, data=column)

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


def top_tiles_jpeg(
    tiles: NDArray[np.uint8],
    xy: NDArray[np.int64],
    values: ArrayLike,
    *,
    title: str = "",
    tile_mpp: float | None = None,
    columns: int = 4,
) -> bytes:
    """Return the tiles side by side at one scale, each with its rank, value and place.

    Args:
        tiles: RGB, (n, S, S, 3) uint8, best first.
        xy: Their top-left corners, (n, 2), level-0 pixels.
        values: Their values, (n,).
        title: Shown on top when given.
        tile_mpp: Micrometers per pixel of the tiles, for the scale bar under them.
        columns: Tiles in a row.
    """
    from PIL import Image, ImageDraw

    pixels = np.asarray(tiles, np.uint8)
    numbers = np.asarray(values, np.float64).ravel()
    n, side = len(pixels), pixels.shape[2] if len(pixels) else 224
    shown = min(max(side, 160), 320)
    gap, caption, head = 8, 36, 28 if title or tile_mpp else 0
    across = max(1, min(columns, n))
    down = max(1, math.ceil(n / columns))
    size = (gap + across * (shown + gap), head + gap + down * (shown + caption + gap))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((gap, 6), fitted(title, 13, size[0] * 0.6, bold=True), fill=INK, font=font(13, bold=True))
    if tile_mpp and n:
        _scale_bar(pen, (size[0] - gap, 20), tile_mpp * side / shown, shown * 0.8)
    for k in range(n):
        x = gap + (k % columns) * (shown + gap)
        y = head + gap + (k // columns) * (shown + caption + gap)
        tile = Image.fromarray(np.ascontiguousarray(pixels[k]))
        sheet.paste(tile.resize((shown, shown), Image.Resampling.LANCZOS) if side != shown else tile, (x, y))
        pen.text((x, y + shown + 2), f"{k + 1}.  {numbers[k]:.3g}", fill=INK, font=font(13, bold=True))
        place = f"x {int(xy[k][0])}, y {int(xy[k][1])} px"
        pen.text((x, y + shown + 18), place, fill=(96, 100, 108), font=font(11))
    if not n:
        pen.text((gap, head + gap), "no tiles", fill=INK, font=font(13))
    return jpeg(sheet, quality=88)


# --- values → colors -----------------------------------------------------------------------------------


def _range_of(values: Floats, limits: tuple[float, float] | None = None) -> _Range:
    """Return the ends of the color bar."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return _Range(*(limits or (0.0, 1.0)), below=False, above=False)
    least, most = float(finite.min()), float(finite.max())
    low, high = least, most
    if limits is not None:
        low, high = limits
    elif len(finite) >= _TRIM_FROM:
        low, high = (float(v) for v in np.quantile(finite, (_TRIM, 1 - _TRIM), method="nearest"))
        if low == high:
            low, high = least, most
    return _Range(low, high, below=least < low, above=most > high)


def _painted(
    values: Floats,
    xy: NDArray[np.int64],
    footprint: tuple[int, int],
    scale: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the mean value over each pixel of the picture, NaN where no tile lies, (height, width)."""
    total, count = np.zeros(shape), np.zeros(shape, np.int32)
    low = np.rint(xy * scale).astype(np.int64)
    high = np.maximum(np.rint((xy + footprint) * scale).astype(np.int64), low + 1)
    kept = np.isfinite(values)
    boxes = np.hstack([low, high])[kept].clip(0)
    for value, (x0, y0, x1, y1) in zip(values[kept].tolist(), boxes.tolist(), strict=True):
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return mean


@lru_cache(maxsize=1)
def _color_table() -> NDArray[np.uint8]:
    """Return the 256 colors of the bar, low to high, (256, 3)."""
    from matplotlib import colormaps

    table: NDArray[np.uint8] = colormaps[COLORS](np.arange(256), bytes=True)[:, :3]
    return table


def _blended(image: Image.Image, position: NDArray[np.float64]) -> Image.Image:
    """Lay colors over the grayed picture; the tissue's light and dark stay visible under them."""
    from PIL import Image

    gray = np.asarray(image.convert("L"), np.float32)
    pale = 255 - (255 - gray) * 0.75
    out = np.repeat(pale[..., None], 3, axis=2)
    there = np.isfinite(position)
    color = _color_table()[np.rint(position[there] * 255).astype(np.int64)].astype(np.float32)
    # A little of the tissue's structure is kept in each color; its mean stays that of the color bar.
    texture = (gray[there] - (gray[there].mean() if there.any() else 0)) * 0.6
    out[there] = np.clip(color + texture[:, None], 0, 255)
    return Image.fromarray(np.rint(out).astype(np.uint8))


def _draw_outline(image: Image.Image, outline: Sequence[Any], scale: tuple[float, float]) -> None:
    from PIL import ImageDraw

    outer, inner = rings(outline)
    stroke(ImageDraw.Draw(image), [*outer, *inner], scale, INK, 1)


# --- what stands around the picture --------------------------------------------------------------------


def _framed(
    image: Image.Image,
    slide_size: tuple[int, int],
    mpp: tuple[float, float] | None,
    spread: _Range,
    values: Floats,
    title: str,
    unit: str,
    normalization: str,
) -> bytes:
    """Put title, color bar, scale bar and words around the picture and return PNG bytes."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = 16, 44, 150, 84
    width = left + image.width + right
    sheet = Image.new("RGB", (width, max(top + image.height + bottom, 420)), PAPER)
    sheet.paste(image, (left, top))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=(205, 208, 214))
    pen.text((left, 13), fitted(title, 17, width - 2 * left, bold=True), fill=INK, font=font(17, bold=True))
    _color_bar(pen, (left + image.width + 24, top + 12), min(image.height - 24, 460), spread)
    base = top + image.height
    words = [f"{unit}  ·  {normalization}", _color_words(spread, values)]
    for row, text in enumerate(words):
        pen.text((left, base + 34 + 22 * row), fitted(text, 14, width - 2 * left), fill=INK, font=font(14))
    if mpp is None:
        pen.text((left, base + 8), "µm/px unknown: no scale bar", fill=INK, font=font(13))
    else:
        um_per_px = mpp[0] * slide_size[0] / image.width
        _scale_bar(pen, (left + image.width, base + 20), um_per_px, image.width / 4)
    frame = {"left": left, "top": top, "width": image.width, "height": image.height}
    return _png(sheet, {**frame, "slide_size": list(slide_size)})


def _color_words(spread: _Range, values: Floats) -> str:
    """Say in words what the colors cover."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no tile has a value"
    text = f"{len(values):,} tiles; values {float(finite.min()):.4g} to {float(finite.max()):.4g}"
    if spread.below or spread.above:
        outside = float(((finite < spread.low) | (finite > spread.high)).mean())
        text += f"; the {outside:.1%} beyond the bar share its end colors"
    if len(finite) < len(values):
        text += f"; {len(values) - len(finite)} without a value"
    return text


def _color_bar(pen: ImageDraw.ImageDraw, corner: tuple[int, int], height: int, spread: _Range) -> None:
    """Draw the bar with its ticks; pointed ends stand for values beyond it."""
    x, y = corner
    table, wide = _color_table(), 22
    for row in range(height):
        color = table[round(255 * (1 - row / max(1, height - 1)))]
        pen.line((x, y + row, x + wide, y + row), fill=tuple(int(c) for c in color))
    if spread.above:
        pen.polygon([(x, y), (x + wide, y), (x + wide / 2, y - 11)], fill=tuple(int(c) for c in table[-1]))
    if spread.below:
        end = y + height - 1
        pen.polygon([(x, end), (x + wide, end), (x + wide / 2, end + 11)], fill=tuple(int(c) for c in table[0]))
    for value in _ticks(spread.low, spread.high):
        at = y + (height - 1) * (1 - float(spread.position(np.array([value]))[0]))
        pen.line((x + wide + 1, at, x + wide + 6, at), fill=INK)
        pen.text((x + wide + 10, at), f"{value:.4g}", fill=INK, font=font(13), anchor="lm")


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values, or the value itself where there is but one."""
    if not high > low:
        return [low]
    step = nice_length((high - low) / 3)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _scale_bar(pen: ImageDraw.ImageDraw, end: tuple[float, float], um_per_px: float, longest_px: float) -> None:
    """Draw a bar of a round physical length that ends at `end` (x, y), its length in words before it."""
    um = nice_length(longest_px * um_per_px)
    begin = end[0] - um / um_per_px
    pen.rectangle((begin, end[1] - 4, end[0] - 1, end[1]), fill=INK)
    pen.text((begin - 8, end[1] - 2), length_text(um), fill=INK, font=font(13), anchor="rm")


def _png(image: Image.Image, frame: Mapping[str, Any]) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text(FRAME_KEY, json.dumps(frame, separators=(",", ":")))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=note, compress_level=6)
    return out.getvalue()


# --- data for other programs ---------------------------------------------------------------------------


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
