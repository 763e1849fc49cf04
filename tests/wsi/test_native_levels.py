"""Where a format's own rules say where tiles lie: the pixels of OpenSlide and of the picture itself, or not from here.

Philips fills levels up to whole tiles, Leica puts scanned parts on a canvas, Ventana lets tiles overlap.
"""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from _formats import write_leica, write_philips, write_ventana
from _slides import MPP, halved, opened, smooth_picture, streamed

import wsi
from wsi.blocks import BlockPlan
from wsi.plan import read_plan

PICTURE = smooth_picture(1280, 900)


def assert_read_from_the_file(slide, truth, size, factor=1):
    """Each tile as the slide's reader shows it, and as the canvas says; `truth` is the canvas at this factor."""
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size, factor * MPP))
    assert isinstance(read_plan(slide, grid), BlockPlan)
    tiles, errors = streamed(slide, grid)
    assert not errors
    for i, pixels in tiles.items():
        x, y = (place // factor for place in grid.places[i])
        assert np.array_equal(pixels, wsi.read_tile(slide, grid, i))
        assert np.array_equal(pixels, truth[y : y + size, x : x + size])


def canvas_of(parts, size):
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    for left, top, pixels in parts:
        canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


@pytest.mark.parametrize("size", [100, 256])
def test_philips_levels_without_what_fills_them_up(size, tmp_path):
    filled = np.pad(PICTURE, ((0, 1024 - 900), (0, 0), (0, 0)), constant_values=90)
    with opened(write_philips(tmp_path / "p.tiff", PICTURE)) as slide:
        assert slide.vendor == "philips"
        assert [(level.width, level.height) for level in slide.native.levels] == [(1280, 1024), (640, 512), (320, 256)]
        for factor in (1, 2, 4):
            truth = filled
            assert_read_from_the_file(
                slide, truth[: truth.shape[0]] if factor == 1 else shrunk(filled, factor), size, factor
            )


def shrunk(image, factor):
    while factor > 1:
        image, factor = halved(image), factor // 2
    return image


def test_philips_slides_of_several_parts_are_white_between(tmp_path):
    """Gaps on every level, as OpenSlide shows them."""
    path = write_philips(tmp_path / "p.tiff", PICTURE)
    for number in (0, 1):
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            counts = list(tiff.pages[number].databytecounts)
            counts[1] = 0
            tiff.pages[number].tags["TileByteCounts"].overwrite(counts)
    with opened(path) as slide:
        for factor in (1, 2):
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(100, factor * MPP))
            assert isinstance(read_plan(slide, grid), BlockPlan)
            tiles, _ = streamed(slide, grid)
            assert all(np.array_equal(pixels, wsi.read_tile(slide, grid, i)) for i, pixels in tiles.items())
            assert (tiles[grid.places.index((300 * factor, 0))] == 255).all()


@pytest.mark.parametrize("size", [100, 256])
@pytest.mark.parametrize("offset", [(0, 0), (304, 208), (303, 203), (700, 3)])
def test_a_scanned_part_of_a_leica_canvas(offset, size, tmp_path):
    """On every side there is canvas that nobody scanned."""
    parts = [(*offset, PICTURE)]
    with opened(write_leica(tmp_path / "l.scn", parts, (2000, 1500))) as slide:
        assert slide.vendor == "leica"
        assert all(slide.native.levels)
        assert_read_from_the_file(slide, canvas_of(parts, (2000, 1500)), size)
        for factor in (2, 4):
            part = [(offset[0] // factor, offset[1] // factor, shrunk(PICTURE, factor))]
            assert_read_from_the_file(slide, canvas_of(part, (2000 // factor, 1500 // factor)), size, factor)


@pytest.mark.parametrize("side", [64, 300, 1024])
def test_no_block_size_changes_a_pixel(side, tmp_path):
    """Blocks that begin before the scanned part, in its midst, and beyond it."""
    with opened(write_leica(tmp_path / "l.scn", [(301, 203, PICTURE)], (2000, 1500))) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(90, MPP))
        plan = BlockPlan(slide.native, grid, slide.levels[0].downsample, side=side)
        tiles = np.zeros((len(grid), 90, 90, 3), np.uint8)
        for request in plan.requests():
            assert not plan.read(request, lambda row: tiles[row])
        truth = canvas_of([(301, 203, PICTURE)], (2000, 1500))
        for (x, y), pixels in zip(grid.places, tiles, strict=True):
            assert np.array_equal(pixels, truth[y : y + 90, x : x + 90])


def test_a_part_between_the_pixels_of_the_canvas_lies_where_openslide_puts_it(tmp_path):
    """The file states nanometers; on level 0 the pixels are the same, on lower ones no more than one pixel off."""
    with opened(write_leica(tmp_path / "l.scn", [(301.4, 203.7, PICTURE)], (2000, 1500))) as slide:
        assert_read_from_the_file(slide, canvas_of([(301, 203, PICTURE)], (2000, 1500)), 100)
        for number, (left, top) in ((1, (150.7, 101.85)), (2, (75.35, 50.9))):
            level = slide.native.levels[number]
            assert level is None or (abs(level.left - left) < 1 and abs(level.top - top) < 1)


def test_a_leica_file_that_openslide_refuses_is_refused_and_not_shown_in_part(tmp_path):
    parts = [(100, 80, PICTURE[:400]), (200, 700, PICTURE[400:])]
    path = write_leica(tmp_path / "l.scn", parts, (2000, 1500), with_macro=False)
    with pytest.raises(wsi.UnreadableSlideError, match=r"l\.scn.*no reader takes.*OpenSlide"):
        wsi.open_slide(path)


def test_several_scanned_parts_are_left_to_openslide(tmp_path):
    parts = [(100, 80, PICTURE[:400]), (200, 700, PICTURE[400:])]
    with opened(write_leica(tmp_path / "l.scn", parts, (2000, 1500))) as slide:
        assert slide.vendor == "leica"
        assert slide.native is None
        assert np.array_equal(slide.read(0, 0, 2000, 1500), canvas_of(parts, (2000, 1500)))


def test_ventana_tiles_that_do_not_overlap(tmp_path):
    with opened(write_ventana(tmp_path / "v.bif", PICTURE[:768])) as slide:
        assert slide.vendor == "ventana"
        assert slide.native.levels[0] is not None
        assert_read_from_the_file(slide, PICTURE[:768], 100)


@pytest.mark.parametrize("overlap", [1, 16])
def test_ventana_tiles_that_overlap_are_left_to_openslide(overlap, tmp_path):
    with opened(write_ventana(tmp_path / "v.bif", PICTURE[:768], overlap=overlap)) as slide:
        assert slide.vendor == "ventana"
        assert slide.reader.startswith("openslide")
        assert slide.native is None


def test_where_a_format_has_its_own_rules_the_reader_is_believed(tmp_path, monkeypatch):
    """A third reader would show the bare tiles of the TIFF, as we do: it is not asked."""
    from wsi.readers.openslide import OpenSlideSlide

    read = OpenSlideSlide._read
    monkeypatch.setattr(OpenSlideSlide, "_read", lambda self, *box: 255 - read(self, *box))
    with opened(write_ventana(tmp_path / "v.bif", PICTURE[:768])) as slide:
        assert slide.reader.startswith("openslide")
        assert slide.native is None


def test_a_wrong_offset_is_noticed(tmp_path, monkeypatch):
    """One pixel on level 0 is enough, and the reader is believed, not voted out."""
    from wsi.readers import native_levels

    def off(*given):
        place = part(*given)
        return native_levels._Place(place.directory, place.left + 1, place.top)

    part = native_levels._scanned_part
    monkeypatch.setattr(native_levels, "_scanned_part", off)
    with opened(write_leica(tmp_path / "l.scn", [(304, 208, PICTURE)], (2000, 1500))) as slide:
        assert slide.reader.startswith("openslide")
        assert slide.native is None or slide.native.levels[0] is None
