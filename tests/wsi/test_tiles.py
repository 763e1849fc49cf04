"""Pixels at the asked µm/px: against openslide-python and exact area means."""

from __future__ import annotations

import sys

import numpy as np
import openslide
import pytest
from _shared import shared_path
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi
from wsi import resize
from wsi.resize import area_means, resize_area, weights


def area_mean(image, width, height):
    """Integrate the piecewise constant picture: cumulative sums, read between their points."""
    out = np.cumsum(np.pad(image.astype(float), ((1, 0), (0, 0), (0, 0))), 0)
    out = np.cumsum(np.pad(out, ((0, 0), (1, 0), (0, 0))), 1)

    rows, columns = image.shape[:2]
    ys, xs = np.linspace(0, rows, height + 1), np.linspace(0, columns, width + 1)
    i, j = np.minimum(ys.astype(int), rows - 1), np.minimum(xs.astype(int), columns - 1)
    v, u = (ys - i)[:, None, None], (xs - j)[None, :, None]
    upper = out[i][:, j] * (1 - u) + out[i][:, j + 1] * u
    lower = out[i + 1][:, j] * (1 - u) + out[i + 1][:, j + 1] * u
    corners = upper * (1 - v) + lower * v
    return np.diff(np.diff(corners, axis=0), axis=1) / (rows / height * columns / width)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 25), st.integers(1, 25), st.integers(0, 9))
def test_resize_is_the_exact_area_mean(rows, columns, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    got = resize_area(image, width, height)
    assert got.dtype == np.uint8
    assert abs(got - area_mean(image, width, height)).max() <= 0.51


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_compiled_or_not_gives_the_same_bytes(rows, columns, height, width, seed):
    compiled = pytest.importorskip("wsi.resize_compiled")
    image = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    down, across = weights(rows, height), weights(columns, width)
    assert np.array_equal(compiled.area_means(image, down, across), area_means(image, down, across))


def test_many_resizes_change_to_the_compiled_way(monkeypatch):
    compiled = pytest.importorskip("wsi.resize_compiled")
    way = resize._Way()
    way.left = 2
    monkeypatch.setattr(resize, "_way", way)
    used = [resize._how() for _ in range(4)]
    assert used == [area_means, area_means, compiled.area_means, compiled.area_means]


def test_without_numba_nothing_changes(monkeypatch):
    way = resize._Way()
    way.left = 0
    monkeypatch.setattr(resize, "_way", way)
    monkeypatch.setitem(sys.modules, "wsi.resize_compiled", None)
    assert [resize._how() for _ in range(3)] == [area_means] * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 300))
def test_weights_of_a_target_pixel_sum_to_one_and_use_every_source_pixel(source, target):
    matrix = weights(source, target).toarray()
    assert matrix.sum(1) == pytest.approx(np.ones(target), abs=1e-5)
    assert matrix.sum(0) == pytest.approx(np.full(source, target / source), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 7, 8, 16])
def test_whole_factors_are_the_means_of_blocks(k):
    image = np.random.default_rng(0).integers(0, 256, (20 * k, 30 * k, 3)).astype(np.uint8)
    blocks = image.reshape(20, k, 30, k, 3).mean((1, 3))
    assert abs(resize_area(image, 30, 20) - blocks).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("mpp", "size"), [(0.499, 256), (0.998, 224), (0.7, 200), (1.3, 96)])
def test_tiles_of_a_real_slide_are_openslides_pixels_averaged(mpp, size):
    path = shared_path("data/slides/CMU-1-Small-Region.svs")
    with openslide.OpenSlide(path) as truth, wsi.open_slide(path) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size, mpp))
        for i in (0, len(grid) // 2, len(grid) - 1):
            x, y = (int(v) for v in grid.xy[i])
            region = np.asarray(truth.read_region((x, y), 0, grid.footprint_xy).convert("RGB"))
            wanted = area_mean(region, size, size)
            assert abs(wsi.read_tile(slide, grid, i) - wanted).max() <= 0.51


def test_tiles_from_a_lower_level_lie_where_openslide_says():
    """TCGA section, taken as 0.25 µm/px: level 1 serves 0.5 µm/px without any resize."""
    path = shared_path("data/slides/TCGA-XK-AAJU-section.tif")
    with openslide.OpenSlide(path) as truth, wsi.open_slide(path, slide_mpp=0.25) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, 0.5))
        assert (grid.level, grid.read_size) == (1, (224, 224))
        for i in range(0, len(grid), 7):
            x, y = (int(v) for v in grid.xy[i])
            region = np.asarray(truth.read_region((x, y), 1, (224, 224)).convert("RGB"))
            assert np.array_equal(wsi.read_tile(slide, grid, i), region)


def test_axes_of_different_mpp_give_square_microns():
    """A disc that is round in µm must be round in the tile."""
    y, x = np.mgrid[:800, :400]
    disc = ((x * 0.5 - 100) ** 2 + (y * 0.25 - 100) ** 2) < 60**2
    image = np.where(disc[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)
    slide = wsi.MemorySlide(image, mpp=(0.5, 0.25))
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(200, 1.0))
    assert grid.footprint_xy == (400, 800)
    dark = wsi.read_tile(slide, grid, 0)[..., 0] < 128
    assert dark.any(0).sum() == pytest.approx(120, abs=1)
    assert dark.any(1).sum() == pytest.approx(120, abs=1)


def test_enlarged_tiles_keep_their_mean():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    slide = wsi.MemorySlide(image, mpp=1.0)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, 0.5), allow_upsampling=True)
    tile = wsi.read_tile(slide, grid, 0)
    assert tile.shape == (224, 224, 3)
    assert tile.mean() == pytest.approx(image[:112, :112].mean(), abs=0.5)
