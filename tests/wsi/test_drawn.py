"""Outlines drawn by hand: what QuPath writes, what cannot be used, and that nothing is lost on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage
from shapely import contains_xy
from shapely.geometry import MultiPolygon, Point, Polygon, box, mapping

import wsi
from wsi.drawn import rasterize, read_tissue
from wsi.outlines import feature_collection, polygons_of
from wsi.tissue import TissueSettings

SIDE = 1024
COARSE = TissueSettings(mpp=32.0, min_side=256, max_side=256)


@pytest.fixture
def slide():
    rng = np.random.default_rng(0)
    image = np.full((SIDE, SIDE, 3), 243, np.uint8)
    image[200:800, 200:800] = rng.integers([150, 60, 110], [220, 130, 180], (600, 600, 3))
    return wsi.MemorySlide(image, mpp=8.0)


def feature(geometry, name=None, **properties):
    if name is not None:
        properties["classification"] = name
    return {"type": "Feature", "geometry": mapping(geometry), "properties": properties}


def written(tmp_path, tree):
    path = tmp_path / "a.geojson"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return path


def painted_by_shapely(geometry):
    """The oracle: for each mask pixel's middle, whether it lies inside."""
    y, x = np.mgrid[:256, :256]
    return contains_xy(geometry, (x + 0.5) * 4, (y + 0.5) * 4)


BLOB = Polygon(
    [(100.3, 90.1), (700.7, 150.2), (820.9, 640.4), (300.1, 900.6)],
    [[(300.2, 300.4), (420.3, 310.1), (400.6, 450.3)], [(500.1, 500.2), (560.3, 700.4), (450.6, 650.8)]],
)
SMALL = Polygon([(850.2, 100.3), (990.4, 120.2), (900.8, 260.6)])


@pytest.mark.parametrize("how", ["collection", "list", "feature", "geometry", "multi", "geometries", "with a BOM"])
def test_every_shape_of_geojson_gives_the_same_mask(tmp_path, slide, how):
    both = MultiPolygon([BLOB, SMALL])
    parts = [feature(BLOB), feature(SMALL, "Tissue")]
    tree = {
        "collection": {"type": "FeatureCollection", "features": parts},
        "list": parts,
        "feature": feature(both),
        "geometry": mapping(both),
        "multi": [feature(both, {"name": "Region*", "color": [200, 0, 0]}, objectType="annotation", isLocked=True)],
        "geometries": {"type": "GeometryCollection", "geometries": [mapping(BLOB), mapping(SMALL)]},
        "with a BOM": "\ufeff" + json.dumps(parts),
    }[how]
    found = read_tissue(slide, written(tmp_path, tree), settings=COARSE)
    assert np.array_equal(found.mask, painted_by_shapely(both))
    assert found.drawn
    assert found.reason is None


def test_what_is_excluded_is_cut_out_whatever_the_order(tmp_path, slide):
    cut = Point(500, 400).buffer(120)
    for order in (1, -1):
        for name in ("Exclude", {"name": "Ignore*"}, {"names": ["Artifact", "Fold"]}):
            tree = [feature(BLOB, "Tissue"), feature(cut, name)][::order]
            found = read_tissue(slide, written(tmp_path, tree), settings=COARSE)
            assert np.array_equal(found.mask, painted_by_shapely(BLOB - cut))


def test_overlapping_regions_are_one_tissue(tmp_path, slide):
    """Even and odd count within a region alone: where two lie over each other there is no hole."""
    one, other = box(100.4, 100.4, 500.6, 500.6), box(300.2, 300.2, 800.8, 800.8)
    found = read_tissue(slide, written(tmp_path, [feature(one), feature(other)]), settings=COARSE)
    assert np.array_equal(found.mask, painted_by_shapely(one | other))


@pytest.mark.parametrize("seed", range(12))
def test_rasterized_polygons_are_what_shapely_says(seed):
    """Stars with holes, also over the rim of the picture."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
    middle = rng.uniform(0, 100, 2)
    outer = middle + (rng.uniform(20, 60, 40)[:, None]) * np.stack([np.cos(angle), np.sin(angle)], 1)
    inner = middle + (rng.uniform(3, 15, 40)[:, None]) * np.stack([np.cos(angle), np.sin(angle)], 1)
    polygon = Polygon(outer, [inner])
    y, x = np.mgrid[:90, :110] + 0.5
    assert np.array_equal(rasterize([outer, inner], (90, 110)), contains_xy(polygon, x, y))


@pytest.mark.parametrize("scale", [(8.0, 8.0), (3.16015625, 3.1592814371257485), (1.37, 1.41)])
def test_a_mask_written_and_read_back_is_the_same_mask(tmp_path, scale):
    """Outlines run along the edges of pixels, in whole px of the slide: no middle changes sides."""
    mask = ndimage.gaussian_filter(np.random.default_rng(4).random((150, 200)), 2) > 0.5
    size = (round(200 * scale[0]), round(150 * scale[1]))
    true_scale = size[0] / 200, size[1] / 150
    polygons = polygons_of(mask, true_scale)
    rings = [[np.array(r.coords)[:-1] / true_scale for r in (p.exterior, *p.interiors)] for p in polygons]
    again = np.zeros_like(mask)
    for each in rings:
        again |= rasterize(each, mask.shape)
    assert np.array_equal(again, mask)
    assert len(json.dumps(feature_collection(polygons))) > 100


def test_detected_written_and_read_back_gives_the_same_tiles(tmp_path, slide):
    detected = wsi.find_tissue(slide, settings=COARSE)
    again = read_tissue(slide, written(tmp_path, detected.to_geojson()), settings=COARSE)
    assert np.array_equal(again.mask, detected.mask)
    spec = wsi.TileSpec(size=16, mpp=8.0)
    one, other = (wsi.tile_grid(slide, tissue, spec) for tissue in (detected, again))
    assert np.array_equal(one.xy, other.xy)
    assert len(one) > 100


def test_outlines_of_the_scanned_box_are_put_where_it_lies(tmp_path):
    image = np.full((900, 1000, 3), 243, np.uint8)
    slide = wsi.MemorySlide(image, mpp=8.0, bounds=(200, 100, 500, 600))
    path = written(tmp_path, mapping(box(10, 20, 110, 220)))
    found = read_tissue(slide, path, origin="bounds")
    y, x = np.nonzero(found.mask)
    assert (x.min(), x.max(), y.min(), y.max()) == (210, 309, 120, 319)
    assert np.nonzero(read_tissue(slide, path).mask)[1].min() == 10


BOW_TIE = {"type": "Polygon", "coordinates": [[[0, 0], [400, 400], [400, 0], [0, 400], [0, 0]]]}
BAD = {
    "not json": ("{", "cannot be read as GeoJSON"),
    "a number": (3, "is no GeoJSON"),
    "another object": ({"type": "Topology"}, "Topology"),
    "no features": ({"type": "FeatureCollection", "features": []}, "no region of tissue"),
    "only what is left out": ([feature(BLOB, "Exclude")], "no region of tissue"),
    "a line": ({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, "LineString has no area"),
    "a point among them": ([feature(BLOB), feature(Point(4, 4))], "region 2: Point has no area"),
    "no geometry": ([{"type": "Feature", "geometry": None, "properties": {}}], "nothing has no area"),
    "a class that says neither": ([feature(BLOB, "Necrosis")], "Necrosis"),
    "cells": ([feature(BLOB, objectType="cell")], "it is a cell"),
    "crossing itself": (BOW_TIE, "crosses itself"),
    "two points": ({"type": "Polygon", "coordinates": [[[0, 0], [5, 5]]]}, "at least three points"),
    "no numbers": ({"type": "Polygon", "coordinates": [[["a", 0], [5, 5], [5, 0], [0, 0]]]}, "no outline"),
    "not finite": ('{"type":"Polygon","coordinates":[[[0,0],[NaN,5],[5,5],[0,0]]]}', "no outline"),
    "beyond all bounds": ('{"type":"Polygon","coordinates":[[[0,0],[1e999,5],[5,5],[0,0]]]}', "no outline"),
    "a ring that is no list": ({"type": "Polygon", "coordinates": [5]}, "no outline"),
    "flat": ({"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [9, 9], [0, 0]]]}, "no area"),
    "outside": (mapping(box(2000, 2000, 3000, 3000)), "outside the slide: x 2000 to 3000"),
    "half outside": (mapping(box(500, 500, 1500, 900)), "outside the slide"),
    "nested without end": ("[" * 100_000 + "]" * 100_000, "GeoJSON|nested"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_an_error_of_the_slide_with_its_mend(tmp_path, slide, case):
    tree, text = BAD[case]
    with pytest.raises(wsi.MaskError, match=text) as caught:
        read_tissue(slide, written(tmp_path, tree), settings=COARSE)
    assert caught.value.slide == slide.name
    assert caught.value.mend


def test_a_hairs_breadth_that_rounding_made_cross_is_no_error(tmp_path, slide):
    ring = [(100, 100), (500, 100), (500, 500), (300, 500), (300.01, 500.01), (300.01, 499.99), (100, 500)]
    crossing = Polygon(ring)
    assert not crossing.is_valid
    found = read_tissue(slide, written(tmp_path, mapping(crossing)), settings=COARSE)
    assert found.mask.sum() == pytest.approx(100 * 100, rel=0.01)


def test_missing_cores_and_the_root_are_passed_over(tmp_path, slide):
    tree = [
        feature(BLOB, objectType="tmaCore"),
        feature(SMALL, objectType="tmaCore", isMissing=True),
        feature(box(0, 0, SIDE, SIDE), objectType="root"),
    ]
    assert np.array_equal(read_tissue(slide, written(tmp_path, tree), settings=COARSE).mask, painted_by_shapely(BLOB))
