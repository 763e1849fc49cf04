"""Features of a slide that never was, for tests of formats."""

from __future__ import annotations

import numpy as np

from pipelines.formats.slide_features import SlideFeatures

PASSPORT = {"id": "uni_v1", "weights_sha256": "ab", "tile": {"size": 224, "mpp": 0.5, "overlap": 0}}


def slide(name="s1", rows=7, dim=5, mpp=0.25, footprint=448, seed=0, passport=PASSPORT, dtype=np.float16):
    rng = np.random.default_rng(seed)
    places = rng.choice(40 * 40, rows, replace=False)
    xy = np.stack([places // 40, places % 40], axis=1).astype(np.int64) * footprint
    features = rng.standard_normal((rows, dim)).astype(dtype)
    return SlideFeatures(name, features, xy, (footprint, footprint), 224, (mpp, mpp), passport, 0, (90_000, 80_000))
