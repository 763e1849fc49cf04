"""Small slides of real format, each with other pixels, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

_APERIO = "Aperio Image Library v12.0\n{w}x{h} (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"


def small_slides(folder: Path, count: int, *, side: int = 512) -> Path:
    """Write slides s0000.svs … of about `side` px, 0.5 µm/px, tiled JPEG; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        width = side + 64 * (number % 3)
        y, x = np.mgrid[:side, :width]
        waves = [np.sin(x / rng.uniform(9, 40) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(9, 40)) for _ in range(3)]
        tifffile.imwrite(
            folder / f"s{number:04}.svs",
            (130 + 90 * np.stack(waves, -1)).astype(np.uint8),
            tile=(256, 256),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 95},
            description=_APERIO.format(w=width, h=side),
            metadata=None,
            software=False,
        )
    return folder
