"""What takes long to make is made once in a run of the tests, however many processes they have."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """Return a folder of this process, filled by `make(folder)`, and what that returned in the process that called it.

    The first process of a run that asks does the work; the others get a copy, at the same place in their own folder,
    so that paths from one such folder to another hold there, too.
    """
    folder = factory.mktemp(name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return folder, make(folder)
    untouched = factory.getbasetemp().parent / name
    kept = untouched.with_suffix(".pickle")
    with untouched.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            made = make(folder)
            shutil.copytree(folder, untouched)
            kept.write_bytes(pickle.dumps(made))
            return folder, made
    shutil.copytree(untouched, folder, dirs_exist_ok=True)
    return folder, pickle.loads(kept.read_bytes())
