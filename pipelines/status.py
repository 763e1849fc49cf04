"""`slidemil status`: how far each slide of a job is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .claims import all_claims
from .feature_sets import feature_folders
from .jobfolder import JobFolder
from .ledger import newest_first
from .manifest import Manifest
from .outcome import Said
from .processes import Process, this_process
from .units import counted

_WENT_THROUGH = ("done", "partial", "failed")
"""What a ledger says of a run that looked at all its slides."""


def describe(job: JobFolder, manifest: Manifest, rows: Sequence[Mapping[str, str]]) -> Said:
    """Count the slides by state, name the failures with their mend, and list features and models."""
    counts = Counter(row.get("status") or "pending" for row in rows)
    counts["pending"] += len(manifest.entries) - len(rows)
    failed = [
        {"slide": row["slide_id"], "cause": row.get("cause", ""), "mend": row.get("mend", "")}
        for row in rows
        if row.get("status") == "failed"
    ]
    models = _names(job, "models")
    working = _working(job)
    tiles = sum(int(row.get("n_tiles") or 0) for row in rows)
    killed, stopped = _last_run(job, working)
    data = {
        "status": "done" if counts["done"] == len(manifest.entries) else "partial",
        "slides": {
            "found": len(manifest.entries),
            **{name: counts[name] for name in ("done", "failed", "pending")},
        },
        "tiles": tiles,
        "failed": failed,
        "running": [{"slide": name, "by": who} for name, who in working.items()],
        "killed": killed,
        "stopped": stopped,
        "features": feature_folders(job),
        "models": models,
        "predictions": _names(job, "predictions"),
        "heatmaps": _names(job, "heatmaps"),
        "report": job.report.is_file(),
    }
    lines = [
        f"{counted(len(manifest.entries), 'slide')}: {counts['done']} done, {counts['failed']} failed, "
        f"{counts['pending']} pending · {counted(tiles, 'tile')}",
        *(f"  failed  {f['slide']}: {f['cause']}. {f['mend']}".rstrip() for f in failed),
        *(f"  {row['slide_id']}: {row['warning']}" for row in rows if row.get("warning")),
        *_told_of_work(working, killed, stopped),
        f"features: {', '.join(feature_folders(job)) or 'none'}",
        f"models: {', '.join(models) or 'none'}",
    ]
    return Said(tuple(lines), data)


def _working(job: JobFolder) -> dict[str, str]:
    """Return slide → who works on it just now."""
    return {name: claim.who for name, claim in all_claims(job, "slides").items() if not claim.left}


def _last_run(job: JobFolder, working: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return what is to be said of the newest run that made features.

    Returns:
        Its name where it was killed: its ledger has no end, and nobody works; and how it ended where it was stopped.
    """
    last = next((one for one in newest_first(job.runs) if one.lines and one.lines[0].get("verb") == "extract"), None)
    if last is None or last.ended in _WENT_THROUGH:
        return None, None
    if last.ended is not None:
        return None, last.ended.removeprefix("stopped: ")
    began = last.lines[0]
    here = this_process()
    owner = Process(str(began.get("host")), str(began.get("space")), int(began.get("pid", 0)), str(began.get("start")))
    return last.run if owner.gone() or (owner.space != here.space and not working) else None, None


def _told_of_work(working: Mapping[str, str], killed: str | None, stopped: str | None) -> list[str]:
    lines = [f"  running {who}: {counted(slides, 'slide')}" for who, slides in Counter(working.values()).items()]
    again = "run the same command again, it goes on from there"
    if killed is not None:
        lines.append(f"  killed  the last run ({killed}) did not end: {again}")
    if stopped is not None:
        lines.append(f"  stopped the last run: {stopped}" + ("" if "again" in stopped else f": {again}"))
    return sorted(lines)


def _names(job: JobFolder, kind: str) -> list[str]:
    return sorted(path.name for path in (job.root / kind).glob("*") if path.is_dir())
