"""The protocol refuses what it is for, by the measure that was made for it, and lets an honest normalizer pass."""

from __future__ import annotations

import json
from functools import cache

import _harms
import numpy as np
import pytest
from _shared import shared_path
from PIL import Image
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity

import stain
from stain import measures
from stain.validate import KINDS, normalizer, validate

SOURCES = ("histoqc_template1", "histoqc_template2", "histoqc_template3", "torchstain_source", "tia_nuclei_1131")


@cache
def tiles_of(name):
    return _harms.crops(np.asarray(Image.open(shared_path(f"data/tiles/stain/{name}.png")).convert("RGB")))[:12]


def target():
    return tiles_of("tia_target_1000")


def verdicts(found):
    return {one.name: one.verdict for one in found.measures}


@pytest.mark.parametrize("source", SOURCES)
def test_an_honest_macenko_passes(source):
    transfer, back = normalizer("macenko", target())
    found = validate(tiles_of(source), transfer, target=target(), back=back)
    assert found.go, verdicts(found)
    assert verdicts(found)["agreement"] == "not measured"
    assert [one.name for one in found.measures] == list(KINDS)


@pytest.mark.parametrize("harm", _harms.HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("source", SOURCES[2::2])
def test_each_harm_is_refused_by_the_measure_made_for_it(harm, source):
    found = validate(tiles_of(source), harm(target()), target=target(), identity=False)
    assert verdicts(found)[_harms.HARMS[harm]] == "fail", found.to_json()
    assert not found.go


def several():
    """Four slides of three labs: pooled, they have no stains and no threshold in common."""
    tiles = [tiles_of(source)[:5] for source in SOURCES[1:]]
    return np.concatenate(tiles), np.repeat(SOURCES[1:], [len(one) for one in tiles])


def test_an_honest_macenko_of_several_slides_passes():
    tiles, names = several()
    found = validate(tiles, normalizer("macenko", target())[0], target=target(), groups=names, identity=False)
    assert found.go, found.to_json()
    assert next(one.value for one in found.measures if one.name == "dice") > 0.95


@pytest.mark.parametrize("harm", _harms.HARMS, ids=lambda harm: harm.__name__)
def test_each_harm_to_several_slides_is_refused_by_the_measure_made_for_it(harm):
    tiles, names = several()
    found = validate(tiles, harm(target()), target=target(), groups=names, identity=False)
    assert verdicts(found)[_harms.HARMS[harm]] == "fail", found.to_json()
    assert not found.go


def test_the_stains_of_a_target_are_the_middle_of_its_slides():
    """An odd slide and one without tissue move it hardly; pooled with them, it would be theirs as well."""
    alone = measures.stains_of([target()])
    odd = np.concatenate([tiles_of("histoqc_template1")] * 3)[:, ::-1]
    several = measures.stains_of([target()[::2], target()[1::2], target(), odd, np.full((2, 64, 64, 3), 240, np.uint8)])
    apart = np.linalg.norm(several - alone, axis=1) / np.linalg.norm(alone, axis=1)
    assert apart.max() < 0.15
    assert measures.stains_of([np.full((2, 64, 64, 3), 240, np.uint8)]) is None


def test_an_odd_slide_of_many_tiles_is_not_what_a_transfer_is_held_to():
    """Each slide of the target counts once: pooled, the tiles of one other lab would refuse an honest Macenko."""
    odd = np.concatenate([tiles_of("torchstain_source")] * 2)
    aim = np.concatenate([target(), odd])
    names = ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["odd"] * len(odd)
    tiles = tiles_of("tia_nuclei_1131")[:6]

    def of(groups):
        found = validate(tiles, _harms.honest(target()), target=aim, target_groups=groups, identity=False)
        return next(one for one in found.measures if one.name == "stain")

    assert of(names).verdict == "pass"
    assert of(["one"] * len(names)).verdict == "fail"


def test_a_transfer_that_loses_content_is_refused_by_the_cycle():
    """Forth is honest; back comes the mean color of the tile, as of a model that cannot find the way."""
    transfer, _ = normalizer("macenko", target())

    def back(after, before):
        return np.broadcast_to(before.mean((1, 2), keepdims=True).astype(np.uint8), before.shape).copy()

    found = validate(tiles_of("histoqc_template3"), transfer, target=target(), back=back)
    assert verdicts(found)["cycle"] == "fail"


def test_a_transfer_that_changes_its_own_domain_is_refused_by_identity():
    found = validate(
        tiles_of("histoqc_template3"), lambda tiles: np.minimum(tiles.astype(int) + 20, 255).astype(np.uint8),
        target=target(),
    )  # fmt: skip
    assert verdicts(found)["identity"] == "fail"


def test_predictions_that_change_are_refused():
    """A model that goes by blueness alone."""

    def predict(tiles):
        blue = (tiles[..., 2].mean((1, 2)) > tiles_of("histoqc_template2")[..., 2].mean()).astype(float)
        return np.stack([blue, 1 - blue], axis=1)

    found = validate(tiles_of("histoqc_template2"), _harms.swapped(target()), target=target(), predict=predict)
    assert verdicts(found)["agreement"] == "fail"
    same = validate(tiles_of("histoqc_template2"), lambda tiles: tiles.copy(), target=target(), predict=predict)
    assert verdicts(same)["agreement"] == "pass"


def test_a_value_on_the_right_side_with_an_interval_across_the_line_is_unproven():
    tiles = tiles_of("tia_nuclei_1131")
    first = validate(tiles, _harms.honest(target()), target=target(), identity=False)
    dice = next(one for one in first.measures if one.name == "dice")
    between = (dice.value + dice.interval[0]) / 2
    again = validate(tiles, _harms.honest(target()), target=target(), identity=False, thresholds={"dice": between})
    assert verdicts(again)["dice"] == "unproven"
    assert not again.go


def test_intervals_go_over_slides_where_there_are_enough():
    """Copies of one tile under one name carry no more than the tile itself."""
    tiles = tiles_of("tia_nuclei_1131")[:8]
    names = [f"slide {row}" for row in range(8)]
    once = validate(tiles, _harms.shifted(target()), target=target(), groups=names, identity=False)
    many = validate(
        np.repeat(tiles, 6, axis=0),
        _harms.shifted(target()),
        target=target(),
        groups=np.repeat(names, 6),
        identity=False,
    )
    assert once.resampled == many.resampled == "slides"
    for one, other in zip(once.measures, many.measures, strict=True):
        if one.name in ("structure", "variation"):
            assert one.interval == pytest.approx(other.interval, abs=0.02)


def test_a_transfer_is_called_slide_by_slide():
    seen = []

    def transfer(tiles):
        seen.append(len(tiles))
        return tiles.copy()

    validate(tiles_of("histoqc_template1")[:7], transfer, target=target()[:4], groups=list("aabbbca"), identity=False)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tiles": np.zeros((4, 64, 64), np.uint8)}, "must be a numpy array"),
        ({"tiles": np.zeros((1, 64, 64, 3), np.uint8)}, "at least two tiles"),
        ({"transfer": lambda tiles: tiles[:, ::2]}, "must keep type and shape"),
        ({"transfer": lambda tiles: tiles / 255}, "must keep type and shape"),
        ({"thresholds": {"dize": 1.0}}, "Did you mean 'dice'"),
    ],
)
def test_what_cannot_be_judged_is_said(given, told):
    usual = {"tiles": tiles_of("histoqc_template1"), "transfer": lambda tiles: tiles, "target": target()}
    with pytest.raises(stain.StainError, match=told):
        validate(**{**usual, **given})


@pytest.mark.parametrize("level", [0, 120, 255])
def test_tiles_without_anything_on_them_raise_nothing_and_pass_nothing_by_chance(level):
    blank = np.full((4, 64, 64, 3), level, np.uint8)
    found = validate(blank, lambda tiles: tiles, target=target())
    json.dumps(found.to_json(), allow_nan=False)
    assert verdicts(found)["stain"] == "not measured"
    assert {one.of for one in found.measures} == {"tiles", "target"}
    assert not found.go  # what could not be measured is no evidence


def test_a_brown_slide_that_is_left_as_it_is_is_no_go_and_counted():
    """Macenko to H&E refuses an immunostain: nothing is harmed, and nothing is normalized."""
    brown = _harms.crops(np.asarray(Image.open(shared_path("data/tiles/ihc/skimage_ihc.png")).convert("RGB")))[:6]
    tiles = np.concatenate([brown, tiles_of("histoqc_template3")[:6]])
    names = ["brown"] * len(brown) + ["H&E"] * 6
    transfer, back = normalizer("macenko", target())
    alone = validate(brown, transfer, target=target(), back=back)
    assert (alone.go, alone.unchanged) == (False, ("",))
    assert verdicts(alone)["stain"] == "fail"
    assert validate(tiles, transfer, target=target(), groups=names, back=back).unchanged == ("brown",)


def test_the_verdict_is_plain_json_and_the_same_each_time():
    found = [
        json.dumps(validate(tiles_of("histoqc_template3"), _harms.honest(target()), target=target()).to_json())
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_worst_tiles_come_first():
    found = validate(tiles_of("tia_nuclei_1131"), _harms.painted(target()), target=target(), identity=False)
    for one in found.measures:
        if one.verdict != "not measured":
            values = one.tiles[one.worst(5)]
            assert (np.diff(values) >= 0).all() if KINDS[one.name].sense == ">=" else (np.diff(values) <= 0).all()


def test_structure_is_the_ssim_of_scikit_image():
    """Up to the border, where scikit-image's mean leaves a margin out."""
    rng = np.random.default_rng(0)
    first = measures.density_of(tiles_of("histoqc_template3"))[:2]
    second = first + rng.normal(0, 0.1, first.shape).astype(np.float32)
    mine = measures.structure(first, second)
    for a, b, value in zip(first, second, mine, strict=True):
        a, b = ((one - one.mean()) / one.std() for one in (a, b))
        asked = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 6.0}
        assert value == pytest.approx(structural_similarity(a, b, full=True, **asked)[1].mean(), abs=1e-4)


def test_otsu_is_that_of_scikit_image():
    values = measures.density_of(tiles_of("histoqc_template3"))
    assert measures.otsu(values) == pytest.approx(threshold_otsu(values), abs=float(np.ptp(values)) / 250)


def test_what_each_stain_became_is_found_whatever_the_amounts():
    """Beer-Lambert tiles, and a change whose stains are known."""
    rng = np.random.default_rng(0)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    amounts = rng.gamma(1.5, 0.3, (3, 64, 64, 2))
    amounts[:, :8] = 0
    before = np.rint(255 * np.exp(-amounts @ vectors)).clip(1, 255).astype(np.uint8)
    params = stain.fit("macenko", before)
    strong = np.array(params.source.max_concentrations)[:, None]
    new = np.array([[0.2, 0.3, 0.4], [0.1, 0.5, 0.2]])
    after = np.rint(255 * np.exp(-amounts @ new)).clip(1, 255).astype(np.uint8)
    moments = measures.stain_moments(before, after)
    assert measures.stains_apart(moments.sum(axis=0), strong * new) < 0.1
    assert measures.stains_apart(moments.sum(axis=0), (strong * new)[::-1]) > 0.4
