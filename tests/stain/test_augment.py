"""Augmented colors: what changes, what must not, and that a seed says all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _shared import shared_path
from PIL import Image

import stain

LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor}


@pytest.fixture(scope="module")
def batch():
    image = np.asarray(Image.open(shared_path("data/tiles/stain/histoqc_template1.png")).convert("RGB"))
    return np.stack([image[:128, :128], image[200:328, 200:328], image[:128, :128]])


@pytest.fixture(scope="module")
def seen():
    names = ("histoqc_template1", "histoqc_template2", "histoqc_template3", "tia_target_1000")
    images = [np.asarray(Image.open(shared_path(f"data/tiles/stain/{n}.png")).convert("RGB")) for n in names]
    return [stain.fit("reinhard", image).source for image in images]


def augment(kind, batch, params, seen, **options):
    if kind == "jitter":
        return stain.jitter_stains(batch, params["macenko"], **options)
    return stain.rand_stain_na(batch, params["reinhard"], seen, **options)


@pytest.fixture(scope="module")
def params(batch):
    return {method: stain.fit(method, batch) for method in ("macenko", "reinhard")}


@pytest.mark.parametrize("kind", ["jitter", "na"])
def test_a_seed_says_all(kind, batch, params, seen):
    """Numpy and torch alike; a tile's colors follow its number, or the batch shares one draw."""
    once = augment(kind, batch, params, seen, seed=(3, 1))
    np.testing.assert_array_equal(augment(kind, batch, params, seen, seed=(3, 1)), once)
    in_torch = augment(kind, torch.tensor(batch), params, seen, seed=(3, 1))
    assert isinstance(in_torch, torch.Tensor)
    assert np.abs(in_torch.numpy().astype(int) - once).max() <= (0 if kind == "jitter" else 1)
    assert (augment(kind, batch, params, seen, seed=(3, 2)) != once).mean() > 0.3
    assert (once[0] != once[2]).mean() > 0.3, "tiles 0 and 2 show the same, and must come out differently"
    np.testing.assert_array_equal(augment(kind, batch[:1], params, seen, seed=(3, 1)), once[:1])
    shared = augment(kind, batch, params, seen, seed=(3, 1), per_tile=False)
    np.testing.assert_array_equal(shared[0], shared[2])


@pytest.mark.parametrize("kind", ["jitter", "na"])
def test_glass_keeps_its_bytes_and_tissue_does_not(kind, batch, params, seen):
    white = np.array(params["macenko"].white)
    glass = (batch >= white).all(axis=-1)
    out = augment(kind, batch, params, seen, seed=0)
    assert glass.sum() > 20
    np.testing.assert_array_equal(out[glass], batch[glass])
    assert (out[~glass] != batch[~glass]).mean() > 0.3


def test_jitter_multiplies_amounts_within_its_strength(params):
    """Beer-Lambert tissue without noise: measured again by least squares, each amount has one factor in 1 ± 0.3."""
    vectors = np.array(params["macenko"].source.vectors)
    white = np.array(params["macenko"].white)
    amounts = np.random.default_rng(0).uniform(0.3, 1.0, (1, 64, 64, 2))
    tile = np.rint(white * np.exp(-amounts @ vectors)).astype(np.uint8)
    factors = []
    for seed in range(12):
        out = stain.jitter_stains(tile, params["macenko"], seed=seed, strength=0.3)
        density = np.log(white) - np.log(np.maximum(out.reshape(-1, 3), 1))
        again = np.linalg.lstsq(vectors.T, density.T, rcond=None)[0].T
        factors.append(np.median(again / amounts.reshape(-1, 2), axis=0))
    factors = np.array(factors)
    assert factors.min() > 0.68
    assert factors.max() < 1.32
    assert np.ptp(factors, axis=0).min() > 0.3
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.8, "the two stains are drawn apart"


def test_no_strength_is_no_change(batch, params):
    np.testing.assert_array_equal(stain.jitter_stains(batch, params["macenko"], seed=1, strength=0.0), batch)
    np.testing.assert_array_equal(stain.jitter_stains(batch, seed=1, strength=0.0), batch)


def test_drawn_colors_follow_those_seen(batch, params, seen):
    """Over many draws the mean color of tissue has the mean of the slides seen, and varies about as they do."""
    means = []
    for seed in range(30):
        out = stain.rand_stain_na(batch[:1, ::2, ::2], params["reinhard"], seen, seed=seed)
        means.append(stain.measure("reinhard", np.concatenate([out] * 4))[0].mean)  # drawn colors may be no H&E
    table = np.array([one.mean for one in seen])
    spread = table.std(axis=0, ddof=1)
    own = np.array(stain.fit("reinhard", np.concatenate([batch[:1, ::2, ::2]] * 4)).source.mean)
    offset = own - np.array(params["reinhard"].source.mean)  # this tile is not the whole batch
    assert (np.abs(np.mean(means, axis=0) - table.mean(axis=0)) < spread + np.abs(offset) * 2).all()
    assert (np.std(means, axis=0) > 0.4 * spread).all()
    assert (np.std(means, axis=0) < 1.6 * spread).all()


def test_mistakes_of_the_caller_are_errors_of_ours(batch, params, seen):
    with pytest.raises(stain.PixelFormatError):
        stain.jitter_stains(batch[0], seed=0)
    with pytest.raises(stain.PixelFormatError):
        stain.jitter_stains(batch, seed=0, strength=1.0)
    with pytest.raises(stain.UnusableReferenceError):
        stain.rand_stain_na(batch, params["reinhard"], seen[:1], seed=0)
    with pytest.raises(stain.UnusableReferenceError):
        stain.rand_stain_na(batch, params["macenko"], seen, seed=0)
