"""Vahadane against tissue whose stains are known, and against scikit-learn's solver of the same problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.decomposition import dict_learning

import stain
from stain import macenko, vahadane
from stain.density import optical_density, tissue_mask

HE = [[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]]
PAIRS = {"ruifrok": HE, "macenko": [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]}


def unit(vectors):
    return np.asarray(vectors, float) / np.linalg.norm(vectors, axis=-1, keepdims=True)


def tissue(vectors, seed=0, count=20_000, noise=2.0, amounts=(1.0, 1.0)):
    """Nuclei rich in the first stain, stroma rich in the second, a tenth of glass, noise in grey levels."""
    rng = np.random.default_rng(seed)
    nucleus = rng.random(count) < 0.3
    first = np.where(nucleus, rng.gamma(6, 0.2, count), rng.gamma(1.2, 0.1, count)) * amounts[0]
    second = np.where(nucleus, rng.gamma(1.5, 0.15, count), rng.gamma(5, 0.12, count)) * amounts[1]
    both = np.stack([first, second], axis=-1) * (rng.random(count) >= 0.1)[:, None]
    light = 255 * np.exp(-both @ unit(vectors)) + rng.normal(0, noise, (count, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def densities(pixels):
    density = optical_density(pixels, (255, 255, 255))
    return density[tissue_mask(density)]


def objective(density, vectors, sparsity):
    """Least over non-negative amounts, by coordinate descent on each pixel until nothing moves."""
    amounts = np.zeros((len(density), 2))
    for _ in range(300):
        for k in range(2):
            rest = density - amounts[:, [1 - k]] * vectors[1 - k]
            amounts[:, k] = np.maximum(rest @ vectors[k] - sparsity, 0)
    return 0.5 * ((density - amounts @ vectors) ** 2).sum() + sparsity * amounts.sum()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_known_vectors_come_back(pair, seed):
    """The first stain within 3°, the second within 5°, at noise sd 2."""
    params = stain.fit("vahadane", tissue(PAIRS[pair], seed))
    assert params.status == "ok"
    for found, true, least in zip(params.source.vectors, PAIRS[pair], (3, 5), strict=True):
        assert np.degrees(np.arccos(np.clip(unit(found) @ unit(true), -1, 1))) <= least


@pytest.mark.parametrize("sparsity", [0.02, 0.1])
def test_as_good_a_minimum_as_scikit_learn_finds(sparsity):
    """The same objective, non-negative, rows of length 1, from the same start."""
    density = densities(tissue(HE, count=600))
    start = unit([[0.6, 0.7, 0.3], [0.2, 0.9, 0.2]])
    mine = vahadane.factorize(density, start, sparsity)
    code, theirs, *_ = dict_learning(
        density,
        n_components=2,
        alpha=sparsity,
        max_iter=200,
        tol=1e-9,
        method="cd",
        dict_init=start,
        code_init=np.maximum(density @ np.linalg.pinv(start), 0),
        positive_dict=True,
        positive_code=True,
    )
    assert objective(density, mine, sparsity) <= 1.001 * objective(density, theirs, sparsity)
    np.testing.assert_allclose((unit(theirs) * mine).sum(axis=1), 1, atol=1e-3)
    assert code.min() >= 0


def test_every_round_lowers_the_objective():
    density = densities(tissue(HE, count=2000))
    start = unit([[0.5, 0.5, 0.5], [0.1, 0.9, 0.4]])
    values = [objective(density, vahadane.factorize(density, start, 0.05, steps), 0.05) for steps in (1, 2, 5, 20, 80)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_what_it_cannot_tell_it_says_as_macenko_does():
    for pixels in (
        tissue(HE, amounts=(1, 0)),
        tissue(HE, amounts=(0, 1)),
        np.full((4000, 3), (220, 150, 190), np.uint8),
    ):
        params = stain.fit("vahadane", pixels)
        assert params.status == stain.fit("macenko", pixels).status != "ok"
        np.testing.assert_array_equal(params.apply(pixels), pixels)


def test_more_sparsity_takes_the_vectors_into_the_cloud():
    """Which is why the weight is small: the angle between the two shrinks with it."""
    density = densities(tissue(HE))
    angles = []
    for sparsity in (0.0, 0.02, 0.1, 0.3):
        first, second = vahadane.factorize(density, unit(HE), sparsity)
        angles.append(np.degrees(np.arccos(first @ second)))
    assert angles == sorted(angles, reverse=True)
    assert macenko.MIN_ANGLE < angles[-1] < angles[0] - 3
