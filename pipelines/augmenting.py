"""Colors changed by chance, as other labs and scanners show them: to train encoders, and to see what a model bears.

Written `hed:0.1:7`: the kind, how strong, and the seed. Nothing but that, the slide's bytes and the place of a tile
decides what becomes of it, so that it can be made again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

if TYPE_CHECKING:
    import stain
    from stain import LabStatistics

Pixels = NDArray[np.uint8]

NONE: Final = "none"
HOW: Final = "hed:STRENGTH:SEED, e.g. hed:0.1:7, or hed:STRENGTH:SEED:tile for other colors in each tile"
_KINDS: Final = ("hed", "rand")


@dataclass(frozen=True)
class Augmentation:
    """How colors are changed.

    Attributes:
        kind: "hed" (the amount of each stain times 1 ± strength) or "rand" (RandStainNA).
        strength: of the change.
        seed: of the chance.
        per_tile: other colors for each tile, not the same for all of a slide.
    """

    kind: str
    strength: float
    seed: int
    per_tile: bool = False

    def __str__(self) -> str:
        """Return it as it is written, in full."""
        return f"{self.kind}:{self.strength:g}:{self.seed}" + (":tile" if self.per_tile else "")

    def change(
        self, tiles: Pixels, stains: stain.StainParams, slide: str, places: NDArray[np.int64] | Sequence[Any]
    ) -> Pixels:
        """Return tiles of one slide with the amounts of their stains changed.

        Args:
            tiles: (B, S, S, 3) uint8.
            stains: what they are stained with.
            slide: SHA-256 of the slide's bytes.
            places: (B, 2) level-0 pixels.
        """
        words = (self.seed, int(slide[:8], 16))
        if not self.per_tile:
            return self._jittered(tiles, stains, words)
        seeds = [(*words, int(x), int(y)) for x, y in places]
        each = [self._jittered(tiles[row : row + 1], stains, seed) for row, seed in enumerate(seeds)]
        return np.concatenate(each) if each else tiles.copy()

    def change_image(
        self, pieces: Pixels, name: str, stains: stain.StainParams, seen: Sequence[LabStatistics] = ()
    ) -> Pixels:
        """Return an image or pieces of it with other colors, by seed and name: the same ones for all pieces.

        Args:
            pieces: (B, H, W, 3) uint8.
            name: of the image.
            stains: what it is stained with; of "rand", parameters of reinhard.
            seen: of "rand", colors of all images.
        """
        import stain

        seed = (self.seed, zlib.crc32(name.encode()))
        if self.kind == "hed":
            return self._jittered(pieces, stains, seed)
        made = stain.rand_stain_na(pieces, stains, seen, seed=seed, strength=self.strength, per_tile=False)
        changed: Pixels = np.asarray(made)
        return changed

    def _jittered(self, tiles: Pixels, stains: stain.StainParams, seed: tuple[int, ...]) -> Pixels:
        import stain

        made: Pixels = np.asarray(stain.jitter_stains(tiles, stains, seed=seed, strength=self.strength, per_tile=False))
        return made


def augmentation(text: str) -> Augmentation | None:
    """Read `hed:0.1:7`; None of "none".

    Raises:
        ValueError: it is no such text.
    """
    if text == NONE:
        return None
    kind, *rest = text.split(":")
    per_tile = rest[2:] == ["tile"]
    if kind not in _KINDS or len(rest) not in (2, 3) or (len(rest) == 3 and not per_tile):
        raise ValueError(f"{text!r} is not {HOW}")
    try:
        strength = float(rest[0])
    except ValueError:
        raise ValueError(f"{text!r}: {rest[0]!r} is no number") from None
    top = 1.0 if kind == "hed" else 3.0
    if not 0.0 < strength < top or not rest[1].isdecimal():
        raise ValueError(f"{text!r}: the strength lies above 0 and below {top:g}, the seed is a whole number from 0")
    return Augmentation(kind, strength, int(rest[1]), per_tile)


def option_augment(text: str) -> Augmentation | None:
    """Read the option `--augment`.

    Raises:
        UsageError: it says nothing that can be done.
    """
    try:
        return augmentation(text)
    except ValueError as error:
        raise UsageError(f"--augment: {error}.") from error


def fits(text: str) -> bool:
    """Tell whether it can be done to tiles of slides while they are encoded."""
    try:
        found = augmentation(text)
    except ValueError:
        return False
    return found is None or found.kind == "hed"


def stains_after(params: stain.StainParams) -> stain.StainParams:
    """Return what pixels are stained with after they were normalized by these parameters."""
    return params if params.source is None else replace(params, source=params.target)
