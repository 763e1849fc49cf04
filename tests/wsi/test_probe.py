"""The corruption probe finds what was planted: counted by brute force over the bytes of the file."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tifffile
from _slides import smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi
from wsi.anatomy import anatomy
from wsi.probe import probe
from wsi.tissue import Tissue


def write_many_tiles(path, side=2048, tile=64, **options):
    """Write a slide of 1,024 small JPEG tiles, directory first; return their places."""
    options = {"compression": "jpeg", **options}
    picture = smooth_picture(side, side)
    if options.get("planarconfig"):
        picture = np.ascontiguousarray(picture.transpose(2, 0, 1))
    tifffile.imwrite(path, picture, tile=(tile, tile), metadata=None, photometric="rgb", **options)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert page.offset < min(page.dataoffsets)
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def spoil(path, places, tiles, damage):
    data = bytearray(path.read_bytes())
    for tile in tiles:
        start, count = places[tile]
        data[start : start + count] = damage(bytes(data[start : start + count]))
    path.write_bytes(data)


def probed(path, **options):
    with wsi.open_slide(path, slide_mpp=0.5) as slide:
        return probe(slide, **options)


DAMAGES = {
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "start": lambda data: b"\xfe" + data[1:],
}


@pytest.mark.parametrize("kind", list(DAMAGES))
@pytest.mark.parametrize("compression", ["jpeg", "zlib", "planes"])
def test_deep_finds_each_bad_tile_and_no_other(tmp_path, kind, compression):
    path = tmp_path / "s.tif"
    options = {"compression": "zlib", "planarconfig": "separate"} if compression == "planes" else {}
    places = write_many_tiles(path, side=1024, **{"compression": compression, **options})
    with wsi.open_slide(path) as slide:
        assert (slide.native is None) == (compression == "planes")  # straight from the file, or through a library
    planted = sorted(np.random.default_rng(1).choice(256, 7, replace=False).tolist())
    planted = [tile for tile in planted if tile not in (136, 135, 120, 119)]  # the middle, which opening looks at
    spoil(path, places, planted, DAMAGES[kind])
    (level,) = probed(path, deep=True).levels
    assert (level.tiles, level.decoded, level.bad) == (256, 256, len(planted))
    assert {bad.row * 16 + bad.column for bad in level.examples} == set(planted[:5])
    assert level.share == pytest.approx(len(planted) / 256)
    assert level.zeroed == (len(planted) if kind == "zeros" else 0)


def test_a_sound_slide_costs_a_bounded_number_of_tiles(tmp_path):
    write_many_tiles(tmp_path / "s.tif")
    found = probed(tmp_path / "s.tif")
    assert 20 <= found.decoded <= 30
    assert (found.levels[0].bad, found.complete, found.in_time) == (0, False, True)


def test_a_bad_tile_makes_it_look_at_more_so_that_the_share_is_known(tmp_path):
    path = tmp_path / "s.tif"
    places = write_many_tiles(path)
    planted = np.random.default_rng(0).choice(len(places), 205, replace=False)
    planted = [tile for tile in planted.tolist() if tile not in (495, 496, 527, 528)]
    spoil(path, places, planted, DAMAGES["cut"])
    (level,) = probed(path).levels
    assert 150 <= level.decoded <= 240
    assert level.share == pytest.approx(0.2, abs=0.06)


def test_a_copy_that_stopped_is_told_from_the_file_alone(tmp_path):
    path = tmp_path / "s.tif"
    places = write_many_tiles(path)
    whole = path.stat().st_size
    half = whole * 3 // 4
    os.truncate(path, half)
    os.truncate(path, whole)
    with path.open("rb") as file:
        hole = os.lseek(file.fileno(), half, os.SEEK_HOLE)
    if hole >= whole:
        pytest.skip("this file system keeps no holes")
    data = path.read_bytes()
    (level,) = probed(path).levels
    assert level.never_written == sum(start + count > hole for start, count in places) > 100
    zeros = sum(not any(data[start : start + 16]) or start + count > hole for start, count in places)
    assert level.zeroed == zeros
    assert level.bad >= zeros
    assert level.share >= zeros / len(places)


def test_zeros_of_raw_pixels_are_black_and_no_damage(tmp_path):
    path = tmp_path / "s.tif"
    picture = smooth_picture(512, 512)
    picture[:128] = 0
    tifffile.imwrite(path, picture, tile=(64, 64), metadata=None)
    (level,) = probed(path).levels
    assert (level.bad, level.zeroed) == (0, 0)


def test_tiles_left_out_are_counted_and_not_called_bad(tmp_path):
    path = tmp_path / "s.tif"
    write_many_tiles(path, side=1024)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        for code in (324, 325):
            width = {3: 2, 4: 4}[int(tags[code].dtype)]
            for tile in (3, 40, 41):
                start = tags[code].valueoffset + tile * width
                data[start : start + width] = bytes(width)
    path.write_bytes(data)
    (level,) = probed(path, deep=True).levels
    assert (level.left_out, level.bad, level.decoded) == (3, 0, 253)


def test_tiles_on_tissue_decide():
    read = []

    def on_read(x, y, *_):
        read.append((x // 512, y // 512))
        if (x // 512, y // 512) in ((2, 3), (7, 7)):
            raise OSError("damaged")

    slide = wsi.MemorySlide(np.full((4096, 4096, 3), 200, np.uint8), mpp=0.5, on_read=on_read)
    mask = np.zeros((64, 64), bool)
    mask[24:32, 16:32] = True  # blocks (2, 3) and (3, 3)
    tissue = Tissue("s", mask, ~mask & False, (64.0, 64.0), np.zeros((64, 64, 3), np.uint8))
    (level,) = probe(slide, tissue).levels
    assert {(2, 3), (3, 3), (0, 0), (7, 7)} <= set(read)
    assert level.bad == 2
    assert level.share == pytest.approx(0.5)
    nothing = Tissue("s", ~mask & False, ~mask & False, (64.0, 64.0), np.zeros((64, 64, 3), np.uint8))
    assert probe(slide, nothing, deep=True).levels[0].share == pytest.approx(2 / 64)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([64, 224, 300]),
    overlap=st.sampled_from([0, 30]),
    sides=st.tuples(st.integers(600, 2300), st.integers(600, 2300)),
)
def test_tiles_of_a_job_that_touch_a_bad_one_are_counted(seed, size, overlap, sides):
    rng = np.random.default_rng(seed)
    bad = {(int(c), int(r)) for c, r in rng.integers(0, 5, (2, 2))}

    def on_read(x, y, *_):
        if (x // 512, y // 512) in bad:
            raise OSError("damaged")

    slide = wsi.MemorySlide(np.full((sides[1], sides[0], 3), 200, np.uint8), mpp=0.5, on_read=on_read)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=size, mpp=0.5, overlap=overlap))
    (level,) = probe(slide, deep=True).levels
    (width, height), hit = grid.footprint_xy, 0
    for x, y in grid.xy.tolist():
        hit += any(
            c * 512 < x + width and x < c * 512 + 512 and r * 512 < y + height and y < r * 512 + 512 for c, r in bad
        )
    assert level.complete
    assert level.share_of(grid) == pytest.approx(hit / len(grid))


def test_time_is_bounded():
    slide = wsi.MemorySlide(np.full((4096, 4096, 3), 200, np.uint8), mpp=0.5)
    found = probe(slide, seconds=0.0)
    assert (found.in_time, found.complete, found.decoded) == (False, False, 0)


@pytest.mark.parametrize(
    ("compression", "name"),
    [("jpeg", "JPEG"), ("zlib", "deflate"), ("lzw", "LZW"), ("jpeg2000", "JPEG 2000"), (None, "none")],
)
def test_what_a_file_is_made_of(tmp_path, compression, name):
    path = tmp_path / "s.tif"
    write_many_tiles(
        path,
        side=256,
        compression=compression,
        bigtiff=name == "LZW",
    )
    with wsi.open_slide(path, slide_mpp=0.5) as slide:
        form = anatomy(slide)
    assert (form.container, form.compression, form.tile) == ("BigTIFF" if name == "LZW" else "TIFF", name, (64, 64))
