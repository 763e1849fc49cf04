"""How long slides will take, from measured rates; kept, and held against the run afterwards."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wsi import littles_law
from wsi.littles_law import Line

from .config import ExtractSettings
from .files import sha256_json
from .jobfolder import JobFolder
from .units import duration
from .verdict import READ, Rates, Verdict, foresee, line_of, readers_for

MOST_READERS = 64
"""As many as the queue goes up to where their number is left to it."""
_READERS_LATE = 0.1
"""Share of the time that the taker waits for reads, from which on they set the pace."""


@dataclass(frozen=True)
class Work:
    """One slide that waits.

    Attributes:
        slide: its name.
        tiles: as counted, or as estimated.
        size: bytes to be hashed; 0 where the hash is known.
        usable: whether it is more than hashed: opened, looked through, written.
    """

    slide: str
    tiles: float
    size: int
    usable: bool = True


@dataclass(frozen=True)
class Measured:
    """What a probe, or a run so far, has found out.

    Attributes:
        rates: of the queue and the stages; `hash` counts bytes, `prepare` and `write` count slides.
        cores: that this process may use.
        cpu: core seconds of the process in reading, normalizing and encoding.
        startup: seconds before the first slide: modules and weights that are loaded.
    """

    rates: Rates
    cores: float
    cpu: float | None = None
    startup: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take.

    Attributes:
        seconds: of the extraction, without loading the encoder.
        verdict: what will limit it.
        line: what each stage costs per tile, over all slides.
        readers: that the run will come to.
        depth: tiles under way or waiting.
    """

    seconds: float
    verdict: Verdict
    line: Line
    readers: int
    depth: int


def forecast(measured: Measured, works: Sequence[Work], settings: ExtractSettings, device: str = "cpu") -> Forecast:
    """Return how long the slides will take, and what will limit them.

    Args:
        measured: rates; those of `read` must be there.
        works: the slides, in the order of the run.
        settings: of the run.
        device: where the encoder computes.
    """
    read = measured.rates["read"]
    tiles = max(sum(work.tiles for work in works), 1.0)
    usable = sum(work.usable for work in works)
    per_tile = {"hash": sum(work.size for work in works) / tiles, "prepare": usable / tiles, "write": usable / tiles}
    line = line_of(measured.rates, cores=measured.cores, cpu=measured.cpu, per_tile=per_tile)
    most = settings.workers or MOST_READERS
    readers = readers_for(line, read, most) if not settings.workers else settings.workers
    line = replace(line, workers={**line.workers, READ: float(readers)})
    seconds = measured.startup + _seconds(measured.rates, line, works, settings.batch_size)
    rate = min(line.rate, 1e9)
    depth = max(littles_law.depth(littles_law.in_flight(rate, float(read["W_mean"]))), readers)
    return Forecast(seconds, foresee(line, bool(read.get("saturated")), device), line, readers, depth)


def _seconds(rates: Rates, line: Line, works: Sequence[Work], batch: int) -> float:
    """Return the seconds of the run: as the stations overlap, but no less than the cores need.

    Stations are taken as they were measured, waiting for cores included: who held the cores beside us will hold them
    again. The cores' own bound is without it.
    """
    if not works:
        return 0.0
    read = rates["read"]
    reading = _reading(read, line.workers[READ])
    busy = sum(float(rates[name]["busy"]) for name in ("stain", "encode") if name in rates)
    other = next(stage.seconds for stage in line.stages if stage.name == "other")
    taking = busy / max(int(read["tiles"]), 1) + other
    per_byte, per_slide, closing = (_each(rates, name) for name in ("hash", "prepare", "write"))
    jobs = [
        littles_law.Job(
            prepare=work.size * per_byte + work.usable * per_slide,
            read=work.tiles * reading,
            take=work.tiles * taking,
            close=work.usable * closing,
        )
        for work in works
    ]
    tiles = sum(work.tiles for work in works)
    core = sum(stage.core for stage in line.stages) * tiles / line.cores
    alone = jobs[0].prepare * (1 - 1 / line.cores)  # nothing runs beside the first slide's preparation
    by_station = littles_law.duration(jobs, batches=tiles / len(jobs) / batch)
    return max(by_station, core + alone)


def _reading(read: Mapping[str, Any], readers: float) -> float:
    """Return the seconds that a tile keeps all readers together.

    Where the taker waited for reads, the pace at which they came says it, whatever held them up; but not where the run
    will come to more readers.
    """
    there = 1 - float(read["starved"])
    if float(read["wait"]) - float(read["starved"]) > _READERS_LATE and readers <= int(read["workers"]):
        return float(read["seconds"]) * there / max(int(read["tiles"]), 1)
    return float(read["service"]) / readers


def _each(rates: Rates, name: str) -> float:
    clock = rates.get(name)
    if clock is None or not clock["things"]:
        return 0.0
    return float(clock["busy"]) / float(clock["things"])


# ------------------------------------------------------------------ kept, and scored


@dataclass(frozen=True)
class Kept:
    """A forecast as it stands in the record of a plan or a run.

    Attributes:
        by: `plan`, or `run` where the run made it from its first seconds.
        key: of the settings it was made for.
        slides: that it counts.
        seconds: of the extraction.
        limit: what it says will limit the run.
        tiles: that it expects.
        made_after: seconds of the run that were over already.
    """

    by: str
    key: str
    slides: tuple[str, ...]
    seconds: float
    limit: str
    tiles: float
    made_after: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast for JSON."""
        return asdict(self) | {"slides": list(self.slides)}


def settings_key(settings: ExtractSettings, passport: Mapping[str, Any]) -> str:
    """Return what tells forecasts of other settings apart."""
    return sha256_json({"settings": asdict(settings), "encoder": dict(passport)})


def kept_by_plan(job: JobFolder, key: str, slides: Collection[str]) -> Kept | None:
    """Return the newest plan's forecast of just these slides with these settings, None where there is none."""
    for path in sorted(job.runs.glob("*.json"), reverse=True):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["verb"] != "plan":
                continue
            raw = record["forecast"]
            found = Kept(**{**raw, "slides": tuple(raw["slides"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if found.key == key and set(found.slides) == set(slides):
            return found
    return None


def score(kept: Kept, seconds: float, verdict: Verdict) -> dict[str, Any]:
    """Hold a forecast against the run: seconds, their ratio, and the bottleneck forecast and found."""
    right = kept.limit == verdict.limit or kept.limit in verdict.beside
    return {
        "by": kept.by,
        "made_after": round(kept.made_after, 1),
        "forecast_seconds": round(kept.seconds, 2),
        "actual_seconds": round(seconds, 2),
        "ratio": round(seconds / max(kept.seconds, 1e-9), 3),
        "bottleneck_forecast": kept.limit,
        "bottleneck_found": verdict.limit,
        "bottleneck_right": right,
    }


def told(scored: Mapping[str, Any]) -> str:
    """Return the score in one sentence."""
    who = "slidemil plan" if scored["by"] == "plan" else f"the run's first {scored['made_after']:.0f} s"
    limits = f"the bottleneck was {scored['bottleneck_found']}"
    limits += ", as forecast" if scored["bottleneck_right"] else f", not {scored['bottleneck_forecast']} as forecast"
    return (
        f"forecast by {who}: {duration(scored['forecast_seconds'])}; it took {duration(scored['actual_seconds'])} "
        f"({scored['ratio']:.2f} of it); {limits}"
    )
