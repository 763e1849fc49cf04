"""Splits by patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil import Split, TrainingDataError, check_split, split_by_patient

cohorts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=12, max_size=40)


def table(cohort):
    patients = [f"p{i}" for i, slides in enumerate(cohort) for _ in slides]
    return patients, np.array([label for slides in cohort for label in slides])


@settings(max_examples=60, deadline=None)
@given(cohorts, st.integers(0, 5))
def test_no_patient_is_on_two_sides_and_every_slide_is_on_one(cohort, seed):
    cohort = [*cohort, *([[0]] * 3), *([[1]] * 3)]  # enough patients of either class
    patients, labels = table(cohort)
    split = split_by_patient(patients, labels, seed=seed)
    sides = [set(np.array(patients)[rows]) for rows in (split.train, split.validation, split.test)]
    assert not any(a & b for a, b in itertools.combinations(sides, 2))
    assert sorted(np.concatenate([split.train, split.validation, split.test]).tolist()) == list(range(len(labels)))
    for rows in (split.train, split.validation, split.test):
        assert set(labels[rows].tolist()) == {0, 1}
    check_split(split, patients)
    again = Split.from_column(split.column())
    assert np.array_equal(again.train, split.train)


def test_shares_are_kept_per_class():
    patients, labels = table([[c] for c in [0] * 70 + [1] * 30])
    split = split_by_patient(patients, labels, test=0.3, validation=0.2)
    for rows, share in ((split.test, 0.3), (split.validation, 0.2), (split.train, 0.5)):
        assert np.bincount(labels[rows]).tolist() == [round(70 * share), round(30 * share)]


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    patients, labels = table([[i % 2] for i in range(40)])
    a, b, c = (split_by_patient(patients, labels, seed=s) for s in (1, 1, 2))
    assert np.array_equal(a.test, b.test)
    assert not np.array_equal(a.test, c.test)


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    patients, labels = table([[i % 2] for i in range(20)])
    turned = split_by_patient(patients[::-1], labels[::-1], seed=4)
    straight = split_by_patient(patients, labels, seed=4)
    assert {patients[i] for i in straight.test} == {patients[::-1][i] for i in turned.test}


def test_three_patients_a_class_are_just_enough_and_no_test_is_allowed():
    patients, labels = table([[0]] * 3 + [[1]] * 3)
    split = split_by_patient(patients, labels)
    assert (len(split.train), len(split.validation), len(split.test)) == (2, 2, 2)
    assert len(split_by_patient(patients, labels, test=0).test) == 0


@pytest.mark.parametrize(
    ("cohort", "words"),
    [([[1]] * 9, "only 1 class"), ([[0]] * 9 + [[1]] * 2, "class 1 has 2 patient"), ([], "only 0 class")],
)
def test_too_little_to_learn_from_is_said_with_numbers(cohort, words):
    patients, labels = table(cohort)
    with pytest.raises(TrainingDataError, match=words):
        split_by_patient(patients, labels)


def test_a_patient_on_two_sides_is_named():
    with pytest.raises(TrainingDataError, match="b is in train and test"):
        check_split(["train", "train", "test", "val"], ["a", "b", "b", "c"])
    check_split(["train", "", "train", "val"], ["a", "a", "b", "c"])


def test_a_word_that_is_no_side_is_refused():
    with pytest.raises(TrainingDataError, match="Did you mean train"):
        Split.from_column(["train", "trian"])
    with pytest.raises(TrainingDataError, match="cannot be"):
        split_by_patient(["a"], [0], test=0.9, validation=0.2)
