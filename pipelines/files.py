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
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from .errors import EnvironmentFault, NotUtf8Error, UsageError
from .h5_inside import refuse_outside
from .processes import Process, this_process
from .tables import CellsError, rows_of, shown_plainly, written_plainly

_CHUNK = 1 << 22
_OLD = 24 * 3600.0
"""Seconds after which a temporary file of another machine belongs to nobody."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` either holds all of it or does not exist (or is as it was).

    Raises:
        EnvironmentFault: the disk is full, the folder is read-only, or the device fails.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:  # Ctrl-C, too, leaves nothing that is not whole
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise EnvironmentFault(explain(error, path, len(data))) from error
        raise


def write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of small files so that `folder` holds all of them and nothing older, or does not exist.

    Raises:
        EnvironmentFault: as `write_bytes`.
    """
    temporary = temporary_name(folder)
    try:
        for name, data in files.items():
            write_bytes(temporary / name, data)
        replace_tree(temporary, folder)
    except OSError as error:
        raise EnvironmentFault(explain(error, folder, sum(map(len, files.values())))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_tree(temporary: Path, folder: Path) -> None:
    """Give a folder whose files are on the disk its name, in place of an older one."""
    old = temporary_name(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, where it is there.

    Raises:
        EnvironmentFault: it cannot be deleted.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(explain(error, path, 0)) from error


def temporary_name(path: Path) -> Path:
    """Return a name in the same folder that no other process uses, and that says whose it is."""
    me = this_process()
    return path.with_name(f".{uuid.uuid4().hex[:8]}.{me.pid}.{me.space}.tmp")


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file of any size so that `path` either holds all of it or is as it was.

    Raises:
        EnvironmentFault: as `write_bytes`.
    """
    with written_whole(path, source.stat().st_size) as temporary:
        shutil.copyfile(source, temporary)


@contextlib.contextmanager
def written_whole(path: Path, size: int = 0) -> Iterator[Path]:
    """Let a file that is too large for memory be written to a temporary name; it gets its own when it is whole.

    Args:
        path: of the file.
        size: bytes that it will have, where that is known.

    Raises:
        EnvironmentFault: the disk is full, the folder is read-only, or the device fails.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentFault(explain(error, path, size)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sweep_leftovers(root: Path) -> int:
    """Delete temporary files and folders of processes of this machine that are gone, and those older than a day.

    Returns:
        How many there were.
    """
    swept = 0
    for path in root.rglob(".*.tmp"):
        _, _, pid, space, *_ = [*path.name.split("."), "", "", "", ""]
        gone = Process("", space, int(pid), "").gone() if pid.isdigit() else None
        with contextlib.suppress(OSError):  # another run may be as tidy
            if gone or (gone is None and file_system_time(path.parent) - path.stat().st_mtime > _OLD):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                swept += 1
    return swept


def file_system_time(folder: Path) -> float:
    """Return the time by the clock that stamps the files of a folder: a server's, where it lies on one."""
    probe = temporary_name(folder / "clock")
    try:
        with probe.open("wb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a folder that can be read only: this machine's clock has to do
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, indented, with keys in the order given."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return indented JSON, keys in the order given; names that are no text are written as escapes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


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
        NotUtf8Error: the table is written in another encoding.
    """
    with path.open(newline="", encoding="utf-8-sig", errors=errors) as file:
        try:
            rows = rows_of(file, separator=None if strip else ",")
            return [{_read(key, strip=True): _read(value, strip=strip) for key, value in row.items()} for row in rows]
        except UnicodeDecodeError:
            raise NotUtf8Error(f"{path}: the table is not written in UTF-8. Save it as `CSV UTF-8`.") from None
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last: what was renamed there stays renamed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot; the rename itself still holds
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def explain(error: OSError, path: Path, size: int) -> str:
    """Return one sentence on a write of `size` bytes that failed: what, why, and what helps."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{path}: no room: {_megabytes(size)} are needed, {_room(path, error.errno)} ({error.strerror}). "
            "Make room or raise the limit, then run the same command again: it goes on where it stopped."
        )
    return f"{path}: could not be written ({error.strerror or error}). Check the folder, then run again."


def _room(path: Path, why: int) -> str:
    """Say how much can be written: what the disk has, or what a limit allows."""
    if why == errno.EFBIG:
        import resource

        return f"{_megabytes(resource.getrlimit(resource.RLIMIT_FSIZE)[0])} is the most a file may have"
    try:
        there = _megabytes(shutil.disk_usage(next(one for one in path.parents if one.is_dir())).free)
    except (OSError, StopIteration):
        return "and how much is there cannot be seen"
    return f"the disk has {there}, the quota less" if why == errno.EDQUOT else f"{there} are there"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
