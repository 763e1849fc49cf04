"""Finished-records: an output is done when a small record, written last, says so.

The record of an output holds the key (a hash of everything that determines the output), the parts that
went into the key, and the SHA-256 of the output's bytes. "It exists" never means "it is done".

A record ends with a seal, the hash of all else in it; and before it is written, the run's ledger says that it will be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import json_bytes, sha256_file, sha256_json, write_bytes
from .jobfolder import JobFolder

SCHEMA = 1
"""Raised when the meaning of an output changes: older outputs are then made anew."""


@dataclass(frozen=True)
class Companion:
    """What is known of a file that belongs to an output; its hash is "" where an older version did not keep it."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What is known of one finished output.

    Attributes:
        key: SHA-256 of `parts`.
        parts: everything that determines the output, by name.
        sha256: of the output's bytes.
        size: of the output, in bytes.
        facts: counts and findings worth keeping (for `slides.csv`), no clock times.
        companions: size and SHA-256 of each further file that belongs to the output, by path relative to the job.
    """

    key: str
    parts: Mapping[str, Any]
    sha256: str
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, Companion] = field(default_factory=dict)


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of an output from the parts that determine it."""
    return sha256_json({"schema": SCHEMA, **parts})


def read_record(job: JobFolder, output: Path) -> Record | None:
    """Return the record of `output`, None where there is none or it is torn."""
    try:
        return parse_record(job.record(output).read_bytes())
    except (OSError, ValueError):
        return None


def parse_record(data: bytes) -> Record:
    """Return what the bytes of a record say.

    Raises:
        ValueError: they are torn.
    """
    try:
        raw = json.loads(data)
        beside = {name: _companion(value) for name, value in raw.get("companions", {}).items()}
        return Record(raw["key"], raw["parts"], raw["sha256"], raw["size"], raw.get("facts", {}), beside)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record: {error}") from error


def _companion(value: Any) -> Companion:
    return Companion(value, "") if isinstance(value, int) else Companion(**value)


def record_bytes(record: Record) -> bytes:
    """Return a record as it is stored, with its seal."""
    body = asdict(record)
    return json_bytes({**body, "seal": sha256_json(body)})


def is_sealed(data: bytes) -> bool | None:
    """Tell whether the bytes of a record are just those that were written; None where an older version put no seal."""
    try:
        if "seal" not in json.loads(data):
            return None
        return record_bytes(parse_record(data)) == data
    except (ValueError, TypeError):
        return False


def current(job: JobFolder, output: Path, parts: Mapping[str, Any], record: Record | None = None) -> Record | None:
    """Return the record of `output` where it was made from just these parts and lies there with its companions.

    Sizes are compared, not hashes: a resume over terabytes must not read them all again. A `record` that was read
    already is not read again.
    """
    record = record or read_record(job, output)
    if record is None or record.key != key_of(parts):
        return None
    files = {output: record.size, **{job.root / name: beside.size for name, beside in record.companions.items()}}
    whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    return record if whole else None


def changed_parts(record: Record, parts: Mapping[str, Any]) -> list[str]:
    """Name the parts in which an older record differs, dotted for nested ones: `encoder.weights_sha256`."""
    old, new = dict(_flat(record.parts)), dict(_flat(parts))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def finish(
    job: JobFolder,
    output: Path,
    data: bytes,
    parts: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    companions: Iterable[Path] = (),
) -> Record:
    """Write an output and then its record; until both are there, the output is not done."""
    forget(job, output)
    write_bytes(output, data)
    return _seal(job, output, hashlib.sha256(data).hexdigest(), len(data), parts, facts, companions)


def keep(job: JobFolder, output: Path, data: bytes) -> None:
    """Write a table, or another file that many runs write, where it differs from the one that lies there."""
    if not is_kept(job, output, data):
        finish(job, output, data, {})


def is_kept(job: JobFolder, output: Path, data: bytes) -> bool:
    """Tell whether just these bytes lie there, with their record."""
    try:
        record = read_record(job, output)
        return record is not None and record.sha256 == hashlib.sha256(data).hexdigest() and output.read_bytes() == data
    except OSError:
        return False


def publish(job: JobFolder, output: Path, data: bytes) -> None:
    """Write a page that is made anew each time: it has no record, the ledger alone vouches for it."""
    job.note("wrote", path=_name(job, output), sha256=hashlib.sha256(data).hexdigest(), record="")
    write_bytes(output, data)


def seal(
    job: JobFolder,
    output: Path,
    parts: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    companions: Iterable[Path] = (),
) -> Record:
    """Write the record of an output that lies there whole."""
    return _seal(job, output, sha256_file(output), output.stat().st_size, parts, facts, companions)


def _seal(
    job: JobFolder,
    output: Path,
    sha256: str,
    size: int,
    parts: Mapping[str, Any],
    facts: Mapping[str, Any] | None,
    companions: Iterable[Path],
) -> Record:
    """Write a record; its hash goes to the ledger first, so that none lies there that the ledger does not know."""
    beside = {
        path.relative_to(job.root).as_posix(): Companion(path.stat().st_size, sha256_file(path)) for path in companions
    }
    record = Record(key_of(parts), dict(parts), sha256, size, dict(facts or {}), beside)
    data = record_bytes(record)
    job.note("wrote", path=_name(job, output), sha256=sha256, record=hashlib.sha256(data).hexdigest())
    write_bytes(job.record(output), data)
    forget_failure(job, output)
    return record


def forget(job: JobFolder, output: Path) -> None:
    """Take back that an output is done; the output itself stays until it is made anew."""
    record = job.record(output)
    if record.exists():
        job.note("took back", path=_name(job, output))
        record.unlink(missing_ok=True)


@dataclass(frozen=True)
class Failed:
    """Why an output could not be made.

    Attributes:
        key: SHA-256 of the parts it would have been made from; "" where they were not known.
        cause: what was found.
        mend: what helps.
    """

    key: str
    cause: str
    mend: str


def write_failure(job: JobFolder, output: Path, parts: Mapping[str, Any] | None, cause: str, mend: str) -> None:
    """Keep why an output could not be made; what an earlier run made of it no longer counts."""
    forget(job, output)
    data = json_bytes(asdict(Failed("" if parts is None else key_of(parts), cause, mend)))
    job.note("failed", path=_name(job, output), cause=cause, mend=mend, record=hashlib.sha256(data).hexdigest())
    write_bytes(job.failure(output), data)


def read_failure(job: JobFolder, output: Path) -> Failed | None:
    """Return why `output` could not be made, None where nothing is known of a failure."""
    try:
        return Failed(**json.loads(job.failure(output).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget_failure(job: JobFolder, output: Path) -> None:
    """Forget why `output` could not be made: it is tried again."""
    job.failure(output).unlink(missing_ok=True)


def _name(job: JobFolder, output: Path) -> str:
    return output.relative_to(job.root).as_posix()


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            rows += _flat(item, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", item))
    return rows
