"""Planes whose values are an encoder's levels are what it makes of the bytes itself."""

from __future__ import annotations

import numpy as np

import mil


def test_features_of_planes_are_those_of_the_bytes():
    encoder = mil.create_encoder("resnet10t", weights="random", device="cpu", batch_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, encoder.input_size, encoder.input_size, 3), dtype=np.uint8)
    planes = np.stack([encoder.levels[k][pixels[..., k]] for k in range(3)], axis=1)
    np.testing.assert_array_equal(encoder(planes), encoder(pixels))
