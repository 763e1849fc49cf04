"""Tiles at several µm/px in one job: one extraction after the other, and what they came to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .config import ExtractSettings
from .outcome import Failure, Outcome

if TYPE_CHECKING:
    from .extraction import Extraction

_OF_EACH = ("rates", "seconds_extract", "core_seconds_extract", "verdict", "forecast", "cluster")
"""What of the facts of a run is told for each scale."""


@dataclass(frozen=True)
class Scale:
    """What the tiles of one µm/px have come to.

    Attributes:
        work: the extraction.
        outcome: of it.
        facts: what of it goes into the record of the run.
    """

    work: Extraction
    outcome: Outcome
    facts: Mapping[str, Any]

    @property
    def features(self) -> str:
        """The folder of its features, relative to the job."""
        return self.work.output("x").parent.relative_to(self.work.job.root).as_posix()

    @property
    def tiles(self) -> int:
        """Tiles that were read."""
        return int(self.outcome.rates.get("read", {}).get("tiles", 0))


def scales_of(settings: ExtractSettings) -> tuple[ExtractSettings, ...]:
    """Return the settings of each µm/px by itself, in the order in which they were given."""
    return tuple(replace(settings, mpp=mpp, more_mpp="") for mpp in settings.scales)


def facts_of_each(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the facts of a run belongs to the scale that was just done."""
    return {name: facts[name] for name in _OF_EACH if name in facts}


def facts_of_all(done: Sequence[Scale]) -> dict[str, Any]:
    """Return what the record of a run says of several scales: each, times in all, and rates where most tiles were."""
    sums = {
        name: round(sum(float(one.facts.get(name, 0)) for one in done), 3)
        for name in ("seconds_extract", "core_seconds_extract")
    }
    return {**_most(done).facts, **sums, "scales": {one.features: dict(one.facts) for one in done}}


def standing(works: Sequence[Extraction], scales: int) -> tuple[dict[str, Mapping[str, Any]], dict[str, Failure]]:
    """Return what `slides.csv` says: facts of slides that are done at every scale, those of the first; and failures."""
    failures: dict[str, Failure] = {}
    for work in works:
        for name, failure in work.failures.items():
            told = (
                failure if scales == 1 else replace(failure, cause=f"at {work.settings.mpp:g} µm/px: {failure.cause}")
            )
            failures.setdefault(name, told)
    if len(works) < scales:
        return {}, failures
    everywhere = set.intersection(*(set(work.facts) for work in works))
    return {name: works[0].facts[name] for name in works[0].facts if name in everywhere}, failures


def together(done: Sequence[Scale]) -> Outcome:
    """Return what several extractions of the same slides came to."""
    if len(done) == 1:
        return replace(done[0].outcome, more={"features": done[0].features, **done[0].outcome.more})
    _, failures = standing([one.work for one in done], len(done))
    fresh = {name for one in done for name in one.outcome.done} - failures.keys()
    skipped = {name for one in done for name in one.outcome.skipped} - failures.keys() - fresh
    most = _most(done)
    return replace(
        most.outcome,
        done=tuple(sorted(fresh)),
        skipped=tuple(sorted(skipped)),
        failed=tuple(failures[name] for name in sorted(failures)),
        outputs=tuple(sorted(name for one in done for name in one.outcome.outputs)),
        warnings=tuple(dict.fromkeys(text for one in done for text in one.outcome.warnings)),
        text=tuple(text for one in done for text in one.outcome.text),
        more={
            **most.outcome.more,
            "features": ",".join(one.features for one in done),
            "scales": {
                one.features: {"rates": one.outcome.rates, "bottleneck": one.outcome.bottleneck} for one in done
            },
        },
    )


def _most(done: Sequence[Scale]) -> Scale:
    return max(done, key=lambda one: one.tiles)
