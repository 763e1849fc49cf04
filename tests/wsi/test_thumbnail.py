"""A level without a pyramid as a small picture: from the file's own tiles, held against means of all its pixels."""

from unittest.mock import patch

import numpy as np
import pytest
import tifffile
from _shared import shared_path
from _slides import smooth_picture, write_aperio

import wsi
from wsi.errors import FetchError, TileReadError
from wsi.thumbnail import scanned_thumbnail, thumbnail
from wsi.tissue import TissueSettings

SMALL = TissueSettings(max_side=130, min_side=130)


def exact_means(image, width, height):
    """Return the mean over each pixel's area: differences of the integral, which is piecewise linear."""
    for axis, count in ((0, height), (1, width)):
        total = np.insert(image.astype(float).cumsum(axis), 0, 0, axis)
        edges = np.linspace(0, image.shape[axis], count + 1)
        lower = np.minimum(edges.astype(int), image.shape[axis] - 1)
        rest = (edges - lower).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = total.take(lower, axis), total.take(lower + 1, axis)
        image = np.diff(low + rest * (high - low), axis=axis) * count / image.shape[axis]
    return image


@pytest.fixture(scope="module")
def textured():
    """Pale, as tissue is: means of pixels that a decoder clips are no means of blocks."""
    noise = np.random.default_rng(0).normal(0, 12, (1163, 2307, 1))
    return (110 + 0.4 * smooth_picture(2307, 1163) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("options", "most", "mean"),
    [
        ({"compression": "zlib", "compressionargs": {}}, 0.51, 0.26),  # rounded once
        ({"compressionargs": {"level": 85}}, 6, 1.3),  # means of 8 x 8 px, cut where the picture's pixels end
        ({"compressionargs": {"level": 85}, "tile": (112, 240)}, 6, 1.3),
        ({"compression": "aperio_jp2000_rgb", "compressionargs": {"level": 40}}, 18, 5),  # a low band is no area mean
    ],
)
def test_one_level_without_a_pyramid_comes_from_its_own_tiles(tmp_path, textured, options, most, mean):
    """A shift by one reduced pixel would be off by 11 on the mean."""
    path = write_aperio(tmp_path / "flat.svs", textured, **options)
    with wsi.open_slide(path) as slide:
        wanted = slide.read(0, 0, *slide.size)
        slide.read = None  # whoever asks the reader fails
        small, scale = thumbnail(slide, SMALL)
    assert small.shape[1] == 130
    assert scale == (2307 / 130, 1163 / small.shape[0])
    error = np.abs(small - exact_means(wanted, *small.shape[1::-1]))
    assert error.max() <= most
    assert error.mean() <= mean


def test_tiles_that_the_scanner_left_out_are_white(tmp_path, textured):
    path = write_aperio(tmp_path / "sparse.svs", textured)
    with wsi.open_slide(path) as slide:
        slide.native.levels[0].counts[:] = 0
        assert (thumbnail(slide, SMALL)[0] == 255).all()


def test_a_damaged_tile_is_shown_as_the_reader_shows_it(tmp_path, textured):
    """Which may be an error, too: then it is that error."""
    path = write_aperio(tmp_path / "flat.svs", textured)
    with wsi.open_slide(path) as slide:
        wanted = exact_means(slide.read(0, 0, *slide.size), 130, 66)
        slide.native.levels[0].counts[21] -= 20
        assert np.abs(thumbnail(slide, SMALL)[0] - wanted).max() <= 6
        slide._read = None
        with pytest.raises(TileReadError, match="cannot read"):
            thumbnail(slide, SMALL)


def spoiled(path, tiles):
    """Overwrite some tiles of level 0 with zeros, as a failed copy leaves them."""
    with tifffile.TiffFile(path) as tiff:
        places = [(tiff.pages[0].dataoffsets[n], tiff.pages[0].databytecounts[n]) for n in tiles]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(count))
    return path


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
def test_what_cannot_be_read_counts_as_tissue_and_the_rest_is_found_as_ever(tmp_path, textured, compression):
    """Tile 23 is the fourth of the third row: (768 to 1024, 512 to 768)."""
    glass = np.full_like(textured, 243)
    glass[:, 1300:] = textured[:, 1300:]
    how = {"compression": compression, "compressionargs": {}}
    path = write_aperio(tmp_path / "flat.svs", glass, **how)
    with wsi.open_slide(path) as slide:
        wanted = wsi.find_tissue(slide)
    with wsi.open_slide(spoiled(path, [23])) as slide:
        found = wsi.find_tissue(slide)
    more = found.mask & ~wanted.mask
    rows, columns = (np.flatnonzero(more.any(axis)) for axis in (1, 0))
    (left, right), (top, bottom) = (
        (a.min() * s, (a.max() + 1) * s) for a, s in zip((columns, rows), found.scale, strict=True)
    )
    assert left <= 768 + found.scale[0]
    assert top <= 512 + found.scale[1]
    assert 1024 - found.scale[0] <= right <= 1024 + 300
    assert 768 - found.scale[1] <= bottom <= 768 + 300
    assert more.sum() == pytest.approx(found.unread * more.size, rel=0.01)
    assert (wanted.mask & ~found.mask).mean() < 0.001
    assert (found.thumbnail[more] == 255).all(1).mean() > 0.99


def test_a_slide_of_which_most_cannot_be_read_is_refused(tmp_path, textured):
    path = write_aperio(tmp_path / "flat.svs", textured)
    spoiled(path, range(22, 50))
    with wsi.open_slide(path) as slide, pytest.raises(TileReadError, match="cannot read"):
        wsi.find_tissue(slide)


def test_what_a_small_level_does_not_give_comes_from_a_sharper_one(textured):
    def broken(x, y, width, height, level):
        if level == 2 and x < 1200 < x + 4 * width:
            raise ValueError("damaged")

    levels = [textured[:1152, :2304], textured[:1152:2, :2304:2], textured[:1152:4, :2304:4]]
    wanted = thumbnail(wsi.MemorySlide(levels[:2], mpp=0.5), SMALL)[0]
    got = scanned_thumbnail(wsi.MemorySlide(levels, mpp=0.5, on_read=broken), SMALL)
    assert not got.unread.any()
    middle = round(1200 / got.scale[0])
    assert np.abs(got.pixels[:, middle].astype(int) - wanted[:, middle]).max() <= 30
    assert got.pixels.min() < 200


def test_what_the_network_does_not_give_is_not_taken_for_damage(textured):
    def gone(x, y, width, height, level):
        if x > 1000:
            raise FetchError("slide", "no answer", "Try again.")

    with pytest.raises(FetchError):
        wsi.find_tissue(wsi.MemorySlide(textured, mpp=0.5, on_read=gone))


def test_a_ruin_is_given_up_soon(textured):
    """Reads that fail may take long: once there are many, none is tried again in parts."""
    reads = []

    def mostly(x, y, width, height, level):
        reads.append(1)
        if x > 1200:
            raise ValueError("damaged")

    with patch.object(wsi.thumbnail, "_MANY", 20), patch.object(wsi.thumbnail, "_PIECE", 300):
        found = wsi.find_tissue(wsi.MemorySlide(textured, mpp=0.5, on_read=mostly))
    assert 0.3 < found.unread < 0.4
    assert len(reads) < 120


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-XK-AAJU-section.tif"])
def test_a_real_slide_without_its_pyramid_has_the_same_tissue(name):
    with wsi.open_slide(shared_path(f"data/slides/{name}")) as slide:
        slide.levels = slide.levels[:1]
        ours = wsi.find_tissue(slide)
        slide.native.levels = (None,)
        wanted = wsi.find_tissue(slide)
    assert np.abs(ours.thumbnail.astype(int) - wanted.thumbnail).mean() < 1
    assert (ours.mask & wanted.mask).sum() / (ours.mask | wanted.mask).sum() > 0.98
