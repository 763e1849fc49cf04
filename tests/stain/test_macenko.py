"""Macenko against synthetic Beer-Lambert tissue, whose stains are known, and against its own laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from _shared import shared_path
from PIL import Image

import stain
from stain import macenko
from stain.density import optical_density, tissue_mask

PAIRS = {
    "ruifrok": [[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]],
    "macenko": [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]],
    "h-dab": [[0.650, 0.704, 0.286], [0.268, 0.570, 0.776]],
}


def unit(vectors):
    vectors = np.asarray(vectors, dtype=float)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def tissue(vectors, *, seed=0, count=20_000, noise=2.0, white=255.0, glass=0.1, amounts=(1.0, 1.0)):
    """Nuclei rich in the first stain, stroma rich in the second, some glass, grey-level noise."""
    rng = np.random.default_rng(seed)
    nucleus = rng.random(count) < 0.3
    first = np.where(nucleus, rng.gamma(6, 0.2, count), rng.gamma(1.2, 0.1, count)) * amounts[0]
    second = np.where(nucleus, rng.gamma(1.5, 0.15, count), rng.gamma(5, 0.12, count)) * amounts[1]
    both = np.stack([first, second], axis=-1) * (rng.random(count) >= glass)[:, None]
    light = white * np.exp(-both @ unit(vectors)) + rng.normal(0, noise, (count, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def degrees(a, b):
    return np.degrees(np.arccos(np.clip(unit(a) @ unit(b), -1, 1)))


@pytest.mark.parametrize("white", [255.0, 240.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_known_vectors_come_back(pair, white):
    """The first stain within 3°, the second within 5°, at noise sd 2, whatever the white of the scanner."""
    for seed in range(3):
        params = stain.fit(
            "macenko", tissue(PAIRS[pair], seed=seed, white=white), reference=tissue(PAIRS[pair], seed=77)
        )
        assert params.status == "ok"
        assert params.white_source == "measured"
        np.testing.assert_allclose(params.white, white, atol=2)
        assert degrees(params.source.vectors[0], PAIRS[pair][0]) <= 3
        assert degrees(params.source.vectors[1], PAIRS[pair][1]) <= 5


def test_sign_of_eigenvectors_does_not_matter():
    """All four sign choices that a linear algebra library may make give the same vectors, exactly."""
    density = optical_density(tissue(PAIRS["ruifrok"]), (255, 255, 255))
    density = density[tissue_mask(density)]
    _, eigenvectors = np.linalg.eigh(density.T @ density)
    plane = eigenvectors[:, [2, 1]]
    expected = macenko.extreme_directions(density, plane, 1.0)
    for signs in itertools.product([1, -1], repeat=2):
        np.testing.assert_array_equal(macenko.extreme_directions(density, plane * signs, 1.0), expected)
    assert min(degrees(expected[0], v) for v in PAIRS["ruifrok"]) <= 5


def test_matches_beer_lambert_of_the_target_stains():
    """Noise-free tissue of known amounts turns into the picture that the target's stains would give."""
    source, target = unit(PAIRS["macenko"]), unit(PAIRS["ruifrok"])
    rng = np.random.default_rng(3)
    amounts = rng.uniform(0, 1.2, (5000, 2))
    pixels = np.rint(255 * np.exp(-amounts @ source)).astype(np.uint8)
    expected = 255 * np.exp(-(amounts * [1.5, 0.5]) @ target)
    matrices = [
        macenko.StainMatrix(tuple(map(tuple, vectors.tolist())), top)
        for vectors, top in ((source, (1.0, 1.0)), (target, (1.5, 0.5)))
    ]
    got = macenko.normalize(pixels, (255.0, 255.0, 255.0), *matrices)
    # Bytes carry half a level of rounding; unmixing two stains 23° apart widens it, most in dark pixels.
    error = np.abs(got - expected)
    assert error.mean() < 0.6
    assert np.percentile(error, 99.9) < 4


def test_amount_ratio_is_capped():
    """A very weak slide is raised at most threefold."""
    params = stain.fit("macenko", tissue(PAIRS["ruifrok"], amounts=(0.2, 0.2), noise=0.5))
    change = macenko._density_change(params.source, params.target)
    ratio = (change + np.asarray(params.source.vectors)) / np.asarray(params.target.vectors)
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(3, 1))
    assert ratio.max() <= macenko.MAX_RATIO + 1e-9
    assert params.target.max_concentrations[0] / params.source.max_concentrations[0] > macenko.MAX_RATIO


@pytest.mark.parametrize("noise", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("amounts", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.5)])
def test_one_stain_alone_is_told_and_left_alone(amounts, noise):
    """With one dye the other's vector would be invented (37° off): the slide stays as it is, and says so."""
    pixels = tissue(PAIRS["ruifrok"], amounts=amounts, noise=noise)
    params = stain.fit("macenko", pixels)
    assert params.status == "single stain"
    np.testing.assert_array_equal(params.apply(pixels), pixels)


def test_brown_immunostain_is_not_turned_into_eosin():
    """H-DAB against an H&E reference has other dyes; against an H-DAB reference it is normalized."""
    pixels = tissue(PAIRS["h-dab"])
    for method in stain.METHODS:
        params = stain.fit(method, pixels)
        assert params.status == "other stains"
        np.testing.assert_array_equal(params.apply(pixels), pixels)
        assert stain.fit(method, pixels, reference=tissue(PAIRS["h-dab"], seed=5)).status == "ok"


PIGMENTS = {
    "melanin": [0.45, 0.60, 0.66], "tattoo ink": [0.55, 0.62, 0.60], "AEC": [0.274, 0.679, 0.680],
    "haemosiderin": [0.30, 0.60, 0.74],
}  # fmt: skip


@pytest.mark.parametrize("pigment", PIGMENTS)
def test_a_pigment_in_the_place_of_eosin_is_not_taken_for_it(pigment):
    pixels = tissue([PAIRS["ruifrok"][0], PIGMENTS[pigment]])
    for method in stain.METHODS:
        assert stain.fit(method, pixels).status == "other stains", method
    assert stain.fit("macenko", pixels, reference=pixels).status == "ok", "by itself it has two stains"


@pytest.mark.parametrize(
    ("image", "status"),
    [
        ("crc_nuclei/img011.png", "other stains"),  # tattoo ink over half of it
        ("crc_nuclei/img012.png", "other stains"),
        ("crc_nuclei/img025.png", "ok"),  # much blood
        ("crc_nuclei/img033.png", "ok"),
        ("ucsb_breast/ytma12_010804_malignant3.jpg", "ok"),
        ("nuclei/image11.png", "ok"),
    ],
)
def test_real_pigment_is_told_from_real_eosin(image, status):
    pixels = np.asarray(Image.open(shared_path(f"data/tiles/{image}")).convert("RGB"))
    for method in ("macenko", "reinhard"):
        assert stain.fit(method, pixels).status == status
