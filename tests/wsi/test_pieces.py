"""Many small pieces, and holes: pictures made of real tissue, so that the truth is known to the pixel."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from _shared import shared_path
from PIL import Image
from scipy import ndimage

from wsi.outlines import largest_piece, pieces_of
from wsi.tissue import tissue_of

TEXTURES = (
    "crc_nuclei/img010.png",
    "crc_nuclei/img045.png",
    "ucsb_breast/ytma10_010704_benign1.jpg",
    "ihc/skimage_ihc.png",
    "nuclei/image01.png",
    "stain/kather1.tif",
    "ihc/deepliif_6_2_ihc.png",
)


@cache
def texture(name, mpp):
    """Real tissue of 0.5 µm/px as a scanner's overview would show it."""
    image = Image.open(shared_path(f"data/tiles/{name}")).convert("RGB")
    return np.asarray(image.reduce(round(mpp / 0.5)))


def glass(height, width):
    noise = np.random.default_rng(0).normal(0, 1.5, (height, width, 3))
    return (243 + noise).clip(0, 255).astype(np.uint8)


def lay(image, where, name, mpp):
    one = texture(name, mpp)
    rows, columns = (-(-side // tile) for side, tile in zip(image.shape, one.shape[:2], strict=False))
    image[where] = np.tile(one, (rows, columns, 1))[: image.shape[0], : image.shape[1]][where]


def disc(shape, middle, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(y - middle[0], x - middle[1]) < radius


def overlap(found, truth):
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize(("mpp", "height", "width"), [(8.0, 1400, 1400), (29.0, 900, 2048)])
def test_a_hundred_cores_of_a_microarray_are_a_hundred_pieces(mpp, height, width):
    """Cores of 0.6 mm, also on a slide so large that the picture of it is coarse, and a core 0.02 % of it."""
    image, truth, core = glass(height, width), np.zeros((height, width), bool), np.zeros((height, width), int)
    for number in range(100):
        middle = (number // 10 + 0.5) * height / 10, (number % 10 + 0.5) * width / 10
        where = disc(image.shape, middle, 300 / mpp)
        lay(image, where, TEXTURES[number % len(TEXTURES)], mpp)
        truth |= where
        core[where] = number + 1
    found = tissue_of(image, mpp=mpp)
    assert ndimage.label(found.mask)[1] == len(found.polygons()) == 100
    assert overlap(found.mask, truth) > 0.96
    assert ndimage.mean(found.mask, core, np.arange(1, 101)).min() > 0.85
    assert not found.pen.any()


@pytest.mark.parametrize("mpp", [8.0, 24.0])
def test_needle_biopsies_and_fragments_of_a_tenth_of_a_square_millimetre_are_kept(mpp):
    shape = round(12_000 / mpp), round(24_000 / mpp)
    y, x = np.mgrid[: shape[0], : shape[1]] * mpp
    truth = (abs(y - 5600) < 350) & (abs(x - 9000) < 7000)
    for middle in ((1600, 2400), (9000, 12_000), (2000, 20_000)):
        truth |= np.hypot(y - middle[0], x - middle[1]) < 178
    image = glass(*shape)
    lay(image, truth, TEXTURES[0], mpp)
    found = tissue_of(image, mpp=mpp)
    assert len(found.polygons()) == 4
    assert overlap(found.mask, truth) > 0.96


@pytest.mark.parametrize("radius", [9, 20, 60])
@pytest.mark.parametrize(("other", "gap"), [(12, 100), (150, 100), (12, 3600)])
def test_a_second_piece_far_away_takes_nothing_from_the_first(radius, other, gap):
    """However large it is, and however much glass lies between: also what the picture's share of the first is."""
    alone = glass(400, 300)
    lay(alone, disc(alone.shape, (150, 150), radius), TEXTURES[radius % len(TEXTURES)], 16.0)
    both = np.concatenate([alone, np.full((400, gap + 300, 3), 243, np.uint8)], axis=1)
    lay(both, disc(both.shape, (200, 300 + gap + 100), other), TEXTURES[0], 16.0)
    one, two = tissue_of(alone, mpp=16.0), tissue_of(both, mpp=16.0)
    assert one.mask.any()
    assert overlap(two.mask[:, :300], one.mask) > 0.985  # the median of the glass may be one grey level another


@pytest.mark.parametrize(("diameter_um", "is_hole"), [(60, False), (80, False), (200, True), (400, True), (1000, True)])
def test_lumina_are_holes_from_a_certain_size_on(diameter_um, is_hole):
    """Glass in a gland of 0.2 mm and more is no tissue; between cells, and in fat cells, it is."""
    mpp, shape = 4.0, (700, 700)
    image = glass(*shape)
    truth = disc(shape, (350, 350), 300) & ~disc(shape, (350, 350), diameter_um / 2 / mpp)
    lay(image, truth, TEXTURES[1], mpp)
    found = tissue_of(image, mpp=mpp)
    assert len(found.polygons()[0].interiors) == is_hole
    if is_hole:
        assert overlap(found.mask, truth) > 0.97
    else:
        assert found.mask[350, 350]


def test_a_tile_knows_its_piece():
    """The same number as the outline's `tissue_id`; brute force over the tile's pixels is the oracle."""
    mask = ndimage.gaussian_filter(np.random.default_rng(3).random((120, 160)), 3) > 0.5
    pieces = pieces_of(mask)
    areas = np.bincount(pieces[mask])
    assert (np.diff(areas) <= 0).all()
    assert (pieces[~mask] == -1).all()
    xy = np.stack(np.meshgrid(np.arange(0, 300, 30), np.arange(0, 220, 20)), -1).reshape(-1, 2)
    found = largest_piece(pieces, (2.0, 2.0), xy, (20, 20))
    for (x, y), piece in zip(xy // 2, found, strict=True):
        inside = pieces[y : y + 10, x : x + 10]
        counts = np.bincount(inside[inside >= 0], minlength=1)
        assert piece == (counts.argmax() if counts.any() else -1)
