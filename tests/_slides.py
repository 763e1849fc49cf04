"""Slides made for the tests, and their tiles as the stream gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import wsi

MPP = 0.25
"""µm/px that slides are taken to have where it does not matter."""

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
                tile=options.pop("tile", (256, 256)),
                photometric="rgb",
                description=text if number == 0 else "Aperio Image Library v12.0\nreduced",
                subfiletype=1 if number else 0,
                metadata=None,
                software=False,
                **options,
            )
            image = halved(image)
    return path


def with_profile(profile: bytes) -> dict[str, Any]:
    """Return the option of `write_aperio` that puts a colour profile into every level."""
    return {"extratags": [(34675, 7, len(profile), profile, True)]}


def opened(path):
    return wsi.open_slide(path, manifest_mpp=MPP)


def streamed(slide, grid, **options):
    """Return {index: pixels} and {index: error}."""
    tiles, errors = {}, {}
    with wsi.stream([(slide, grid)], **{"workers": 2, "batch_size": 8, **options}) as stream:
        for batch in stream:
            failed = iter(batch.errors)
            for pixels, index, ok in zip(batch.pixels, batch.index.tolist(), batch.ok, strict=True):
                if ok:
                    tiles[index] = pixels.copy()
                else:
                    errors[index] = next(failed)
    assert sorted([*tiles, *errors]) == list(range(len(grid)))
    return tiles, errors


def native_picture(level, data, scale=1):
    """Decode every tile of a level and lay them side by side: (rows, columns, 3)."""
    tiles = [level.decode(one, scale).copy() for one in data]
    lines = [np.concatenate(tiles[i : i + level.across], 1) for i in range(0, len(tiles), level.across)]
    return np.concatenate(lines)[: level.height // scale, : level.width // scale]
