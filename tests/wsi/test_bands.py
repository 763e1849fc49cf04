"""Slides in strips: the pixels of single reads, each band decoded once, and no two large ones beside each other."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from _slides import smooth_picture, streamed
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi
from wsi import bands, focus, thumbnail
from wsi.readers import mosaic
from wsi.readers.mosaic import _Cache

WIDE, TALL, ROWS = 4400, 900, 16


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    path = tmp_path_factory.mktemp("strips") / "striped.tif"
    pixels = 60 + smooth_picture(WIDE, TALL) // 2
    tifffile.imwrite(path, pixels, rowsperstrip=ROWS, compression="zlib", photometric="rgb", metadata=None)
    return path


@pytest.fixture
def decoded(striped, monkeypatch):
    """Open the slide with a cache that holds little; count how often each band is decoded."""
    monkeypatch.setattr(mosaic, "_CACHE_BYTES", 3 * WIDE * ROWS + 1)
    counts = Counter()
    with wsi.open_slide(striped, manifest_mpp=0.5) as slide:
        load = slide._load
        monkeypatch.setattr(slide, "_load", lambda *key: (counts.update([key]), load(*key))[1])
        yield slide, counts


def test_a_band_is_decoded_once_for_all_tiles_of_a_pass(decoded):
    slide, counts = decoded
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=112, mpp=1.0))
    tiles, errors = streamed(slide, grid, workers=1)
    assert not errors
    assert set(counts.values()) == {1}
    assert len(counts) == -(-(TALL // 224 * 224) // ROWS)
    for index in (0, 7, len(grid) - 1):
        assert np.array_equal(tiles[index], wsi.read_tile(slide, grid, index))


def test_a_band_is_decoded_once_for_the_thumbnail_and_for_the_focus(decoded, monkeypatch):
    slide, counts = decoded
    monkeypatch.setattr(thumbnail, "_BAND_PIXELS", 40 * WIDE)
    tissue = wsi.find_tissue(slide)
    assert len(counts) == -(-TALL // ROWS)
    assert sum(counts.values()) <= 1.3 * len(counts)  # two threads, and one band is kept
    counts.clear()
    found = focus.measure_focus(slide, tissue, 192, np.zeros_like(tissue.mask))
    assert len(found.xy) > 40
    assert sum(counts.values()) <= 1.5 * len(counts)
    monkeypatch.setattr(slide, "bands", ())
    one_by_one = focus.measure_focus(slide, tissue, 192, np.zeros_like(tissue.mask))
    assert np.array_equal(found.xy, one_by_one.xy)
    assert np.array_equal(found.defocus, one_by_one.defocus)


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(25, 90).map(lambda n: 2 * n),
    mpp=st.sampled_from([0.5, 0.6, 1.0, 1.5]),
    overlap=st.integers(0, 7),
    workers=st.integers(1, 3),
    most=st.sampled_from([1, 60_000, 2**28]),
)
def test_rows_give_the_bytes_that_single_reads_give(size, mpp, overlap, workers, most):
    """Whatever the grid, the threads and how long a row may be."""
    slide = wsi.MemorySlide([smooth_picture(370, 290), smooth_picture(123, 97)], mpp=(0.5, 0.502))
    slide.bands = (16, 16)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=size, mpp=mpp, overlap=overlap))
    before, bands._BYTES = bands._BYTES, most
    try:
        tiles, errors = streamed(slide, grid, workers=workers)
    finally:
        bands._BYTES = before
    assert not errors
    assert all(np.array_equal(tiles[i], wsi.read_tile(slide, grid, i)) for i in tiles)


def test_a_damaged_band_costs_the_tiles_on_it_and_no_others(striped, tmp_path):
    path = tmp_path / "damaged.tif"
    data = bytearray(striped.read_bytes())
    with tifffile.TiffFile(striped) as tiff:
        offset, count = (values[20] for values in (tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts))
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with wsi.open_slide(path, manifest_mpp=0.5) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=112, mpp=1.0))
        _, errors = streamed(slide, grid)
        assert {grid.places[i][1] for i in errors} == {224}  # band 20 is rows 320 to 335
        assert len(errors) == WIDE // 224
        tissue = wsi.find_tissue(slide)
    rows = np.flatnonzero(tissue.mask.any(1) & (tissue.thumbnail == 255).all((1, 2))) * tissue.scale[1]
    assert rows.min() <= 320
    assert 336 - 2 * tissue.scale[1] < rows.max()
    assert 0 < tissue.unread < 0.5


def test_another_process_reads_it_by_rows_too(striped):
    with wsi.open_slide(striped, manifest_mpp=0.5) as slide, pickle.loads(pickle.dumps(slide)) as other:
        assert other.bands == slide.bands == (ROWS,)
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=112, mpp=1.0))
        assert wsi.plan.read_plan(other, grid).most_rows == WIDE // 224


def test_what_several_threads_want_is_decoded_by_one_and_large_tiles_one_at_a_time(monkeypatch):
    monkeypatch.setattr(mosaic, "_DECODING_BYTES", 100)
    cache, counts, at_once = _Cache(1000), Counter(), []
    lock, running = threading.Lock(), [0]

    def load(key):
        with lock:
            counts.update([key])
            running[0] += 1
            at_once.append(running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return np.zeros(60, np.uint8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.of((0, 0, n % 5), 60, lambda: load(n % 5)), range(40)))
    assert counts == dict.fromkeys(range(5), 1)
    assert max(at_once) == 1
    at_once.clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.of((1, 0, n), 20, lambda: load(n)), range(20)))
    assert 1 < max(at_once) <= 5


def test_a_tile_that_failed_is_tried_again_and_keeps_no_one_waiting():
    cache = _Cache(1000)

    def broken():
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cache.of((0, 0, 0), 60, broken)
    assert cache.of((0, 0, 0), 60, lambda: None) is None
    assert cache.of((0, 0, 0), 60, lambda: np.ones(60, np.uint8)).sum() == 60
