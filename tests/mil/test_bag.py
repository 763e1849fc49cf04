"""Bag: packing, splitting and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil import Bag, BagError

sizes = st.lists(st.integers(0, 7), min_size=1, max_size=6)


@given(sizes)
def test_packing_then_splitting_gives_the_bags_back(counts):
    arrays = [np.full((n, 3), i, np.float32) for i, n in enumerate(counts)]
    places = [np.full((n, 2), i, np.int64) for i, n in enumerate(counts)]
    bag = Bag.from_list(arrays, xy=places, ids=[f"s{i}" for i in range(len(counts))])
    assert len(bag) == len(counts)
    assert bag.n_tiles == sum(counts)
    for i, one in enumerate(bag.split()):
        assert np.array_equal(one.features.numpy(), arrays[i])
        assert np.array_equal(one.xy.numpy(), places[i])
        assert one.ids == (f"s{i}",)
    assert bag.segments.tolist() == [i for i, n in enumerate(counts) for _ in range(n)]


@given(sizes)
def test_padded_rows_under_the_mask_are_the_packed_rows(counts):
    bag = Bag.from_list([np.random.default_rng(n).normal(size=(n, 4)) for n in counts])
    x, mask = bag.padded()
    assert torch.equal(x[mask], bag.features)
    assert mask.sum(dim=1).tolist() == counts
    assert not x[~mask].any()


def test_bags_of_bags_keep_names_and_places():
    pair = Bag.from_list(
        [np.ones((2, 3)), np.ones((1, 3))], xy=[np.zeros((2, 2), int), np.ones((1, 2), int)], ids=["a", "b"]
    )
    again = Bag.from_list(pair.split())
    assert again.ids == ("a", "b")
    assert torch.equal(again.xy, pair.xy)
    assert torch.equal(again.offsets, pair.offsets)


def test_half_precision_stays_half_and_read_only_arrays_are_taken():
    array = np.ones((3, 2), np.float16)
    array.flags.writeable = False
    assert Bag.from_list([array]).features.dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Bag.from_list([]), "empty"),
        (lambda: Bag.from_list([np.ones(3)]), "wanted"),
        (lambda: Bag.from_list([np.ones((2, 3)), np.ones((2, 4))]), "different encoders"),
        (lambda: Bag.from_list([np.ones((2, 3))], ids=["a", "b"]), "one id per bag"),
        (lambda: Bag.from_list([np.ones((2, 3))], xy=[np.zeros((3, 2), int)]), "xy"),
        (lambda: Bag.from_list([np.ones((2, 3), int)]), "float"),
        (lambda: Bag(torch.ones(2, 3), torch.tensor([0, 1])), "rise from 0"),
        (lambda: Bag(torch.ones(2, 3), torch.tensor([0, 3, 2])), "rise from 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_mend(make, words):
    with pytest.raises(BagError, match=words):
        make()
