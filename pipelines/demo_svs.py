"""Write a small pyramidal slide that OpenSlide takes for an Aperio scan (formats.md, section 11)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TILE = 256
DOWNSAMPLES = (1, 4, 16)
_QUALITY = 82

Pixels = NDArray[np.uint8]


def write_svs(path: Path, pixels: Pixels, *, mpp: float) -> None:
    """Write `pixels` as a tiled JPEG pyramid; the file appears under its name only when it is whole.

    Args:
        path: Where the `.svs` file shall lie; its folder exists.
        pixels: RGB of level 0, (H, W, 3) uint8.
        mpp: Micrometers per level-0 pixel.
    """
    import tifffile

    levels = [pixels]
    for before, factor in pairwise(DOWNSAMPLES):
        levels.append(_shrunk(levels[-1], factor // before))
    unfinished = path.with_name(path.name + ".part")
    resolution = (1e4 / mpp, 1e4 / mpp)
    with tifffile.TiffWriter(unfinished, bigtiff=False) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                _encoded_tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 2),
                resolution=resolution,
                resolutionunit="CENTIMETER",
                subfiletype=0 if number == 0 else 1,
                description=_description(levels[0], level, mpp) if number == 0 else None,
                metadata=None,
                software=False,
            )
            if number == 0:
                # OpenSlide takes a stripped second directory for the thumbnail of an Aperio file.
                thumbnail = np.ascontiguousarray(levels[-1])
                tiff.write(thumbnail, rowsperstrip=16, photometric="rgb", metadata=None, software=False)
    unfinished.replace(path)


def _description(level0: Pixels, level: Pixels, mpp: float) -> str:
    """Return the text by which readers know an Aperio file, its magnification and its pixel size."""
    height, width = level0.shape[:2]
    size = f"{width}x{height} [0,0 {level.shape[1]}x{level.shape[0]}] ({TILE}x{TILE})"
    return (
        f"Aperio Image Library v11.2.1\r\n{size} JPEG/RGB Q={_QUALITY}"
        f"|AppMag = {10 / mpp:g}|MPP = {mpp:.4f}|Title = composed for the slidemil demo"
    )


def _shrunk(pixels: Pixels, factor: int) -> Pixels:
    """Return the box average over `factor` x `factor` pixels, (H // factor, W // factor, 3)."""
    from PIL import Image

    height, width = (side // factor for side in pixels.shape[:2])
    cut = pixels[: height * factor, : width * factor]
    return np.asarray(Image.fromarray(cut).reduce(factor))


def _encoded_tiles(level: Pixels) -> Iterator[bytes]:
    """Yield the JPEG bytes of each tile, row by row; tiles over the border repeat its last pixels."""
    import imagecodecs

    height, width = level.shape[:2]
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            tile = level[y : y + TILE, x : x + TILE]
            missing = (TILE - tile.shape[0], TILE - tile.shape[1])
            if any(missing):
                tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            encoded = imagecodecs.jpeg8_encode(
                np.ascontiguousarray(tile),
                level=_QUALITY,
                colorspace="rgb",
                outcolorspace="ycbcr",
                subsampling="420",
            )
            yield bytes(encoded)
