"""`slidemil why JOB SLIDE`: what became of one slide, in plain words, and the command that mends it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .claims import Claim, all_claims
from .errors import UsageError
from .jobfolder import JobFolder
from .ledger import Account, lines_with
from .manifest import Manifest, SlideEntry
from .outcome import Said
from .records import Record, read_failure, read_record
from .units import counted

_LONGEST_HISTORY = 12


def explain(job: JobFolder, manifest: Manifest, slide: str) -> Said:
    """Tell what became of a slide: from its records, its claim, and the ledgers.

    Raises:
        UsageError: the job has no such slide; names those that are called alike.
    """
    entry = _entry(manifest, slide)
    done = {path: record for path, record in _outputs(job, entry.slide_id, ".done") if record is not None}
    failed = [path for path, _ in _outputs(job, entry.slide_id, ".failed")]
    claim = all_claims(job, "slides").get(entry.slide_id)
    state, lines, mend = _state(job, entry, done, failed, claim)
    told = [f"{entry.slide_id}: {lines[0]}", *(f"  {line}" for line in lines[1:])]
    told += [f"  mend     {mend}"] if mend else []
    history = _history(job, entry.slide_id)
    data = {"slide": entry.slide_id, "status": state, "why": lines, "mend": mend, "history": history}
    return Said((*told, *(f"  {line}" for line in history)), data)


def _entry(manifest: Manifest, slide: str) -> SlideEntry:
    known = {entry.slide_id: entry for entry in manifest.entries}
    by_file = {entry.path.name: entry for entry in manifest.entries}
    if slide in known or Path(slide).name in by_file:
        return known.get(slide) or by_file[Path(slide).name]
    near = difflib.get_close_matches(slide, [*known, *by_file], n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"It has {', '.join(list(known)[:5])} …"
    raise UsageError(f"{slide}: the job has no such slide. {hint}")


def _outputs(job: JobFolder, slide: str, tree: str) -> list[tuple[Path, Record | None]]:
    """Return the feature files of a slide of which a tree of records tells."""
    found = sorted((job.root / tree).glob(f"*/features_*/{_escaped(slide)}.h5.json"))
    outputs = [job.root / path.relative_to(job.root / tree).with_suffix("") for path in found]
    return [(output, read_record(job, output)) for output in outputs]


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "[]*?" else sign for sign in name)


def _state(
    job: JobFolder, entry: SlideEntry, done: Mapping[Path, Record], failed: list[Path], claim: Claim | None
) -> tuple[str, list[str], str]:
    """Return the state, what is to be said of it, and the command that mends it."""
    again = f"slidemil extract {shlex.quote(str(entry.path))} -o {shlex.quote(str(job.root))}"
    if job.settings.is_file():
        again += f" -c {shlex.quote(str(job.settings))}"
    if claim is not None and not claim.left:
        return "running", [f"is worked on by {claim.who}, run {claim.run}"], ""
    if failed:
        known = read_failure(job, failed[0])
        if known is not None:
            lines = [f"failed: {known.cause}", f"meant    {failed[0].relative_to(job.root).as_posix()}"]
            lines += [f"reach    the slide is not where it was: {entry.path}"] if not entry.path.exists() else []
            return "failed", lines, f"{known.mend} Then: {again}".strip()
    damaged = {path: what for path, record in done.items() if (what := _damage(job, path, record))}
    if damaged:
        path, what = next(iter(damaged.items()))
        return "damaged", [f"was done, but {what}", f"meant    {path.relative_to(job.root).as_posix()}"], again
    if done:
        return "done", _told_of_done(job, done), ""
    if claim is not None:
        return "interrupted", [f"the run {claim.run} ({claim.who}) was killed while it worked on it"], again
    if not entry.path.exists():
        what = f"is pending, and the slide is not where manifest.csv says: {entry.path}"
        return "pending", [what], f"Put the slide back, or give its new place: slidemil extract SLIDES -o {job.root}"
    return "pending", ["is pending: no run has finished it or failed on it"], again


def _damage(job: JobFolder, output: Path, record: Record) -> str:
    """Say which file of an output is not there with its size; "" where all are. `verify` compares the bytes."""
    sizes = {output: record.size, **{job.root / name: beside.size for name, beside in record.companions.items()}}
    for path, size in sizes.items():
        try:
            found = path.stat().st_size
        except OSError:
            return f"{path.relative_to(job.root).as_posix()} is gone"
        if found != size:
            return f"{path.relative_to(job.root).as_posix()} has {found} bytes, not {size}"
    return ""


def _told_of_done(job: JobFolder, done: Mapping[Path, Record]) -> list[str]:
    tiles = sum(record.facts.get("n_tiles", 0) for record in done.values())
    lines = [f"is done: {counted(tiles, 'tile')} in {counted(len(done), 'feature file')}"]
    for path, record in done.items():
        facts = record.facts
        lines.append(f"made     {path.relative_to(job.root).as_posix()}: {counted(facts.get('n_tiles', 0), 'tile')}")
        if facts.get("n_missing"):
            lost = counted(facts["n_missing"], "tile")
            lines.append(f"missing  {lost} could not be read; dataset `missing` of the file says why")
        if facts.get("warning"):
            lines.append(f"warning  {facts['warning']}")
        lines.append(
            f"read     with {facts.get('reader', '?')}, µm/px {facts.get('mpp_x')} ({facts.get('mpp_source')})"
        )
    return lines


def _history(job: JobFolder, slide: str) -> list[str]:
    """Return what the ledgers tell of a slide, the newest last."""
    lines = [text for account, line in _about(job, slide) if (text := _told(account, line))]
    return lines[-_LONGEST_HISTORY:]


def _about(job: JobFolder, slide: str) -> list[tuple[Account, Mapping[str, Any]]]:
    found = [
        (account, line)
        for account, line in lines_with(job.runs, slide)
        if line.get("slide") == slide or _is_its_features(str(line.get("path", "")), slide)
    ]
    return sorted(found, key=lambda pair: (str(pair[1]["t"]), pair[0].run, pair[1]["n"]))


def _is_its_features(path: str, slide: str) -> bool:
    return path.endswith(f"/{slide}.h5") and "/features_" in f"/{path}"


def _told(account: Account, line: Mapping[str, Any]) -> str:
    texts = {
        "wrote": "finished",
        "failed": f"failed: {line.get('cause')}",
        "redo": f"made anew because this changed: {', '.join(map(str, line.get('changed', ())))}",
        "took over": f"taken over from {line.get('owner')}, run {line.get('run')}, which was gone",
    }
    text = texts.get(str(line["event"]))
    return f"history  {str(line['t'])[:19]}Z  {text}  (run {account.run})" if text else ""
