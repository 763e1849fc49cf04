"""Images and slides with other colors, drawn by chance: how `slidemil stain apply --augment` changes one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import stain

from .augmenting import Augmentation, stains_after
from .errors import UsageError

Pixels = NDArray[np.uint8]


class Recolor(Protocol):
    """A change of pixels that may depend on whose they are."""

    def __call__(self, pieces: Pixels, name: str) -> Pixels:
        """Pieces (B, H, W, 3) of an image, and its name → the same with other colors."""


@dataclass
class Recoloring:
    """Changes colors by chance.

    Attributes:
        how: what is asked.
        pixels: some pixels of each image or slide, which RandStainNA draws colors from; gone through when needed.
    """

    how: Augmentation
    pixels: Iterable[Pixels]

    def of(self, pixels: Pixels, params: stain.StainParams | None) -> tuple[Recolor, dict[str, Any]]:
        """Return how one slide is changed, and what is told of it.

        Args:
            pixels: some of the slide, (N, 3).
            params: of the normalizer that comes first, None where there is none.

        Raises:
            UsageError: RandStainNA has nothing to draw from.
        """
        if self.how.kind == "rand":
            first = pixels if params is None else np.asarray(params.apply(pixels))
            stains, seen = stain.fit("reinhard", first), self.seen
        else:
            stains, seen = stain.fit("macenko", pixels) if params is None else stains_after(params), []
        told = {"augment_stains": stains.to_json(), **({"status": self._status(stains)} if params is None else {})}
        return lambda pieces, name: self.how.change_image(pieces, name, stains, seen), told

    @cached_property
    def seen(self) -> list[stain.LabStatistics]:
        """Colors of all that could be fitted.

        Raises:
            UsageError: there are fewer than two.
        """
        measured = (stain.measure("reinhard", pixels)[0] for pixels in self.pixels)
        found = [one for one in measured if isinstance(one, stain.LabStatistics)]
        if len(found) < 2:
            raise UsageError(
                f"--augment {self.how}: draws from the colors of two images or more, and {len(found)} fit."
            )
        return found

    def _status(self, stains: stain.StainParams) -> str:
        """Return "ok", or why pixels stay as they are: the amounts of stains are changed even where a fit failed."""
        return "ok" if self.how.kind == "hed" else stains.status
