"""Tiles per CPU second, ours beside other readers and the decoder's limit.    python benchmarks/read_tiles.py [--quick]

Candidates take turns, round after round, and open the slide anew in each; a ratio is taken inside a round. One reading
thread, CPU seconds of the process: the machine may be shared. Without `--slide` the benchmark makes its own: 40x,
40,000 x 30,000 px, 256-px tiles. "limit" is libjpeg-turbo alone: each needed tile of the file decoded once, reduced as
far as asked, from bytes that lie in memory.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import openslide
import simplejpeg
import tiffslide
from _summary import line, summary
from PIL import Image

import wsi
from wsi.grid import TileGrid
from wsi.readers.direct import native_tiles

SHARED = Path(os.environ.get("SLIDEMIL_SHARED", "../shared"))
CASES = {  # name: (tile side, µm/px over the slide's)
    "half224": (224, 2),
    "half256": (256, 2),
    "half512": (512, 2),
    "native224": (224, 1),
    "native256": (256, 1),
}
GOALS = {
    "half224_over_openslide": (">=", 7.0),
    "half224_over_best": (">=", 1.55),
    "half224_of_limit": (">=", 0.93),
    "half256_over_openslide": (">=", 10.0),
    "half256_over_best": (">=", 1.42),
    "half256_of_limit": (">=", 0.94),
    "half512_over_openslide": (">=", 9.5),
    "half512_over_best": (">=", 1.35),
    "half512_of_limit": (">=", 0.94),
    "native224_over_best": (">=", 2.0),
    "native224_of_limit": (">=", 0.90),
    "native256_over_best": (">=", 0.97),
    "native256_of_limit": (">=", 0.93),
}
FEW = 400  # tiles that a slow peer reads: the cost of a tile does not depend on how many are read
Places = list[tuple[int, int]]


def ours(path: Path, grid: TileGrid) -> int:
    tiles = 0
    with wsi.open_slide(path) as slide, wsi.stream([(slide, grid)], workers=1, batch_size=batch_size(grid)) as stream:
        for batch in stream:
            tiles += int(batch.ok.sum())
    return tiles


def batch_size(grid: TileGrid) -> int:
    """Return 64 tiles of 224 or 256 px, or as many larger ones as take as much memory."""
    return min(64, 64 * 256**2 // grid.spec.size**2)


def through_openslide(path: Path, grid: TileGrid) -> int:
    """Read as most pipelines do: a region, RGB, bicubic."""
    places = middle(grid)
    with openslide.OpenSlide(path) as slide:
        for place in places:
            shrunk(slide.read_region(place, grid.level, grid.read_size).convert("RGB"), grid.spec.size)
    return len(places)


def through_tiffslide(path: Path, grid: TileGrid) -> int:
    places = middle(grid)
    with tiffslide.TiffSlide(path) as slide:
        for place in places:
            shrunk(slide.read_region(place, grid.level, grid.read_size), grid.spec.size)
    return len(places)


def middle(grid: TileGrid) -> Places:
    """Return neighbouring tiles, so that a cache helps as it would over the whole slide."""
    first = max(0, (len(grid) - FEW) // 2)
    return grid.places[first : first + FEW]


def shrunk(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


class Limit:
    """The decoder alone."""

    def __init__(self, path: Path, grid: TileGrid, factor: int) -> None:
        with wsi.open_slide(path) as slide:
            native = native_tiles(slide)
            assert native is not None
            level = native.levels[grid.level]
            assert level is not None
            needed = needed_tiles(grid, level.across, (level.tile_width, level.tile_height))
            data = [one for one in native.fetch(level, needed) if isinstance(one, memoryview)]
            self._streams = [level.tables + level.colour + bytes(one[level.room + 2 :]) for one in data]
            self._side = {"min_width": level.tile_width // factor, "min_height": level.tile_height // factor}
        self._memory = np.empty(3 * level.tile_width * level.tile_height, np.uint8)
        self.natives = len(self._streams)

    def __call__(self, _: Path, grid: TileGrid) -> int:
        """Decode, and let the pixels go."""
        for stream in self._streams:
            simplejpeg.decode_jpeg(stream, buffer=self._memory, **self._side)
        return len(grid)


def needed_tiles(grid: TileGrid, across: int, tile: tuple[int, int]) -> list[int]:
    """Return which tiles of the file the grid touches, in the order of the file; on level 0."""
    assert grid.level == 0
    found = set()
    for x, y in grid.places:
        columns = range(x // tile[0], (x + grid.read_size[0] - 1) // tile[0] + 1)
        lines = range(y // tile[1], (y + grid.read_size[1] - 1) // tile[1] + 1)
        found.update(row * across + column for row in lines for column in columns)
    return sorted(found)


def cpu_seconds(read: Callable[[Path, TileGrid], int], path: Path, grid: TileGrid) -> float:
    """Return the CPU seconds of one tile."""
    began = time.process_time()
    tiles = read(path, grid)
    return (time.process_time() - began) / tiles


def make_slide(folder: Path, size: tuple[int, int]) -> Path:
    path = folder / f"{size[0]}x{size[1]}.svs"
    command = [sys.executable, SHARED / "tools/make_large_slide.py", "--source", SHARED / "data/tiles/crc_nuclei"]
    sides = ["--width", size[0], "--height", size[1], path]
    subprocess.run([str(word) for word in [*command, *sides]], check=True, stdout=subprocess.DEVNULL)
    return path


def measure(path: Path, rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, (size, factor) in CASES.items():
        with wsi.open_slide(path) as slide:
            assert slide.mpp is not None
            spec = wsi.TileSpec(size, factor * slide.mpp.x)
            grid = wsi.tile_grid(slide, wsi.find_tissue(slide), spec)
            assert len(grid), f"{path.name}: no tile of {size} px lies on tissue"
        limit = Limit(path, grid, factor)
        readers: dict[str, Callable[[Path, TileGrid], int]] = {
            "ours": ours,
            "openslide": through_openslide,
            "tiffslide": through_tiffslide,
            "limit": limit,
        }
        seconds = taking_turns(readers, path, grid, rounds)
        for reader, values in seconds.items():
            rate = 1 / median(values)
            line(case=name, reader=reader, tiles_per_cpu_s=round(rate, 1), tiles=len(grid), natives=limit.natives)
        for other, key in {"openslide": "over_openslide", "tiffslide": "over_tiffslide", "limit": "of_limit"}.items():
            ratios = [b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)]
            figures[f"{name}_{key}"] = median(ratios)
            low, _, high = quantiles(ratios, n=4)
            line(figure=f"{name}_{key}", median=round(median(ratios), 3), quartiles=[round(low, 3), round(high, 3)])
    return figures


def taking_turns(
    readers: dict[str, Callable[[Path, TileGrid], int]], path: Path, grid: TileGrid, rounds: int
) -> dict[str, list[float]]:
    """Time each reader once per round, in shuffled order; the first round warms up and is thrown away."""
    dice = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name in shuffled(readers, dice):
            spent = cpu_seconds(readers[name], path, grid)
            if turn:
                seconds[name].append(spent)
    return seconds


def shuffled(names: Iterable[str], dice: random.Random) -> list[str]:
    order = list(names)
    dice.shuffle(order)
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, help="a slide of 256-px JPEG tiles; none: one is made")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="a small slide and two rounds")
    args = parser.parse_args()
    rounds = args.rounds or (2 if args.quick else 7)
    with tempfile.TemporaryDirectory() as folder:
        size = (6000, 4500) if args.quick else (40_000, 30_000)
        path = args.slide or make_slide(Path(folder), size)
        figures = measure(path, rounds)
    summary("read_tiles", figures, GOALS, how(path, rounds))


def how(path: Path, rounds: int) -> dict[str, Any]:
    peers = {name: version(name) for name in ("openslide-python", "tiffslide", "simplejpeg", "pillow", "numpy")}
    return {
        "slide": path.name,
        "rounds": rounds,
        "batch": "64 tiles; 16 of 512 px",
        "peers": "openslide, tiffslide; without pyvips, cucim and hs2p there is no best",
        "python": sys.version.split()[0],
        "openslide": openslide.__library_version__,
        **peers,
    }


if __name__ == "__main__":
    main()
