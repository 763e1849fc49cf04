"""Small helpers for the pictures: text, outlines, scale bars, bytes that are the same each time.

Pillow does the drawing; the typeface is the one that ships with matplotlib, so that µ, × and λ are there.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Okabe and Ito's colors, told apart by color-blind readers too.
GREEN: Color = (0, 128, 92)
BLUE: Color = (0, 114, 178)
ORANGE: Color = (213, 94, 0)
INK: Color = (34, 38, 46)
PAPER: Color = (255, 255, 255)


@lru_cache(maxsize=32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface at `size` pixels."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")  # its folder is asked for; the package is not loaded
    if found is not None and found.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def one_line(text: str) -> str:
    """Return text without line breaks and control signs, as a picture can show it."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def fitted(text: str, size: int, width: float, *, bold: bool = False) -> str:
    """Return the text in one line, its middle cut out where it is wider than `width` pixels."""
    text, face = one_line(text), font(size, bold=bold)
    if face.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 1:
        keep -= max(1, keep // 12)
        short = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if face.getlength(short) <= width:
            return short
    return "…"


def resized(pixels: NDArray[np.uint8], *, least: int, most: int) -> Image.Image:
    """Return the picture with its longer side between `least` and `most` pixels."""
    from PIL import Image

    height, width = pixels.shape[:2]
    longer = max(height, width)
    side = min(max(longer, least), most)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if side == longer:
        return image
    size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    kernel = Image.Resampling.BOX if side < longer else Image.Resampling.BICUBIC
    return image.resize(size, kernel)


def rings(polygons: Iterable[Any]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the outer and the inner rings of shapely polygons (and multi-polygons), each (n, 2)."""
    import shapely

    outer: list[NDArray[np.float64]] = []
    inner: list[NDArray[np.float64]] = []
    for shape in polygons:
        for part in shapely.get_parts(shape):
            if part.geom_type == "Polygon" and not part.is_empty:
                outer.append(shapely.get_coordinates(part.exterior))
                inner += [shapely.get_coordinates(ring) for ring in part.interiors]
    return outer, inner


def stroke(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[NDArray[np.float64]],
    scale: tuple[float, float],
    color: Color,
    width: int,
    *,
    halo: bool = True,
) -> None:
    """Draw closed lines given in level-0 pixels; a white halo keeps them visible on dark tissue.

    Args:
        draw: What is drawn on.
        lines: Rings, each (n, 2).
        scale: Pixels of the picture per level-0 pixel, (x, y).
        color: Of the line.
        width: Of the line in pixels.
        halo: Lay a white line under it.
    """
    passes = [(PAPER, width + 2), (color, width)] if halo else [(color, width)]
    for shade, wide in passes:
        for line in lines:
            points = [(float(x * scale[0]), float(y * scale[1])) for x, y in line]
            if len(points) > 1:
                draw.line([*points, points[0]], fill=shade, width=wide, joint="curve")


def nice_length(longest_um: float) -> float:
    """Return the longest of 1, 2, 5 × 10^k µm that is not longer than `longest_um`."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(step * power for step in (1, 2, 5) if step * power <= longest_um * (1 + 1e-9))


def length_text(um: float) -> str:
    """Return a length in µm or, from 1,000 µm, in mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def scale_bar(pen: ImageDraw.ImageDraw, end: tuple[float, float], um_per_px: float, longest_px: float) -> None:
    """Draw a bar of a round physical length that ends at `end` (x, y), its length in words before it."""
    um = nice_length(longest_px * um_per_px)
    begin = end[0] - um / um_per_px
    pen.rectangle((begin, end[1] - 4, end[0] - 1, end[1]), fill=INK)
    pen.text((begin - 8, end[1] - 2), length_text(um), fill=INK, font=font(13), anchor="rm")


def jpeg(image: Image.Image, quality: int = 85) -> bytes:
    """Return JPEG bytes, the same for the same picture."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return out.getvalue()
