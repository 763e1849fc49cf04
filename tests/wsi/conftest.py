"""Slides made for the tests, and the zoo of bad slides."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from _shared import shared_path

APERIO = "Aperio Image Library v12.0\n{w}x{h} (256x256) JPEG/RGB Q=90|AppMag = {power}|MPP = {mpp}"


def smooth_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return pixels that JPEG keeps well and that differ everywhere: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(9, 40) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(9, 40)) for _ in range(3)]
    return (130 + 90 * np.stack(waves, -1)).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    """Return the exact mean of 2 x 2 blocks."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return (image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)


def write_aperio(path: Path, image: np.ndarray, *, mpp: object = 0.5, power: int = 20, levels: int = 1, **options: Any):
    """Write a pyramid that OpenSlide takes for an Aperio slide; lossless unless told otherwise."""
    options = {"compression": "jpeg", "compressionargs": {"level": 100}, **options}
    text = APERIO.format(w=image.shape[1], h=image.shape[0], power=power, mpp=mpp)
    with tifffile.TiffWriter(path) as tiff:
        for number in range(levels):
            tiff.write(
                image,
                tile=(256, 256),
                photometric="rgb",
                description=text if number == 0 else "Aperio Image Library v12.0\nreduced",
                subfiletype=1 if number else 0,
                metadata=None,
                software=False,
                **options,
            )
            image = halved(image)
    return path


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
