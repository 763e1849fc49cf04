"""Channel by channel: the same bits as numpy's own reductions."""

from __future__ import annotations

import numpy as np
import pytest

from wsi import channels
from wsi.tissue import glass_of


def pictures():
    rng = np.random.default_rng(0)
    whole = (rng.random((90, 110, 3)) ** 4 * 12).astype(np.float32)
    yield whole
    yield whole[7:80]
    yield whole[:, ::3]
    yield np.ascontiguousarray(whole.transpose(2, 0, 1)).transpose(1, 2, 0)
    yield (whole * 20).astype(np.uint8)


@pytest.mark.parametrize("picture", list(pictures()))
def test_channel_by_channel_is_the_same_bits(picture):
    assert np.array_equal(channels.lowest(picture), picture.min(-1))
    assert np.array_equal(channels.highest(picture), picture.max(-1))
    if picture.dtype == np.float32:
        assert np.array_equal(channels.total(picture), picture.sum(-1))
        assert channels.total(picture).dtype == np.float32


@pytest.mark.parametrize("most", [2, 9, 256])
def test_the_glass_is_the_median_of_its_pixels(most):
    rng = np.random.default_rng(most)
    for width in (40, 41):
        picture = np.minimum(240 + rng.integers(0, most, (30, width, 3)), 255).astype(np.uint8)
        glassy = (picture.min(-1) > 190) & (picture.max(-1) - picture.min(-1) < 25)
        assert np.array_equal(glass_of(picture), np.median(picture[glassy], axis=0))
