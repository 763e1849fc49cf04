"""Tiles straight from the file: the pixels of the reference readers, or none."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from _shared import shared_path
from _slides import MPP, native_picture, opened, smooth_picture, streamed, write_aperio

import wsi
from wsi.blocks import BlockPlan
from wsi.jpeg_header import read_header
from wsi.plan import read_plan
from wsi.readers.tiff import TiffSlide

CMU = "data/slides/CMU-1-Small-Region.svs"
TCGA = "data/slides/TCGA-XK-AAJU-section.tif"
OME = "data/slides/OS-1-detail.ome.tif"


@pytest.fixture(scope="module")
def demo_slide(tmp_path_factory):
    from pipelines.demo_cohort import compose_cohort

    folder = tmp_path_factory.mktemp("demo")
    compose_cohort(folder, patients=3, size=(1680, 1680))
    return min(folder.rglob("*.svs"))


@pytest.mark.parametrize("file", [CMU, TCGA, OME, "demo"])
@pytest.mark.parametrize("size", [224, 256])
def test_at_native_scale_every_byte_is_the_reference_readers(file, size, demo_slide):
    """The oracle is OpenSlide, for OME-TIFF tifffile; 4:2:0 and 4:4:4, YCbCr and RGB without a marker."""
    with opened(demo_slide if file == "demo" else shared_path(file)) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size, MPP))
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        assert not errors
        for i, pixels in tiles.items():
            assert np.array_equal(pixels, wsi.read_tile(slide, grid, i))


@pytest.mark.parametrize("file", [CMU, TCGA, "demo"])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_tiles_read_again_are_the_streams_bytes(file, times, demo_slide):
    with opened(demo_slide if file == "demo" else shared_path(file)) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(100, MPP * times))
        tiles, _ = streamed(slide, grid)
        rows = np.random.default_rng(times).permutation(list(tiles))[:40].tolist()
        assert np.array_equal(wsi.read_tiles(slide, grid, rows), np.stack([tiles[row] for row in rows]))
        assert wsi.read_tiles(slide, grid, []).shape == (0, 100, 100, 3)


def test_a_damaged_tile_read_again_is_an_error(tmp_path):
    path = write_aperio(tmp_path / "harmed.svs", smooth_picture(512, 512))
    with tifffile.TiffFile(path) as tiff:
        place, count = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[place + count // 2 : place + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with wsi.open_slide(path) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(256, 0.5))
        assert wsi.read_tiles(slide, grid, [2, 0]).shape == (2, 256, 256, 3)
        with pytest.raises(wsi.TileReadError):
            wsi.read_tiles(slide, grid, [0, 3])


def test_lower_levels_lie_where_the_file_has_them():
    """Against tifffile: OpenSlide blends neighbours where the ratio of its levels is not whole."""
    path = shared_path(TCGA)
    with opened(path) as slide, TiffSlide(path) as reference:
        for number, level in enumerate(slide.native.levels):
            data = slide.native.fetch(level, list(range(len(level.counts))))
            truth = reference.read(0, 0, level.width, level.height, level=number)
            assert np.array_equal(native_picture(level, data), truth)


@pytest.mark.parametrize("file", [CMU, TCGA, OME, "demo"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_halves_are_like_full_decode_and_exact_mean(file, factor, demo_slide):
    """PSNR of at least 42 dB for each tile; the slide's lower levels are hidden, so that level 0 is reduced."""
    with opened(demo_slide if file == "demo" else shared_path(file)) as slide:
        slide.levels = slide.levels[:1]
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(512 // factor, factor * MPP))
        assert read_plan(slide, grid).scale == factor
        tiles, _ = streamed(slide, grid)
        for i, pixels in tiles.items():
            error = pixels.astype(float) - wsi.read_tile(slide, grid, i)
            assert (error**2).mean() <= 255**2 / 10**4.2
            assert abs(error.mean()) < 0.5


@pytest.mark.parametrize("mpp", [0.6, 0.7, 0.75, 1.3])
def test_between_the_halves_no_pixel_is_mixed_that_was_not_asked_for(mpp):
    """Reduced pixels that do not nest into the asked ones are not used below two to one: still 42 dB."""
    with opened(shared_path(CMU)) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(100, mpp))
        tiles, _ = streamed(slide, grid)
        error = np.mean([(pixels.astype(float) - wsi.read_tile(slide, grid, i)) ** 2 for i, pixels in tiles.items()])
        assert error <= 255**2 / 10**4.2


def test_every_slide_of_the_zoo_shows_what_its_reader_shows(zoo):
    """Whatever is odd about a file: the same pixels as its reader's, a tile that is missing, or no direct reading."""
    served = 0
    for case in zoo["cases"]:
        try:
            slide = opened(zoo["folder"] / case["file"])
        except (wsi.SlideError, PermissionError):
            continue
        with slide:
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, MPP))
            if not isinstance(read_plan(slide, grid), BlockPlan):
                continue
            served += 1
            tiles, errors = streamed(slide, grid)
            for i, pixels in tiles.items():
                assert np.array_equal(pixels, wsi.read_tile(slide, grid, i)), case["file"]
            for i in errors:
                with pytest.raises(wsi.TileReadError):
                    wsi.read_tile(slide, grid, i)
    assert served >= 10


def written_over(path, tile, data, *, level=0):
    """Write bytes over the head of one tile of a file."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[level].dataoffsets[tile], tiff.pages[level].databytecounts[tile]
    assert len(data) <= count
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def own(tmp_path):
    """A slide of 5 x 4 tiles to be damaged."""
    return write_aperio(tmp_path / "own.svs", smooth_picture(1280, 1024))


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("damage", ["zeros", "other size", "no start", "cut"])
def test_a_damaged_tile_costs_only_the_tiles_that_touch_it(own, damage, factor):
    hurt = 6  # column 1, line 1: x 256 to 512, y 256 to 512
    other = simplejpeg.encode_jpeg(np.full((128, 128, 3), 200, np.uint8), 50)
    cause = {"zeros": bytes(900), "other size": other, "no start": b"\0\0\0\0", "cut": b""}[damage]
    if damage == "cut":
        with tifffile.TiffFile(own, mode="r+b") as tiff:
            counts = list(tiff.pages[0].databytecounts)
            counts[hurt] -= 200
            tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    else:
        written_over(own, hurt, cause)
    with opened(own) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(100, factor * MPP))
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        side = grid.footprint
        x, y = grid.xy.T
        touched = (x < 512) & (x + side > 256) & (y < 512) & (y + side > 256)
        assert set(errors) == set(np.flatnonzero(touched).tolist())
        assert all("at (256, 256) of level 0" in str(error) for error in errors.values())
        for i, pixels in tiles.items():
            assert abs(pixels.astype(int) - wsi.read_tile(slide, grid, i)).max() <= 4


def test_tiles_that_were_left_out_are_white(own):
    with tifffile.TiffFile(own, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[7] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    with opened(own) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, MPP))
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        assert not errors
        canvas = np.zeros((1024, 1280, 3), np.uint8)
        for i, (x, y) in enumerate(grid.places):
            canvas[y : y + 224, x : x + 224] = tiles[i]
            assert np.array_equal(tiles[i], wsi.read_tile(slide, grid, i))
        assert (canvas[256:512, 512:768] == 255).all()
        assert not (canvas[256:512, 256:512] == 255).all(-1).any()


def test_a_block_without_any_tile_is_white(own):
    with tifffile.TiffFile(own, mode="r+b") as tiff:
        counts = [count if number == 13 else 0 for number, count in enumerate(tiff.pages[0].databytecounts)]
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    with opened(own) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(128, 2 * MPP))
        assert read_plan(slide, grid).scale == 2
        tiles, errors = streamed(slide, grid)
        assert not errors
        assert [i for i in tiles if (tiles[i] != 255).any()] == [13]


def test_lower_levels_with_gaps_are_left_to_openslide(tmp_path):
    """It fills them from a sharper level."""
    path = write_aperio(tmp_path / "gaps.svs", smooth_picture(1280, 1024), levels=2)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[1].databytecounts)
        counts[0] = 0
        tiff.pages[1].tags["TileByteCounts"].overwrite(counts)
    with opened(path) as slide:
        assert [level is not None for level in slide.native.levels] == [True, False]


def test_a_file_put_in_its_place_does_no_harm(own, tmp_path):
    with opened(own) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, MPP))
        before, _ = streamed(slide, grid)
        write_aperio(tmp_path / "new.svs", smooth_picture(1280, 1024, seed=1)).replace(own)
        after, errors = streamed(slide, grid)
        assert not errors
        assert all(np.array_equal(after[i], before[i]) for i in before)


def test_a_file_written_over_is_noticed(own):
    with opened(own) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, MPP))
        stat = own.stat()
        own.write_bytes(own.read_bytes()[::-1])
        os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        tiles, errors = streamed(slide, grid)
        assert not tiles
        assert all("changed while it was read" in str(error) for error in errors.values())


def test_the_file_is_let_go_of(own):
    """Reads after the end are refused, and no descriptor is left open."""
    gc.collect()  # what other tests left open
    before = len(list(Path("/proc/self/fd").iterdir()))
    slide = opened(own)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, MPP))
    plan = read_plan(slide, grid)
    slide.close()
    with pytest.raises(ValueError, match="closed before all its tiles were read"):
        plan.read(next(plan.requests()), lambda row: np.empty((224, 224, 3), np.uint8))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_colours_that_a_stream_does_not_name_are_those_of_the_tag():
    """CMU-1's kind: RGB in the tag, silence in the stream; decoders would take it for YCbCr."""
    path = shared_path(CMU)
    with opened(path) as slide, openslide.OpenSlide(path) as truth:
        (level,) = slide.native.levels
        (data,) = slide.native.fetch(level, [level.across + 1])
        header = read_header(bytes(data[level.room :]))
        assert header.colour is None
        assert header.length < len(data)
        region = np.asarray(truth.read_region((240, 240), 0, (240, 240)).convert("RGB"))
        assert np.array_equal(level.decode(data), region)
