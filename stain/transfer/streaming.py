"""Large images piece by piece: each piece is read with a margin that is thrown away afterwards.

A pixel of the output depends on nothing beyond the margin, so the pieces fit to one image without a seam: they are what
the whole image would have given, but for roundings of floats (one grey level at most). At the border of the image, the
margin is its mirror picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .networks import STRIDE

Pixels = NDArray[np.uint8]

CORE: Final = 512
"""Side of a piece in pixels, without its margin."""


@dataclass(frozen=True)
class Piece:
    """One piece: its corner, and its size without margin, in pixels of the image."""

    x: int
    y: int
    width: int
    height: int


def pieces(width: int, height: int, core: int = CORE) -> Iterator[Piece]:
    """Yield the pieces of an image, row by row, each pixel in one piece.

    Raises:
        ValueError: the side is no multiple of `networks.STRIDE`.
    """
    if core < STRIDE or core % STRIDE:
        raise ValueError(f"pieces of {core} px: the side must be a multiple of {STRIDE}")
    for y in range(0, height, core):
        for x in range(0, width, core):
            yield Piece(x, y, min(core, width - x), min(core, height - y))


def stream(
    transfer: Callable[[Pixels], Pixels],
    read: Callable[[int, int, int, int], Pixels],
    width: int,
    height: int,
    margin: int,
    core: int = CORE,
) -> Iterator[tuple[Piece, Pixels]]:
    """Yield the pieces of an image, transferred; no more than one is held.

    Args:
        transfer: (1, h, w, 3) uint8 → the same, sides multiples of `networks.STRIDE`.
        read: x, y, width, height inside the image → (height, width, 3) uint8.
        width: of the image.
        height: of the image.
        margin: at least that of the network, a multiple of `networks.STRIDE`.
        core: side of the pieces.
    """
    for piece in pieces(width, height, core):
        right, bottom = (-(-side // STRIDE) * STRIDE for side in (piece.width, piece.height))
        first_x, first_y = max(piece.x - margin, 0), max(piece.y - margin, 0)
        end_x, end_y = min(piece.x + right + margin, width), min(piece.y + bottom + margin, height)
        seen = read(first_x, first_y, end_x - first_x, end_y - first_y)
        around = (
            (first_y - piece.y + margin, piece.y + bottom + margin - end_y),
            (first_x - piece.x + margin, piece.x + right + margin - end_x),
            (0, 0),
        )
        made = transfer(np.ascontiguousarray(np.pad(seen, around, mode="symmetric"))[None])[0]
        yield piece, made[margin : margin + piece.height, margin : margin + piece.width]


def transfer_image(transfer: Callable[[Pixels], Pixels], image: Pixels, margin: int, core: int = CORE) -> Pixels:
    """Transfer an image (H, W, 3) of any size, in pieces; see `stream`."""
    out = np.empty_like(image)
    height, width = image.shape[:2]

    def read(x: int, y: int, w: int, h: int) -> Pixels:
        return image[y : y + h, x : x + w]

    for piece, made in stream(transfer, read, width, height, margin, core):
        out[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width] = made
    return out
