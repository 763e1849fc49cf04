"""A level without a pyramid as a small picture: from the file's own tiles, held against means of all its pixels."""

import numpy as np
import pytest
from _shared import shared_path
from _slides import smooth_picture, write_aperio

import wsi
from wsi.errors import TileReadError
from wsi.thumbnail import thumbnail
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


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-XK-AAJU-section.tif"])
def test_a_real_slide_without_its_pyramid_has_the_same_tissue(name):
    with wsi.open_slide(shared_path(f"data/slides/{name}")) as slide:
        slide.levels = slide.levels[:1]
        ours = wsi.find_tissue(slide)
        slide.native.levels = (None,)
        wanted = wsi.find_tissue(slide)
    assert np.abs(ours.thumbnail.astype(int) - wanted.thumbnail).mean() < 1
    assert (ours.mask & wanted.mask).sum() / (ours.mask | wanted.mask).sum() > 0.98
