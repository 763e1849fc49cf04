"""What the peers are held against: our reader, and the bare decoder; runs in our own environment."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile

import wsi
from wsi.grid import TileGrid

Case = dict[str, Any]

_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def lay_grid(slide: wsi.Slide, size: int, factor: int) -> TileGrid:
    """Return the tiles on tissue, `factor` times coarser than the slide."""
    assert slide.mpp is not None
    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), wsi.TileSpec(size, factor * slide.mpp.x))
    assert len(grid), f"{slide.name}: no tile of {size} px lies on tissue"
    return grid


def case_of(path: str, size: int, factor: int) -> Case:
    """Return what `_peers` needs to know."""
    with wsi.open_slide(path) as slide:
        grid = lay_grid(slide, size, factor)
        down = slide.levels[grid.level].downsample[0]
    return {
        "path": path,
        "xy": grid.places,
        "level": grid.level,
        "downsample": down,
        "read_size": grid.read_size,
        "size": size,
        "factor": factor,
    }


@cache
def _grid(path: str, size: int, factor: int) -> TileGrid:
    with wsi.open_slide(path) as slide:
        return lay_grid(slide, size, factor)


def ours(case: Case, threads: int) -> Iterator[wsi.TileBatch]:
    """Read all tiles of a case; where they lie was found before, as for the peers."""
    grid = _grid(case["path"], case["size"], case["factor"])
    batch = min(64, 64 * 256**2 // case["size"] ** 2)  # 64 tiles of up to 256 px, or as many as take that memory
    with (
        wsi.open_slide(case["path"], **case.get("options", {})) as slide,
        wsi.stream([(slide, grid)], workers=threads, batch_size=batch) as stream,
    ):
        yield from stream


class Limit:
    """libjpeg-turbo alone: each needed tile of the file decoded once, as small as asked, from bytes in memory."""

    def __init__(self, case: Case) -> None:
        with tifffile.TiffFile(case["path"]) as tiff:
            page = tiff.series[0].levels[case["level"]].keyframe
            width, height = page.tilewidth, page.tilelength
            needed = needed_tiles(case, -(-page.imagewidth // width), (width, height))
            places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in needed]
            tables = page.jpegtables[:-2] if page.jpegtables else b""
            colour = _ADOBE_RGB if page.photometric == tifffile.PHOTOMETRIC.RGB else b""
        data = [whole_file(case["path"])[offset : offset + count] for offset, count in places]
        lacks = bool(tables or colour)
        self._streams = [(tables or b"\xff\xd8") + colour + bytes(one[2:]) for one in data] if lacks else data
        factor = case["read_size"][0] // case["size"]
        self._side = {"min_width": width // factor, "min_height": height // factor}
        self._bytes = 3 * width * height

    def __call__(self, threads: int) -> int:
        """Decode all, let the pixels go, and return how many tiles of the file these were."""
        parts = np.array_split(np.arange(len(self._streams)), threads)
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(self._decode, [self._streams[part[0] : part[-1] + 1] for part in parts if len(part)]))

    def _decode(self, streams: list[Any]) -> int:
        memory = np.empty(self._bytes, np.uint8)
        for stream in streams:
            simplejpeg.decode_jpeg(stream, buffer=memory, **self._side)
        return len(streams)


@cache
def whole_file(path: str) -> memoryview:
    return memoryview(Path(path).read_bytes())


def needed_tiles(case: Case, across: int, tile: tuple[int, int]) -> list[int]:
    """Return which tiles of the file a case touches, in their order."""
    found = set()
    width, height = case["read_size"]
    for x0, y0 in case["xy"]:
        x, y = round(x0 / case["downsample"]), round(y0 / case["downsample"])
        columns = range(x // tile[0], (x + width - 1) // tile[0] + 1)
        lines = range(y // tile[1], (y + height - 1) // tile[1] + 1)
        found.update(row * across + column for row in lines for column in columns)
    return sorted(found)
