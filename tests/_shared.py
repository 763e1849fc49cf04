"""Where the shared slides and tiles lie; tests that need them are skipped with a reason where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path(relative: str) -> Path:
    """Return a path under the shared folder, or skip the calling test when it is not there."""
    base = Path(os.environ.get("SLIDEMIL_SHARED", "../shared"))
    path = (base if base.is_absolute() else ROOT / base) / relative
    if not path.exists():
        pytest.skip(f"shared data not here: {relative} (set SLIDEMIL_SHARED)")
    return path
