"""Colour profiles: told always, applied when asked, the same in every way of reading."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
import tifffile
from _dicom import write_dicom
from _icc import expected, linear_profile
from _shared import shared_path
from _slides import MPP, smooth_picture, streamed, with_profile, write_aperio

import wsi
from wsi.icc import ToSrgb, profile_of
from wsi.plan import ConvertedPlan, TilePlan, read_plan
from wsi.readers.dicom import DicomSlide
from wsi.readers.openslide import OpenSlideSlide
from wsi.readers.tiff import TiffSlide

SWAPPED = (1, 0, 2)


def tagged(path, profile, image=None, **options):
    image = smooth_picture(1000, 700) if image is None else image
    return write_aperio(path, image, **with_profile(profile), **options)


@pytest.mark.parametrize("order", [(0, 1, 2), SWAPPED])
def test_pixels_follow_the_formula(order):
    """The closed form of the sRGB curve is the oracle; a profile that swaps two primaries swaps them back."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    pixels[0, :256] = np.arange(256)[:, None]
    ours = ToSrgb(linear_profile(order))(pixels)
    error = abs(ours - expected(pixels, order))
    bright = (pixels > 20).all(-1)  # below, one step of 8 bits is several grey levels
    assert error[bright].max() <= 2
    assert error.mean() < 1


def test_threads_share_one_transform():
    convert = ToSrgb(linear_profile())
    pictures = [smooth_picture(256, 256, seed) for seed in range(40)]
    truth = [convert(one) for one in pictures]
    with ThreadPoolExecutor(8) as pool:
        for ours, wanted in zip(pool.map(convert, pictures), truth, strict=True):
            assert np.array_equal(ours, wanted)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("straight", [True, False])
def test_tiles_thumbnails_and_the_stream_are_converted_alike(straight, factor, tmp_path):
    """Against the formula on what is read without a profile: once each, at the very end, in all three ways."""
    path = tagged(tmp_path / "a.svs", linear_profile(SWAPPED))
    with wsi.open_slide(path) as plain, wsi.open_slide(path, icc="srgb") as slide:
        assert slide.native is not None
        if not straight:
            plain.native = slide.native = None
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(128, factor * 0.5))
        assert isinstance(read_plan(slide, grid), ConvertedPlan if straight else TilePlan)
        convert = slide.convert
        before, _ = streamed(plain, grid)
        after, errors = streamed(slide, grid)
        assert not errors
        for i, pixels in after.items():
            assert np.array_equal(pixels, convert(before[i]))
            assert np.array_equal(wsi.read_tile(slide, grid, i), convert(wsi.read_tile(plain, grid, i)))
            assert abs(pixels - expected(before[i], SWAPPED)).mean() < 1
        small, whole = wsi.find_tissue(slide).thumbnail, wsi.find_tissue(plain).thumbnail
        assert np.array_equal(small, convert(whole))
        assert np.array_equal(slide.read(0, 0, 50, 50), plain.read(0, 0, 50, 50))  # regions stay the file's own


def test_by_default_a_profile_is_told_and_not_applied(tmp_path):
    with wsi.open_slide(tagged(tmp_path / "a.svs", linear_profile())) as slide:
        assert slide.convert is None
        assert slide.profile.description == "linear scanner"
        assert slide.profile.problem is None
    with wsi.open_slide(write_aperio(tmp_path / "b.svs", smooth_picture(300, 300)), icc="srgb") as slide:
        assert slide.profile is None
        assert slide.convert is None
    with pytest.raises(ValueError, match="icc must be one of"):
        wsi.open_slide(tmp_path / "a.svs", icc="adobe")


def test_every_reader_finds_the_profile(tmp_path):
    profile = linear_profile()
    image = smooth_picture(300, 300)
    tiff = tagged(tmp_path / "a.svs", profile, image)
    dicom = write_dicom(tmp_path, [image], icc=profile)[0]
    ome = tmp_path / "a.ome.tif"
    tifffile.imwrite(ome, image, tile=(128, 128), photometric="rgb", iccprofile=profile)
    for path, kind in (
        (tiff, OpenSlideSlide),
        (tiff, TiffSlide),
        (ome, TiffSlide),
        (dicom, OpenSlideSlide),
        (dicom, DicomSlide),
    ):
        with kind(path) as slide:
            assert slide.profile.data[: len(profile)] == profile, kind


def test_real_profiles_are_those_that_openslide_shows():
    for file in ("boxes.tiff", "boxes_0.dcm"):
        path = shared_path(f"data/slides/conformance/{file}")
        with wsi.open_slide(path, icc="srgb", slide_mpp=MPP) as slide, openslide.OpenSlide(path) as truth:
            assert slide.profile.description == truth.color_profile.profile.profile_description.strip()
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(16, slide.mpp.x))
            ours = wsi.read_tile(slide, grid, 0)
            assert abs(ours.astype(int) - slide.read(0, 0, 16, 16)).max() <= 1  # sRGB stays sRGB


def test_a_damaged_profile_is_told_and_refused_where_it_is_needed(tmp_path):
    whole = linear_profile()
    cmyk = whole[:16] + b"CMYK" + whole[20:]
    for harm in (whole[: len(whole) // 2], b"\0" * 500, b"no profile", cmyk):
        path = tagged(tmp_path / "a.svs", harm, smooth_picture(300, 300))
        with wsi.open_slide(path) as slide:
            assert slide.profile.problem
            assert slide.read(0, 0, 5, 5).shape == (5, 5, 3)
        with pytest.raises(wsi.UnreadableSlideError, match=r"colour profile cannot be used.*--set icc=none"):
            wsi.open_slide(path, icc="srgb")


def test_whatever_stands_in_a_profile_it_works_or_is_told():
    """1,500 damaged profiles: none raises, and what is taken gives pixels."""
    rng = np.random.default_rng(0)
    whole = linear_profile()
    pixels = smooth_picture(16, 16)
    taken = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data))] = rng.integers(256)
        profile = profile_of(bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.2 else data))
        if profile.problem is None:
            taken += 1
            assert ToSrgb(profile.data)(pixels).shape == pixels.shape
        else:
            assert profile.problem.isprintable()
    assert 300 < taken < 1500
