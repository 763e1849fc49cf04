"""Real immunohistochemistry pixels, sorted into three kinds of tissue for the demo's slides.

The one source is the image that ships inside scikit-image (colon, hematoxylin and DAB; no download). Three
kinds come out of it: *stroma* (low in DAB), *stained glands* (high in DAB) and *pale glands* (the same
glands with their DAB taken out by color deconvolution). All lengths here are pixels of `MPP` µm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MPP = 0.5
"""Micrometers per pixel of the source image, from the size of its nuclei (about 8 µm)."""

_VECTORS = np.array([[0.691, 0.601, 0.401], [0.271, 0.501, 0.822]], np.float32)
"""Unit density of hematoxylin and of DAB in (R, G, B): medians over this image's purest pixels."""
_WHITE = np.float32(252)
_ANGLES = 12
_PIECE = 96

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """The source image and where its tissue kinds lie."""

    stained: Pixels
    """The image as it is, (512, 512, 3)."""
    pale: Pixels
    """The image with its DAB taken out, (512, 512, 3)."""
    brown: Floats
    """Share of DAB-rich pixels around each pixel, 0 to 1, (512, 512)."""
    white: Floats
    """Share of bright, empty pixels around each pixel, 0 to 1, (512, 512)."""


@lru_cache(maxsize=1)
def load_source() -> Source:
    """Read the image out of scikit-image and tell its tissue kinds apart.

    Source: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 2001 (color deconvolution).
    """
    from scipy.ndimage import gaussian_filter
    from skimage import data

    shipped = data.immunohistochemistry()  # type: ignore[no-untyped-call]
    image: Pixels = np.ascontiguousarray(shipped, dtype=np.uint8)
    blue, dab = _dye_amounts(image)
    smooth = gaussian_filter(dab, 2)
    brown = gaussian_filter((smooth > 0.5).astype(np.float32), 3)
    bright = gaussian_filter((image.min(axis=2) > 225).astype(np.float32), 3)
    # What hematoxylin alone would show, and a trace of the brown as cytoplasm; stroma stays as scanned.
    density = (1.1 * blue + 0.1 * dab)[..., None] * _VECTORS[0] + 0.1 * dab[..., None] * _VECTORS[1]
    gland = gaussian_filter((smooth > 0.35).astype(np.float32), 2)[..., None]
    pale = image * (1 - gland) + _WHITE * np.exp(-density) * gland
    return Source(stained=image, pale=np.clip(pale, 0, 250).astype(np.uint8), brown=brown, white=bright)


def _dye_amounts(image: Pixels) -> tuple[Floats, Floats]:
    """Return the densities of hematoxylin and of DAB, each (H, W), never negative."""
    density = -np.log((image.astype(np.float32) + 1) / _WHITE)
    amounts = np.maximum(density @ np.linalg.pinv(_VECTORS), 0).astype(np.float32)
    return amounts[..., 0], amounts[..., 1]


def weaken(source: Source, strength: float) -> Pixels:
    """Return the image with its DAB at `strength` (0: none, 1: as scanned), (512, 512, 3) uint8."""
    mixed = source.pale.astype(np.float32)
    # A mix of densities, not of intensities: half the dye absorbs half as much in log space.
    ratio = np.log((source.stained + np.float32(1)) / (mixed + 1))
    out: Pixels = np.clip((mixed + 1) * np.exp(strength * ratio) - 0.5, 0, 255).astype(np.uint8)
    return out


def gland_window(source: Source, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Choose the top-left corner (y, x) of a `side` px square that is mostly gland.

    Args:
        source: The tissue kinds.
        side: Side in pixels, at most that of the image.
        rng: The caller's generator; twenty places are tried and the best one kept.
    """
    limit = source.brown.shape[0] - side + 1
    corners = rng.integers(0, limit, size=(20, 2))

    def worth(corner: NDArray[np.int64]) -> float:
        y, x = corner
        window = (slice(y, y + side, 4), slice(x, x + side, 4))
        return float(source.brown[window].mean() - 2 * source.white[window].mean())

    y, x = max(corners, key=worth)
    return int(y), int(x)


def stroma_canvas(source: Source, side: int, rng: np.random.Generator) -> Pixels:
    """Compose a large field of stroma from many small real pieces.

    Each piece keeps to the DAB-poor tissue of the source, follows a slowly turning fiber direction and is
    laid over its neighbors with a soft, irregular edge, so that no grid of patches shows.

    Args:
        source: The tissue kinds.
        side: Side of the square field in pixels.
        rng: The caller's generator.

    Returns:
        RGB, (side, side, 3) uint8.
    """
    pieces = _stroma_pieces(source, rng)
    flow = smooth_field(side // 16 + 1, 24, rng) * _ANGLES * 0.35
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = (214, 214, 222)
    step = _PIECE // 3
    spots = [(y, x) for y in range(-step, side, step) for x in range(-step, side, step)]
    for i in rng.permutation(len(spots)):
        y, x = np.asarray(spots[int(i)]) + rng.integers(-step // 2, step // 2, 2)
        at = flow[np.clip(y // 16, 0, len(flow) - 1), np.clip(x // 16, 0, len(flow) - 1)]
        angle = int(np.rint(at + rng.normal(0, 0.7))) % _ANGLES
        choices = pieces[angle]
        _lay(canvas, *choices[int(rng.integers(len(choices)))], int(y), int(x))
    return canvas.astype(np.uint8)


def _stroma_pieces(source: Source, rng: np.random.Generator) -> list[list[tuple[Floats, Floats]]]:
    """Return for each direction a list of (pixels (s, s, 3), weight (s, s, 1)) pieces of stroma."""
    from PIL import Image

    allowed = _stroma_weight(source)
    window = _piece_window()
    pieces: list[list[tuple[Floats, Floats]]] = []
    for turn in range(_ANGLES):
        degrees = 180 * turn / _ANGLES
        image = Image.fromarray(source.stained).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        weight = Image.fromarray(allowed).rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        pixels, mask = np.asarray(image, np.float32), np.asarray(weight, np.float32)
        pieces.append(_cut_pieces(pixels, mask, window, rng))
    return pieces


def _cut_pieces(
    pixels: Floats, mask: Floats, window: Floats, rng: np.random.Generator, count: int = 40
) -> list[tuple[Floats, Floats]]:
    """Cut `count` pieces whose middle is stroma; the weight fades at the stroma's own border."""
    half = _PIECE // 2
    middle = mask[half:-half, half:-half]
    rows, columns = np.nonzero(middle > 0.95)
    out = []
    for i in rng.integers(len(rows), size=count):
        cut = (slice(rows[i], rows[i] + _PIECE), slice(columns[i], columns[i] + _PIECE))
        piece, weight = pixels[cut], (mask[cut] * window)
        if rng.integers(2):
            # Turned by 180 degrees the fibers keep their direction.
            piece, weight = piece[::-1, ::-1], weight[::-1, ::-1]
        out.append((np.ascontiguousarray(piece), np.ascontiguousarray(weight[..., None])))
    return out


def _stroma_weight(source: Source) -> Floats:
    """Return 1 well inside DAB-poor, non-empty tissue, falling to 0 at its border, (512, 512)."""
    from scipy.ndimage import distance_transform_edt

    stroma = (source.brown < 0.12) & (source.white < 0.6)
    depth = distance_transform_edt(np.pad(stroma, 1))[1:-1, 1:-1]
    weight: Floats = np.clip((depth - 3) / 8, 0, 1).astype(np.float32)
    return weight


def _piece_window() -> Floats:
    """Return a round window with a soft edge, (`_PIECE`, `_PIECE`)."""
    at = np.abs(np.arange(_PIECE) - (_PIECE - 1) / 2)
    distance = np.hypot(at[:, None], at[None, :])
    window: Floats = np.clip((_PIECE / 2 - distance) / 12, 0, 1).astype(np.float32)
    return window


def _lay(canvas: Floats, piece: Floats, weight: Floats, y: int, x: int) -> None:
    """Blend `piece` over `canvas` at (y, x) in place, clipped to the canvas."""
    top, left = max(0, -y), max(0, -x)
    bottom = min(_PIECE, canvas.shape[0] - y)
    right = min(_PIECE, canvas.shape[1] - x)
    if bottom <= top or right <= left:
        return
    target = canvas[y + top : y + bottom, x + left : x + right]
    inside = (slice(top, bottom), slice(left, right))
    target += (piece[inside] - target) * weight[inside]


def smooth_field(side: int, sigma: float, rng: np.random.Generator) -> Floats:
    """Return smooth noise of mean 0 and unit variance, (side, side), with bumps of about `sigma` cells."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    shrink = max(1, int(sigma // 4))  # wide bumps need few samples
    small = -(-side // shrink) + 1
    field = gaussian_filter(rng.standard_normal((small, small)), sigma / shrink, mode="wrap", truncate=3)
    field = field - field.mean()  # few bumps do not cancel by themselves
    field = (field / max(float(field.std()), 1e-9)).astype(np.float32)
    if shrink == 1:
        part: Floats = field[:side, :side]
        return part
    box = (0, 0, side / shrink, side / shrink)
    return np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC, box=box))
