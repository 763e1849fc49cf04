"""How many tiles slides have: counted where there is time, else estimated from those that were counted."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import wsi

from . import tissue_of_slide
from .config import ExtractSettings
from .manifest import SlideEntry
from .outcome import Failure
from .slide_work import open_entry


@dataclass
class Count:
    """What was counted so far.

    Attributes:
        tiles: per slide that was looked at.
        failures: slides that cannot be used, with cause and mend.
        late: slides of which nothing is known, for looking at them took too long.
    """

    tiles: dict[str, int] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)

    def fail(self, entry: SlideEntry, error: wsi.SlideError) -> None:
        """Keep why a slide cannot be used."""
        self.failures[entry.slide_id] = Failure(entry.slide_id, f"{error.slide}: {error.what}", error.mend)

    def knows(self, slide: str) -> bool:
        """Tell whether a slide was looked at."""
        return slide in self.tiles or slide in self.failures or slide in self.late


@dataclass(frozen=True)
class Estimate:
    """How many tiles all slides have.

    Attributes:
        tiles: per slide; of those not counted, what is expected.
        expected: of all.
        low: the least that is likely (two standard errors).
        high: the most that is likely.
        counted: slides that were looked at.
    """

    tiles: Mapping[str, float]
    expected: float
    low: float
    high: float
    counted: int

    @property
    def exact(self) -> bool:
        """Tell whether every slide was counted."""
        return self.counted == len(self.tiles)


def in_chance_order(entries: Sequence[SlideEntry]) -> list[SlideEntry]:
    """Return the slides shuffled, always alike: whoever stops early has looked at a fair sample."""
    shuffled = list(entries)
    random.Random(0).shuffle(shuffled)  # noqa: S311
    return shuffled


def tiles_of(entry: SlideEntry, settings: ExtractSettings) -> int:
    """Return how many tiles a slide has.

    Raises:
        wsi.SlideError: the slide cannot be used.
    """
    spec = wsi.TileSpec(size=settings.tile, mpp=settings.mpp, overlap=settings.overlap)
    upsampling = settings.allow_upsampling
    with open_entry(entry, settings) as slide:
        wsi.tile_grid(slide, None, spec, allow_upsampling=upsampling)
        flagged = replace(settings, quality=bool(settings.excluded))  # nothing is looked for that changes no tile
        tissue, _ = tissue_of_slide.find(slide, entry, flagged)
        return len(wsi.tile_grid(slide, tissue, spec, min_tissue=settings.min_tissue, allow_upsampling=upsampling))


def size_of(entry: SlideEntry) -> int:
    """Return the bytes of a slide's files, 0 where they cannot be reached."""
    try:
        return sum(path.stat().st_size for path in entry.files)
    except OSError:
        return 0


def estimate(counted: Mapping[str, int], sizes: Mapping[str, int], unusable: Sequence[str] = ()) -> Estimate:
    """Return the tiles of all slides: the ratio estimator over the bytes of their files.

    Args:
        counted: tiles of the slides that were looked at.
        sizes: bytes of every slide.
        unusable: slides without tiles, for they cannot be used.

    Source: W. G. Cochran, Sampling Techniques, 3rd ed., chapter 6.
    """
    known: dict[str, float] = {**dict.fromkeys(unusable, 0.0), **{name: float(n) for name, n in counted.items()}}
    rest = [name for name in sizes if name not in known]
    total = sum(known.values())
    if not rest:
        return Estimate(known, total, total, total, len(known))
    seen = sum(sizes[name] for name in known)
    ratio = total / seen if seen else 0.0
    guessed = {name: ratio * sizes[name] for name in rest}
    more = sum(guessed.values())
    spread = 2 * _standard_error(known, sizes, ratio, len(rest)) if len(known) > 1 else more
    return Estimate(
        {**known, **guessed}, total + more, total + max(0.0, more - spread), total + more + spread, len(known)
    )


def _standard_error(known: Mapping[str, float], sizes: Mapping[str, int], ratio: float, rest: int) -> float:
    """Return that of the sum over `rest` further slides: the ratio's own error, and their own scatter."""
    n = len(known)
    variance = sum((tiles - ratio * sizes[name]) ** 2 for name, tiles in known.items()) / (n - 1)
    return math.sqrt(variance * (rest**2 / n + rest))
