"""Strip by strip gives the same bits as the whole picture at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data

from wsi import strips, tissue


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.sampled_from([0.6, 1.0, 2.3]), st.integers(0, 9))
def test_a_blur_and_a_distance_are_those_of_the_whole(height, rows, sigma, seed):
    picture = np.random.default_rng(seed).random((height, 17)).astype(np.float32)
    whole = ndimage.gaussian_filter(picture, sigma)
    (parts,) = strips.by_strips(
        lambda part: (ndimage.gaussian_filter(part, sigma),), picture, reach=strips.reach_of(sigma), rows=rows
    )
    assert (parts == whole).all()
    mask = picture > 0.05
    if not mask.all():
        near = ndimage.distance_transform_edt(mask) <= 4
        (parts,) = strips.by_strips(lambda part: (~tissue._deeper(part, 4),), mask, reach=5, rows=rows)
        assert (parts == near).all()


def test_strips_cover_each_row_once():
    rows = np.zeros(1000, int)
    for top, bottom, above, below in strips.strips(1000, 30, 77):
        rows[top:bottom] += 1
        assert (above, below) == (max(0, top - 30), min(1000, bottom + 30))
    assert (rows == 1).all()


@pytest.mark.parametrize("mpp", [2.0, 8.0])
def test_tissue_and_pen_do_not_depend_on_the_strips(monkeypatch, mpp):
    picture = np.full((600, 560, 3), 243, np.uint8)
    picture[60:572, 24:536] = data.immunohistochemistry()
    picture[20:36, 10:540] = (22, 78, 186)
    found = []
    for rows in (31, 10_000):
        monkeypatch.setattr(strips.by_strips, "__kwdefaults__", {"rows": rows})
        found.append(tissue.tissue_of(picture, mpp=mpp))
    assert 0.1 < found[0].mask.mean() < 0.9
    assert found[0].pen.any()
    assert (found[0].mask == found[1].mask).all()
    assert (found[0].pen == found[1].pen).all()
