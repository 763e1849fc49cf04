"""Slides made for the tests, and the zoo of bad slides."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from _shared import shared_path
from _slides import smooth_picture, write_aperio


@pytest.fixture(scope="session")
def aperio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Aperio slide of three levels."""
    return write_aperio(tmp_path_factory.mktemp("aperio") / "small.svs", smooth_picture(1000, 700), levels=3)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The shared zoo of bad slides, without the one of 60,000 px a side: {"folder", "cases"}."""
    source = shared_path("tools/make_bad_slides.py")
    spec = importlib.util.spec_from_file_location("make_bad_slides", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_bad_slides"] = module
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("zoo")
    cases = [c for c in module.CASES if c["file"] != "good/huge_one_level.tiff" and c["group"] != "name"]
    manifest = module.write(folder, cases=cases)
    return {"folder": folder, "cases": manifest["cases"]}
