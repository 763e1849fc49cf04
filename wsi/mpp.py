"""How many micrometres a pixel is wide, and whether the stated number can be true. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

SMALLEST, LARGEST = 0.02, 10.0
"""µm/px outside of which no scanner of tissue works."""

POWER_FACTOR = 2.5
"""How far µm/px may be from 10 / objective power, either way.

A 40x scan has about 0.25 µm/px, a 20x scan about 0.5. The factor is above 2 because 3DHISTECH writes the power
of the objective without its camera adapter: its "20x" scans of 0.233 µm/px are off by 2.15 and are right.
"""

ASPECT = 3.0
"""How far µm/px in x and in y may be from each other."""


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel, and where the numbers come from.

    Attributes:
        x: µm per px along x.
        y: µm per px along y.
        source: for example `openslide.mpp-x`, `ome.PhysicalSizeX`, `--slide-mpp`, `manifest`.
    """

    x: float
    y: float
    source: str


def parse_number(text: object) -> float | None:
    """Return `text` as a float, None where it is absent or is no decimal number."""
    if text is None:
        return None
    try:
        return float(str(text).strip())
    except ValueError:
        return None


def problem_of(x: float | None, y: float | None, power: float | None, source: str) -> str | None:
    """Return why µm/px (`x`, `y`) cannot be used, None where it can.

    Args:
        x: µm per px along x, None where the file does not say.
        y: µm per px along y.
        power: the objective's power (20 for 20x), None where unknown.
        source: the property the numbers were read from, for the text.
    """
    if x is None or y is None:
        return "the file does not state its pixel size"
    for axis, value in (("x", x), ("y", y)):
        if not math.isfinite(value):
            return f"µm/px in {axis} is {value} ({source})"
        if value <= 0:
            return f"µm/px in {axis} is {value:g}, not above zero ({source})"
        if not SMALLEST <= value <= LARGEST:
            return f"µm/px in {axis} is {value:g}, outside {SMALLEST:g} to {LARGEST:g} ({source})"
    if max(x, y) / min(x, y) > ASPECT:
        return f"µm/px differs between the axes: {x:g} in x, {y:g} in y ({source})"
    return _at_odds_with_power(x, y, power, source)


def _at_odds_with_power(x: float, y: float, power: float | None, source: str) -> str | None:
    if power is None or not math.isfinite(power) or power <= 0:
        return None
    nominal = 10 / power
    ratio = math.sqrt(x * y) / nominal
    if 1 / POWER_FACTOR <= ratio <= POWER_FACTOR:
        return None
    return f"µm/px is {x:g} ({source}), but the objective is {power:g}x, which gives about {nominal:.3g}"


def resolve(
    stated: tuple[float | None, float | None],
    source: str,
    power: float | None,
    *,
    slide_mpp: float | None = None,
    manifest_mpp: float | None = None,
) -> tuple[Mpp | None, str | None]:
    """Choose the µm/px of a slide.

    The manifest's value always wins; `slide_mpp` serves only where the file's own value is missing or refused.

    Args:
        stated: what the file says, (x, y).
        source: where the file says it.
        power: the objective's power, None where unknown.
        slide_mpp: the user's value for slides without one, µm/px.
        manifest_mpp: the manifest's value for this slide, µm/px.

    Returns:
        The value, and why the file's own value was not used (None where it was). The first is None where nothing
        serves; a given value that is itself absurd is not used either, and the second then says so.
    """
    problem = problem_of(*stated, power, source)
    for given, name in ((manifest_mpp, "manifest"), (slide_mpp if problem else None, "--slide-mpp")):
        if given is None:
            continue
        wrong = problem_of(given, given, None, name)
        return (None, wrong) if wrong else (Mpp(given, given, name), problem)
    if problem or stated[0] is None or stated[1] is None:
        return None, problem
    return Mpp(stated[0], stated[1], source), None
