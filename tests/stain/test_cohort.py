"""A reference from many slides: the middle of them, whatever a few odd ones show."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize

import stain
from stain import cohort

HE = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


def matrix(vectors, amounts=(2.0, 1.0), brown=False):
    rows = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return stain.StainMatrix(tuple(map(tuple, rows.tolist())), amounts, brown)


def test_geometric_median_is_the_minimum_that_scipy_finds():
    points = np.random.default_rng(0).normal(size=(15, 3)) ** 3

    def total(point):
        return np.linalg.norm(points - point, axis=1).sum()

    best = minimize(total, points.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert total(cohort.geometric_median(points)) <= best.fun + 1e-9


def test_a_third_of_odd_slides_hardly_moves_it():
    """A mean would go 9° astray."""
    rng = np.random.default_rng(0)
    usual = [matrix(np.abs(HE + rng.normal(0, 0.02, (2, 3))), (2.0, 1.0)) for _ in range(20)]
    odd = [matrix([[0.2, 0.5, 0.9], [0.9, 0.3, 0.2]], (40.0, 0.1)) for _ in range(9)]
    found = stain.combine("macenko", usual + odd)
    cosines = (np.array(found.target.vectors) * np.array(matrix(HE).vectors)).sum(axis=1)
    assert np.degrees(np.arccos(cosines)).max() < 2.5
    np.testing.assert_allclose(found.target.max_concentrations, (2.0, 1.0))
    assert found.slides == 29


def test_other_dyes_than_most_are_left_out_and_said():
    found = stain.combine("macenko", [matrix(HE)] * 3 + [matrix(HE[::-1], brown=True)], {"ink": 2})
    np.testing.assert_allclose(found.target.vectors, matrix(HE).vectors)
    assert (found.slides, dict(found.left_out)) == (3, {"ink": 2, "other stains": 1})


@pytest.mark.parametrize("method", stain.METHODS)
def test_of_one_image_it_is_that_image(method):
    """Normalizing to a cohort of one gives the bytes that normalizing to the image gives; kept as JSON, too."""
    rng = np.random.default_rng(1)
    images = [
        np.clip(245 * np.exp(-rng.gamma(1.2, strength, (6000, 2)) @ HE), 0, 255).astype(np.uint8)
        for strength in (0.4, 0.6)
    ]
    made = stain.combine(method, [stain.fit(method, images[1]).source])
    again = stain.CohortReference.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    got = stain.fit(method, images[0], reference=again)
    assert got.status == "ok"
    np.testing.assert_array_equal(
        got.apply(images[0]), stain.fit(method, images[0], reference=images[1]).apply(images[0])
    )
    with pytest.raises(stain.UnusableReferenceError, match="fitted by"):
        stain.fit("macenko" if method != "macenko" else "reinhard", images[0], reference=again)


@pytest.mark.parametrize("change", [{"kind": "x"}, {"version": 2}, {"target": {}}, {"method": "x"}, {"slides": "many"}])
def test_broken_json_is_refused(change):
    data = stain.combine("macenko", [matrix(HE)]).to_json() | change
    with pytest.raises(stain.ParametersError, match="no stain reference"):
        stain.CohortReference.from_json(data)


def test_no_slide_that_serves_is_an_error_that_says_why():
    with pytest.raises(stain.UnusableReferenceError, match="3 × ink"):
        stain.combine("macenko", [], {"ink": 3})
