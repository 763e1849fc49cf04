"""Tile values over the grayed slide, as a picture that says what its colors mean.

Arrays in, bytes out, the same bytes each time; nothing here reads a slide or writes a file.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import INK, PAPER, fitted, font, nice_length, resized, rings, scale_bar, stroke

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

COLORS = "viridis"
"""Perceptually even, readable by color-blind people and in gray print."""
SIGNED = "RdBu_r"
"""For values with a sign: even on both sides of a white zero, told apart by color-blind people."""
FRAME_KEY = "slidemil:frame"
"""PNG text entry that says where the slide lies in the picture: JSON with left, top, width, height (px)
and slide_size (level-0 px)."""

_LEAST, _MOST = 900, 1600
_TRIM_FROM = 100
_TEXTURE = 0.15
"""The most that the tissue lightens or darkens a color."""
_TRIM = 0.01

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
    colors: str = COLORS,
    worth: str = "",
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
        colors: `COLORS`, or `SIGNED` with limits around zero.
        worth: What the values are worth as an explanation, shown in the last line.

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
    side = max(footprint_xy[0] * scale[0], footprint_xy[1] * scale[1])
    image = _blended(image, spread.position(painted), colors, side)
    _draw_outline(image, outline, scale)
    words = [f"{unit}  ·  {normalization}", _color_words(spread, numbers), *([worth] if worth else [])]
    return _framed(image, slide_size, mpp, spread, title, words, colors)


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


@lru_cache(maxsize=4)
def color_table(name: str = COLORS) -> NDArray[np.uint8]:
    """Return the 256 colors of the bar, low to high, (256, 3)."""
    from matplotlib import colormaps

    table: NDArray[np.uint8] = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return table


def _blended(image: Image.Image, position: NDArray[np.float64], colors: str, side: float) -> Image.Image:
    """Lay colors over the grayed picture; the light and dark within a tile (`side` px) stay visible under them."""
    from PIL import Image, ImageFilter

    gray = image.convert("L")
    light = np.asarray(gray, np.float32)
    out = np.repeat((255 - (255 - light) * 0.75)[..., None], 3, axis=2)
    there = np.isfinite(position)
    color = color_table(colors)[np.rint(position[there] * 255).astype(np.int64)].astype(np.float32)
    # Held against the tile around it, and as a factor: a tile's hue, and nearly its mean, stay those of the color bar.
    around = np.asarray(gray.filter(ImageFilter.BoxBlur(max(1.0, side / 2))), np.float32)
    factor = 1 + np.clip((light - around)[there] / 255, -_TEXTURE, _TEXTURE)
    out[there] = color * np.minimum(factor, 255 / color.max(axis=1))[:, None]
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
    title: str,
    words: Sequence[str],
    colors: str,
) -> bytes:
    """Put title, color bar, scale bar and words around the picture and return PNG bytes."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = 16, 44, 150, 40 + 22 * len(words)
    width = left + image.width + right
    sheet = Image.new("RGB", (width, max(top + image.height + bottom, 420)), PAPER)
    sheet.paste(image, (left, top))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=(205, 208, 214))
    pen.text((left, 13), fitted(title, 17, width - 2 * left, bold=True), fill=INK, font=font(17, bold=True))
    _color_bar(pen, (left + image.width + 24, top + 12), min(image.height - 24, 460), spread, colors)
    base = top + image.height
    for row, text in enumerate(words):
        pen.text((left, base + 34 + 22 * row), fitted(text, 14, width - 2 * left), fill=INK, font=font(14))
    if mpp is None:
        pen.text((left, base + 8), "µm/px unknown: no scale bar", fill=INK, font=font(13))
    else:
        um_per_px = mpp[0] * slide_size[0] / image.width
        scale_bar(pen, (left + image.width, base + 20), um_per_px, image.width / 4)
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


def _color_bar(pen: ImageDraw.ImageDraw, corner: tuple[int, int], height: int, spread: _Range, colors: str) -> None:
    """Draw the bar with its ticks; pointed ends stand for values beyond it."""
    x, y = corner
    table, wide = color_table(colors), 22
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


def _png(image: Image.Image, frame: Mapping[str, Any]) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text(FRAME_KEY, json.dumps(frame, separators=(",", ":")))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=note, compress_level=6)
    return out.getvalue()
