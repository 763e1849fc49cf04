"""The one writer: every output of a job goes to disk through here.

A file appears under its name only when it is whole: temporary name in the same folder, fsync, rename,
fsync of the folder. HDF5 is built in memory first, because h5py on a full disk ends the process.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from .errors import EnvironmentFault, UsageError
from .h5_inside import refuse_outside
from .tables import CellsError, rows_of, shown_plainly, written_plainly

_CHUNK = 1 << 22


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` either holds all of it or does not exist (or is as it was).

    Raises:
        EnvironmentFault: the disk is full, the folder is read-only, or the device fails.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{os.getpid()}.{_host()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise EnvironmentFault(_explain(error, path, len(data))) from error


def sweep_leftovers(root: Path) -> int:
    """Delete temporary files of processes of this machine that are gone; return how many there were."""
    swept = 0
    for path in root.rglob(".*.tmp"):
        _, _, pid, host, *_ = [*path.name.split("."), "", "", "", ""]
        if host == _host() and pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, indented, with keys in the order given."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return indented JSON, keys in the order given."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table whole; see `csv_bytes`."""
    write_bytes(path, csv_bytes(columns, rows))


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Return a table; a value that is missing or None becomes an empty cell.

    Names and texts stay as they are, but for those that a spreadsheet would take for a formula: `tables.shown_plainly`.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([shown_plainly(column) for column in columns])
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return out.getvalue().encode("utf-8", "surrogateescape")  # names of files need not be text


def read_csv(path: Path, *, strip: bool = True, errors: str = "strict") -> list[dict[str, str]]:
    """Read a table with a header row; cells are text, a byte order mark is passed over.

    Tables made by hand may also be separated by semicolons or tabs.

    Args:
        path: the table.
        strip: drop blanks around cells, as in tables made by hand; our own tables are read as they are.
        errors: what becomes of bytes that are no UTF-8, as in `open`.

    Raises:
        UsageError: a row has more cells than there are columns.
    """
    with path.open(newline="", encoding="utf-8-sig", errors=errors) as file:
        rows = rows_of(file, separator=None if strip else ",")
        try:
            return [{_read(key, strip=True): _read(value, strip=strip) for key, value in row.items()} for row in rows]
        except CellsError as error:
            raise UsageError(f"{path}: {error}") from None


def h5_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of an HDF5 file that `fill` has filled; nothing touches the disk."""
    image = io.BytesIO()
    with h5py.File(image, "w", libver="v110", track_order=False) as file:
        fill(file)
    return image.getvalue()


def open_h5(path: Path) -> h5py.File:
    """Open HDF5 for reading, without locks, which fail on many network file systems.

    Raises:
        OSError: it is no HDF5 file, or damaged.
        CheckFailedError: a name in it leads to another file.
    """
    file = h5py.File(path, "r", locking=False)
    try:
        refuse_outside(file, path)
    except BaseException:
        file.close()
        raise
    return file


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON: keys sorted, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, str):
        return shown_plainly(value)
    return format(value, ".9g") if isinstance(value, float) else value


def _read(cell: str, *, strip: bool) -> str:
    return written_plainly(cell.strip() if strip else cell)


def _host() -> str:
    return "".join(sign for sign in platform.node() if sign.isalnum() or sign == "-")[:60] or "here"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot; the rename itself still holds
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path, size: int) -> str:
    megabytes = size / 1e6
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{path}: no room for {megabytes:.1f} MB ({error.strerror}). "
            "Make room or raise the quota, then run the same command again: it goes on where it stopped."
        )
    return f"{path}: could not be written ({error.strerror or error}). Check the folder, then run again."
