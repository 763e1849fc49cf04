"""The one writer: whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from pipelines.errors import EnvironmentFault, ExitCode
from pipelines.files import (
    h5_bytes,
    read_csv,
    sha256_file,
    sha256_json,
    sweep_leftovers,
    write_bytes,
    write_csv,
    write_json,
)
from pipelines.processes import this_process


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(EnvironmentFault, match=r"a\.bin.*Input/output error") as caught:
        write_bytes(target, b"new and longer")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_leftovers_of_dead_processes_are_swept_and_no_others(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    write_bytes(tmp_path / "sub" / "a", b"x")
    here = this_process().space
    names = f".1.{dead.stdout.strip()}.{here}.tmp", f".2.{os.getpid()}.{here}.tmp", ".3.1.elsewhere.tmp", "b.tmp"
    for name in (*names, ".4.1.elsewhere.tmp"):
        (tmp_path / "sub" / name).write_bytes(b"")
    os.utime(tmp_path / "sub" / ".4.1.elsewhere.tmp", (0, 0))
    assert sweep_leftovers(tmp_path) == 2
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == sorted(["a", *names[1:]])


def test_a_full_disk_is_one_clear_error_without_a_crash(tmp_path):
    """RLIMIT_FSIZE stands in for a full disk; h5py writing to the disk itself ends with SIGSEGV here."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from pipelines.files import h5_bytes, write_bytes\n"
        "from pipelines.errors import EnvironmentFault\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "data = h5_bytes(lambda f: f.create_dataset('features', data=np.ones((1000, 100))))\n"
        "try:\n    write_bytes(Path(sys.argv[1]), data)\n"
        "except EnvironmentFault as error:\n    print(error)\n"
    )
    target = tmp_path / "features.h5"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no room: 0.8 MB are needed, 0.1 MB is the most a file may have" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_equal_content_gives_equal_bytes():
    def fill(file: h5py.File) -> None:
        file.create_dataset("features", data=np.arange(12.0).reshape(3, 4))
        file.attrs["note"] = "µm"

    assert h5_bytes(fill) == h5_bytes(fill)


def test_tables_come_back(tmp_path):
    path = tmp_path / "t.csv"
    rows = [{"a": "1", "b": "x, y"}, {"a": "", "b": 'say "so"\nagain'}]
    write_csv(path, ("a", "b"), rows)
    assert read_csv(path) == rows


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffslide_id,label\r\nä,1\r\n".encode())
    assert read_csv(path) == [{"slide_id": "ä", "label": "1"}]


def test_hashes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    assert sha256_file(tmp_path / "a.json") == sha256_file(tmp_path / "a.json")
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 1.5})
