"""Slides of which only a part of the canvas was scanned (MIRAX above all): full-canvas coordinates, fine masks."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
from _shared import shared_path
from _slides import streamed

import wsi
from wsi.geometry import clipped_box
from wsi.thumbnail import thumbnail
from wsi.tissue import TissueSettings

CMU = "data/slides/CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def tissue():
    with openslide.OpenSlide(shared_path(CMU)) as slide:
        return np.asarray(slide.read_region((200, 100), 0, (1600, 1200)).convert("RGB"))


def on_canvas(part, size, place, **options):
    """A slide whose canvas is white but for `part`."""
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    canvas[place[1] : place[1] + part.shape[0], place[0] : place[0] + part.shape[1]] = part
    return wsi.MemorySlide(canvas, mpp=0.5, **options), canvas


@pytest.mark.parametrize("place", [(800, 2400), (0, 0), (2400, 4800)])
def test_the_tissue_is_that_of_the_scanned_part_alone(place, tissue):
    """The oracle is the part as a slide of its own: same mask, shifted; same scale; none of it beside the part."""
    slide, _ = on_canvas(tissue, (4000, 6000), place, bounds=(*place, 1600, 1200))
    settings = TissueSettings(min_side=400, max_side=400)
    alone = wsi.find_tissue(wsi.MemorySlide(tissue, mpp=0.5), settings=settings)
    found = wsi.find_tissue(slide, settings=settings)
    assert found.scale == alone.scale == (4, 4)
    left, top = place[0] // 4, place[1] // 4
    inside = np.s_[top : top + 300, left : left + 400]
    assert alone.mask.any()
    for ours, wanted in ((found.mask, alone.mask), (found.pen, alone.pen), (found.thumbnail, alone.thumbnail)):
        assert np.array_equal(ours[inside], wanted)
        rest = ours.copy()
        rest[inside] = 255 if ours.ndim == 3 else 0
        assert (rest == (255 if ours.ndim == 3 else 0)).all()


def test_what_lies_beside_the_scanned_part_is_no_tissue(tissue):
    slide, canvas = on_canvas(tissue, (4000, 6000), (800, 2400), bounds=(800, 2400, 1600, 1200))
    canvas[4000:5200, 100:1700] = tissue  # the array is the slide's own
    assert (slide.read(100, 4000, 1600, 1200) == tissue).all()
    mask = wsi.find_tissue(slide).mask
    scale = 6000 / mask.shape[0]
    assert mask[int(2400 / scale) : int(3600 / scale)].any()
    assert not mask[int(4000 / scale) :].any()


def test_only_the_scanned_part_is_read(tissue):
    boxes = []
    slide, _ = on_canvas(
        tissue, (4000, 6000), (800, 2400), bounds=(800, 2400, 1600, 1200), on_read=lambda *box: boxes.append(box)
    )
    picture, ratio = thumbnail(slide, TissueSettings())
    for x, y, width, height, _ in boxes:
        assert 800 - 2 * ratio[0] <= x <= x + width <= 2400 + 2 * ratio[0]
        assert 2400 - 2 * ratio[1] <= y <= y + height <= 3600 + 2 * ratio[1]
    assert picture.shape[1] / picture.shape[0] == pytest.approx(4000 / 6000, rel=0.01)


def test_tiles_lie_on_the_full_canvas(tissue):
    """Against the array itself, in both ways of asking."""
    slide, canvas = on_canvas(tissue, (4000, 6000), (800, 2400), bounds=(800, 2400, 1600, 1200))
    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), wsi.TileSpec(128, 0.5))
    assert len(grid)
    assert (grid.xy >= (800 - 128, 2400 - 128)).all()
    assert (grid.xy < (2400, 3600)).all()
    tiles, _ = streamed(slide, grid)
    for i, (x, y) in enumerate(grid.places):
        assert np.array_equal(tiles[i], canvas[y : y + 128, x : x + 128])


@pytest.mark.parametrize(
    "bounds", [None, (0, 0, 4000, 6000), (-5, -5, 9000, 9000), (5000, 0, 100, 100), (10, 10, 0, -4)]
)
def test_bounds_that_say_nothing_change_nothing(bounds, tissue):
    slide, _ = on_canvas(tissue, (4000, 6000), (800, 2400), bounds=bounds)
    plain, _ = on_canvas(tissue, (4000, 6000), (800, 2400))
    ours, wanted = wsi.find_tissue(slide), wsi.find_tissue(plain)
    assert np.array_equal(ours.mask, wanted.mask)
    assert np.array_equal(ours.thumbnail, wanted.thumbnail)


def test_a_tiny_part_of_a_huge_canvas_costs_no_memory():
    """As MIRAX writes them: most of the canvas is empty."""
    slide = wsi.MemorySlide(np.full((10, 10, 3), 255, np.uint8), mpp=0.25, bounds=(0, 0, 3000, 2000))
    slide.size = 200_000, 400_000
    slide.levels = (wsi.Level(200_000, 400_000, (1.0, 1.0)),)
    picture, ratio = thumbnail(slide, TissueSettings())
    assert picture.shape[0] * picture.shape[1] <= 24_100_000
    assert ratio == pytest.approx((57.7, 57.7), rel=0.02)


def test_boxes_are_cut_to_the_canvas():
    """Against painting and looking where paint is."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        x, y, w, h = rng.integers(-12, 25, 4).tolist()
        paint = np.zeros((40, 40), bool)
        paint[10 + y : max(10 + y + h, 0), 10 + x : max(10 + x + w, 0)] = min(10 + y, 10 + x) >= 0
        if min(10 + y, 10 + x) < 0:
            continue
        seen = np.argwhere(paint[10:20, 10:22])
        ours = clipped_box((x, y, w, h), (12, 10))
        if not len(seen):
            assert ours is None
        else:
            (top, left), (bottom, right) = seen.min(0), seen.max(0)
            assert ours == (left, top, right - left + 1, bottom - top + 1)


def test_openslide_tells_the_bounds_and_places_stay_those_of_the_canvas(monkeypatch):
    """No MIRAX slide is at hand: a real SVS whose properties say what a MIRAX slide's would."""
    box = {"x": 700, "y": 900, "width": 600, "height": 500}
    told = {f"openslide.bounds-{key}": str(value) for key, value in box.items()}
    real = openslide.OpenSlide.properties
    monkeypatch.setattr(openslide.OpenSlide, "properties", property(lambda self: {**real.fget(self), **told}))
    path = shared_path(CMU)
    with wsi.open_slide(path) as slide, openslide.OpenSlide(path) as truth:
        assert slide.bounds == (700, 900, 600, 500)
        found = wsi.find_tissue(slide)
        rows, columns = np.nonzero(found.mask)
        assert len(rows)
        scale = found.scale
        assert columns.min() >= int(700 / scale[0])
        assert columns.max() <= 1300 / scale[0]
        assert rows.min() >= int(900 / scale[1])
        assert rows.max() <= 1400 / scale[1]
        grid = wsi.tile_grid(slide, found, wsi.TileSpec(100, slide.mpp.x))
        x, y = grid.places[0]
        region = np.asarray(truth.read_region((x, y), 0, (100, 100)).convert("RGB"))
        assert np.array_equal(wsi.read_tile(slide, grid, 0), region)
