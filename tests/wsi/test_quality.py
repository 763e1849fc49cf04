"""What is wrong with tissue: planted into real tissue at known places, and not found where nothing is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from _planted import SIDE, at_mask, blurred, bubbled, folded, inked, section, stroke
from _shared import shared_path
from PIL import Image
from skimage.measure import blur_effect

import wsi
from wsi import artifacts
from wsi.focus import SPEC, defocus, spread_evenly
from wsi.tissue import glass_of, ink_on, mixture, optical_density

ARTIFACTS = {"blur", "pen", "folds", "bubbles", "edges"}


def looked_at(picture, **settings):
    slide = wsi.MemorySlide(picture, mpp=1.0)
    tissue = wsi.find_tissue(slide)
    return tissue, wsi.check_quality(slide, tissue, settings=wsi.QualitySettings(**settings))


def recall_and_false(quality, name, truth, where):
    """Return which share of the truth that lies on tissue is found, and what is found elsewhere, of all tissue."""
    found = quality.masks[name]
    truth, where = at_mask(truth, found.shape), at_mask(where, found.shape)
    return (found & truth & where).sum() / (truth & where).sum(), (found & ~truth).sum() / where.sum()


@pytest.mark.parametrize("kind", ["crc", "breast", "ihc"])
def test_clean_tissue_is_clean(kind):
    _, quality = looked_at(section(kind)[0])
    assert set(quality.shares) == ARTIFACTS
    assert max(quality.shares.values()) < 0.02
    assert set(np.unique(quality.labels)) <= {0, 1, 4}
    assert (quality.labels > 0).mean() == pytest.approx(section(kind)[1].mean(), rel=0.06)


@pytest.mark.parametrize("sigma", [3, 5, 10])
@pytest.mark.parametrize("kind", ["crc", "ihc"])
def test_a_blurred_half_is_found(kind, sigma):
    picture, where = section(kind)
    half = np.broadcast_to(np.arange(SIDE) > 1500, (SIDE, SIDE))
    _, quality = looked_at(blurred(picture, half, sigma))
    recall, false = recall_and_false(quality, "blur", half, where)
    assert recall > 0.9  # of the ellipse, cavities and all
    assert false < 0.03


INKS = {"green": (30, 140, 110), "blue": (40, 70, 180), "red": (190, 25, 45), "black": (8, 6, 9)}


@pytest.mark.parametrize("color", INKS)
def test_ink_across_the_tissue_is_a_share_of_it(color):
    picture, where = section("crc")
    line = stroke([(300, 900), (1200, 700), (2000, 1900), (2700, 1500)], 220)
    tissue, quality = looked_at(inked(picture, line, INKS[color]), patches=8)
    recall, false = recall_and_false(quality, "pen", line, where)
    assert recall > 0.9
    assert false < 0.04
    assert (tissue.mask & at_mask(line, tissue.mask.shape)).sum() == 0
    assert quality.shares["pen"] == pytest.approx((line & where).sum() / where.sum(), abs=0.04)


def test_ink_far_from_tissue_is_no_share_of_it():
    picture, _ = section("crc")
    _, quality = looked_at(inked(picture, stroke([(100, 100), (100, 400)], 120), INKS["green"]), patches=8)
    assert quality.shares["pen"] == 0


@pytest.mark.parametrize("kind", ["crc", "breast", "ihc"])
def test_bubbles_are_found_with_their_inside(kind):
    picture, where = section(kind)
    picture, discs = bubbled(picture, [(900, 900, 300), (1700, 1900, 450), (2200, 1000, 150), (250, 250, 200)])
    _, quality = looked_at(picture, patches=64)
    recall, false = recall_and_false(quality, "bubbles", discs, where)
    assert recall > 0.88  # the tissue under one of them has a cavity
    assert false < 0.03  # the outline's outer half
    assert quality.shares["blur"] < 0.02


def test_folds_of_a_real_section_are_found():
    """A whole section at 9.5 µm/px, laid double along three lines; about two thirds of their area are found."""
    with wsi.open_slide(shared_path("data/slides/TCGA-XK-AAJU-section.tif"), slide_mpp=6.0) as slide:
        tissue = wsi.find_tissue(slide)
        assert wsi.check_quality(slide, tissue).shares["folds"] < 0.01
    small = tissue.thumbnail
    lines = np.zeros((SIDE, SIDE), bool)
    for points in ([(350, 300), (420, 330), (470, 420)], [(250, 280), (330, 390)], [(800, 500), (960, 600)]):
        lines |= stroke(points, 7)
    lines = lines[: small.shape[0], : small.shape[1]] & tissue.mask
    other = np.roll(small, (10, 6), (0, 1)) / 243
    twice = np.where(lines[..., None], small * np.clip(other, 0.02, 1), small).astype(np.uint8)
    density = mixture(optical_density(twice, glass_of(twice)), 9.5)
    found = artifacts.folds(density, tissue.mask, 9.5)
    assert (found & lines).sum() / lines.sum() > 0.5
    assert (found & ~lines).sum() / tissue.mask.sum() < 0.005


def test_a_fold_planted_among_mixed_tissue_is_hardly_ever_elsewhere():
    picture, where = section("crc")
    line = stroke([(700, 600), (1200, 1300), (2300, 1600)], 90) & where
    _, quality = looked_at(folded(picture, line), patches=8)
    recall, false = recall_and_false(quality, "folds", line, where)
    assert recall > 0.1
    assert false < 0.01


def test_the_edge_of_the_coverslip_that_others_marked_is_found():
    """HistoQC's own mask, on its own picture; only the edge itself, not each thread beside it."""
    picture = np.asarray(Image.open(shared_path("data/tiles/artefacts/coverslip_edge.png")).convert("RGB"))
    marked = np.asarray(Image.open(shared_path("data/tiles/artefacts/coverslip_edge_mask.png")).convert("L")) > 0
    density = optical_density(picture, glass_of(picture))
    bubbles, edges = artifacts.bubbles_and_edges(density, 20.0)
    either = edges | ink_on(picture, 20.0)  # where it is black, it passes for ink
    assert (either & marked).sum() / marked.sum() > 0.6
    assert (edges & ~marked).mean() < 0.02
    assert bubbles.mean() < 0.002


@pytest.mark.parametrize(
    ("name", "most"),
    [("CMU-1-Small-Region.svs", 0.02), ("OS-2-ndpi.ome.tif", 0.02), ("OS-1-detail.ome.tif", 0.02)],
)
def test_real_slides_in_focus_are_clean(name, most):
    with wsi.open_slide(shared_path(f"data/slides/{name}")) as slide:
        shares = wsi.check_quality(slide, wsi.find_tissue(slide)).shares
    assert max(shares.values()) < most


def test_defocus_ranks_as_another_measure_does():
    """Blurs of 0 to 8 µm of each of six real regions, ranked as scikit-image's blur effect ranks them."""
    for number in range(1, 61, 10):
        image = Image.open(shared_path(f"data/tiles/crc_nuclei/img{number:03d}.png")).convert("RGB").reduce(2)
        sharp = np.asarray(image)[:128, :128]
        series = [blurred(sharp, np.ones((128, 128), bool), sigma) for sigma in (0.01, 1, 2, 4, 8)]
        ours = [defocus(patch) for patch in series]
        theirs = [blur_effect(patch, h_size=5, channel_axis=-1) for patch in series]
        assert theirs[0] < theirs[1] < min(theirs[2:])
        assert ours[0] < 0 < min(ours[3:])
        assert ours[0] < ours[1] < ours[2]


@pytest.mark.parametrize("contrast", [0.15, 0.4, 1.0])
def test_pale_tissue_in_focus_is_not_blurred(contrast):
    """Fat and mucin have little contrast, and all of it is sharp."""
    image = Image.open(shared_path("data/tiles/crc_nuclei/img010.png")).convert("RGB").reduce(2)
    pale = (243 * (np.asarray(image)[:128, :128] / 243.0) ** contrast).clip(0, 255).astype(np.uint8)
    assert defocus(pale) < 0
    assert np.isnan(defocus(np.full((128, 128, 3), 230, np.uint8)))


def test_a_slide_too_coarse_or_without_a_resolution_tells_nothing_of_blur():
    picture = np.asarray(Image.fromarray(section("crc")[0]).reduce(4))
    for mpp in (None, 4.0):
        slide = wsi.MemorySlide(picture, mpp=mpp)
        quality = wsi.check_quality(slide, wsi.find_tissue(slide))
        assert set(quality.shares) == ARTIFACTS - {"blur"}
        assert quality.focus is None


def test_a_slide_without_tissue_has_no_shares_above_zero():
    slide = wsi.MemorySlide(np.full((900, 900, 3), 243, np.uint8), mpp=1.0)
    quality = wsi.check_quality(slide, wsi.find_tissue(slide))
    assert not any(quality.shares.values())
    assert not quality.labels.any()


def test_few_patches_are_read_however_large_the_slide_and_each_stands_for_as_much():
    reads = []
    picture, _ = section("crc")
    slide = wsi.MemorySlide(picture, mpp=1.0, on_read=lambda *where: reads.append(where))
    tissue = wsi.find_tissue(slide)
    reads.clear()
    quality = wsi.check_quality(slide, tissue, settings=wsi.QualitySettings(patches=40))
    assert len(reads) == len(quality.focus.xy) == 40
    grid = wsi.tile_grid(slide, tissue, SPEC)
    quarters = (grid.xy > 1436).astype(int) @ [1, 2]
    chosen = quarters[spread_evenly(grid, 40)]
    assert np.bincount(chosen) == pytest.approx(np.bincount(quarters) * 40 / len(grid), abs=2.5)


def test_patches_that_cannot_be_read_have_no_say():
    picture, _ = section("crc")
    slide = wsi.MemorySlide(picture, mpp=1.0)
    tissue = wsi.find_tissue(slide)

    def refuse(x, *_):
        if x > 1500:
            raise wsi.TileReadError("memory", "damaged")

    broken = wsi.MemorySlide(picture, mpp=1.0, on_read=refuse)
    quality = wsi.check_quality(broken, tissue)
    assert 0 < len(quality.focus.xy) < len(wsi.check_quality(slide, tissue).focus.xy)
    assert quality.shares["blur"] < 0.02


def test_what_is_flagged_can_be_cut_out_and_tiles_know_their_share():
    picture, _ = section("crc")
    half = np.broadcast_to(np.arange(SIDE) > 1500, (SIDE, SIDE))
    tissue, quality = looked_at(blurred(picture, half, 6))
    kept = quality.without(tissue, ["blur"])
    assert kept.mask.sum() == pytest.approx(tissue.mask.sum() / 2, rel=0.06)
    assert not (kept.mask & quality.masks["blur"]).any()
    assert np.array_equal(quality.without(tissue, []).mask, tissue.mask)
    xy = np.array([[700, 1500], [2200, 1500], [0, 0]])
    assert quality.tile_shares(xy, (224, 224))["blur"] == pytest.approx([0, 1, 0], abs=0.01)
    assert quality.without(kept, ARTIFACTS).reason is None
