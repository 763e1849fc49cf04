"""Colors as other labs and scanners would show them, for training encoders and for tests of what they bear.

Example: `jitter_stains(batch, params, seed=(epoch, slide))`. The same seed gives the same colors in numpy and torch, on
any device; glass keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import array_api_compat as compat
import numpy as np

from . import reinhard
from .density import Array, check_pixels
from .errors import PixelFormatError, UnusableReferenceError
from .macenko import StainMatrix
from .normalize import StainParams
from .reinhard import LabStatistics
from .replace import apply_tables
from .tables import make_tables

RUIFROK: Final = StainMatrix(
    vectors=((0.6500286, 0.704031, 0.2860126), (0.0721054, 0.9904502, 0.1051587)), max_concentrations=(1.0, 1.0)
)
"""Haematoxylin and eosin of Ruifrok and Johnston 2001, for tiles of which nothing is known."""

WHITE: Final = (255.0, 255.0, 255.0)

Seed = int | Sequence[int]


def jitter_stains(
    batch: Array,
    params: StainParams | None = None,
    *,
    seed: Seed,
    strength: float = 0.2,
    per_tile: bool = True,
) -> Array:
    """Raise or lower the amount of each stain by chance: HED jitter, in the stains of this very slide.

    Each amount is multiplied by a factor drawn evenly from 1 ± `strength`. What the stains cannot explain stays, and
    results are cut to bytes once, at the end. The paper also adds a constant to each amount; it would tint glass, so it
    is left out here.

    Args:
        batch: (B, H, W, 3) uint8 numpy or torch array, any device.
        params: of the slide, fitted by macenko or vahadane; without, or where the fit failed, haematoxylin and eosin
            of the textbook and a white of 255.
        seed: one or several whole numbers; the tile's number is joined to it where `per_tile`.
        strength: of the factors, 0 to below 1.
        per_tile: other factors for each tile, or the same for the whole batch (per slide).

    Returns:
        A new array of the same library, device, shape and type.

    Source: Tellez et al., Medical Image Analysis 2019, doi:10.1016/j.media.2019.101544.
    """
    _check_batch(batch)
    if not 0.0 <= strength < 1.0:
        raise PixelFormatError(f"strength {strength} must be 0 to below 1.")
    source, white = _stains_of(params)
    vectors = np.asarray(source.vectors)

    def change(tile: Array, rng: np.random.Generator) -> Array:
        more = rng.uniform(-strength, strength, 2)[:, None] * vectors
        return apply_tables(make_tables(white, np.linalg.pinv(vectors), more), tile)

    return _each(batch, seed, per_tile, change)


def rand_stain_na(
    batch: Array,
    params: StainParams,
    seen: Sequence[LabStatistics],
    *,
    seed: Seed,
    strength: float = 1.0,
    per_tile: bool = True,
) -> Array:
    """Normalize to colors drawn by chance from those of many slides (RandStainNA).

    Mean and spread of L, a, b are drawn from normal distributions, whose own means and spreads are those of `seen`.

    Args:
        batch: (B, H, W, 3) uint8 numpy or torch array, any device.
        params: of the slide, fitted by reinhard; where the fit failed the batch stays as it is.
        seen: colors of the slides of the training set, two at least.
        seed: one or several whole numbers; the tile's number is joined to it where `per_tile`.
        strength: of the deviation from what is usual; 0 normalizes all to the mean of `seen`.
        per_tile: other colors for each tile, or the same for the whole batch (per slide).

    Returns:
        A new array of the same library, device, shape and type.

    Raises:
        UnusableReferenceError: fewer than two slides were seen, or `params` are of another method.

    Source: Shen et al., RandStainNA, MICCAI 2022, doi:10.1007/978-3-031-16434-7_21.
    """
    _check_batch(batch)
    if len(seen) < 2 or params.method != "reinhard":
        raise UnusableReferenceError(
            f"RandStainNA needs the colors of two slides and parameters of reinhard, not {len(seen)} and "
            f"{params.method!r}. Fit slides with stain.fit('reinhard', pixels), and give their `source`."
        )
    source = params.source
    if not isinstance(source, LabStatistics):
        return params.apply(batch)
    table = np.array([[one.mean, one.sd] for one in seen])  # (slide, mean or sd, channel)
    middle, spread = table.mean(axis=0), table.std(axis=0, ddof=1)

    def change(tile: Array, rng: np.random.Generator) -> Array:
        (l, a, b), sd = middle + strength * spread * rng.standard_normal((2, 3))  # noqa: E741 - CIELAB's own name
        sd = np.maximum(sd, 0.2 * middle[1])
        drawn = LabStatistics((float(l), float(a), float(b)), (float(sd[0]), float(sd[1]), float(sd[2])))
        return reinhard.normalize(tile, params.white, source, drawn)

    return _each(batch, seed, per_tile, change)


def _each(batch: Array, seed: Seed, per_tile: bool, change: Callable[[Array, np.random.Generator], Array]) -> Array:
    """Change each tile with a generator of its own, or all with one."""
    words = [seed] if isinstance(seed, int) else list(seed)
    if not per_tile:
        return change(batch, np.random.default_rng(words))
    xp = compat.array_namespace(batch)
    out = xp.empty_like(batch)
    for number in range(batch.shape[0]):
        out[number] = change(batch[number], np.random.default_rng([*words, number]))
    return out


def _stains_of(params: StainParams | None) -> tuple[StainMatrix, tuple[float, float, float]]:
    """Return the stains and the white point of a slide, those of the textbook where it has none."""
    if params is None or not isinstance(params.source, StainMatrix):
        return RUIFROK, WHITE if params is None else params.white
    return params.source, params.white


def _check_batch(batch: Array) -> None:
    check_pixels(batch)
    if batch.ndim != 4:
        raise PixelFormatError(f"a batch has shape (B, H, W, 3), not {tuple(batch.shape)}.")
