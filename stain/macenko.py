"""Macenko: the two stains of a slide are the two extreme directions of its optical densities.

Source: Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
doi:10.1109/ISBI.2009.5193250.

Where we differ from the paper and from common code:

* The fit is made once per slide on pooled tissue pixels: a tile that shows one stain alone would put the
  other's vector 37° off.
* Both eigenvectors get a fixed sign before the angle is taken, so that the cloud never lies across ±π.
* What two stains with positive amounts cannot explain of a pixel (ink, pigment, noise) is kept as it is,
  instead of being dropped. Hence a slide normalized to itself is unchanged byte for byte, and glass too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .density import Array, has_brown
from .replace import apply_tables
from .tables import Tables, make_tables

PERCENTILE: Final = 1.0
"""Share of pixels (%) beyond each extreme direction; less is sensitive to noise, more pulls eosin in."""

MIN_ANGLE: Final = 12.0
"""Degrees between two stains under which they are one: real pairs lie 17° to 60° apart, noise (sd 2) 8°."""

NOISY_ANGLE: Final = 17.0
"""The same where the stains' plane is hardly flatter than noise (sd 4 spreads one stain over 16°)."""

MAX_RATIO: Final = 3.0
"""Most by which an amount of stain is raised or lowered; weak slides would otherwise turn to noise."""

# Only the order of the two vectors is settled by these (Ruifrok and Johnston 2001), never their values.
_HAEMATOXYLIN: Final = np.array([0.650, 0.704, 0.286])
_PARTNERS: Final = np.array([[0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])  # eosin, DAB


@dataclass(frozen=True)
class StainMatrix:
    """The two stains of one slide.

    Attributes:
        vectors: two unit vectors of optical density (R, G, B); the first is the haematoxylin-like one.
        max_concentrations: the 99th percentile of the amount of each stain in tissue.
        brown: a brown dye or pigment is among the stains; such a slide is not normalized to one without, nor reversed.
    """

    vectors: tuple[tuple[float, float, float], tuple[float, float, float]]
    max_concentrations: tuple[float, float]
    brown: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {
            "vectors": [list(vector) for vector in self.vectors],
            "max_concentrations": list(self.max_concentrations),
            "brown": self.brown,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StainMatrix:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: something is missing or is no number.
        """
        vectors = np.asarray(data["vectors"], dtype=np.float64)
        amounts = np.asarray(data["max_concentrations"], dtype=np.float64)
        if vectors.shape != (2, 3) or amounts.shape != (2,) or not ((amounts > 0) & (amounts < np.inf)).all():
            raise ValueError("vectors must be 2 x 3 and max_concentrations two positive numbers")
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6):
            raise ValueError("vectors must have length 1")
        return frozen(vectors, amounts, bool(data["brown"]))


def estimate(density: NDArray[np.float64], *, percentile: float = PERCENTILE) -> tuple[StainMatrix | None, str]:
    """Estimate the two stains from the optical densities of tissue.

    Args:
        density: (N, 3) optical densities of tissue pixels, without ink.
        percentile: share of pixels in percent beyond each extreme direction.

    Returns:
        The stains and "ok", or None and "degenerate" (all pixels alike) or "single stain".
    """
    if np.ptp(density, axis=0).max(initial=0.0) < 0.02:
        return None, "degenerate"
    # The plane goes through the origin: no stain, no density (singular vectors, not a centered covariance).
    extent, eigenvectors = np.linalg.eigh(density.T @ density / len(density))
    vectors = extreme_directions(density, eigenvectors[:, [2, 1]], percentile)
    return measured(density, vectors, NOISY_ANGLE if extent[1] < 3.0 * extent[0] else MIN_ANGLE)


def measured(
    density: NDArray[np.float64], vectors: NDArray[np.float64], least: float = MIN_ANGLE
) -> tuple[StainMatrix | None, str]:
    """Return two stains with their amounts in tissue.

    Args:
        density: (N, 3) optical densities of tissue pixels, without ink.
        vectors: (2, 3), the stains' directions, length 1, in any order.
        least: degrees between them under which they are one stain.

    Returns:
        The stains and "ok", or None and "single stain".
    """
    vectors = _order(vectors)
    if np.degrees(np.arccos(np.clip(vectors[0] @ vectors[1], -1.0, 1.0))) < least:
        return None, "single stain"
    amounts = np.percentile(np.maximum(density @ np.linalg.pinv(vectors), 0.0), 99.0, axis=0)
    if not (amounts > 0.05).all():
        return None, "single stain"
    return frozen(vectors, amounts, has_brown(density) or is_pigment(vectors[1])), "ok"


def is_pigment(vector: NDArray[np.float64]) -> bool:
    """Return whether what stands in eosin's place is none: a brown or gray pigment, ink, or a red-brown dye as AEC.

    Eosin hardly absorbs red, and blue less than green. Of 123 H&E images, two show such a stain: both hold tattoo ink.
    """
    red, green, blue = vector
    return bool(blue > 0.95 * green and red > 0.3 * green)


def extreme_directions(
    density: NDArray[np.float64], plane: NDArray[np.float64], percentile: float
) -> NDArray[np.float64]:
    """Return the two unit directions in a plane between which nearly all densities lie.

    Args:
        density: (N, 3).
        plane: (3, 2) orthonormal, first the direction of largest extent; any signs.
        percentile: share of pixels in percent beyond each direction.

    Returns:
        (2, 3) float64, no component negative.
    """
    # Largest component positive. For the first axis all of stain lies then on its positive side, so that
    # atan2(second, first) stays within ±90° of it; a flipped first axis would cut the cloud at ±180°.
    plane = plane * np.where(plane[np.abs(plane).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    along = density @ plane
    angles = np.percentile(np.arctan2(along[:, 1], along[:, 0]), [percentile, 100.0 - percentile])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1) @ plane.T
    vectors = np.maximum(vectors, 0.0)  # no stain emits light
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def normalize(
    pixels: Array,
    white: tuple[float, float, float],
    source: StainMatrix,
    target: StainMatrix,
    out: Array | None = None,
) -> Array:
    """Replace the stains of a slide by those of a reference.

    A pixel I with amounts c = max(0, pinv(V) density(I)) becomes
    I * exp(-(c r V_target - c V_source)), with r the ratio of the reference's amounts to the slide's. The
    stains change, the rest of the pixel stays.

    Args:
        pixels: (..., 3) uint8 numpy or torch array.
        white: the slide's white point (R, G, B) in grey levels.
        source: the slide's stains.
        target: the reference's stains.
        out: where to; none makes it.

    Returns:
        The same shape, type, library and device.
    """
    return apply_tables(tables_of(white, source, target), pixels, out)


@lru_cache(maxsize=64)
def tables_of(white: tuple[float, float, float], source: StainMatrix, target: StainMatrix) -> Tables:
    """Return the tables of a slide: they take longer to make than a tile, hence are kept."""
    unmix = np.linalg.pinv(np.asarray(source.vectors))
    return make_tables(white, unmix, _density_change(source, target))


def _density_change(source: StainMatrix, target: StainMatrix) -> NDArray[np.float64]:
    """Return by how much one unit of each source stain changes the density of R, G, B: (2, 3)."""
    ratio = np.asarray(target.max_concentrations) / np.asarray(source.max_concentrations)
    ratio = np.clip(ratio, 1.0 / MAX_RATIO, MAX_RATIO)
    change: NDArray[np.float64] = ratio[:, None] * np.asarray(target.vectors) - np.asarray(source.vectors)
    return change


def _order(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the haematoxylin-like vector first: the order more like H with E, or H with DAB.

    "The one with more red first" fails for other stains; so the pair is compared as a pair.
    """
    kept = vectors[0] @ _HAEMATOXYLIN + (_PARTNERS @ vectors[1]).max()
    swapped = vectors[1] @ _HAEMATOXYLIN + (_PARTNERS @ vectors[0]).max()
    return vectors if kept >= swapped else vectors[::-1]


def frozen(vectors: NDArray[np.float64], amounts: NDArray[np.float64], brown: bool) -> StainMatrix:
    """Freeze arrays."""
    first, second = ((float(v[0]), float(v[1]), float(v[2])) for v in vectors)
    return StainMatrix((first, second), (float(amounts[0]), float(amounts[1])), brown)
