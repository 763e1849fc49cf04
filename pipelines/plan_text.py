"""A plan in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsi.littles_law import Line

from .config import ExtractSettings
from .machine import round_up
from .units import counted, duration
from .verdict import READ, TAKE

if TYPE_CHECKING:
    from .planning import Plan

_MUCH = 0.2
_NAMES = {
    "hash": "hash",
    "prepare": "open, tissue",
    "storage": "disk read",
    "decode": "decode, resize",
    "stain": "stain",
    "encode": "encode",
    "write": "write",
}


def figures(plan: Plan, settings: ExtractSettings, device: str, map_bytes: int = 0) -> dict[str, Any]:
    """Return the figures of a plan, as `--json` prints them; `map_bytes` are those of the map of one tile."""
    guess, expected = plan.estimate, plan.forecast
    per_tile = plan.probe.bytes_per_tile if plan.probe else None
    found: dict[str, Any] = {
        "tiles": {
            "expected": round(guess.expected),
            "low": round(guess.low),
            "high": round(guess.high),
            "exact": guess.exact,
            "slides_counted": guess.counted,
        },
        "gb": {
            "to_hash": round(plan.bytes_to_hash / 1e9, 3),
            "tiles": None if per_tile is None else round(per_tile * guess.expected / 1e9, 3),
            "maps": round(map_bytes * guess.expected / 1e9, 3),
        },
        "memory_gb": round(round_up(plan.memory) / 1e9, 4),
        "device": device,
        "rough": bool(plan.probe and plan.probe.cut),
        "stages": _stages(plan),
    }
    if expected is None:
        return found | {"seconds": 0.0, "hours": 0.0, "bottleneck": "nothing to be measured", "verdict": None}
    return found | {
        "workers": expected.readers,
        "depth": expected.depth,
        "lambda": round(expected.rate, 2),
        "W": round(expected.latency, 5),
        "L": round(expected.under_way, 2),
        "cores": expected.line.cores,
        "seconds": round(expected.seconds, 2),
        "seconds_low": None if plan.seconds is None else round(plan.seconds[0], 2),
        "seconds_high": None if plan.seconds is None else round(plan.seconds[1], 2),
        "seconds_start": round(plan.startup, 2),
        "hours": round(expected.seconds / 3600, 4),
        "bottleneck": expected.verdict.text,
        "verdict": expected.verdict.to_dict(),
        "one_more": _one_more(expected.line, device, settings),
    }


def lines(plan: Plan, data: Mapping[str, Any]) -> list[str]:
    """Return a plan in words."""
    slides, tiles = data["slides"], data["tiles"]
    found = counted(slides["found"], "slide")
    out = [
        f"{found}: {slides['to_do']} to do, {slides['done']} done, {slides['failed']} cannot be used",
        *(f"  cannot      {f['slide']}: {f['cause']}. {f['mend']}".rstrip() for f in data["failed"]),
        *_redo_lines(plan),
    ]
    if plan.forecast is None:
        return [*out, *_without_forecast(data)]
    known = "counted on all of them"
    if not tiles["exact"]:
        known = f"{tiles['low']:,} to {tiles['high']:,}: counted on {counted(tiles['slides_counted'], 'slide')}"
    out.append(f"  tiles       {'' if tiles['exact'] else 'about '}{tiles['expected']:,} ({known})")
    read = f", about {data['gb']['tiles']:.2g} GB of tiles" if data["gb"]["tiles"] is not None else ""
    out += [
        f"  to read     {data['gb']['to_hash']:.3g} GB to be hashed{read}",
        *([f"  to write    about {data['gb']['maps']:.3g} GB of feature maps"] if data["gb"]["maps"] else []),
        f"  workers     {counted(data['workers'], 'reader')}, {counted(data['cores'], 'core')}, "
        f"encoder on {data['device']}",
        f"  queue       {counted(data['depth'], 'tile')} deep: λ {data['lambda']:.4g}/s · W {1e3 * data['W']:.3g} ms = "
        f"L {data['L']:.2f}, and L + 3√L of them, at least one per reader",
        f"  memory      about {data['memory_gb']:.2g} GB, libraries and reading processes included",
        f"  time        about {_range(data)}{_start(data)}{', rough: see the note' if data['rough'] else ''}",
        f"  bottleneck  {data['bottleneck']}",
        f"  one more    {_gains(data['one_more'])}",
        *_table(data),
    ]
    return out


def _without_forecast(data: Mapping[str, Any]) -> list[str]:
    """Return what can be said where too little was measured for a time."""
    if not data["slides"]["to_do"]:
        return ["  nothing to do"]
    why = "too little could be measured" if data["rough"] else "no slide of the sample has a tile"
    return [
        f"  to read     {data['gb']['to_hash']:.3g} GB to be hashed",
        f"  {why}: no time can be told",
        *_table(data),
    ]


def _table(data: Mapping[str, Any]) -> list[str]:
    head = "  stage             one worker         one piece takes (99 % under)"
    return [head, *(_row(stage) for stage in data["stages"].values())] if data["stages"] else []


def _redo_lines(plan: Plan) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, changed in plan.triage.redo.items():
        reasons.setdefault(", ".join(changed[:4]) or "an output is missing or cut", []).append(name)
    return [
        f"  redo        {counted(len(names), 'slide')} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''}): {why}"
        for why, names in reasons.items()
    ]


def _one_more(line: Line, device: str, settings: ExtractSettings) -> dict[str, float]:
    """Return how many times as fast a run would be with one more of something, the next bottleneck being the cap."""
    more = {
        "reader": line.gain(workers={READ: 1}),
        "core": line.gain(cores=1, workers={} if settings.workers else {READ: 1}),
    }
    if device.startswith("cuda"):
        more["gpu"] = line.gain(workers={TAKE: 1})
    return {name: round(gain, 2) for name, gain in more.items()}


def _stages(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return rate per worker and latency of each stage."""
    rates = {} if plan.probe is None else plan.probe.rates
    found: dict[str, dict[str, Any]] = {}
    if read := rates.get("read"):
        storage = max(0.0, read["service"] - read["core"] - read["queued"])
        found["storage"] = _stage("storage", "tiles", storage, storage, None)
        found["decode"] = _stage("decode", "tiles", read["core"], float(read["W_mean"]), float(read["W_p99"]))
    for name in ("hash", "prepare", "stain", "encode", "write"):
        clock = rates.get(name)
        if clock and clock["things"]:
            unit = {"hash": "MB", "prepare": "slides", "write": "slides"}.get(name, "tiles")
            things = clock["things"] / (1e6 if name == "hash" else 1)
            each = max(clock["busy"] - clock["queued"], 0.0) / things
            found[name] = _stage(name, unit, each, float(clock["W_mean"]), float(clock["W_p99"]))
    return {name: found[name] for name in _NAMES if name in found}


def _stage(name: str, unit: str, each: float, mean: float, p99: float | None) -> dict[str, Any]:
    rate = round(1 / each, 2) if each > 1e-9 else None
    return {"stage": _NAMES[name], "unit": unit, "rate": rate, "W_mean": mean, "W_p99": p99}


def _row(stage: Mapping[str, Any]) -> str:
    rate = "no wait" if stage["rate"] is None or stage["rate"] > 1e5 else f"{stage['rate']:,.4g} {stage['unit']}/s"
    tail = f" ({stage['W_p99'] * 1e3:,.3g})" if stage["W_p99"] is not None else ""
    return f"    {stage['stage']:<15} {rate:<18} {stage['W_mean'] * 1e3:,.3g}{tail} ms"


def _range(data: Mapping[str, Any]) -> str:
    middle = duration(data["seconds"])
    if data["seconds_low"] is None:
        return f"{middle} (too little was measured for a range)"
    low, high = duration(data["seconds_low"]), duration(data["seconds_high"])
    return middle if low == high else f"{middle} ({low} to {high})"


def _start(data: Mapping[str, Any]) -> str:
    """Return what of the time passes before the first tile, where that is much of it."""
    start = data["seconds_start"]
    return f", {duration(start)} of it until reading begins" if start > _MUCH * data["seconds"] else ""


def _gains(one_more: Mapping[str, float]) -> str:
    names = {"gpu": "GPU"}
    told = [f"{names.get(n, n)}: {'no faster' if g < 1.03 else f'about {g:.1f}x'}" for n, g in one_more.items()]
    return " · ".join(told)
