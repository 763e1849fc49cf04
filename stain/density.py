"""RGB and optical density: the white point of a slide, its tissue, its ink.

Beer-Lambert: a pixel is `white * exp(-density)` per channel, and densities of stains add. Everything that
estimates runs on a few ten thousand pixels on the host in float64, so that numpy and torch input, on any
device, lead to the same parameters; what is applied to every pixel runs where the pixels are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import array_api_compat as compat
import numpy as np
from numpy.typing import NDArray

from .errors import PixelFormatError

Array = Any
"""A numpy or torch array."""

FIT_PIXELS: Final = 100_000
"""Pixels looked at by a fit; 20,000 of tissue fix the vectors to 0.05° (H) and 0.4° (E)."""

MIN_DENSITY: Final = 0.15 * 3**0.5
"""Norm of the optical density under which a pixel is glass: 0.15 in each channel.

The norm, and not "each channel over 0.15": that rule drops pale eosin, which hardly absorbs red.
"""

_GLASS_FLOOR: Final = 200
_GLASS_SPREAD: Final = 25
_GLASS_SHARE: Final = 0.002
_PIECE: Final = 1 << 16


def check_pixels(pixels: Array) -> Any:
    """Return the array namespace of a batch of pixels.

    Args:
        pixels: (..., 3) uint8 numpy or torch array.

    Raises:
        PixelFormatError: no array, another type than uint8, or another last axis than 3.
    """
    if not (compat.is_numpy_array(pixels) or compat.is_torch_array(pixels)):
        raise PixelFormatError(f"pixels are {type(pixels).__name__}, not a numpy or torch array.")
    xp = compat.array_namespace(pixels)
    if pixels.dtype != xp.uint8 or pixels.ndim < 1 or pixels.shape[-1] != 3:
        kind, shape = str(pixels.dtype).removeprefix("torch."), tuple(pixels.shape)
        mend = "Give RGB with the channel last, 0 to 255."
        if len(shape) >= 3 and shape[-3] == 3 != shape[-1]:
            mend = "The channel comes first here: move it to the end, e.g. by permute(0, 2, 3, 1) of a batch."
        raise PixelFormatError(f"pixels have type {kind} and shape {shape}, not uint8 and (..., 3). {mend}")
    return xp


def sample_pixels(pixels: Array, limit: int = FIT_PIXELS) -> NDArray[np.uint8]:
    """Return at most `limit` of the pixels, evenly spread, on the host.

    The places follow the golden ratio: even like a stride, but without its beat against image rows, and the
    same on every machine.

    Args:
        pixels: (..., 3) uint8 numpy or torch array.
        limit: most pixels returned.

    Returns:
        (N, 3) uint8.
    """
    xp = check_pixels(pixels)
    flat = xp.reshape(pixels, (-1, 3))
    count = flat.shape[0]
    if count > limit:
        places = np.floor(count * ((np.arange(limit) * 0.6180339887498949) % 1.0)).astype(np.int64)
        index = xp.asarray(np.sort(places), device=compat.device(flat))
        flat = xp.take(flat, index, axis=0)
    return np.asarray(compat.to_device(flat, "cpu"))


def estimate_white(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float, float], str]:
    """Estimate the white point of one slide: what its glass shows.

    Glass is bright and nearly gray, and all alike, so it makes a peak in the histogram of brightness; pale
    tissue does not. The brightest peak at least half as high as the highest is taken, and the median of each
    channel around it: neither dust glints nor the noise of the scanner shift it. A wrong white point turns
    the eosin vector (240 for 255: 3.8°), so a slide without any glass pixel gets 255 and says so.

    Args:
        pixels: (N, 3) uint8.

    Returns:
        The white point (R, G, B) in grey levels, and "measured" or "assumed".
    """
    darkest = pixels.min(axis=-1, initial=255).astype(np.int64)
    spread = pixels.max(axis=-1, initial=0) - darkest
    glass = pixels[(darkest >= _GLASS_FLOOR) & (spread <= _GLASS_SPREAD)].astype(np.float64)
    if len(glass) < max(50, _GLASS_SHARE * len(pixels)):
        return (255.0, 255.0, 255.0), "assumed"
    brightness = np.rint(glass.mean(axis=-1)).astype(np.int64)
    counts = np.convolve(np.bincount(brightness, minlength=256), np.ones(5), mode="same")
    peaks = (counts >= np.roll(counts, 1)) & (counts >= np.roll(counts, -1)) & (2 * counts >= counts.max())
    level = int(np.flatnonzero(peaks).max())
    red, green, blue = np.median(glass[np.abs(brightness - level) <= 4], axis=0)
    return (float(red), float(green), float(blue)), "measured"


def density_table(white: Sequence[float]) -> NDArray[np.float64]:
    """Return the optical density of each byte value per channel.

    A black byte counts as 1 (`max(I, 1)`, not `I + 1`, which would shift every dark pixel); what is brighter
    than the white point has density 0.

    Args:
        white: the white point (R, G, B) in grey levels.

    Returns:
        (3, 256) float64, natural logarithm.

    Source: Ruifrok and Johnston, Anal Quant Cytol Histol 2001.
    """
    levels = np.maximum(np.arange(256.0), 1.0)
    table = np.log(np.asarray(white, dtype=np.float64))[:, None] - np.log(levels)[None, :]
    clipped: NDArray[np.float64] = np.maximum(table, 0.0)
    return clipped


def optical_density(pixels: NDArray[np.uint8], white: Sequence[float]) -> NDArray[np.float64]:
    """Return the optical density of pixels: (N, 3) uint8 in, (N, 3) float64 out."""
    table = density_table(white)
    return np.stack([table[channel][pixels[:, channel]] for channel in range(3)], axis=-1)


def tissue_mask(density: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of (N, 3) densities are more than glass."""
    mask: NDArray[np.bool_] = np.linalg.norm(density, axis=-1) > MIN_DENSITY
    return mask


def ink_mask(density: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of (N, 3) densities have the hue of a pen, not of a stain.

    Haematoxylin, eosin, DAB and their mixtures absorb green more than one of the other channels, and red not
    much more than green. Green ink absorbs green least; blue ink absorbs red clearly more than green. Red
    ink has the hue of eosin and cannot be told by hue. Black and gray (folds, dirt) absorb all alike and are
    no evidence for a stain either.
    """
    red, green, blue = density[:, 0], density[:, 1], density[:, 2]
    green_ink = green <= np.minimum(red, blue)
    blue_ink = (red > 1.5 * green) | ((red > 1.15 * green) & (blue < 0.4 * red))
    mask: NDArray[np.bool_] = green_ink | blue_ink
    return mask


def has_brown(density: NDArray[np.float64]) -> bool:
    """Return whether tissue is stained by a brown or yellow dye, as DAB, among others.

    Such dyes absorb blue more than green; haematoxylin and eosin do the contrary. In the H&E tiles that we
    looked at, at most 0.2 % of the pixels are brown; in brown immunostains, even nearly negative ones, 3 %
    and more. (The angle between vectors cannot tell: eosins of two labs lie 32° apart, eosin and DAB 28°.)
    """
    brown = density[:, 2] > 1.25 * density[:, 1]
    return bool(brown.sum() > 0.01 * len(density))


def map_pixels(pixels: Array, change: Callable[[Any, Array], Array]) -> Array:
    """Apply a pixelwise change to a batch, in pieces that stay in the processor's cache.

    Args:
        pixels: (..., 3) uint8 numpy or torch array on any device.
        change: takes the array namespace and (N, 3) uint8, returns (N, 3) uint8 on the same device.

    Returns:
        An array of the same library, device, shape and type; never the input itself.
    """
    xp = check_pixels(pixels)
    flat = xp.reshape(pixels, (-1, 3))
    out = xp.empty_like(flat)
    count = flat.shape[0]
    on_host = compat.is_numpy_array(pixels) or str(compat.device(pixels)) == "cpu"
    piece = _PIECE if on_host else 1 << 24
    for start in range(0, count, piece):
        out[start : start + piece, :] = change(xp, flat[start : start + piece, :])
    return xp.reshape(out, pixels.shape)


def lookup(xp: Any, table: NDArray[np.float64], pixels: Array) -> list[Array]:
    """Look each channel up in its own row of a table.

    Args:
        xp: the array namespace of `pixels`.
        table: (3, 256).
        pixels: (N, 3) uint8.

    Returns:
        Three (N,) float32 arrays on the device of `pixels`.
    """
    device = compat.device(pixels)
    # numpy takes bytes as an index as they are; torch wants whole numbers of 32 or 64 bit.
    index = pixels if compat.is_numpy_array(pixels) else xp.astype(pixels, xp.int32)
    rows = [xp.asarray(row, dtype=xp.float32, device=device) for row in table]
    return [xp.take(row, index[:, channel]) for channel, row in enumerate(rows)]


def to_bytes(xp: Any, channels: Sequence[Array]) -> Array:
    """Round three (N,) float arrays to one (N, 3) uint8 array."""
    return xp.stack([xp.astype(xp.clip(xp.round(c), 0.0, 255.0), xp.uint8) for c in channels], axis=-1)
