"""`slidemil plan`: what a run would do and take, from a short probe; nothing is written but a record of the plan."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsi.address import is_url

from . import plan_text
from .config import ExtractSettings
from .counting import Count, Estimate, estimate, size_of
from .errors import ExitCode
from .extraction import Extraction
from .forecast import MOST_READERS, Forecast, Kept, Work, forecast, settings_key
from .jobfolder import JobFolder
from .manifest import Manifest, SlideEntry
from .maps import map_bytes
from .outcome import Failure, Said
from .probe import Probe, probe
from .progress import Progress, Quiet
from .provenance import Run, known_sha256
from .records import read_record
from .units import duration

if TYPE_CHECKING:
    from mil import Encoder

_SPARE = 1.1
"""Over what the probe took: a longer run leaves more gaps in its memory, and writes a report in the end."""


@dataclass
class Triage:
    """Which slides wait, by what the job holds.

    Attributes:
        waiting: slides to be done.
        done: slides that need no more work.
        redo: slide → what changed since its features were made; empty where a file of it is missing or cut.
        to_hash: done slides whose hash is not known, so that a run reads them once more.
        notes: what the user should know.
    """

    waiting: list[SlideEntry] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    redo: dict[str, list[str]] = field(default_factory=dict)
    to_hash: list[SlideEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What a run would do and take.

    Attributes:
        slides: how many were found.
        triage: which of them wait.
        failures: slides that cannot be used.
        estimate: of the tiles.
        probe: what was measured.
        forecast: None where nothing waits, or nothing could be measured.
        seconds: the least and the most that are likely, by the tiles and by how far what was measured swings; None
            where too little was measured to say.
        memory: bytes that the process will have at its peak, about.
        bytes_to_hash: of the slides that wait.
    """

    slides: int
    triage: Triage
    failures: tuple[Failure, ...]
    estimate: Estimate
    probe: Probe | None
    forecast: Forecast | None
    seconds: tuple[float, float] | None
    memory: float
    bytes_to_hash: int

    @property
    def startup(self) -> float:
        """Seconds that a run takes before it reads: modules, weights, processes and threads."""
        return self.probe.measured.startup if self.probe is not None and self.probe.measured is not None else 0.0


def make_plan(
    manifest: Manifest,
    settings: ExtractSettings,
    encoder: Encoder,
    job: JobFolder | None,
    seconds: float,
    *,
    force: bool = False,
    bar: Progress | None = None,
) -> Plan:
    """Probe the stages on a sample of the slides, count tiles, and say what a run would take.

    Args:
        manifest: the slides.
        settings: of the run.
        encoder: of the run.
        job: where the run would go, None where that is open.
        seconds: for the probe and the counting; see `probe`.
        force: plan for a run that does everything again.
        bar: is told of slides that were looked at.
    """
    triage = sort_out(manifest, settings, encoder, job, force)
    found, probed = Count(), None
    bar = bar or Quiet()
    bar.total(len(triage.waiting))
    if triage.waiting:
        probed = probe(triage.waiting, settings, encoder, seconds, bar.advance)
        found = probed.count
    sizes = {entry.slide_id: size_of(entry) for entry in triage.waiting}
    guess = estimate(found.tiles, sizes, tuple(found.failures))
    works = _works(triage, guess, found, sizes, job)
    expected: Forecast | None = None
    ends: tuple[float, float] | None = None
    if probed is not None and (measured := probed.measured) is not None:
        expected = forecast(measured, works, settings, encoder.device)
        low, high = (_with_tiles(works, tiles, guess.expected) for tiles in (guess.low, guess.high))
        if expected.unsure is not None:
            off = 1 + expected.unsure
            ends = (
                forecast(measured, low, settings, encoder.device).seconds / off,
                forecast(measured, high, settings, encoder.device).seconds * off,
            )
    return Plan(
        slides=len(manifest.entries),
        triage=triage,
        failures=tuple(found.failures[name] for name in sorted(found.failures)),
        estimate=guess,
        probe=probed,
        forecast=expected,
        seconds=ends,
        memory=_memory(probed, expected, guess, settings, encoder.dim),
        bytes_to_hash=sum(work.size for work in works),
    )


def sort_out(
    manifest: Manifest, settings: ExtractSettings, encoder: Encoder, job: JobFolder | None, force: bool
) -> Triage:
    """Tell slides that wait from those that are done; no slide is read for this."""
    triage = Triage()
    if job is None:
        triage.waiting += manifest.entries
        return triage
    extraction = Extraction(job, settings, encoder, Run(job, "plan", {}), Quiet(), force=force)
    believed = 0
    for entry in manifest.entries:
        old = read_record(job, extraction.output(entry.slide_id))
        if old is None:
            triage.waiting.append(entry)
            continue
        known = known_sha256(job, entry.slide_id, entry.files)
        parts = extraction.parts(entry, known or str(old.parts.get("slide")))
        if extraction.finished(entry, parts) is not None:
            triage.done.append(entry.slide_id)
            believed += known is None
            triage.to_hash += [entry] if known is None else []
        else:
            triage.waiting.append(entry)
            triage.redo[entry.slide_id] = ["--force"] if force else extraction.changed(entry, parts)
    if believed:
        was = "1 finished slide was" if believed == 1 else f"{believed} finished slides were"
        triage.notes.append(f"{was} taken as unchanged; the run hashes and compares")
    return triage


def keep(plan: Plan, run: Run, settings: ExtractSettings, encoder: Encoder) -> None:
    """Write the record of the plan, which the run is held against."""
    from .passports import passport_of

    if plan.forecast is None:
        run.finish("done")
        return
    kept = Kept(
        by="plan",
        key=settings_key(settings, passport_of(encoder, settings)),
        slides=tuple(entry.slide_id for entry in plan.triage.waiting),
        seconds=round(plan.forecast.seconds, 2),
        limit=plan.forecast.verdict.limit,
        tiles=round(plan.estimate.expected, 1),
        files={
            entry.slide_id: str(entry.path) if is_url(str(entry.path)) else os.path.relpath(entry.path, run.job.root)
            for entry in plan.triage.waiting
        },
    )
    run.finish("done", forecast=kept.to_dict(), bottleneck=plan.forecast.verdict.text)


def say_plan(plan: Plan, settings: ExtractSettings, encoder: Encoder, notes: Sequence[str]) -> Said:
    """Return a plan for people and programs; slides that cannot be used make the exit code that of a run."""
    each = map_bytes(encoder, settings.dtype) if settings.dense else 0
    warnings = [*notes, *plan.triage.notes, *_of_the_probe(plan.probe), *_too_many(plan, settings)]
    data: dict[str, Any] = {
        "status": "partial" if plan.failures else "done",
        "slides": {
            "found": plan.slides,
            "to_do": len(plan.triage.waiting) - len(plan.failures),
            "done": len(plan.triage.done),
            "failed": len(plan.failures),
        },
        "failed": [dataclasses.asdict(failure) for failure in plan.failures],
        "redo": [{"slide": name, "changed": changed} for name, changed in plan.triage.redo.items()],
        **plan_text.figures(plan, settings, encoder.device, each),
        "warnings": warnings,
    }
    lines = [*plan_text.lines(plan, data), *(f"  note        {text}" for text in warnings)]
    return Said(tuple(lines), data, ExitCode.SOME_FAILED if plan.failures else ExitCode.DONE)


def _of_the_probe(probed: Probe | None) -> list[str]:
    return [] if probed is None else [*([probed.cut] if probed.cut else []), *probed.notes]


def _too_many(plan: Plan, settings: ExtractSettings) -> list[str]:
    """Say it where far more readers were asked for than could be of use."""
    cores = plan.forecast.line.cores if plan.forecast else math.inf
    if settings.workers <= max(MOST_READERS, 4 * cores):
        return []
    return [
        f"--workers {settings.workers}: left to itself a run takes {MOST_READERS} at most; more than the cores are of "
        "use only where reads wait for storage, and each takes time to start and memory"
    ]


def all_plans(scales: Sequence[ExtractSettings], said: Sequence[Said]) -> Said:
    """Return the plans of several µm/px as one: each with its own figures, and what all take together."""
    lines: list[str] = []
    for settings, one in zip(scales, said, strict=True):
        lines += [f"at {settings.mpp:g} µm/px", *(f"  {line}" for line in one.text)]
    sums = {name: sum(float(one.data[name]) for one in said) for name in ("seconds", "hours")}
    lines.append(f"all scales  about {duration(sums['seconds'])}")
    most = max(said, key=lambda one: one.data["tiles"]["expected"])
    each = {f"{settings.mpp:g}": one.data for settings, one in zip(scales, said, strict=True)}
    code = next((one.exit_code for one in said if one.exit_code), ExitCode.DONE)
    return Said(tuple(lines), {**most.data, **sums, "scales": each}, code)


def _works(triage: Triage, guess: Estimate, found: Count, sizes: dict[str, int], job: JobFolder | None) -> list[Work]:
    """Return what the run will meet, in its order: slides to be done, and those only hashed."""
    works = [Work(entry.slide_id, 0.0, size_of(entry), usable=False) for entry in triage.to_hash]
    for entry in triage.waiting:
        name = entry.slide_id
        hashed = job is not None and known_sha256(job, name, entry.files) is not None
        size = 0 if hashed else sizes[name]
        works.append(Work(name, guess.tiles[name], size, usable=name not in found.failures))
    return sorted(works, key=lambda work: work.slide)


def _with_tiles(works: Sequence[Work], tiles: float, expected: float) -> list[Work]:
    return [dataclasses.replace(work, tiles=work.tiles * tiles / max(expected, 1e-9)) for work in works]


def _memory(
    probed: Probe | None, expected: Forecast | None, guess: Estimate, settings: ExtractSettings, dim: int
) -> float:
    """Return the bytes at the peak: what the probe took, a deeper queue, the features of the two largest slides."""
    deeper = 0.0
    if probed is not None and probed.measured is not None and expected is not None:
        deeper = max(0.0, expected.depth - float(probed.measured.rates["read"]["depth"])) * 3 * settings.tile**2
    largest = sorted(guess.tiles.values(), reverse=True)[:2]
    item = 2 if settings.dtype == "float16" else 4
    features = 3 * sum(largest) * dim * item  # as they are, as they are checked, and as the file that is written
    return _SPARE * (probed.peak if probed else 0) + min(deeper, settings.memory_gb * 1e9) + features
