"""Tiles side by side at one scale, each with its rank, value and place; maps laid over them at pixel resolution."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import INK, PAPER, fitted, font, jpeg, scale_bar
from .heatmap import SIGNED, color_table


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
        scale_bar(pen, (size[0] - gap, 20), tile_mpp * side / shown, shown * 0.8)
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


def overlaid(tiles: NDArray[np.uint8], maps: NDArray[np.floating], limit: float) -> NDArray[np.uint8]:
    """Lay signed maps (n, h, w) over tiles (n, S, S, 3): red speaks for, blue against; all share one scale, ±`limit`.

    A map is coarser than its tile: it is enlarged smoothly, and strong where it is far from zero.
    """
    from PIL import Image

    out = np.empty_like(tiles)
    table = color_table(SIGNED).astype(np.float32)
    for k, (tile, values) in enumerate(zip(tiles, maps, strict=True)):
        size = (tile.shape[1], tile.shape[0])
        fine = np.asarray(Image.fromarray(np.asarray(values, np.float32)).resize(size, Image.Resampling.BICUBIC))
        place = np.clip(fine / (limit or 1.0), -1, 1)
        color = table[np.rint((place + 1) * 127.5).astype(np.int64)]
        weight = 0.15 + 0.55 * np.abs(place)[..., None]
        gray = tile.astype(np.float32).mean(axis=2, keepdims=True)
        out[k] = np.rint(gray * (1 - weight) + color * weight).astype(np.uint8)
    return out
