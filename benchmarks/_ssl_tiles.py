"""Tiles to train the embedded encoder on: only sources whose licence permits it, and none of the images of the probe.

Left out although they lie beside: `crc_nuclei`, `ucsb_breast` and `nuclei` (no licence stated; the first two are the
probe), DeepLIIF (not for commercial use), files of GPL repositories, and what the group that published `crc_nuclei` has
published elsewhere (TIAToolbox, free, but perhaps of the same patients).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(os.environ.get("SLIDEMIL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SIDE = 80
"""Side of a training tile in px."""

FINE, MIDDLE = (1.0, 2.6), (0.75, 1.35)
"""By how much windows are shrunk to tiles, for images of about 0.25 and 0.5 µm/px: 0.25 to 0.7 µm/px in the end."""

GLASS = 0.75
"""Largest share of glass in a window."""


@dataclass(frozen=True)
class Source:
    """An image, what its source says of its licence, and by how much its windows are shrunk."""

    path: str
    licence: str
    shrink: tuple[float, float]


SOURCES = (
    Source("slides/CMU-1-Small-Region.svs", "CC0 (OpenSlide test slide)", MIDDLE),
    Source("slides/OS-1-detail.ome.tif", "free to use and distribute, with or without modification", FINE),
    Source("slides/OS-2-ndpi.ome.tif", "free to use and distribute, with or without modification", FINE),
    Source("tiles/stain/histoqc_template1.png", "BSD-3-Clause-Clear", MIDDLE),
    Source("tiles/stain/histoqc_template2.png", "BSD-3-Clause-Clear", MIDDLE),
    Source("tiles/stain/histoqc_template3.png", "BSD-3-Clause-Clear", MIDDLE),
    Source("tiles/stain/torchstain_source.png", "MIT", MIDDLE),
    Source("tiles/stain/torchstain_target.png", "MIT", MIDDLE),
    Source("tiles/stain/gigapath_01581x_25327y.png", "Apache-2.0", MIDDLE),
    Source("tiles/stain/gigapath_01581x_25583y.png", "Apache-2.0", MIDDLE),
    Source("tiles/quality/high-nuclei-score-level0.png", "Apache-2.0", FINE),
    Source("tiles/quality/medium-nuclei-score-level0.png", "Apache-2.0", FINE),
    Source("tiles/quality/low-nuclei-score-level0.png", "Apache-2.0", FINE),
    Source("tiles/quality/high-nuclei-score-red-pen-level1.png", "Apache-2.0", MIDDLE),
    Source("tiles/quality/tissue-level0-4302-10273-4814-10785.png", "Apache-2.0", FINE),
    Source("tiles/ihc/skimage_ihc.png", "no known copyright restrictions", FINE),
)


@dataclass
class Pairs:
    """Neighboring tiles.

    Attributes:
        tiles: (N, 2, S, S, 3) uint8.
        sources: (N,) number of the source.
    """

    tiles: np.ndarray
    sources: np.ndarray


def pairs(count: int, seed: int) -> Pairs:
    """Cut so many pairs of neighbors: windows of one size, up to their own side apart."""
    images = [pixels(SHARED / "data" / one.path) for one in SOURCES]
    rng = np.random.default_rng([seed, 1])
    chance = np.sqrt([image.shape[0] * image.shape[1] for image in images])
    numbers = np.sort(rng.choice(len(images), count, p=chance / chance.sum()))
    tiles = np.stack([_pair(images[n], SOURCES[n].shrink, rng) for n in numbers])
    return Pairs(tiles, numbers)


def pixels(path: Path) -> np.ndarray:
    """Return the whole of an image or of a small slide, RGB."""
    if path.suffix in (".svs", ".tif"):
        import wsi

        with wsi.open_slide(path) as slide:
            width, height = slide.levels[0].width, slide.levels[0].height
            return slide.read(0, 0, width, height)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _pair(image: np.ndarray, shrink: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Cut one pair with enough tissue in both."""
    height, width = image.shape[:2]
    for _ in range(200):
        side = round(SIDE * float(np.exp(rng.uniform(*np.log(shrink)))))
        side = min(side, height, width)
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        dy, dx = rng.integers(-side, side + 1, 2)
        corners = ((y, x), (np.clip(y + dy, 0, height - side), np.clip(x + dx, 0, width - side)))
        windows = [image[top : top + side, left : left + side] for top, left in corners]
        if all((window.min(axis=2) > 215).mean() < GLASS for window in windows):
            return np.stack([np.asarray(Image.fromarray(w).resize((SIDE, SIDE), Image.Resampling.BOX if side > SIDE
                                                                  else Image.Resampling.BILINEAR))
                             for w in windows])  # fmt: skip
    raise ValueError("an image without tissue")
