"""Tiles of a physical size, each pixel at most once, with the tissue they claim."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from _shared import shared_path
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi
from wsi import geometry
from wsi.grid import tissue_shares
from wsi.mpp import Mpp
from wsi.tissue import Tissue


def fake_slide(width, height, mpp=0.5, downsamples=(1,), mpp_y=None, name="fake.svs"):
    """Only what a grid looks at: sizes and µm/px."""
    levels = tuple(wsi.Level(max(1, width // d), max(1, height // d), (float(d), float(d))) for d in downsamples)
    value = Mpp(mpp, mpp_y or mpp, "test") if mpp else None
    return SimpleNamespace(name=name, size=(width, height), levels=levels, mpp=value, mpp_problem=None)


def tissue_from(mask, size):
    mask = np.asarray(mask, bool)
    scale = size[0] / mask.shape[1], size[1] / mask.shape[0]
    picture = np.full((*mask.shape, 3), 255, np.uint8)
    return Tissue("fake", mask, np.zeros_like(mask), scale, picture)


sides = st.integers(1, 900)
resolutions = st.floats(0.1, 2.0)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(8, 300), resolutions, resolutions, st.integers(0, 200), resolutions)
def test_tiles_are_as_wide_as_asked_and_inside_the_canvas(width, height, size, asked, own, overlap, own_y):
    """The widths in µm are computed anew from the result; a grid that cannot keep 1 % must say so."""
    slide = fake_slide(width, height, own, (1, 2, 4, 8), own_y)
    spec = wsi.TileSpec(size, asked, min(overlap, size - 1))
    try:
        grid = wsi.tile_grid(slide, None, spec)
    except wsi.TooCoarseError:
        assert max(own, own_y) > asked
        return
    except wsi.GridError:
        off = [abs(round(size * asked / m) * m / (size * asked) - 1) for m in (own, own_y)]
        assert max(off) > 0.01
        return
    for axis, m in enumerate((own, own_y)):
        assert abs(grid.footprint_xy[axis] * m / (size * asked) - 1) <= 0.01
        level = slide.levels[grid.level]
        assert abs(grid.read_size[axis] * level.downsample[axis] * m / (size * asked) - 1) <= 0.01
        assert level.downsample[axis] * m <= asked * 1.01 or grid.level == 0
    if len(grid):
        assert grid.xy.min() >= 0
        assert (grid.xy + grid.footprint_xy <= (width, height)).all()
        assert grid.reason is None
    else:
        assert grid.reason
        assert width < grid.footprint_xy[0] or height < grid.footprint_xy[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 120), st.floats(0.25, 1.0), st.integers(0, 119))
def test_each_pixel_is_covered_once_or_as_often_as_the_overlap_says(width, height, size, own, overlap):
    """Paint and count: the oracle knows nothing of strides."""
    overlap = min(overlap, size - 1)
    slide = fake_slide(width, height, own)
    try:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size, 1.0, overlap))
    except wsi.GridError:
        return
    seen = np.zeros((height, width), int)
    w, h = grid.footprint_xy
    for x, y in grid.xy:
        seen[y : y + h, x : x + w] += 1
    if not overlap:
        assert seen.max(initial=0) <= 1
        assert seen.sum() == len(grid) * w * h
        columns, rows = width // w, height // h
        assert (seen[: rows * h, : columns * w] == 1).all()  # no gap either
    elif len(grid):
        inside = seen[: grid.xy[:, 1].max() + h, : grid.xy[:, 0].max() + w]
        assert inside.min() >= 1
        steps = np.unique(np.diff(np.unique(grid.xy[:, 0])))
        assert len(steps) <= 1
        assert all(abs(w - s - overlap / own) <= 1 for s in steps) or s_is_least(steps)


def s_is_least(steps):
    return steps.tolist() == [1]


def test_tiles_come_row_by_row():
    grid = wsi.tile_grid(fake_slide(300, 200), None, wsi.TileSpec(100, 0.5))
    assert grid.xy.tolist() == [[0, 0], [100, 0], [200, 0], [0, 100], [100, 100], [200, 100]]
    assert grid.xy.dtype == np.int64
    assert (grid.tissue_share == 1).all()
    assert grid.footprint == 100


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_tissue_share_equals_brute_force(data):
    """The mask is blown up to level-0 pixels by repetition, then counted."""
    kx, ky = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, columns)) < data.draw(st.floats(0, 1))
    full = np.repeat(np.repeat(mask, ky, 0), kx, 1)
    height, width = full.shape
    w, h = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    xy = np.array([[data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))] for _ in range(5)])
    counted = [full[y : y + h, x : x + w].mean() for x, y in xy]
    assert tissue_shares(tissue_from(mask, (width, height)), xy, (w, h)) == pytest.approx(counted, abs=1e-6)


def test_tissue_share_with_a_scale_that_is_no_whole_number():
    """A half-plane's share is known in closed form."""
    mask = np.zeros((10, 7), bool)
    mask[:, :3] = True  # tissue up to x = 3/7 of 1000
    tissue = tissue_from(mask, (1000, 1000))
    xy = np.array([[400, 100], [0, 0], [500, 0], [428, 13]])
    edge = 3 / 7 * 1000
    wanted = [np.clip((edge - x) / 100, 0, 1) for x, _ in xy]
    assert tissue_shares(tissue, xy, (100, 100)) == pytest.approx(wanted, abs=1e-6)


def test_the_least_share_is_kept_exactly():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    slide, tissue = fake_slide(400, 400), tissue_from(mask, (400, 400))
    spec = wsi.TileSpec(200, 0.5)
    assert wsi.tile_grid(slide, tissue, spec, min_tissue=0.25).xy.tolist() == [[0, 0]]
    empty = wsi.tile_grid(slide, tissue, spec, min_tissue=0.2501)
    assert len(empty) == 0
    assert "the most is 25%" in empty.reason
    assert len(wsi.tile_grid(slide, tissue, spec, min_tissue=0)) == 4


def test_a_grid_without_tiles_says_why():
    small = wsi.tile_grid(fake_slide(100, 100), None, wsi.TileSpec(224, 0.5))
    assert small.reason == "no tiles: the slide (100 x 100 px) is smaller than one tile (224 x 224 px)"
    glass = wsi.find_tissue(wsi.MemorySlide(np.full((600, 600, 3), 243, np.uint8), mpp=0.5))
    assert glass.reason == wsi.tile_grid(fake_slide(600, 600), glass).reason == "no tissue: all glass"


def test_a_slide_without_mpp_names_both_ways_to_mend_it():
    with pytest.raises(wsi.MissingMppError, match=r"--slide-mpp .* column mpp of a manifest"):
        wsi.tile_grid(fake_slide(1000, 1000, None), None)
    slide = wsi.MemorySlide(np.zeros((300, 300, 3), np.uint8), mpp=352.8)
    with pytest.raises(wsi.ImplausibleMppError, match=r"352\.8.*--slide-mpp"):
        wsi.tile_grid(slide, None)


def test_a_coarse_slide_is_refused_unless_enlarging_is_allowed():
    slide = fake_slide(2000, 2000, 1.0)
    with pytest.raises(wsi.TooCoarseError, match="--allow-upsampling"):
        wsi.tile_grid(slide, None)
    grid = wsi.tile_grid(slide, None, allow_upsampling=True)
    assert (grid.footprint_xy, grid.read_size, grid.level) == ((112, 112), (112, 112), 0)
    assert len(wsi.tile_grid(fake_slide(2000, 2000, 0.504), None)) > 0  # within 1 %: no upsampling


def test_a_tile_of_few_pixels_that_cannot_be_met_is_refused():
    with pytest.raises(wsi.GridError, match="--tile"):
        wsi.tile_grid(fake_slide(500, 500, 0.3), None, wsi.TileSpec(4, 0.5))


@pytest.mark.parametrize(
    ("mpp", "asked", "downsamples", "level"),
    [
        (0.25, 0.5, (1, 4, 16), 0),
        (0.25, 0.5, (1, 2, 4), 1),
        (0.25, 1.0, (1, 4, 16), 1),
        (0.2525, 1.0, (1, 4, 16), 1),  # 1 % coarser is still taken
        (0.2550, 1.0, (1, 4, 16), 0),
        (0.25, 4.1, (1, 4, 16), 2),
        (0.5, 0.5, (1, 4), 0),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(mpp, asked, downsamples, level):
    assert wsi.tile_grid(fake_slide(50000, 50000, mpp, downsamples), None, wsi.TileSpec(224, asked)).level == level


def test_a_level_must_be_fine_enough_in_both_axes():
    downsamples = [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
    for wanted, level in (((4, 4), 2), ((3.97, 4), 2), ((3.9, 4), 1), ((4, 3.9), 1), ((4, 1), 0), ((0.5, 0.5), 0)):
        assert geometry.best_level(downsamples, wanted) == level


@pytest.mark.parametrize("bad", [(0, 0.5, 0), (224, 0, 0), (224, -1, 0), (224, 0.5, 224), (224, float("nan"), 0)])
def test_impossible_tiles_are_refused(bad):
    with pytest.raises(ValueError, match="cannot be cut"):
        wsi.TileSpec(*bad)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50_000), st.integers(1, 50_000), st.sampled_from([1, 2, 4, 8, 16, 32]), st.booleans())
def test_a_whole_downsample_is_found_through_rounded_sizes(width, height, k, up):
    size = tuple(max(1, -(-s // k) if up else s // k) for s in (width, height))
    if min(width, height) < 3 * k * k:
        return  # a level of a few pixels does not tell 4 from 5
    assert geometry.downsample_of((width, height), size) == (k, k)


def test_a_level_of_another_shape_has_no_downsample():
    assert geometry.downsample_of((1000, 800), (500, 100)) is None
    assert geometry.downsample_of((46000, 32914), (3000, 2147)) == pytest.approx((15.3333, 15.3302), abs=1e-3)
    assert geometry.downsample_of((46000, 32914), (1000, 716)) == (46, 46)


def test_real_slides_within_one_percent_in_both_axes():
    for name, slide_mpp in (
        ("CMU-1-Small-Region.svs", None),
        ("OS-1-detail.ome.tif", None),
        ("OS-2-ndpi.ome.tif", None),
        ("TCGA-XK-AAJU-section.tif", 0.5),
    ):
        with wsi.open_slide(shared_path(f"data/slides/{name}"), slide_mpp=slide_mpp) as slide:
            for spec in (wsi.TileSpec(), wsi.TileSpec(256, 1.0, 32), wsi.TileSpec(64, 2.0)):
                grid = wsi.tile_grid(slide, None, spec)
                for side, m in zip(grid.footprint_xy, (slide.mpp.x, slide.mpp.y), strict=True):
                    assert side * m == pytest.approx(spec.size * spec.mpp, rel=0.01)
