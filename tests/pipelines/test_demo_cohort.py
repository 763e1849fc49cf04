"""The composed cohort: a foreign reader accepts it, its truth is in the pixels, its bytes come again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
from skimage.color import rgb2hed

from pipelines.demo_cohort import Cohort, compose_cohort, region_share

SIZE = (1792, 1600)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    return compose_cohort(folder, seed=5, workers=2, patients=3, size=SIZE)


def hashes(cohort: Cohort) -> dict[str, str]:
    return {s.slide_id: hashlib.sha256(s.path.read_bytes()).hexdigest() for s in cohort.slides}


def test_openslide_takes_each_slide_for_an_aperio_pyramid(cohort: Cohort) -> None:
    for slide in cohort.slides:
        with openslide.OpenSlide(slide.path) as opened:
            assert opened.properties[openslide.PROPERTY_NAME_VENDOR] == "aperio"
            assert float(opened.properties[openslide.PROPERTY_NAME_MPP_X]) == 0.25
            assert float(opened.properties[openslide.PROPERTY_NAME_MPP_Y]) == 0.25
            assert float(opened.properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER]) == 40
            assert opened.level_dimensions == (SIZE, (448, 400), (112, 100))
            assert opened.properties["openslide.level[0].tile-width"] == "256"


def test_lower_levels_show_the_same_picture(cohort: Cohort) -> None:
    with openslide.OpenSlide(cohort.slides[0].path) as opened:
        full = np.asarray(opened.read_region((0, 0), 0, SIZE).convert("RGB"), float)
        low = np.asarray(opened.read_region((0, 0), 1, (448, 400)).convert("RGB"), float)
    averaged = full.reshape(400, 4, 448, 4, 3).mean(axis=(1, 3))
    assert np.abs(averaged - low).mean() < 3  # only JPEG lies between the two


def test_brown_tissue_is_inside_the_planted_region(cohort: Cohort) -> None:
    """Density of DAB, by scikit-image's own matrix, tells region from the rest on each positive slide."""
    for slide in cohort.slides:
        if slide.label == "negative":
            continue
        with openslide.OpenSlide(slide.path) as opened:
            low = np.asarray(opened.read_region((0, 0), 1, (448, 400)).convert("RGB"))
        y, x = (np.mgrid[0:400, 0:448] + 0.5) * 4
        inside = shapely.contains_xy(shapely.union_all(slide.region), x, y)
        dab = rgb2hed(low)[..., 2]
        # A haze tints whole slides, so the brownest pixels of this slide are asked for; pen is no brown.
        color = low.astype(int)
        no_pen = (color.max(axis=2) > 75) & (color[..., 0] > color[..., 2])
        brownest = no_pen & (dab > np.quantile(dab[no_pen], 0.98))
        assert inside[brownest].mean() > 5 * inside.mean()
        assert inside[brownest].mean() > 0.6


def test_only_positive_slides_have_a_region_and_it_is_small(cohort: Cohort) -> None:
    for slide in cohort.slides:
        assert bool(slide.region) == (slide.label == "positive")
        for polygon in slide.region:
            assert polygon.is_valid
            assert shapely.box(0, 0, *SIZE).contains(polygon)
            assert np.array_equal(
                shapely.get_coordinates(polygon) % 1, np.zeros((len(shapely.get_coordinates(polygon)), 2))
            )
            assert 1 < polygon.area / 448**2 < 5


def test_mean_color_does_not_follow_from_the_label() -> None:
    """The draw of stain and haze is the same with and without the region: only the region differs."""
    import pipelines.demo_cohort as module

    source = module.load_source()
    canvas = module.stroma_canvas(source, 1000, np.random.default_rng(0))
    with_region, region = module._compose((896, 800), True, source, canvas, np.random.default_rng(3))
    without, none = module._compose((896, 800), False, source, canvas, np.random.default_rng(3))
    assert none == []
    y, x = (np.mgrid[0:800, 0:896] + 0.5) * 2
    far = ~shapely.contains_xy(shapely.union_all(region).buffer(40), x, y)
    assert np.mean(np.any(with_region != without, axis=2)[far]) == 0


def test_cases_do_not_straddle_splits(cohort: Cohort) -> None:
    splits: dict[str, set[str]] = {}
    for slide in cohort.slides:
        splits.setdefault(slide.case_id, set()).add(slide.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "val", "test"} == set.union(*splits.values())


def test_the_full_cohort_holds_out_sixteen_slides_of_eight_patients() -> None:
    from pipelines.demo_cohort import _plans

    plans = _plans(24, 2, seed=0)
    held_out = [p for p in plans if p.split == "test"]
    assert len(plans) == 48
    assert len(held_out) == 16
    assert len({p.case_id for p in held_out}) == 8
    assert sum(p.label == "positive" for p in held_out) == 8


def test_same_seed_gives_same_bytes_whatever_the_workers(cohort: Cohort, tmp_path: Path) -> None:
    again = compose_cohort(tmp_path / "one", seed=5, workers=1, patients=3, size=SIZE)
    assert hashes(again) == hashes(cohort)
    assert [s.region for s in again.slides] == [s.region for s in cohort.slides]
    assert not list((tmp_path / "one").glob("*.part"))


def test_another_seed_gives_other_slides(cohort: Cohort, tmp_path: Path) -> None:
    seen: list[str] = []
    other = compose_cohort(
        tmp_path, seed=6, patients=1, size=(1600, 1600), on_slide=lambda slide: seen.append(slide.slide_id)
    )
    assert not set(hashes(other).values()) & set(hashes(cohort).values())
    assert seen == [slide.slide_id for slide in other.slides]


def test_glass_is_bright_on_every_slide(cohort: Cohort) -> None:
    for slide in cohort.slides:
        with openslide.OpenSlide(slide.path) as opened:
            low = np.asarray(opened.read_region((0, 0), 1, (448, 400)).convert("RGB"))
        assert np.median(low[:3].min(axis=2)) > 220 or np.median(low[-3:].min(axis=2)) > 220


def test_region_share_agrees_with_counting_pixels() -> None:
    region = [shapely.Polygon([(10, 10), (90, 20), (70, 80), (20, 60)]).buffer(0)]
    xy = np.array([[x, y] for y in range(0, 96, 32) for x in range(0, 96, 32)])
    y, x = np.mgrid[0:960, 0:960] / 10 + 0.03
    inside = shapely.contains_xy(region[0], x, y)
    counted = [inside[10 * b : 10 * b + 320, 10 * a : 10 * a + 320].mean() for a, b in xy]
    np.testing.assert_allclose(region_share(xy, (32, 32), region), counted, atol=2e-3)


def test_region_share_of_nothing_is_zero() -> None:
    assert region_share(np.zeros((3, 2), np.int64), (448, 448), []).tolist() == [0, 0, 0]
    assert region_share(np.zeros((0, 2), np.int64), (448, 448), []).shape == (0,)


def test_a_size_without_room_for_the_region_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1600"):
        compose_cohort(tmp_path, size=(800, 800))
