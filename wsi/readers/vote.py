"""Whether tiles taken straight from the file look as the slide's reader shows them: asked once, at opening.

Where they do not, a third reader decides, which looks for the tile and decodes it on its own. Two that agree win.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsi.errors import TileReadError, UnreadableSlideError
from wsi.readers.base import BaseSlide
from wsi.readers.direct import NativeLevel, NativeTiles

_SAME = 2
"""Gray levels by which decoders of one family may differ."""
_BOX, _ALIKE, _NEAR = 32, 6, 1
"""Where a reader shows what lies between pixels, means over boxes of so many px may differ by so many gray levels,
and the two pictures fit best when moved by no more than so many px."""
_TRIED = 4
"""Tiles of a level that are tried until one can be read both ways."""

Pixels = NDArray[np.uint8]


def settle(native: NativeTiles, slide: BaseSlide, third: Callable[[], BaseSlide | None]) -> BaseSlide | None:
    """Compare each level with the slide's reader; levels that lose, or cannot be compared, are taken out of `native`.

    Args:
        native: the tiles of the slide, not compared yet.
        slide: open.
        third: opens the same file with another reader; None where no other takes it.

    Returns:
        None where the slide's reader is right; the third where that and our tiles agree against it.

    Raises:
        UnreadableSlideError: there are three different pictures of one tile.
    """
    kept: list[NativeLevel | None] = []
    judge: BaseSlide | None = None
    try:
        for level in native.levels:
            tile = -1 if level is None else _first_difference(native, level, slide)
            if level is not None and tile is not None and tile >= 0 and _can_be_judged(slide, level):
                judge = judge or third()
                if judge is not None and _ours_win(native, level, tile, slide, judge):
                    winner, judge = judge, None
                    return winner
            kept.append(level if tile is None else None)
    finally:
        if judge is not None:
            judge.close()
    native.levels = tuple(kept)
    return None


def _can_be_judged(slide: BaseSlide, level: NativeLevel) -> bool:
    """Say whether a third reader would look at the same place, and at whole pixels; else the slide's is believed."""
    return _whole_pixels(slide, level) and not level.placed_by_format


def _ours_win(native: NativeTiles, level: NativeLevel, tile: int, slide: BaseSlide, judge: BaseSlide) -> bool:
    """Say whether the third reader shows a tile as we do, and not as the slide's reader does."""
    ours, theirs = _decoded(native, level, tile), _shown(slide, slide, level, tile)
    judged = _shown(judge, slide, level, tile)
    if ours is None or theirs is None or judged is None:
        return False
    if alike(judged, theirs, exact=True):
        return False
    if alike(ours, judged, exact=True):
        return True
    x, y = level.origin(tile)
    raise UnreadableSlideError(
        slide.name,
        f"three ways of reading the tile at ({x}, {y}) of level {level.number} show three different pictures "
        f"({slide.reader}, {judge.reader}, and our own)",
        "Export it anew from the scanner's software, or convert it: `vips tiffsave IN OUT --tile --pyramid`.",
    )


def _first_difference(native: NativeTiles, level: NativeLevel, slide: BaseSlide) -> int | None:
    """Return the first of some tiles that the reader shows otherwise, None where there is none; -1 if none is shown."""
    exact, compared = _whole_pixels(slide, level), 0
    enough = 2 if exact and (level.number == 0 or level.placed_by_format) else 1
    for tile in _telling_tiles(native, level):
        ours = _decoded(native, level, tile)
        theirs = None if ours is None else _shown(slide, slide, level, tile)
        if ours is None or theirs is None:
            continue  # damaged: says nothing about the others
        if not alike(ours, theirs, exact=exact):
            return tile
        compared += 1
        if compared == enough:
            break
    return None if compared else -1


def _telling_tiles(native: NativeTiles, level: NativeLevel) -> list[int]:
    """Return the tile that takes most bytes, the last, and more; where all take the same, those of most contrast."""
    full = np.flatnonzero(level.counts)
    if not len(full):
        return []
    most = full[np.argsort(-level.counts[full], kind="stable")[:_TRIED]]
    if level.counts[most[0]] == level.counts[full].min():
        spread = full[np.linspace(0, len(full) - 1, 4 * _TRIED).astype(int)]
        most = spread[np.argsort([-_contrast(native, level, int(tile)) for tile in spread], kind="stable")[:_TRIED]]
    return list(dict.fromkeys([int(most[0]), int(full[-1]), *most.tolist()]))


def _contrast(native: NativeTiles, level: NativeLevel, tile: int) -> float:
    pixels = _decoded(native, level, tile)
    return -1.0 if pixels is None else float(pixels.std())


def _decoded(native: NativeTiles, level: NativeLevel, tile: int) -> Pixels | None:
    """Return our pixels of a tile, without what lies beyond the picture; None if it is damaged."""
    try:
        (data,) = native.fetch(level, [tile])
        if isinstance(data, OSError):
            return None
        width, height = level.extent(tile)
        return level.decode(data)[:height, :width].copy()
    except (ValueError, TileReadError):
        return None


def _shown(reader: BaseSlide, slide: BaseSlide, level: NativeLevel, tile: int) -> Pixels | None:
    """Return a reader's pixels of a tile of the slide; None if it cannot read it, or knows no such level."""
    wanted = slide.levels[level.number]
    levels = [n for n, one in enumerate(reader.levels) if (one.width, one.height) == (wanted.width, wanted.height)]
    if len(levels) != 1:
        return None
    (x, y), (dx, dy) = level.origin(tile), wanted.downsample
    try:
        return reader.read(round(x * dx), round(y * dy), *level.extent(tile), level=levels[0])
    except TileReadError:
        return None


def _whole_pixels(slide: BaseSlide, level: NativeLevel) -> bool:
    """Say whether a level is level 0 in whole steps, to the last pixel; else OpenSlide shows what lies between."""
    (width, height), shown = slide.size, slide.levels[level.number]
    down = width // shown.width
    return (width, height) == (shown.width * down, shown.height * down)


def alike(one: Pixels, other: Pixels, *, exact: bool) -> bool:
    """Say whether two pictures (H, W, 3) show the same; if not `exact`, one may lie between the other's pixels."""
    if exact:
        return int(np.abs(one.astype(np.int16) - other).max()) <= _SAME
    near = bool(np.abs(_box_means(one) - _box_means(other)).max() <= _ALIKE)
    return near and max(map(abs, _moved_by(one, other))) <= _NEAR


def _box_means(pixels: Pixels) -> NDArray[np.float64]:
    height, width = (max(1, side // _BOX) for side in pixels.shape[:2])
    tall, wide = min(_BOX, pixels.shape[0]), min(_BOX, pixels.shape[1])
    boxes = pixels[: height * tall, : width * wide].reshape(height, tall, width, wide, 3)
    return np.asarray(boxes.mean((1, 3)), np.float64)


def _moved_by(one: Pixels, other: Pixels) -> tuple[int, int]:
    """Return by how many px (x, y) two pictures must be moved to fit best: where their correlation is greatest.

    Between plain and phase correlation: strong frequencies count for more, but not all.
    """
    height, width = one.shape[:2]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    gray = (pixels.sum(2, dtype=np.float64) for pixels in (one, other))
    first, second = (np.fft.rfft2((plane - plane.mean()) * window) for plane in gray)
    cross = first * np.conj(second)
    size = np.abs(cross)
    if size.max() == 0:
        return 0, 0
    fit = np.fft.irfft2(cross / np.sqrt(size + 1e-6 * size.max()), (height, width))
    y, x = divmod(int(fit.argmax()), width)
    return (x + width // 2) % width - width // 2, (y + height // 2) % height - height // 2
