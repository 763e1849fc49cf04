"""Reinhard against scikit-image's CIELAB and against its defining property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _shared import shared_path
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

import stain
from stain import reinhard
from stain.density import optical_density, tissue_mask


def channels(image):
    return [image[..., k] for k in range(3)]


@pytest.fixture
def colors():
    return np.random.default_rng(0).random((64, 64, 3))


def test_lab_equals_scikit_image(colors):
    """Same space, same white, to 1e-6."""
    got = np.stack(reinhard.lab_from_rgb(np, channels(colors)), axis=-1)
    np.testing.assert_allclose(got, rgb2lab(colors), atol=1e-6)
    got = np.stack(reinhard.rgb_from_lab(np, channels(rgb2lab(colors))), axis=-1)
    np.testing.assert_allclose(got, lab2rgb(rgb2lab(colors)), atol=1e-6)


def test_lab_in_torch_equals_scikit_image(colors):
    """The same lines run on torch arrays."""
    got = torch.stack(reinhard.lab_from_rgb(torch, channels(torch.from_numpy(colors))), dim=-1)
    np.testing.assert_allclose(got.numpy(), rgb2lab(colors), atol=1e-6)


def test_every_byte_survives_the_round_trip():
    """To linear light, to Lab and back changes no byte color."""
    rgb = np.random.default_rng(1).integers(0, 256, (20_000, 3))
    linear = reinhard._linear_table()[rgb]
    back = reinhard.rgb_from_lab(np, reinhard.lab_from_linear(np, channels(linear)))
    np.testing.assert_array_equal(np.rint(np.stack(back, axis=-1) * 255), rgb)


def test_tissue_takes_mean_and_spread_of_the_reference():
    """Before clipping, the Lab mean and sd of tissue equal the target's to 1e-4."""
    path = shared_path("data/tiles/stain/histoqc_template1.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)[::3]
    params = stain.fit("reinhard", pixels)
    density = optical_density(pixels, params.white)
    tissue, density = pixels[tissue_mask(density)], density[tissue_mask(density)]
    moved = reinhard.shift(channels(rgb2lab(tissue)), params.source, params.target)
    # `tissue` holds a few pixels of ink hue that the fit left out; they weigh less than 0.1 Lab units.
    np.testing.assert_allclose([c.mean() for c in moved], params.target.mean, atol=0.3)
    statistics, _ = reinhard.estimate(tissue, density)
    exact = reinhard.shift(channels(rgb2lab(tissue)), statistics, params.target)
    np.testing.assert_allclose([c.mean() for c in exact], params.target.mean, atol=1e-4)
    np.testing.assert_allclose([c.std() for c in exact], params.target.sd, atol=1e-4)
