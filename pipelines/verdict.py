"""Who waits for whom: measured rates → the line of stations, what limits it, and what would help.

Three stations with queues between them share the cores: slides are prepared (hashed, opened, looked through) one at a
time; readers read and decode; one thread takes the tiles: normalizes, encodes, writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from wsi.littles_law import CORES, Line, Stage

from .units import counted

Rates = Mapping[str, Mapping[str, Any]]

PREPARE, READ, TAKE = "prepare", "read", "take"
_PREPARING = ("hash", "prepare")
_TAKING = ("stain", "encode", "write")
_BESIDE = 0.9
"""Share of the longest demand from which on another resource limits the run as well."""
_HELPS = 1.05
"""From how many times as fast on something is worth its number."""
_IDLE_READERS = 0.85
"""Share of their time below which readers are held back by something else than their work."""
_LIMIT_OF_STAGE = {
    "hash": "hashing",
    "prepare": "preparation",
    "storage": "storage",
    "stain": "stain",
    "encode": "encoder",
    "write": "writing",
    "other": "bookkeeping",
}
_TWICE = {
    "hashing": "hashing",
    "preparation": "opening and tissue detection",
    "stain": "stain normalization",
    "writing": "writing to the job folder",
    "bookkeeping": "a core",
}


@dataclass(frozen=True)
class Verdict:
    """What limits a run.

    Attributes:
        limit: hashing, preparation, storage, readers (too few), cores, memory, stain, encoder, writing, bookkeeping, or
            nothing, where nothing was read.
        beside: what limits it nearly as much, so that mending one alone brings little.
        wait: share of the time that the encoder's thread waits for tiles.
        gain: how many times as fast the run would be with the cure that the text names.
        text: one sentence.
    """

    limit: str
    beside: tuple[str, ...]
    wait: float
    gain: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return asdict(self) | {"beside": list(self.beside)}


def line_of(
    rates: Rates, *, cores: float, cpu: float | None = None, per_tile: Mapping[str, float] | None = None
) -> Line:
    """Return what one tile costs in each stage, from what was measured.

    Waiting for a core is left out: the line shares its cores itself.

    Args:
        rates: of the queue (`read`) and of the stages, as a run records them.
        cores: that this process may use.
        cpu: core seconds of the process in reading, normalizing and encoding; what none of these threads used, the
            encoder's own threads did.
        per_tile: things of a stage per tile (slides, bytes), where the line is of other work than was measured.
    """
    read = rates["read"]
    tiles = max(int(read["tiles"]), 1)
    share = dict.fromkeys(rates, 1 / tiles)
    share |= {name: each / max(rates[name]["things"], 1) for name, each in (per_tile or {}).items() if name in rates}
    storage = max(0.0, read["service"] - read["core"] - read["queued"])
    stages = [Stage("storage", READ, storage, 0.0), Stage("decode", READ, read["core"], read["core"])]
    for name in (*_PREPARING, *_TAKING):
        if name in rates:
            seconds, core = _own(rates[name])
            station = PREPARE if name in _PREPARING else TAKE
            stages.append(Stage(name, station, seconds * share[name], core * share[name]))
    stages.append(Stage("other", TAKE, _other(rates) / tiles, 0.0))
    if cpu is not None and "encode" in rates:
        hidden = cpu / tiles - sum(s.core for s in stages if s.station != PREPARE and s.name != "write")
        stages = [_with_hidden_threads(stage, hidden) if stage.name == "encode" else stage for stage in stages]
    workers = {READ: max(int(read["workers"]), 1), TAKE: 1}
    if any(stage.station == PREPARE for stage in stages):
        workers[PREPARE] = 1
    return Line(tuple(stages), workers, cores, _short_queue(read))


def judge(
    rates: Rates, *, cores: float, cpu: float | None = None, device: str = "cpu", whole: float | None = None
) -> Verdict:
    """Say what limits a run, from the rates it measured.

    Args:
        rates: as `line_of`.
        cores: as `line_of`.
        cpu: as `line_of`.
        device: where the encoder computes.
        whole: seconds of the whole run, where it is over: what would have been gained of these. Without it, what
            would be gained once it is under way.
    """
    read = rates.get("read", {})
    if not read.get("tiles"):
        return Verdict("nothing", (), 0.0, 1.0, "nothing was read")
    line = line_of(rates, cores=cores, cpu=cpu)
    if whole is not None:
        line = line.within(whole / int(read["tiles"]))
    return judge_line(line, float(read["wait"]), _idle_readers(read), bool(read.get("saturated")), device)


def judge_line(line: Line, wait: float, idle: float, saturated: bool, device: str) -> Verdict:
    """Say what limits a line.

    Args:
        line: what each stage costs.
        wait: share of the time that the encoder's thread waits for tiles.
        idle: share of the time that readers wait for room.
        saturated: whether more readers were tried and gave no more.
        device: where the encoder computes.
    """
    demands = line.demands()
    limits = {resource: _limit(line, resource) for resource in demands}
    resource = _first(demands)
    limit = limits[resource]
    near = [
        r for r, seconds in demands.items() if seconds >= _BESIDE * demands[resource] and r not in (resource, CORES)
    ]
    beside = tuple(dict.fromkeys(limits[r] for r in near if limits[r] != limit))
    gain, cure = _cure(line, resource, limit, saturated, device)
    if beside and gain < 1 / _BESIDE:
        cure = f"{beside[0]} takes as long: mending one alone brings little"
    return Verdict(limit, beside, wait, round(gain, 3), f"{_head(limit, wait, idle)} · {cure}")


def readers_for(line: Line, read: Mapping[str, Any], most: int) -> int:
    """Return how many readers a run comes to that may choose: more only where reads wait for storage and it pays.

    Args:
        line: what each stage costs.
        read: what the queue measured.
        most: readers that there may be at most.
    """
    now = int(line.workers[READ])
    held = sum(stage.seconds for stage in line.stages if stage.station == READ)
    core = sum(stage.core for stage in line.stages if stage.station == READ)
    if read.get("saturated") or READ in line.most or held <= 0 or core >= 0.5 * held:
        return now
    return min(most, now + line.more_workers(READ)) if next(iter(line.demands())) == READ else now


def _own(clock: Mapping[str, Any]) -> tuple[float, float]:
    """Return the seconds and the core seconds of a stage, without its waiting for a core."""
    return max(0.0, float(clock["busy"]) - float(clock.get("queued", 0.0))), float(clock.get("core", 0.0))


def _other(rates: Rates) -> float:
    """Return the seconds of the taking thread that no stage accounts for."""
    read = rates["read"]
    busy = float(read["seconds"]) * (1 - float(read["wait"]))
    return max(0.0, busy - sum(float(rates[name]["busy"]) for name in _TAKING if name in rates))


def _with_hidden_threads(encode: Stage, hidden: float) -> Stage:
    return replace(encode, core=encode.core + hidden) if hidden > 0.1 * encode.seconds else encode


def _short_queue(read: Mapping[str, Any]) -> dict[str, float]:
    """Return the rate that a queue too short for its latency lets through, where memory keeps it short."""
    reading = float(read["seconds"]) * (1 - float(read.get("starved", 0.0)))
    waits = float(read["wait"]) - float(read.get("starved", 0.0))
    if read.get("capped_by") != "memory" or waits < 0.05 or 1 - _idle_readers(read) > _IDLE_READERS:
        return {}
    return {READ: int(read["tiles"]) / max(reading, 1e-9)}


def _idle_readers(read: Mapping[str, Any]) -> float:
    """Return the share of their time that readers have nothing to do."""
    held = float(read["service"]) * int(read["tiles"])
    return min(1.0, max(0.0, 1 - held / max(float(read["seconds"]) * int(read["workers"]), 1e-9)))


def _first(demands: Mapping[str, float]) -> str:
    """Return what is kept busy the longest; the cores only where no station comes near: they follow the stations."""
    first, second = list(demands)[:2]
    if first == CORES and demands[second] >= _BESIDE * demands[first]:
        return second
    return first


def _limit(line: Line, resource: str) -> str:
    if resource == CORES:
        return "cores"
    if resource in line.most:
        return "memory"
    stage = line.largest(resource)
    if stage.name == "decode":
        return "readers" if line.workers[READ] < math.floor(line.cores) else "cores"
    return _LIMIT_OF_STAGE[stage.name]


def _head(limit: str, wait: float, idle: float) -> str:
    waits = {
        "storage": f"reader-bound: encoder waits {wait:.0%}, reads for storage",
        "readers": f"reader-bound: encoder waits {wait:.0%}",
        "memory": f"memory-bound: encoder waits {wait:.0%}",
        "cores": f"core-bound: encoder waits {wait:.0%}",
        "hashing": f"preparation-bound: encoder waits {wait:.0%}, mostly for slides to be hashed",
        "preparation": f"preparation-bound: encoder waits {wait:.0%}, mostly for slides to be looked through",
    }
    return waits.get(limit, f"{limit}-bound: readers wait {idle:.0%}")


def _cure(line: Line, resource: str, limit: str, saturated: bool, device: str) -> tuple[float, str]:
    """Return what would help, and how much with the next bottleneck as its cap."""
    if limit == "memory":
        gain = line.gain(uncapped=READ)
        return gain, f"more --memory would give {_times(gain)}"
    if limit in ("storage", "readers"):
        return _more_readers(line, limit, saturated)
    if limit == "cores":
        busiest = {"decode": "decoding", "encode": "the encoder", "stain": "stain"}.get(line.largest(CORES).name)
        most = f"{busiest or 'opening slides'} takes most of {counted(line.cores, 'core')}"
        readers = {READ: 1.0} if line.workers[READ] >= math.floor(line.cores) else {}
        gain = line.gain(cores=1, workers=readers)
        return gain, f"{most}; 1 more core would give {_times(gain)}"
    if limit == "encoder":
        return _faster_encoder(line, device)
    gain = line.gain(faster={line.largest(resource).name: 2.0})
    return gain, f"{_TWICE[limit]} twice as fast would give {_times(gain)}"


def _faster_encoder(line: Line, device: str) -> tuple[float, str]:
    encode = next(stage for stage in line.stages if stage.name == "encode")
    if device.startswith("cuda"):
        gain = line.gain(workers={TAKE: 1})
        return gain, f"1 more GPU would give {_times(gain)}"
    if encode.core > 1.5 * encode.seconds:  # it computes in all cores
        wider = replace(encode, seconds=encode.seconds * line.cores / (line.cores + 1))
        stages = tuple(wider if stage is encode else stage for stage in line.stages)
        gain = line.gain_of(replace(line, stages=stages, cores=line.cores + 1))
        return gain, f"1 more core would give {_times(gain)}"
    gain = line.gain(faster={"encode": 2.0})
    return gain, f"an encoder twice as fast would give {_times(gain)}"


def _more_readers(line: Line, limit: str, saturated: bool) -> tuple[float, str]:
    more = line.more_workers(READ)
    gain = line.gain(workers={READ: more})
    if limit == "storage" and saturated:
        gain = line.gain(faster={"storage": 2.0})
        return gain, f"more readers get no more out of it; a storage twice as fast would give {_times(gain)}"
    if gain < _HELPS:
        return gain, "more readers would give no more"
    return gain, f"{counted(more, 'more reader')} would give {_times(gain)}"


def _times(gain: float) -> str:
    if gain < _HELPS:
        return "hardly more"
    return f"about {gain:.1f}x" if gain < 10 else "over 10x"
