"""Of which model the explanations in a job are: what an older one left is not shown as what the new one says."""

from __future__ import annotations

import json
from pathlib import Path

from .files import sha256_json
from .jobfolder import JobFolder
from .records import Record, read_record


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


HALF = "left half done"
OLD_MODEL = "drawn from a model that had this name before"
NEW_FEATURES = "drawn from features that were made anew since"


def why_older(job: JobFolder, picture: Path, digest: str | None) -> str:
    """Say why the drawing of a slide is not to be shown as what the model says; "" where it is, or no model is known.

    Args:
        job: the job.
        picture: of the first method, which has the record.
        digest: of the model that has the name now.
    """
    if digest is None:
        return ""
    record = read_record(job, picture)
    if record is None:
        return HALF
    if record.parts.get("model") != digest:
        return OLD_MODEL
    now = _features_now(job, picture.name.removesuffix(picture.suffix), record)
    return "" if now in (None, record.parts.get("features")) else NEW_FEATURES


def _features_now(job: JobFolder, slide: str, record: Record) -> str | None:
    """Return the hash of the features that a drawing was made from as they are now; None where nothing tells."""
    folders = [Path(name) for name in record.facts.get("features", [])]
    if not folders or any(one.is_absolute() or ".." in one.parts for one in folders):
        return None
    found = [read_record(job, job.root / one / f"{slide}.h5") for one in folders]
    digests = [one.sha256 for one in found if one is not None]
    if len(digests) < len(folders):
        return None
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _own(job: JobFolder, name: str) -> str | None:
    records = [read_record(job, job.model(name) / file) for file in ("config.json", "model.safetensors")]
    return sha256_json([record.sha256 for record in records if record]) if all(records) else None


def _members(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())["members"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]
