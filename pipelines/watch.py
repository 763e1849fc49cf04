"""Watches an extraction: who waits for whom while it runs, and afterwards how its forecast did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import wsi

from .counting import size_of
from .forecast import Kept, Measured, Work, forecast, kept_by_plan, score, settings_key, told
from .manifest import Manifest
from .verdict import Verdict, judge

if TYPE_CHECKING:
    from .extraction import Extraction

_EVERY = 1.0
"""Seconds between two looks."""
_FORECAST_AFTER = 10.0
"""Seconds of a run from which its own forecast is made, where no plan made one."""
_EARLY = 0.5
"""Share of a run that may be over when its own forecast is made: later it tells what has been."""


@dataclass(frozen=True)
class Found:
    """What a run has come to.

    Attributes:
        rates: of the queue and the stages.
        verdict: what limited it.
        facts: for the record of the run.
        text: lines for people.
        more: for `--json`.
    """

    rates: Mapping[str, Mapping[str, Any]]
    verdict: Verdict
    facts: Mapping[str, Any]
    text: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


class Watch:
    """Reads the clocks of an extraction and of its queue.

    Args:
        extraction: whose clocks they are.
        stream: its queue.
        manifest: its slides.
    """

    def __init__(self, extraction: Extraction, stream: wsi.TileStream, manifest: Manifest) -> None:
        self._extraction, self._stream, self._manifest = extraction, stream, manifest
        self._began, self._cpu = time.monotonic(), time.process_time()
        self._looked = self._began
        self._cores = wsi.available_cores()
        self._note = ""
        self._own: Kept | None = None

    def note(self) -> str:
        """Return who waits for whom, looked at anew once a second."""
        now = time.monotonic()
        if now - self._looked >= _EVERY:
            self._looked = now
            rates = self._rates()
            self._note = self._judged(rates).text
            if self._own is None and now - self._began >= _FORECAST_AFTER:
                self._own = self._forecast(rates, now - self._began)
        return self._note

    def end(self) -> Found:
        """Return what was found, and hold the forecast against it."""
        seconds = time.monotonic() - self._began
        rates = self._rates()
        verdict = self._judged(rates, seconds)
        facts: dict[str, Any] = {
            "rates": rates,
            "seconds_extract": round(seconds, 3),
            "cores": self._cores,
            "core_seconds_extract": round(self._spent, 3),
            "verdict": verdict.to_dict(),
        }
        worked_on = {*self._extraction.fresh, *self._extraction.failures}
        kept = kept_by_plan(self._extraction.job, self._key, worked_on) if worked_on else None
        if kept is not None:
            facts["followed_plan"] = kept.record
        elif self._own is not None and self._own.made_after <= _EARLY * seconds:
            kept = self._own
        more = {"verdict": verdict.to_dict()}
        if kept is None or not rates:
            return Found(rates, verdict, facts, more=more)
        scored = score(kept, seconds, verdict)
        return Found(rates, verdict, facts | {"forecast": scored}, (told(scored),), more | {"forecast": scored})

    @property
    def _spent(self) -> float:
        """Core seconds of the process and of those that read and prepare for it, since the extraction began."""
        elsewhere = self._stream.record().core_elsewhere + self._extraction.core_apart
        return time.process_time() - self._cpu + elsewhere

    @property
    def _on_tiles(self) -> float:
        """Core seconds that went into tiles, not into whole slides."""
        return self._spent - sum(self._extraction.clocks[name].core for name in ("hash", "prepare", "write"))

    @property
    def _key(self) -> str:
        return settings_key(self._extraction.settings, self._extraction.passport)

    def _rates(self) -> dict[str, dict[str, Any]]:
        record = self._stream.record()
        if not record.tiles:
            return {}
        clocks = {name: clock.to_dict() for name, clock in self._extraction.clocks.items() if clock.things}
        return {"read": record.to_dict(), **clocks}

    def _judged(self, rates: Mapping[str, Mapping[str, Any]], whole: float | None = None) -> Verdict:
        device = self._extraction.encoder.device
        return judge(rates, cores=self._cores, cpu=self._on_tiles, device=device, whole=whole)

    def _forecast(self, rates: Mapping[str, Mapping[str, Any]], spent: float) -> Kept | None:
        """Return what the whole run will take, from its first seconds; None where they tell nothing yet."""
        x = self._extraction
        if "encode" not in rates or "prepare" not in rates:
            return None
        waiting = self._manifest.entries[x.seen :]
        each = x.tiles / max(x.opened, 1)
        begun = Work("begun", max(0.0, x.tiles - float(rates["read"]["tiles"])), 0, usable=False)
        works = [begun, *(Work(entry.slide_id, each, size_of(entry)) for entry in waiting)]
        rates = {**rates, "hash": {**rates["hash"], "things": max(x.hashed, 1)}}
        rest = forecast(Measured(rates, self._cores, self._on_tiles), works, x.settings, x.encoder.device)
        tiles = x.expected_tiles(len(self._manifest.entries))
        limit = rest.verdict.limit
        slides = tuple(entry.slide_id for entry in self._manifest.entries)
        return Kept("run", self._key, slides, spent + rest.seconds, limit, tiles, made_after=spent)
