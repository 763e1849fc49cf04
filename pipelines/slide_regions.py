"""A slide as one image at the asked µm/px, read region by region; what is written again as a slide."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import wsi
from wsi.resize import resize_area

from .files import written_whole

Pixels = NDArray[np.uint8]

STEP: Final = 128
"""Regions begin and end at multiples of this: so their edges are whole pixels of the slide, too."""


@dataclass(frozen=True)
class SlideImage:
    """A slide seen at one resolution.

    Attributes:
        slide: the slide.
        mpp: µm per pixel, (x, y); within 1 % of what was asked.
        width: in pixels at `mpp`.
        height: in pixels at `mpp`.
        level: what is read.
        scale: pixels of the level in one pixel, (x, y), multiples of 1 / `STEP`.
    """

    slide: wsi.Slide
    mpp: tuple[float, float]
    width: int
    height: int
    level: int
    scale: tuple[float, float]

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a region (height, width, 3); `x`, `y` are multiples of `STEP`.

        Raises:
            wsi.TileReadError: it cannot be read.
        """
        assert x % STEP == y % STEP == 0, "a region begins at a multiple of STEP"
        level = self.slide.levels[self.level]
        (right, wide), (down, high) = (
            (-(-side // STEP) * STEP, round(-(-side // STEP) * STEP * scale))
            for side, scale in ((width, self.scale[0]), (height, self.scale[1]))
        )
        corner = [round(at * scale) for at, scale in ((x, self.scale[0]), (y, self.scale[1]))]
        base = self.slide.size
        at_base = [round(c * b / s) for c, b, s in zip(corner, base, (level.width, level.height), strict=True)]
        pixels = self.slide.read(at_base[0], at_base[1], wide, high, level=self.level)
        pixels = resize_area(pixels, right, down)
        return (pixels if self.slide.convert is None else self.slide.convert(pixels))[:height, :width]


def at_resolution(slide: wsi.Slide, mpp: float) -> SlideImage:
    """Return a slide as an image at a resolution.

    Raises:
        wsi.SlideError: its µm/px is not known, or it is coarser than asked.
    """
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=STEP, mpp=mpp))  # checks, and chooses the level
    level = slide.levels[grid.level]
    sides = (level.width, level.height)
    scale = [max(1, round(mpp / own * side / base * STEP)) / STEP
             for own, side, base in zip((grid.mpp.x, grid.mpp.y), sides, slide.size, strict=True)]  # fmt: skip
    real = [s * own * base / side
            for s, own, side, base in zip(scale, (grid.mpp.x, grid.mpp.y), sides, slide.size, strict=True)]  # fmt: skip
    width, height = (max(1, int(side / s)) for side, s in zip(sides, scale, strict=True))
    return SlideImage(slide, (real[0], real[1]), width, height, grid.level, (scale[0], scale[1]))


def write_slide(path: Path, image: SlideImage, pieces: Iterator[Pixels], side: int, quality: int) -> None:
    """Write an OME-TIFF of one level, JPEG in tiles, piece by piece.

    Args:
        path: where to.
        image: its sizes and µm/px.
        pieces: its tiles, row by row; those at the right and lower border may be smaller.
        side: of a tile.
        quality: of the JPEG, 1 to 100.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    import tifffile

    def whole() -> Iterator[Pixels]:
        for piece in pieces:
            tile = np.full((side, side, 3), 255, np.uint8)
            tile[: piece.shape[0], : piece.shape[1]] = piece
            yield tile

    with written_whole(path) as temporary:
        tifffile.imwrite(
            temporary,
            whole(),
            shape=(image.height, image.width, 3),
            dtype=np.uint8,
            tile=(side, side),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": quality},
            bigtiff=True,
            ome=True,
            metadata={
                "axes": "YXS",
                "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, image.slide.name)),  # a random one would change the bytes
                "Creator": "slidemil",
                "PhysicalSizeX": image.mpp[0],
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": image.mpp[1],
                "PhysicalSizeYUnit": "µm",
            },
        )
