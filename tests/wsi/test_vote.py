"""Tiles from the file against the slide's reader: two that agree win, and three that differ are no slide."""

from __future__ import annotations

import numpy as np
import pytest
from _shared import shared_path
from _slides import MPP, opened, smooth_picture, streamed
from scipy import ndimage

import wsi
from wsi.errors import UnreadableSlideError
from wsi.plan import read_plan
from wsi.readers.direct import NativeLevel
from wsi.readers.openslide import OpenSlideSlide
from wsi.readers.tiff import TiffSlide
from wsi.readers.tiffslide import TiffslideSlide
from wsi.readers.vote import alike

TCGA = "data/slides/TCGA-XK-AAJU-section.tif"
OME = "data/slides/OS-1-detail.ome.tif"


def lie(monkeypatch, reader, change=lambda pixels: 255 - pixels):
    """Let a reader show other pixels."""
    read = reader._read
    monkeypatch.setattr(reader, "_read", lambda self, *box: change(read(self, *box)))


def lie_ourselves(monkeypatch):
    decode = NativeLevel.decode
    monkeypatch.setattr(
        NativeLevel, "decode", lambda self, data, scale=1, into=None: decode(self, data, scale, into) // 2
    )


def unavailable(monkeypatch, *readers):
    def refuse(self, path, **_):
        raise UnreadableSlideError(path.name, "not today")

    for reader in readers:
        monkeypatch.setattr(reader, "__init__", refuse)


def test_all_agree(aperio):
    with opened(aperio) as slide:
        assert slide.reader.startswith("openslide")
        assert all(slide.native.levels)


@pytest.mark.parametrize("path", ["aperio", TCGA])
def test_a_reader_that_stands_alone_is_not_used_for_anything(path, aperio, monkeypatch):
    """Neither for tiles nor for thumbnails; the pixels are those of an honest OpenSlide."""
    path = aperio if path == "aperio" else shared_path(path)
    with OpenSlideSlide(path, manifest_mpp=MPP) as honest:
        truth = honest.read(256, 256, 256, 256)
    lie(monkeypatch, OpenSlideSlide)
    with opened(path) as slide:
        assert slide.reader.startswith("tifffile")
        assert np.abs(slide.read(256, 256, 256, 256).astype(int) - truth).max() <= 2
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(256, MPP))
        row = grid.places.index((256, 256))
        assert slide.native.levels[0] is not None
        assert np.abs(streamed(slide, grid)[0][row].astype(int) - truth).max() <= 2


def test_one_changed_tile_is_enough(aperio, monkeypatch):
    """A reader that swaps red and blue."""
    lie(monkeypatch, OpenSlideSlide, lambda pixels: pixels[..., ::-1])
    with opened(aperio) as slide:
        assert slide.reader.startswith("tifffile")


@pytest.mark.parametrize("path", ["aperio", OME])
def test_we_lose_against_two(path, aperio, monkeypatch):
    lie_ourselves(monkeypatch)
    with opened(aperio if path == "aperio" else shared_path(path)) as slide:
        assert slide.native is None
        assert slide.reader.startswith("openslide" if path == "aperio" else "tifffile")


def test_three_that_differ_are_refused_by_name(aperio, monkeypatch):
    lie(monkeypatch, OpenSlideSlide)
    lie_ourselves(monkeypatch)
    with pytest.raises(UnreadableSlideError) as caught:
        opened(aperio)
    text = str(caught.value)
    assert text.startswith("small.svs: three ways of reading the tile at (")
    assert "openslide" in text
    assert "tifffile" in text
    assert "vips tiffsave" in text


def test_without_a_third_the_reader_is_believed(aperio, monkeypatch):
    lie(monkeypatch, OpenSlideSlide)
    unavailable(monkeypatch, TiffSlide, TiffslideSlide)
    with opened(aperio) as slide:
        assert slide.native is None
        assert slide.reader.startswith("openslide")


def test_a_level_that_cannot_be_compared_is_left_to_the_reader(aperio, monkeypatch):
    def refuse(self, x, y, width, height, level):
        if level == 1:
            raise OSError("no such level")
        return read(self, x, y, width, height, level)

    read = OpenSlideSlide._read
    monkeypatch.setattr(OpenSlideSlide, "_read", refuse)
    with opened(aperio) as slide:
        assert [level is not None for level in slide.native.levels] == [True, False, True]
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, MPP))
        assert read_plan(slide, grid).scale == 1


@pytest.mark.parametrize("moved", [(2, 0), (0, -3), (5, 7), (-9, 1)])
def test_a_tile_a_few_pixels_off_is_noticed(moved, aperio, monkeypatch):
    """On every level, also where the reader shows what lies between pixels."""
    dx, dy = moved
    for path in (aperio, shared_path(TCGA)):
        with OpenSlideSlide(path, manifest_mpp=MPP) as slide, TiffSlide(path, manifest_mpp=MPP) as exact:
            for number, level in enumerate(exact.levels):
                if min(level.width, level.height) < 300:
                    continue
                (wide, high), whole = level.downsample, number == 0
                pixels = exact.read(0, 0, 256, 256, level=number)
                assert alike(slide.read(0, 0, 256, 256, level=number), pixels, exact=whole)
                off = slide.read(round(dx * wide), round(dy * high), 256, 256, level=number)
                assert not alike(off, pixels, exact=whole)


def test_what_lies_between_pixels_is_alike_and_what_lies_two_pixels_off_is_not():
    """Half a pixel is what an interpolating reader may be off; a flat picture may lie anywhere."""
    picture = smooth_picture(300, 300).astype(float)
    noise = np.random.default_rng(0).normal(0, 9, picture.shape)
    picture = (picture + noise).clip(0, 255)
    for move in (0.25, 0.5):
        moved = ndimage.shift(picture, (move, -move, 0), order=1, mode="nearest")
        assert alike(*(p[20:276, 20:276].astype(np.uint8) for p in (picture, moved)), exact=False)
    fine = (200 + noise).clip(0, 255).astype(np.uint8)  # its means over boxes are the same wherever it lies
    for down, right in ((0, 2), (3, 0), (-7, 5)):
        assert not alike(fine[20:276, 20:276], fine[20 + down : 276 + down, 20 + right : 276 + right], exact=False)
    flat = np.full((64, 64, 3), 240, np.uint8)
    assert alike(flat, flat, exact=False)
    assert not alike(flat, flat - 9, exact=False)
