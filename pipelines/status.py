"""`slidemil status`: how far each slide of a job is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .feature_sets import feature_folders
from .jobfolder import JobFolder
from .manifest import Manifest
from .outcome import Said


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
    data = {
        "status": "done" if counts["done"] == len(manifest.entries) else "partial",
        "slides": {
            "found": len(manifest.entries),
            **{name: counts[name] for name in ("done", "failed", "pending")},
        },
        "tiles": sum(int(row.get("n_tiles") or 0) for row in rows),
        "failed": failed,
        "features": feature_folders(job),
        "models": models,
        "predictions": _names(job, "predictions"),
        "heatmaps": _names(job, "heatmaps"),
        "report": job.report.is_file(),
    }
    lines = [
        f"{len(manifest.entries)} slides: {counts['done']} done, {counts['failed']} failed, "
        f"{counts['pending']} pending · {data['tiles']} tiles",
        *(f"  failed  {f['slide']}: {f['cause']}. {f['mend']}".rstrip() for f in failed),
        *(f"  {row['slide_id']}: {row['warning']}" for row in rows if row.get("warning")),
        f"features: {', '.join(feature_folders(job)) or 'none'}",
        f"models: {', '.join(models) or 'none'}",
    ]
    return Said(tuple(lines), data)


def _names(job: JobFolder, kind: str) -> list[str]:
    return sorted(path.name for path in (job.root / kind).glob("*") if path.is_dir())
