"""How each peer reads tiles, in the setting that is best for it; runs in the peer's own environment.

A case says what to read: `path`, `xy` (level-0 px) of its tiles row by row, the `level` to read from and its
`downsample`, `read_size` there, and the `size` that tiles shall have. A peer opens the slide anew and gives each row
with its pixels; what it cannot do by itself (the resize) is OpenCV's area mean, the quickest that keeps quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

Tiles = Iterator[tuple[int, np.ndarray]]
Case = dict[str, Any]


def openslide_pillow(case: Case, rows: Sequence[int]) -> Tiles:
    """Read as most pipelines do: a region, RGB, bicubic."""
    import openslide
    from PIL import Image

    size = (case["size"],) * 2
    with openslide.OpenSlide(case["path"]) as slide:
        for row in rows:
            image = slide.read_region(case["xy"][row], case["level"], case["read_size"]).convert("RGB")
            yield row, np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


def openslide_cv2(case: Case, rows: Sequence[int]) -> Tiles:
    import cv2
    import openslide

    with openslide.OpenSlide(case["path"]) as slide:
        for row in rows:
            pixels = np.asarray(slide.read_region(case["xy"][row], case["level"], case["read_size"]))
            yield row, cv2.cvtColor(shrunk(pixels, case["size"]), cv2.COLOR_RGBA2RGB)


def tiffslide_cv2(case: Case, rows: Sequence[int]) -> Tiles:
    import tiffslide

    with tiffslide.TiffSlide(case["path"]) as slide:
        for row in rows:
            pixels = slide.read_region(case["xy"][row], case["level"], case["read_size"], as_array=True)
            yield row, shrunk(pixels, case["size"])


def pyvips_cv2(case: Case, rows: Sequence[int]) -> Tiles:
    """Read line by line: libvips keeps two lines of the file's tiles, so that each is decoded once."""
    import pyvips

    page = case["level"] + (case["level"] > 0)  # the thumbnail lies behind level 0
    region = pyvips.Region.new(pyvips.Image.new_from_file(case["path"], access="random", page=page))
    (width, height), down = case["read_size"], case["downsample"]
    for row in rows:
        x, y = case["xy"][row]
        data = region.fetch(round(x / down), round(y / down), width, height)
        yield row, shrunk(np.frombuffer(data, np.uint8).reshape(height, width, -1)[..., :3], case["size"])


def cucim_cv2(case: Case, rows: Sequence[int]) -> Tiles:
    """Read tile by tile: faster than its batches; its cache stays empty on such slides (26.10), so it is left off."""
    from cucim import CuImage

    slide = CuImage(case["path"])
    for row in rows:
        pixels = np.asarray(slide.read_region(case["xy"][row], case["read_size"], case["level"]))
        yield row, shrunk(pixels[..., :3], case["size"])
    slide.close()


def hs2p_cv2(case: Case, rows: Sequence[int]) -> Tiles:
    """Read with hs2p's open reader and groups of 4 and 2 tiles: the best of its settings that were tried."""
    from hs2p.wsi.reader import open_slide
    from hs2p.wsi.streaming.stream import iter_tile_records_from_reader

    x, y = np.array([case["xy"][row] for row in rows]).T
    footprint = round(case["read_size"][0] * case["downsample"])
    result = SimpleNamespace(
        x=x,
        y=y,
        num_tiles=len(x),
        read_level=case["level"],
        read_tile_size_px=case["read_size"][0],
        tile_size_lv0=footprint,
        step_px_lv0=footprint,
        overlap=0.0,
        level_downsamples=[1.0] * case["level"] + [case["downsample"]],
    )
    with open_slide(case["path"], backend="cucim") as reader:
        for record in iter_tile_records_from_reader(reader, result=result, supertile_sizes=(4, 2)):
            yield rows[record.tile_index], shrunk(record.tile_arr, case["size"])


def slideio_itself(case: Case, rows: Sequence[int]) -> Tiles:
    """Read with slideio, which resizes by itself."""
    import slideio

    slide = slideio.open_slide(case["path"], "SVS")
    scene = slide.get_scene(0)
    sides = tuple(round(side * case["downsample"]) for side in case["read_size"])
    for row in rows:
        yield row, scene.read_block((*case["xy"][row], *sides), size=(case["size"],) * 2)


def shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the area mean."""
    import cv2

    if pixels.shape[:2] == (size, size):
        return pixels
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


PEERS: dict[str, Callable[[Case, Sequence[int]], Tiles]] = {
    "openslide": openslide_pillow,
    "openslide_cv2": openslide_cv2,
    "tiffslide": tiffslide_cv2,
    "pyvips": pyvips_cv2,
    "cucim": cucim_cv2,
    "hs2p": hs2p_cv2,
    "slideio": slideio_itself,
}
