"""How long slides will take, from measured rates; kept, and held against the run afterwards."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wsi import littles_law
from wsi.address import is_url
from wsi.littles_law import Line

from .config import ExtractSettings
from .files import sha256_json
from .jobfolder import JobFolder
from .units import duration
from .verdict import READ, Rates, Verdict, judge_line, line_of, readers_for

MOST_READERS = 64
"""As many as the queue goes up to where their number is left to it."""
_READERS_LATE = 0.1
"""Share of the time that the taker waits for reads, from which on they set the pace."""
_OF_THE_MODEL = 0.1
"""By how much of it a forecast is off where nothing swings: stations never overlap quite as the arithmetic says."""
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.18, 2.13, 2.09, 2.0)
"""Student's t, 97.5 %, of 1, 2, 3 … degrees of freedom; the last ones rounded up."""


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
        pieces: seconds per tile of each piece of the probe, to tell how far such pieces differ.
        slides: seconds that each slide of the probe took to be looked through.
    """

    rates: Rates
    cores: float
    cpu: float | None = None
    startup: float = 0.0
    pieces: tuple[float, ...] = ()
    slides: tuple[float, ...] = ()


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take.

    Attributes:
        seconds: of the extraction, without loading the encoder.
        verdict: what will limit it.
        line: what each stage costs per tile, over all slides.
        readers: that the run will come to.
        depth: tiles under way or waiting.
        rate: λ that it is planned for, tiles per second.
        latency: W, seconds per read.
        unsure: by how much of it the time may be off, 0.2 for a fifth; None where too little was measured to say.
    """

    seconds: float
    verdict: Verdict
    line: Line
    readers: int
    depth: int
    rate: float
    latency: float
    unsure: float | None = None

    @property
    def under_way(self) -> float:
        """L = λ · W, tiles."""
        return littles_law.in_flight(self.rate, self.latency)


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
    line = line.within(seconds / tiles)
    verdict = judge_line(line, *_waits(measured.rates, line, works, seconds), bool(read.get("saturated")), device)
    rate, latency = min(line.rate, 1e9), float(read["W_mean"])
    depth = max(littles_law.depth(littles_law.in_flight(rate, latency)), readers)
    return Forecast(seconds, verdict, line, readers, depth, rate, latency, _unsure(measured, works, seconds))


def _waits(rates: Rates, line: Line, works: Sequence[Work], seconds: float) -> tuple[float, float]:
    """Return the shares of just these seconds in which the taker waits for tiles, and readers for room."""
    tiles = sum(work.tiles for work in works)
    taking = tiles * _taking(rates, line) + sum(work.usable for work in works) * _each(rates, "write")
    reading = tiles * float(rates["read"]["service"]) / line.workers[READ]
    return tuple(min(1.0, max(0.0, 1 - busy / max(seconds, 1e-9))) for busy in (taking, reading))  # type: ignore[return-value]


def _unsure(measured: Measured, works: Sequence[Work], seconds: float) -> float | None:
    """Return by how much of it a forecast may be off, from how far the pieces it rests on differ.

    Slides that are looked through and tiles that are read weigh by the time they are expected to take.
    """
    by_tile = half_width(measured.pieces)
    if by_tile is None:
        return None
    per_slide = _each(measured.rates, "prepare")
    looking = min(1.0, sum(work.usable for work in works) * per_slide / max(seconds, 1e-9))
    by_slide = half_width(measured.slides)
    if by_slide is None:  # one slide alone: as unsure as can be
        by_slide = 1.0 if sum(work.usable for work in works) > len(measured.slides) else 0.0
    return min(1.0, math.hypot(_OF_THE_MODEL, (1 - looking) * by_tile, looking * by_slide))


def half_width(pieces: Sequence[float]) -> float | None:
    """Return half the 95 % interval of the mean over the mean, at most 1; None for fewer than two pieces.

    Source: Student, The Probable Error of a Mean, Biometrika 6 (1908) 1.
    """
    if len(pieces) < 2 or (mean := statistics.fmean(pieces)) <= 0:
        return None
    error = statistics.stdev(pieces) / math.sqrt(len(pieces)) / mean
    return min(1.0, _STUDENT[min(len(pieces) - 2, len(_STUDENT) - 1)] * error)


def _taking(rates: Rates, line: Line) -> float:
    """Return the seconds that a tile keeps the taker, as measured: waiting for cores included."""
    busy = sum(float(rates[name]["busy"]) for name in ("stain", "encode") if name in rates)
    other = next(stage.seconds for stage in line.stages if stage.name == "other")
    return busy / max(int(rates["read"]["tiles"]), 1) + other


def _seconds(rates: Rates, line: Line, works: Sequence[Work], batch: int) -> float:
    """Return the seconds of the run: as the stations overlap, but no less than the cores need.

    Stations are taken as they were measured, waiting for cores included: who held the cores beside us will hold them
    again. The cores' own bound is without it.
    """
    if not works:
        return 0.0
    read = rates["read"]
    reading = _reading(read, line.workers[READ])
    taking = _taking(rates, line)
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
        files: slide → its path, relative to the job.
        record: name of the plan's record; not part of what it says.
    """

    by: str
    key: str
    slides: tuple[str, ...]
    seconds: float
    limit: str
    tiles: float
    made_after: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    record: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast for JSON."""
        told = asdict(self) | {"slides": list(self.slides)}
        del told["record"]
        return told


def settings_key(settings: ExtractSettings, passport: Mapping[str, Any]) -> str:
    """Return what tells forecasts of other settings apart."""
    return sha256_json({"settings": asdict(settings), "encoder": dict(passport)})


def kept_by_plan(job: JobFolder, key: str, slides: Collection[str]) -> Kept | None:
    """Return the newest plan's forecast of just these slides with these settings, None where there is none.

    None, too, where a run was held against it already: the next one finds other things in memory, and a newer plan
    speaks for the older ones.
    """
    for found, scored in _plans(job):
        if found.key == key and set(found.slides) == set(slides):
            return None if found.record in scored else found
    return None


def gone(job: JobFolder, slides: Collection[str]) -> tuple[str, str]:
    """Say which slides of the newest plan are no longer there, unless a run followed it already.

    Args:
        job: whose plan it is.
        slides: that the run finds.

    Returns:
        The name of the plan's record, and a note; both empty where there is nothing to be said.
    """
    newest = next(_plans(job), None)
    if newest is None or newest[0].record in newest[1]:
        return "", ""
    found = newest[0]
    lost = [name for name, path in found.files.items() if name not in slides and not _is_there(job, path)]
    if not lost:
        return "", ""
    what = "1 slide of the plan is" if len(lost) == 1 else f"{len(lost)} slides of the plan are"
    return found.record, f"{what} no longer there: {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}"


def _is_there(job: JobFolder, path: str) -> bool:
    return is_url(path) or (job.root / path).exists()  # no plan is worth asking every address


def _plans(job: JobFolder) -> Iterator[tuple[Kept, set[str]]]:
    """Yield the forecasts of plans, the newest first, and the names of those that a run followed."""
    plans: list[Kept] = []
    followed: set[str] = set()
    for path in sorted(job.runs.glob("*.json"), reverse=True):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            followed.add(str(record.get("followed_plan")))
            if record["verb"] == "plan":
                raw = record["forecast"]
                plans.append(Kept(**{**raw, "slides": tuple(raw["slides"]), "record": path.stem}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    yield from ((plan, followed) for plan in plans)


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
