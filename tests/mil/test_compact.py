"""The network that comes with slidemil: filters against oracles, weights, model card, and what it can be used for."""

from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import hed2rgb

from mil import Bag, check_batch_invariance, create_encoder, create_head, explain
from mil.encoders import compact
from mil.encoders.registry import EMBEDDED, registry

ENTRY = registry()["slidemil-compact"]
CARD = EMBEDDED / "slidemil-compact.md"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("slidemil-compact", device="cpu")


def tiles(n=2, side=224, seed=0):
    """Smooth colors with dark grain: about what tissue is."""
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, (n, side, side, 3)), (0, 3, 3, 0)) * 300
    return np.clip(np.array([180, 130, 180]) + grain, 1, 255).astype(np.uint8)


# The fixed part


def test_amounts_of_stain_are_those_that_scikit_image_made_a_color_of():
    """Color deconvolution undoes `hed2rgb`, but for its unit: it divides by ln 1e6."""
    amounts = np.random.default_rng(0).uniform(0.1, 0.6, (6, 1, 1, 3))
    flat = np.broadcast_to(hed2rgb(amounts / np.log(1e6)), (6, 32, 32, 3))
    x = 2 * torch.from_numpy(flat.copy()).permute(0, 3, 1, 2).float() - 1
    for found in compact.Filters()(x)[0]:
        expected = torch.from_numpy(amounts[:, 0, 0]).float()[..., None, None].expand_as(found)
        assert torch.allclose(found, expected, atol=1e-4)


def test_derivatives_are_those_of_a_polynomial():
    """Of a ramp the slope, of a parabola the curvature, of x·y the mixed one; constants give nothing."""
    y, x = np.mgrid[0:15, 0:15].astype(float) - 7
    plane = 3 + 0.5 * x - 0.25 * y + 0.4 * x**2 - 0.3 * y**2 + 0.2 * x * y
    bank = compact.gaussian_derivatives()[:, 0].astype(float)
    found = [float((plane[4:11, 4:11] * kernel).sum()) for kernel in bank]
    assert np.allclose(found, [0.5, -0.25, 0.8, -0.6, 0.2], atol=1e-5)


def test_blobs_and_gradients_answer_to_what_they_are_named_after():
    """A dark dot is dark, a bright one bright, a line is elongated, a flat tile is nothing."""
    filters = compact.Filters()
    y, x = np.mgrid[0:64, 0:64]
    dot = np.exp(-((x - 32.0) ** 2 + (y - 32.0) ** 2) / 8)
    line = np.exp(-((x - 32.0) ** 2) / 8) * np.ones_like(dot)
    planes = torch.tensor(np.stack([dot, -dot, line, np.full_like(dot, 0.7)])).float()
    found = filters.invariants(planes[:, None])[:, :, 4:-4, 4:-4]
    gradient, dark, bright, elongation = found.amax((2, 3)).T
    assert dark[0] > 2 * dark[1]
    assert bright[1] > 2 * bright[0]
    assert dark[0] == pytest.approx(float(bright[1]), rel=1e-3)
    assert (elongation / gradient)[2] > (elongation / gradient)[0]
    assert torch.allclose(found[3], torch.zeros(()), atol=2e-3)


def test_a_turned_tile_has_the_same_invariants():
    """To within what a grid of every second pixel allows."""
    x = torch.from_numpy(tiles(1)).permute(0, 3, 1, 2).float() / 127.5 - 1
    straight, turned = (compact.Filters()(one)[1] for one in (x, torch.rot90(x, 1, (2, 3))))
    for one, other in zip(straight, turned, strict=True):
        assert torch.allclose(one.mean((2, 3)), other.mean((2, 3)), rtol=0.03, atol=2e-3)


# The weights that are shipped


def test_the_shipped_file_is_small_and_is_the_one_of_the_card(encoder):
    data = ENTRY.shipped.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert len(data) <= 5_000_000
    assert digest in CARD.read_text(encoding="utf-8")
    passport = json.loads(json.dumps(encoder.passport()))
    assert (passport["weights_sha256"], passport["kind"], passport["licence"]) == (digest, "slidemil", "Apache-2.0")
    assert passport["weights"] == ENTRY.files[0]


def test_parameters_and_shapes(encoder):
    """Parameters summed up by hand: kernels of 3 x 3, and two numbers a channel for each norm."""
    widths, beside = compact.WIDTHS, compact.STAINS + compact.INVARIANTS
    kernels = beside * widths[0]
    for n, (before, after) in enumerate(itertools.pairwise(widths)):
        kernels += before * after + (after + (beside if n < 2 else 0)) * after
    by_hand = 9 * kernels + 2 * (widths[0] + 2 * sum(widths[1:]))
    assert sum(p.numel() for p in encoder.module.parameters()) == ENTRY.parameters == by_hand
    assert encoder.map_shape == (14, 14, ENTRY.dim)
    assert encoder(tiles()).shape == (2, ENTRY.dim)


def test_features_are_the_mean_of_the_dense_map_and_are_evenly_scaled(encoder):
    pixels = tiles(3)
    assert np.allclose(encoder.dense(pixels).mean((1, 2)), encoder(pixels), atol=1e-4)
    assert np.isfinite(encoder(pixels)).all()


def test_features_do_not_depend_on_the_batch(encoder):
    check_batch_invariance(encoder, tiles=2)


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_tiles_give_numbers(encoder, value):
    assert np.isfinite(encoder(np.full((1, 224, 224, 3), value, np.uint8))).all()


def test_golden_features(encoder):
    """What the shipped file gave when it was trained, to within what processors round otherwise."""
    y, x = np.mgrid[0:224, 0:224]
    pixels = np.stack([(x * y >> 5) % 256, (3 * x + y) % 256, (x + 2 * y) % 256], -1).astype(np.uint8)
    rows = list(csv.reader((Path(__file__).parent / "data" / "slidemil-compact.csv").read_text().splitlines()))
    expected = np.array(rows[0], float)
    found = encoder(pixels[None])[0]
    assert np.abs(found - expected).max() < 2e-3 * max(1.0, float(expected.std()))


def test_the_model_card_names_every_source_of_the_training(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sources = importlib.import_module("_ssl_tiles").SOURCES
    text = CARD.read_text(encoding="utf-8")
    for source in sources:
        assert f"`{source.path}`" in text
        assert source.licence in text
    named = re.findall(r"`((?:slides|tiles)/[^`]+\.\w+)`", text)
    assert sorted(named) == sorted(source.path for source in sources)
    for folder in ("crc_nuclei/", "ucsb_breast/"):
        assert not any(folder in source.path for source in sources), "the probe's images are not trained on"


# What only a network can be used for


def test_gradcam_reaches_pixels_without_a_weight_file_of_the_users(encoder):
    torch.manual_seed(0)
    pixels = tiles(3)
    head = create_head("gated_abmil", encoder.dim, 2)
    bag = Bag.from_list([encoder(pixels)])
    found = explain("gradcam", head, bag, 1, encoder=encoder, tiles=pixels)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    x = encoder.prepare(pixels).requires_grad_()
    encoder.module(x).square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
