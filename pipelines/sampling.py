"""Slides that a plan looks at, each within the time that is left: some to be measured on, the others to be counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import wsi

from .counting import Count, in_chance_order
from .extraction import Extraction
from .manifest import SlideEntry
from .preparing import LateError, Preparer
from .probe_clock import ProbeClock
from .slide_work import SlideWork

Value = TypeVar("Value")

_SLIDES = 4
"""Slides that the stages are measured on, where there is time."""
_LOOK, _LOOK_MOST = 0.35, 0.6
"""Shares of the time for looking through these: of what the probe aims at, and of the most it may take."""
_HASH = 1 / 8
"""Share of the time for hashing one of them."""
_ONE = 2 / 3
"""Share of what is left that one slide may take, where there are others."""


def prepared(
    trial: Extraction, preparer: Preparer, entries: Sequence[SlideEntry], count: Count, clock: ProbeClock
) -> list[SlideWork]:
    """Hash, open and look through slides in a random order, until there are enough or the time is over.

    Args:
        trial: its clocks measure.
        preparer: does it.
        entries: the slides.
        count: is told of each.
        clock: of the probe.
    """
    works: list[SlideWork] = []
    order = in_chance_order(entries)
    for entry in order:
        if works and (len(works) >= _SLIDES or clock.over(_LOOK)):
            break
        left = clock.left(_LOOK_MOST)
        if not left:
            break  # nothing but slides that cannot be used, or take too long
        preparer.seconds = min(left if entry is order[-1] else _ONE * left, trial.settings.slide_timeout)
        work = _found(entry, count, partial(_looked_through, trial, preparer, entry, _HASH * clock.aim))
        if work is None:
            continue
        count.tiles[entry.slide_id] = len(work.grid)
        if len(work.grid):
            works.append(work)
        else:
            work.slide.close()
    return works


def counted(
    preparer: Preparer,
    entries: Sequence[SlideEntry],
    count: Count,
    clock: ProbeClock,
    on_slide: Callable[[], None] = lambda: None,
) -> None:
    """Count the tiles of slides that were not looked at yet, until the time is over."""
    for entry in in_chance_order(entries):
        if clock.over(1) or not clock.left():
            return
        if count.knows(entry.slide_id):
            continue
        preparer.seconds = clock.left()
        tiles = _found(entry, count, partial(preparer.count, entry))
        if tiles is not None:
            count.tiles[entry.slide_id] = tiles
        on_slide()


def _looked_through(trial: Extraction, preparer: Preparer, entry: SlideEntry, hashing: float) -> SlideWork:
    part = preparer.hash_some(entry, hashing)
    trial.clocks["hash"].join(part)
    with trial.clocks["prepare"].of(1):
        return preparer(entry, trial.parts(entry, "probe"))


def _found(entry: SlideEntry, count: Count, look: Callable[[], Value]) -> Value | None:
    """Return what a look at a slide gives; None, and why in `count`, where it gives nothing."""
    try:
        return look()
    except LateError:
        count.late.append(entry.slide_id)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        count.fail(entry, wsi.UnreadableSlideError(entry.path.name, what, "Check the path and its rights."))
    except wsi.SlideError as error:
        count.fail(entry, error)
    return None
