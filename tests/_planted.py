"""Real tissue with things wrong planted into it, whose place is known to the pixel: 1 µm/px, 3 mm a side."""

from __future__ import annotations

from functools import cache

import numpy as np
from _shared import shared_path
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE = 3000
GLASS = 243.0


@cache
def section(kind: str = "crc") -> tuple[np.ndarray, np.ndarray]:
    """Return a section on glass, (3000, 3000, 3) uint8 at 1 µm/px, and where it is."""
    names = {
        "crc": [(f"crc_nuclei/img{number:03d}.png", 2) for number in range(1, 64, 3)],
        "breast": [
            (f"ucsb_breast/ytma{name}.jpg", 4)
            for name in ("10_010704_benign1", "12_010804_malignant1", "23_022103_benign2", "49_042003_benign3")
        ],
        "ihc": [("ihc/skimage_ihc.png", 2)],
    }[kind]
    tiles = [np.asarray(Image.open(shared_path(f"data/tiles/{name}")).convert("RGB").reduce(by)) for name, by in names]
    side = min(min(tile.shape[:2]) for tile in tiles)
    count = -(-SIDE // side)
    rng = np.random.default_rng(0)
    chosen = [[_turned(tiles[rng.integers(len(tiles))], side, rng) for _ in range(count)] for _ in range(count)]
    picture = np.concatenate([np.concatenate(line, 1) for line in chosen])[:SIDE, :SIDE]
    y, x = np.ogrid[:SIDE, :SIDE]
    where = ((y - 1500) / 1250) ** 2 + ((x - 1500) / 1300) ** 2 < 1
    glass = GLASS + np.random.default_rng(1).normal(0, 1.5, (SIDE, SIDE, 1))
    return np.where(where[..., None], picture, glass).clip(0, 255).astype(np.uint8), where


def _turned(tile: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(tile[:side, :side], rng.integers(4))


def blurred(picture: np.ndarray, where: np.ndarray, sigma: float) -> np.ndarray:
    """Return the picture out of focus where it is said, with a scanner's noise on top."""
    soft = ndimage.gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0))
    soft += np.random.default_rng(2).normal(0, 1, picture.shape)
    return np.where(where[..., None], soft.clip(0, 255), picture).astype(np.uint8)


def inked(picture: np.ndarray, where: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Return the picture under a felt pen: ink takes its share of light from what lies below, with soft edges."""
    share = ndimage.uniform_filter(where.astype(np.float32), 25)[..., None]
    return (picture * np.exp(share * np.log(np.array(color) / GLASS))).astype(np.uint8)


def folded(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the picture with the tissue of 300 µm away laid over it: densities add up."""
    other = np.roll(picture, (300, 0), (0, 1)).astype(np.float32) / GLASS
    share = ndimage.uniform_filter(where.astype(np.float32), 9)[..., None]
    return (picture * np.clip(other, 0.01, 1) ** share).clip(0, 255).astype(np.uint8)


def bubbled(picture: np.ndarray, middles: list[tuple[int, int, int]], width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with air bubbles (y, x, radius), dark outlines around a paler inside, and their discs."""
    y, x = np.ogrid[:SIDE, :SIDE]
    out, discs = picture.astype(np.float32), np.zeros(picture.shape[:2], bool)
    for row, column, radius in middles:
        distance = np.hypot(y - row, x - column)
        ring = np.exp(-(((distance - radius) / (width / 2)) ** 2))
        out *= (1 - 0.75 * ring)[..., None]
        discs |= distance < radius
    return out.astype(np.uint8), discs


def stroke(points: list[tuple[int, int]], width: int) -> np.ndarray:
    """Return a line of `width` px through points (x, y), (3000, 3000) bool."""
    image = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(image).line(points, fill=1, width=width, joint="curve")
    return np.asarray(image)


def at_mask(truth: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a truth of 1 µm/px at a mask's resolution: the middle of each of its pixels decides."""
    rows = ((np.arange(shape[0]) + 0.5) * truth.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * truth.shape[1] / shape[1]).astype(int)
    return truth[rows][:, columns]
