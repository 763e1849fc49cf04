"""Where the tissue is: against masks drawn by others, and pictures whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from _shared import shared_path
from _zoo import write_zoo
from PIL import Image
from scipy import ndimage
from shapely import contains_xy
from shapely.geometry import shape

import wsi
from wsi.outlines import polygons_of
from wsi.thumbnail import thumbnail
from wsi.tissue import TissueSettings, tissue_of

TILES = "data/tiles"


def picture(name):
    return np.asarray(Image.open(shared_path(f"{TILES}/{name}")).convert("RGB"))


def glass(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1.5, (height, width, 3))
    return (243 + noise).clip(0, 255).astype(np.uint8)


def blob_of(texture, height=512, width=640):
    """Lay real tissue as an ellipse on glass: the picture and the truth."""
    y, x = np.mgrid[:height, :width]
    truth = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (width / 3)) ** 2 < 1
    rows, columns = -(-height // texture.shape[0]), -(-width // texture.shape[1])
    image = glass(height, width)
    image[truth] = np.tile(texture, (rows, columns, 1))[:height, :width][truth]
    return image, truth


def mean_at(name, um_per_px=8, of=0.5):
    """Shrink a real region of `of` µm/px to `um_per_px`."""
    return np.asarray(Image.fromarray(picture(name)).reduce(round(um_per_px / of)))


TEXTURES = [
    "crc_nuclei/img010.png",
    "crc_nuclei/img045.png",
    "ihc/skimage_ihc.png",
    "ihc/deepliif_34_3_ihc.png",
    "ihc/deepliif_6_2_ihc.png",
    "nuclei/image01.png",
    "stain/torchstain_target.png",
    "stain/kather1.tif",
]


@pytest.mark.parametrize("name", TEXTURES)
def test_real_tissue_on_glass_is_found_whole(name):
    """H&E and IHC, at the resolution of a slide's overview."""
    image, truth = blob_of(mean_at(name))
    found = tissue_of(image, mpp=8.0)
    assert (found.mask & truth).sum() / truth.sum() > 0.97
    assert (found.mask & ~truth).sum() / truth.sum() < 0.06
    assert found.pen.mean() < 0.001
    assert found.share == pytest.approx(truth.mean(), rel=0.06)


def test_pen_marked_by_others_is_left_out():
    """HistoQC's own mask of the green pen, on its own picture."""
    pen = picture("artefacts/pen_green_mask.png")[..., 0] > 0
    found = tissue_of(picture("artefacts/pen_green.png"))
    assert (found.mask & pen).sum() / pen.sum() < 0.005
    assert (found.pen & pen).sum() / pen.sum() > 0.98
    assert (found.pen & ~ndimage.binary_dilation(pen, iterations=8)).mean() < 0.005
    assert 0.15 < found.share < 0.30


INKS = {
    "green": (30, 140, 110),
    "blue": (40, 70, 180),
    "red": (190, 25, 45),
    "pale red": (210, 60, 72),
    "black": (8, 6, 9),
}


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("name", ["crc_nuclei/img010.png", "ihc/skimage_ihc.png"])
def test_strokes_of_ink_on_glass_and_tissue_are_left_out(ink, name):
    """Ink takes its share of light from what lies under it, with soft edges, as a felt pen does."""
    image, truth = blob_of(mean_at(name))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    stroke = abs(np.hypot(y - 256, x - 320) - 170) < 14
    share = ndimage.gaussian_filter(stroke.astype(float), 2)[..., None]
    density = share * -np.log(np.array(INKS[ink]) / 243)
    inked = (image * np.exp(-density)).astype(np.uint8)
    found = tissue_of(inked, mpp=8.0)
    assert (found.mask & stroke).sum() / stroke.sum() < 0.01
    assert (found.pen & stroke).sum() / stroke.sum() > 0.99
    away = ~ndimage.binary_dilation(stroke, iterations=12)
    assert (found.mask & truth & away).sum() / (truth & away).sum() > 0.97
    assert not (found.mask & found.pen).any()


@pytest.mark.parametrize("ink", INKS)
def test_ink_alone_is_no_tissue(ink):
    image = glass(400, 500)
    y, x = np.mgrid[:400, :500]
    share = ndimage.gaussian_filter((abs(np.hypot(y - 200, x - 250) - 120) < 12).astype(float), 2)[..., None]
    inked = (image * np.exp(share * np.log(np.array(INKS[ink]) / 243))).astype(np.uint8)
    found = tissue_of(inked, mpp=8.0)
    assert not found.mask.any()
    assert "pen" in found.reason


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("quality/high-nuclei-score-level0.png", 0.95, 1),
        ("quality/medium-nuclei-score-level0.png", 0.95, 1),
        ("quality/tissue-level0-4302-10273-4814-10785.png", 0.95, 1),
        ("quality/tissue-level2-1784-6289-5880-10386.png", 0.7, 0.95),
        ("quality/no-tissue.png", 0, 0),
        ("quality/no-tissue-line.png", 0, 0),
        ("quality/no-tissue-green-pen.png", 0, 0),
        ("quality/medium-nuclei-score-green-pen-level1.png", 0.2, 0.6),
        ("sections/tia_colon_thumb.png", 0.30, 0.42),
        ("sections/histolab_wsi_blue_pen.png", 0.25, 0.45),
        ("sections/histolab_diagnostic_thumb_pen.png", 0.3, 0.55),
        ("artefacts/coverslip_edge.png", 0.4, 0.6),
    ],
)
def test_pictures_named_by_their_content(name, least, most):
    small = np.asarray(Image.fromarray(picture(name)).reduce(4)) if name.startswith("quality") else picture(name)
    found = tissue_of(small, mpp=2.0 if name.startswith("quality") else None)
    assert least <= found.share <= most
    assert (found.reason is None) == (found.share > 0)


@pytest.mark.parametrize(
    ("name", "least", "most", "pen"),
    [
        ("CMU-1-Small-Region.svs", 0.35, 0.5, (0, 0)),
        ("TCGA-XK-AAJU-section.tif", 0.38, 0.5, (0.05, 0.12)),
        ("OS-1-detail.ome.tif", 0.99, 1, (0, 0)),  # all tissue, no glass to compare with
        ("OS-2-ndpi.ome.tif", 0.8, 0.95, (0, 0)),  # blue counterstain is no pen
        ("kidney-48-5.tif", 0.003, 0.006, (0, 0)),
    ],
)
def test_real_slides(name, least, most, pen):
    with wsi.open_slide(shared_path(f"data/slides/{name}")) as slide:
        found = wsi.find_tissue(slide)
        assert least <= found.share <= most
        assert pen[0] <= found.pen.mean() <= pen[1]
        assert max(found.mask.shape) <= 2048
        assert found.mask.shape == found.pen.shape == found.thumbnail.shape[:2]
        for axis, side in enumerate(slide.size):
            assert found.mask.shape[1 - axis] * found.scale[axis] == pytest.approx(side)


@pytest.mark.parametrize(
    ("level", "reason"), [(255, "all glass"), (243, "all glass"), (0, "black"), (12, "black"), (128, "stain")]
)
def test_plain_pictures_have_no_tissue_and_say_why(level, reason):
    found = wsi.find_tissue(wsi.MemorySlide(np.full((700, 900, 3), level, np.uint8), mpp=0.5))
    assert not found.mask.any()
    assert found.reason.startswith("no tissue")
    assert reason in found.reason
    assert found.polygons() == []


def test_noisy_glass_with_a_gradient_has_no_tissue():
    shade = np.linspace(0.8, 1, 600)[:, None, None]
    found = tissue_of((glass(600, 800) * shade).astype(np.uint8), mpp=8.0)
    assert found.reason == "no tissue: all glass"


def test_specks_are_dropped_and_small_holes_filled():
    texture = mean_at("crc_nuclei/img010.png")
    image, _ = blob_of(texture)
    image[20:24, 20:24] = 90, 30, 100  # 32 µm of dirt
    image[250:256, 300:306] = 243  # a hole of 48 µm
    image[200:240, 240:280] = 243  # a lumen of 320 µm
    found = tissue_of(image, mpp=8.0)
    assert not found.mask[:40, :40].any()
    assert found.mask[248:258, 298:308].all()
    assert not found.mask[210:230, 250:270].any()
    assert len(found.polygons()) == 1
    assert len(found.polygons()[0].interiors) == 1


def test_a_crop_smaller_than_any_speck_is_not_dropped():
    """50 µm a side, all tissue."""
    slide = wsi.MemorySlide(picture("crc_nuclei/img020.png")[:200, :200], mpp=0.25)
    assert wsi.find_tissue(slide).share > 0.95


def test_fluorescence_masks_and_wrong_colours_are_refused():
    rng = np.random.default_rng(0)
    dark = np.zeros((400, 400, 3), np.uint8)
    dark[100:300, 100:300, 2] = rng.integers(80, 250, (200, 200))
    grey = np.zeros((400, 400, 3), np.uint8)
    grey[50:200, 50:350] = 180
    swapped = np.empty((400, 400, 3), np.uint8)
    swapped[:] = 240, 128, 129
    for image, word in ((dark, "dark ground"), (grey, "dark ground"), (255 - grey, "grey picture"), (swapped, "YCbCr")):
        with pytest.raises(wsi.NotBrightfieldError, match=word):
            tissue_of(image)


def test_outlines_rasterized_anew_are_the_mask():
    """shapely says for each pixel's middle whether it lies inside."""
    mask = ndimage.gaussian_filter(np.random.default_rng(4).random((60, 80)), 1.2) > 0.45
    polygons = polygons_of(mask, (4.0, 3.0))
    assert all(p.is_valid for p in polygons)
    assert any(len(p.interiors) for p in polygons)
    assert [p.area for p in polygons] == sorted((p.area for p in polygons), reverse=True)
    y, x = np.mgrid[:60, :80]
    again = sum(contains_xy(p, (x + 0.5) * 4, (y + 0.5) * 3).astype(int) for p in polygons)
    assert np.array_equal(again, mask.astype(int))


def test_geojson_is_what_trident_writes():
    image, _ = blob_of(mean_at("crc_nuclei/img010.png"))
    found = wsi.find_tissue(wsi.MemorySlide(image, mpp=8.0))
    collection = found.to_geojson()
    assert collection["type"] == "FeatureCollection"
    (feature,) = collection["features"]
    assert feature["properties"] == {"tissue_id": 0}
    assert all(isinstance(v, int) for ring in feature["geometry"]["coordinates"] for point in ring for v in point)
    assert shape(feature["geometry"]).area == pytest.approx(
        found.mask.sum() * found.scale[0] * found.scale[1], rel=0.01
    )


def test_the_thumbnail_is_the_slide_shrunk_however_it_is_read():
    """By pieces, from one level or from several: the exact block mean of level 0 is the oracle."""
    image = np.random.default_rng(0).integers(0, 256, (2048, 3072, 3)).astype(np.uint8)
    settings = TissueSettings(max_side=384, min_side=384)
    wanted = image.reshape(256, 8, 384, 8, 3).mean((1, 3))
    for downsamples in ((1,), (1, 2), (1, 4, 8), (1, 16)):
        small, scale = thumbnail(wsi.MemorySlide.pyramid(image, downsamples, mpp=0.5), settings)
        assert scale == (8, 8)
        assert abs(small - wanted).max() <= 1.6


def test_the_mask_of_one_huge_level_is_made_by_pieces():
    """No read may be larger than the pieces promised."""
    largest = []
    image = np.broadcast_to(np.array([200, 120, 160], np.uint8), (9000, 12000, 3))
    slide = wsi.MemorySlide(image, mpp=0.5, on_read=lambda x, y, w, h, level: largest.append(w * h))
    found = wsi.find_tissue(slide)
    assert max(largest) <= 1100**2
    assert found.share == 1


@pytest.mark.slow
def test_sixty_thousand_pixels_a_side_without_a_pyramid(tmp_path):
    """The zoo's one huge level: within two minutes on a shared machine, by pieces."""
    write_zoo(tmp_path, lambda case: case["file"] == "good/huge_one_level.tiff")
    with wsi.open_slide(tmp_path / "good/huge_one_level.tiff") as slide:
        assert wsi.find_tissue(slide).mask.shape == (1024, 1024)


def test_grey_in_the_tissue_is_tissue_and_grey_on_glass_is_not():
    """Where brown and blue mix, their mean is grey; a smooth grey blot on glass is dirt or a shadow."""
    picture = np.full((256, 256, 3), 243, np.uint8)
    picture[32:224, 32:160] = (190, 130, 180)
    picture[96:160, 96:160] = (178, 178, 178)  # in the tissue, and open to the glass on one side
    picture[96:160, 192:240] = (178, 178, 178)  # on glass
    found = tissue_of(picture, mpp=8.0)
    assert found.mask[100:156, 100:152].mean() > 0.95
    assert found.mask[100:156, 196:236].mean() < 0.05
