"""The shared zoo of odd and damaged slides, made for a test."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _shared import shared_path


def write_zoo(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Write the wanted cases into a folder; return their rows of the zoo's manifest."""
    source = shared_path("tools/make_bad_slides.py")
    spec = importlib.util.spec_from_file_location("make_bad_slides", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_bad_slides"] = module
    spec.loader.exec_module(module)
    return module.write(folder, cases=[case for case in module.CASES if wanted(case)])["cases"]
