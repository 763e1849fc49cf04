"""Of which model the explanations in a job are: what an older one left is not shown as what the new one says."""

from __future__ import annotations

import json
from pathlib import Path

from .files import sha256_file, sha256_json
from .jobfolder import JobFolder
from .records import read_record


def digest_now(job: JobFolder, name: str) -> str | None:
    """Return the hash of the model of that name, as the records tell it; None where they tell of none.

    It is the `sha256` of the `NamedModel`; nothing is loaded, and no weights are read.
    """
    members = _members(job.model(name) / "ensemble.json")
    if members:
        digests = [_own(job, one) for one in members]
        return None if None in digests else sha256_json(digests)
    if job.model(name).is_dir():
        return _own(job, name)
    record = read_record(job, job.predictions(name) / "slides.csv")  # of a model that lies elsewhere
    return None if record is None else record.parts.get("model")


def is_of(job: JobFolder, picture: Path, digest: str | None) -> bool:
    """Tell whether the drawing of a slide is finished and of that model; where no model is known, none is refused."""
    if digest is None:
        return True
    record = read_record(job, picture)
    return record is not None and record.parts.get("model") == digest


def compared_with(job: JobFolder, name: str) -> str | None:
    """Return the hash of the model that the table of methods is of, as the run that wrote it says; None if unknown."""
    table = job.heatmaps(name) / "methods.csv"
    if not table.is_file():
        return None
    written = sha256_file(table)
    for path in sorted(job.runs.glob("*.json"), reverse=True):
        told = _arguments(path)
        if told.get("model") == name and written in _text(path.with_suffix(".ledger.jsonl")):
            return told.get("model_sha256")
    return None


def _own(job: JobFolder, name: str) -> str | None:
    records = [read_record(job, job.model(name) / file) for file in ("config.json", "model.safetensors")]
    return sha256_json([record.sha256 for record in records if record]) if all(records) else None


def _members(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())["members"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _arguments(path: Path) -> dict[str, str]:
    try:
        told = json.loads(path.read_bytes())
        return dict(told["arguments"]) if told["verb"] == "heatmap" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
