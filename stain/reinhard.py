"""Reinhard: shift and stretch the colours of tissue in CIELAB to the mean and spread of a reference.

Source: Reinhard et al., Color transfer between images, IEEE CG&A 2001, doi:10.1109/38.946629. The paper works
in lαβ; we use CIELAB (sRGB, D65), as is usual in histology. Glass is left alone: shifted with the rest it
would turn gray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .density import MIN_DENSITY, Array, density_table, has_brown, lookup, map_pixels, to_bytes

MAX_RATIO: Final = 3.0
"""Most by which the spread of a channel is stretched or squeezed."""

_GLASS_DENSITY: Final = 0.4 * MIN_DENSITY
"""Norm of the density up to which a pixel is left alone; between here and MIN_DENSITY the change fades in."""

# sRGB primaries and D65 white, 2° observer (IEC 61966-2-1), in the rounding that scikit-image uses.
_XYZ_FROM_RGB: Final = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_D65: Final = np.array([0.95047, 1.0, 1.08883])
_LAB_FROM_RGB: Final = (_XYZ_FROM_RGB / _D65[:, None]).tolist()
_RGB_FROM_LAB: Final = (np.linalg.inv(_XYZ_FROM_RGB) * _D65[None, :]).tolist()


@dataclass(frozen=True)
class LabStatistics:
    """Colours of the tissue of one slide.

    Attributes:
        mean: mean of L, a, b.
        sd: standard deviation of L, a, b.
        brown: a brown dye is among the stains; such a slide is not normalized to one without, nor reversed.
    """

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    brown: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {"mean": list(self.mean), "sd": list(self.sd), "brown": self.brown}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabStatistics:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: something is missing or is no number.
        """
        mean, sd = (np.asarray(data[key], dtype=np.float64) for key in ("mean", "sd"))
        if mean.shape != (3,) or sd.shape != (3,) or not np.isfinite(mean).all() or not (sd > 0).all():
            raise ValueError("mean must be three numbers and sd three positive numbers")
        return _statistics(mean, sd, bool(data["brown"]))


def estimate(pixels: NDArray[np.uint8], density: NDArray[np.float64]) -> tuple[LabStatistics | None, str]:
    """Measure the colours of tissue.

    Args:
        pixels: (N, 3) uint8 tissue pixels, without ink.
        density: their optical densities, (N, 3).

    Returns:
        The statistics and "ok", or None and "degenerate" when all pixels are alike.
    """
    linear = _linear_table()[pixels]
    lab = np.stack(lab_from_linear(np, [linear[:, k] for k in range(3)]), axis=-1)
    mean, sd = lab.mean(axis=0), lab.std(axis=0)
    if sd.min(initial=np.inf) < 0.2:
        return None, "degenerate"
    return _statistics(mean, sd, has_brown(density)), "ok"


def normalize(pixels: Array, white: tuple[float, float, float], source: LabStatistics, target: LabStatistics) -> Array:
    """Give tissue the colours of a reference; glass keeps its bytes.

    Args:
        pixels: (..., 3) uint8 numpy or torch array.
        white: the slide's white point (R, G, B) in grey levels.
        source: the slide's colours.
        target: the reference's colours.

    Returns:
        The same shape, type, library and device.
    """
    linear = np.broadcast_to(_linear_table(), (3, 256))
    squares = density_table(white) ** 2

    def change_piece(xp: Any, piece: Array) -> Array:
        lab = lab_from_linear(xp, lookup(xp, linear, piece))
        changed = rgb_from_lab(xp, shift(lab, source, target))
        red, green, blue = lookup(xp, squares, piece)
        norm = xp.sqrt(red + green + blue)
        weight = xp.clip((norm - _GLASS_DENSITY) * (1.0 / (MIN_DENSITY - _GLASS_DENSITY)), 0.0, 1.0)
        values = xp.astype(piece, xp.float32)
        return to_bytes(xp, [values[:, k] + weight * (changed[k] * 255.0 - values[:, k]) for k in range(3)])

    return map_pixels(pixels, change_piece)


def shift(lab: Sequence[Array], source: LabStatistics, target: LabStatistics) -> list[Array]:
    """Shift and stretch L, a, b from one slide's mean and spread to another's."""
    moved = []
    for k, channel in enumerate(lab):
        ratio = min(max(target.sd[k] / source.sd[k], 1.0 / MAX_RATIO), MAX_RATIO)
        moved.append((channel - source.mean[k]) * ratio + target.mean[k])
    return moved


def lab_from_rgb(xp: Any, rgb: Sequence[Array]) -> list[Array]:
    """Turn sRGB in 0 to 1 (three arrays) into CIELAB, D65, 2° observer (three arrays)."""
    return lab_from_linear(xp, [_decode(xp, channel) for channel in rgb])


def lab_from_linear(xp: Any, linear: Sequence[Array]) -> list[Array]:
    """Turn linear light in 0 to 1 (three arrays) into CIELAB (three arrays)."""
    x, y, z = (
        xp.where(t > 0.008856, t ** (1.0 / 3.0), 7.787 * t + 16.0 / 116.0)
        for t in (linear[0] * r + linear[1] * g + linear[2] * b for r, g, b in _LAB_FROM_RGB)
    )
    return [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]


def rgb_from_lab(xp: Any, lab: Sequence[Array]) -> list[Array]:
    """Turn CIELAB (three arrays) into sRGB in 0 to 1, clipped (three arrays)."""
    y = (lab[0] + 16.0) / 116.0
    x = lab[1] / 500.0 + y
    z = xp.clip(y - lab[2] / 200.0, 0.0, None)
    light = [xp.where(t > 0.2068966, t * t * t, (t - 16.0 / 116.0) / 7.787) for t in (x, y, z)]
    linear = (light[0] * a + light[1] * b + light[2] * c for a, b, c in _RGB_FROM_LAB)
    return [_encode(xp, channel) for channel in linear]


def _decode(xp: Any, value: Array) -> Array:
    """Take the sRGB curve from values in 0 to 1: linear light."""
    return xp.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)


def _encode(xp: Any, linear: Array) -> Array:
    """Give linear light the sRGB curve, clipped to 0 to 1."""
    light = xp.clip(linear, 0.0, 1.0)
    return xp.where(light > 0.0031308, 1.055 * light ** (1.0 / 2.4) - 0.055, 12.92 * light)


def _linear_table() -> NDArray[np.float64]:
    """Return the linear light of each byte value: (256,) float64."""
    table: NDArray[np.float64] = _decode(np, np.arange(256) / 255.0)
    return table


def _statistics(mean: NDArray[np.float64], sd: NDArray[np.float64], brown: bool) -> LabStatistics:
    """Freeze arrays."""
    return LabStatistics(
        (float(mean[0]), float(mean[1]), float(mean[2])), (float(sd[0]), float(sd[1]), float(sd[2])), brown
    )
