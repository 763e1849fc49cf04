"""Two stains replaced by tables: against the formula in float64, and against themselves in every library."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from _shared import shared_path
from _stains import CASES, PIXELS, RANDOM, exact, matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import stain
from stain import macenko, replace, tables
from stain.density import map_pixels

compiled = pytest.importorskip("stain.compiled", reason="numba is not installed")


@pytest.fixture(params=CASES)
def case(request):
    source, target, white = CASES[request.param]
    return tuple(map(float, white)), matrix(*source), matrix(*target)


def plainly(made, pixels):
    return map_pixels(pixels, lambda xp, piece: tables.change_piece(made, xp, piece))


def quickly(made, pixels):
    out = np.empty_like(pixels)
    compiled.change(made, pixels, out)
    return out


def test_error_is_at_most_one_grey_level(case):
    """On any pixels, not only tissue, whatever the stains."""
    got = quickly(macenko.tables_of(*case), PIXELS)
    assert np.abs(got - exact(PIXELS, *case)).max() <= 1


def test_machine_code_numpy_and_torch_give_the_same_bytes(case):
    made = macenko.tables_of(*case)
    got = quickly(made, PIXELS)
    np.testing.assert_array_equal(plainly(made, PIXELS), got)
    np.testing.assert_array_equal(plainly(made, torch.tensor(PIXELS)).numpy(), got)


def test_the_quick_way_is_taken_and_gives_what_the_other_would(case):
    """Without the check of what is outside, all go the quick way: who is inside must not be able to tell."""
    made = macenko.tables_of(*case)
    words = sum(made.quick.view(np.uint64)[k][PIXELS[:, k]] for k in range(3))
    inside = words & np.int64(made.outside).view(np.uint64) == 0
    places = [(words >> np.uint64(tables.QUICK_FIELD * k)) & np.uint64(2**tables.QUICK_FIELD - 1) for k in range(3)]
    got = made.levels[np.stack(places, -1).astype(np.int64)]
    np.testing.assert_array_equal(got[inside], plainly(made, PIXELS)[inside])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]))
def test_any_stains_and_any_white(seed, ratio):
    """Pairs 12° apart and more, in any direction of positive density: exact to one level, and one way for all."""
    rng = np.random.default_rng(seed)
    pair = [rng.dirichlet((1, 1, 1), 2) for _ in range(20)]
    source = next(m for m in (matrix(v, (1.0, 1.0)) for v in pair) if np.dot(*m.vectors) < np.cos(np.radians(12)))
    case = (
        tuple(rng.integers(180, 256, 3).astype(float)),
        source,
        matrix(rng.dirichlet((1, 1, 1), 2), (ratio, 1 / ratio)),
    )
    pixels = PIXELS[:: rng.integers(11, 17)]
    made = macenko.tables_of(*case)
    got = quickly(made, pixels)
    np.testing.assert_array_equal(got, plainly(made, pixels))
    assert np.abs(got - exact(pixels, *case)).max() <= 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255])
def test_any_number_of_pixels(count, case):
    made = macenko.tables_of(*case)
    np.testing.assert_array_equal(quickly(made, RANDOM[:count]), quickly(made, RANDOM)[:count])


def test_real_tissue_goes_the_quick_way():
    pixels = np.asarray(Image.open(shared_path("data/tiles/stain/tia_target_1000.png")).convert("RGB")).reshape(-1, 3)
    params = stain.fit("macenko", pixels)
    made = macenko.tables_of(params.white, params.source, params.target)
    words = sum(made.quick.view(np.uint64)[k][pixels[:, k]] for k in range(3))
    assert (words & np.int64(made.outside).view(np.uint64) == 0).mean() > 0.85


def test_to_itself_nothing_changes_and_glass_and_white_never_do(case):
    white, source, target = case
    np.testing.assert_array_equal(quickly(macenko.tables_of(white, source, source), PIXELS), PIXELS)
    glass = PIXELS[(np.asarray(white) <= PIXELS).all(axis=1)]
    assert len(glass)
    np.testing.assert_array_equal(quickly(macenko.tables_of(white, source, target), glass), glass)


def test_planes_for_a_network_are_the_levels_of_the_same_bytes(case):
    made = macenko.tables_of(*case)
    batch = RANDOM[: 5 * 47 * 33].reshape(5, 47, 33, 3)  # an odd number of pixels
    levels = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    out = np.full((5, 3, 47, 33), np.nan, np.float32)
    compiled.change_normalized(made, batch, levels, out)
    bytes_ = quickly(made, batch)
    expected = np.stack([levels[k][bytes_[..., k]] for k in range(3)], axis=1)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(replace.planes_of(bytes_, levels), expected)
    np.testing.assert_array_equal(replace.planes_of(torch.tensor(bytes_), levels).numpy(), expected)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_after_many_pixels_machine_code_takes_over_and_nobody_notices(library, monkeypatch):
    """Before and after, for bytes and for planes, from several threads, and for views of any strides."""
    image = np.asarray(Image.open(shared_path("data/tiles/stain/histoqc_template2.png")).convert("RGB"))
    params = stain.fit("macenko", image)
    views = [library(image[:64, :64].copy()[None]), library(np.asfortranarray(image[None, :100, :90]))]
    views += [library(image.transpose(1, 0, 2)[None].copy())[:, ::3]]
    levels = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    runs = []
    for left in (replace._MANY, 0):
        way = replace._Way()
        way.left = left
        monkeypatch.setattr(replace, "_way", way)
        with ThreadPoolExecutor(3) as pool:
            runs.append(list(pool.map(lambda v: (params.apply(v), params.apply_normalized(v, levels)), views * 4)))
        assert (way.module is None) == (left > 0)
    for (bytes_, planes), (quick_bytes, quick_planes) in zip(*runs, strict=True):
        assert type(bytes_) is type(quick_bytes)
        np.testing.assert_array_equal(np.asarray(bytes_), np.asarray(quick_bytes))
        np.testing.assert_array_equal(np.asarray(planes), np.asarray(quick_planes))


@pytest.mark.parametrize("left", [1 << 30, 0])
@pytest.mark.parametrize("method", stain.METHODS)
def test_what_is_written_to_memory_given_is_what_is_returned_without(method, left, monkeypatch):
    image = np.asarray(Image.open(shared_path("data/tiles/stain/histoqc_template2.png")).convert("RGB"))
    params, batch = stain.fit(method, image), image[None, :64, :48].copy()
    levels = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    way = replace._Way()
    way.left = left
    monkeypatch.setattr(replace, "_way", way)
    out, planes = np.zeros_like(batch), np.zeros((1, 3, 64, 48), np.float32)
    assert params.apply(batch, out) is out
    assert params.apply_normalized(batch, levels, planes) is planes
    np.testing.assert_array_equal(out, params.apply(batch))
    np.testing.assert_array_equal(planes, params.apply_normalized(batch, levels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_bytes(case):
    made = macenko.tables_of(*case)
    np.testing.assert_array_equal(
        plainly(made, torch.tensor(PIXELS, device="cuda")).cpu().numpy(), quickly(made, PIXELS)
    )


@pytest.mark.parametrize("method", ["macenko", "reinhard", "left as it is"])
@pytest.mark.parametrize("machine", [True, False])
def test_memory_that_does_not_take_the_result_is_refused(method, machine, monkeypatch):
    """Machine code checks no bounds: it wrote past the end of what was too small."""
    monkeypatch.setattr(replace._way, "compiled", lambda pixels: compiled if machine else None)
    image = np.asarray(Image.open(shared_path("data/tiles/stain/torchstain_source.png")).convert("RGB"))
    blank = np.full((64, 64, 3), 240, np.uint8)
    params = stain.fit("macenko", blank) if method == "left as it is" else stain.fit(method, image)
    tiles, levels = image[None, :64, :64].copy(), np.zeros((3, 256), np.float32)
    for out in (tiles[:, :32].copy(), np.empty(tiles.shape, np.float32), tiles[0].copy(), torch.empty(3), [0]):
        with pytest.raises(stain.PixelFormatError, match="out "):
            params.apply(tiles, out)
    for out in (np.empty((1, 3, 64, 32), np.float32), np.empty((1, 3, 64, 64)), torch.empty((1, 64, 64, 3))):
        with pytest.raises(stain.PixelFormatError, match="out has"):
            params.apply_normalized(tiles, levels, out)
    for wrong in (levels[:, :255], levels[0], np.zeros((4, 256), np.float32)):
        with pytest.raises(stain.PixelFormatError, match="levels have"):
            params.apply_normalized(tiles, wrong)
    with pytest.raises(stain.PixelFormatError, match="not \\(B, H, W, 3\\)"):
        params.apply_normalized(tiles[0], levels)
    out = np.empty((1, 3, 64, 64), np.float32)
    assert params.apply(tiles, tiles.copy()).shape == tiles.shape
    assert params.apply_normalized(tiles, levels, out) is out
