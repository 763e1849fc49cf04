"""The shared zoo of odd and damaged slides, and what must be true of each (`make_bad_slides.py` says it)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _slides import SHARED

Case = dict[str, Any]


def write_zoo(folder: Path, wanted: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """Write the wanted cases below a folder; return their rows of the manifest."""
    generator = SHARED / "tools/make_bad_slides.py"
    spec = importlib.util.spec_from_file_location("make_bad_slides", generator)
    assert spec is not None, generator
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_bad_slides"] = module
    spec.loader.exec_module(module)
    cases: list[Case] = module.write(folder, cases=[case for case in module.CASES if wanted(case)])["cases"]
    return [case for case in cases if case["made"]]
