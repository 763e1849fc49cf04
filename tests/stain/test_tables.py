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
    inside = words & np.uint64(made.outside) == 0
    above = words >> np.uint64(2 * tables.ROUGH_FIELD)
    places = [(above >> np.uint64(tables.QUICK_FIELD * k)) & np.uint64(2**tables.QUICK_FIELD - 1) for k in range(3)]
    got = made.levels[np.stack(places, -1).astype(np.int64)]
    np.testing.assert_array_equal(got[inside], plainly(made, PIXELS)[inside])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]), dark=st.booleans())
def test_any_stains_and_any_white(seed, ratio, dark):
    """Pairs 4° apart and more, in any direction of positive density: exact to one level, and one way for all.

    Among the pixels are those in which one amount is all but none, where the two ways part.
    """
    rng = np.random.default_rng(seed)
    pair = [rng.dirichlet((1, 1, 1), 2) for _ in range(20)]
    source = next(m for m in (matrix(v, (1.0, 1.0)) for v in pair) if np.dot(*m.vectors) < np.cos(np.radians(4)))
    white = tuple(rng.integers(1 if dark else 180, 256, 3).astype(float))
    case = (white, source, matrix(rng.dirichlet((1, 1, 1), 2), (ratio, 1 / ratio)))
    amounts = rng.uniform(-0.02, 0.02, (9000, 2)) + rng.uniform(0, 4, (9000, 1)) * np.repeat(
        [[1, 0], [0, 1], [1, 1]], 3000, 0
    )
    near = np.rint(np.minimum(white * np.exp(-amounts @ np.array(source.vectors)), 255)).astype(np.uint8)
    pixels = np.concatenate([PIXELS[:: rng.integers(11, 17)], near])
    made = macenko.tables_of(*case)
    got = quickly(made, pixels)
    np.testing.assert_array_equal(got, plainly(made, pixels))
    assert np.abs(got - exact(pixels, *case)).max() <= 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 1023, 1024, 1025, 1026, 2048, 2049])
def test_any_number_of_pixels(count, case):
    """Blocks are of 1024; nothing is written behind the last pixel."""
    made = macenko.tables_of(*case)
    memory = np.full((count + 1, 3), 77, np.uint8)
    compiled.change(made, RANDOM[:count], memory[:count])
    np.testing.assert_array_equal(memory[:count], quickly(made, RANDOM)[:count])
    assert (memory[count] == 77).all()


def test_a_result_may_be_written_over_the_pixels_themselves(monkeypatch):
    """Machine code reads some pixels again after their neighbors are written."""
    monkeypatch.setattr(replace._way, "compiled", lambda pixels: compiled)
    image = np.asarray(Image.open(shared_path("data/tiles/stain/histoqc_template2.png")).convert("RGB"))
    params = stain.fit("macenko", image)
    expected = params.apply(image)
    over, shifted = image.copy(), np.concatenate([image[:1], image])
    assert params.apply(over, over) is over
    params.apply(shifted[1:], shifted[:-1])
    np.testing.assert_array_equal(over, expected)
    np.testing.assert_array_equal(shifted[:-1], expected)


@pytest.mark.parametrize("degrees", [1e-9, 1e-3, 0.1, 1.0, 3.0])
def test_stains_that_are_all_but_one_are_refused_or_exact_and_read_nothing_out_of_bounds(degrees):
    """No fit gives them; parameters written by hand do, and amounts of them would not fit into a word."""
    turned = np.array([0.65 - np.radians(degrees), 0.704 + np.radians(degrees), 0.286])
    source = matrix(((0.65, 0.704, 0.286), turned), (1.0, 1.0))
    case = ((255.0, 255.0, 255.0), source, matrix(*CASES["usual"][1]))
    if degrees < 1:
        with pytest.raises(stain.ParametersError, match="Fit the slide anew"):
            macenko.tables_of(*case)
        return
    got = quickly(macenko.tables_of(*case), PIXELS)
    assert np.abs(got - exact(PIXELS, *case)).max() <= 1


def test_real_tissue_goes_the_quick_way():
    pixels = np.asarray(Image.open(shared_path("data/tiles/stain/tia_target_1000.png")).convert("RGB")).reshape(-1, 3)
    params = stain.fit("macenko", pixels)
    made = macenko.tables_of(params.white, params.source, params.target)
    words = sum(made.quick.view(np.uint64)[k][pixels[:, k]] for k in range(3))
    assert (words & np.uint64(made.outside) == 0).mean() > 0.85


def test_to_itself_nothing_changes_and_glass_and_white_never_do(case):
    white, source, target = case
    np.testing.assert_array_equal(quickly(macenko.tables_of(white, source, source), PIXELS), PIXELS)
    glass = PIXELS[(np.asarray(white) <= PIXELS).all(axis=1)]
    assert len(glass)
    np.testing.assert_array_equal(quickly(macenko.tables_of(white, source, target), glass), glass)


@pytest.mark.parametrize(("height", "width"), [(47, 33), (32, 32), (64, 65), (1, 1)])
def test_planes_for_a_network_are_the_levels_of_the_same_bytes(height, width, case):
    """Odd numbers of pixels, whole blocks, and one pixel more than these."""
    made = macenko.tables_of(*case)
    batch = RANDOM[: 5 * height * width].reshape(5, height, width, 3)
    levels = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    out = np.full((5, 3, height, width), np.nan, np.float32)
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
