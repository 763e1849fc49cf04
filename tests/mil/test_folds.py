"""Cross-validation: nobody is on two sides, everybody is tested once, and other tools' splits are read as they mean."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil import TrainingDataError
from mil.folds import k_folds, nested_folds, strata
from mil.given_splits import from_clam, from_columns, from_stamp

cohorts = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(0, 5)), min_size=24, max_size=60)


def table(cohort):
    rows = [
        (f"p{i}", c, f"site{s}")
        for i, (c, n, s) in enumerate([*cohort, *[(c, 1, c) for c in (0, 1)] * 5])
        for _ in range(n)
    ]
    return [r[0] for r in rows], np.array([r[1] for r in rows]), [r[2] for r in rows]


@settings(max_examples=40, deadline=None)
@given(cohorts, st.integers(2, 5), st.integers(0, 3))
def test_every_slide_is_tested_once_and_no_patient_is_torn(cohort, k, seed):
    patients, labels, _ = table(cohort)
    splits = k_folds(patients, labels, k=k, repeats=2, seed=seed)
    assert len(splits) == 2 * k
    for start in (0, k):
        tested = np.concatenate([s.test for s in splits[start : start + k]])
        assert sorted(tested.tolist()) == list(range(len(patients)))
    for s in splits:
        sides = [{patients[i] for i in rows} for rows in (s.train, s.validation, s.test)]
        assert len(set.union(*sides)) == sum(map(len, sides)) == len(set(patients))
        assert set(labels[s.train]) == set(labels[s.validation]) == set(labels[s.test]) == {0, 1}


def test_classes_are_dealt_as_evenly_as_patients_allow():
    """One slide per patient: numbers per fold and class are within one of the even share."""
    labels = np.array([0] * 53 + [1] * 21 + [2] * 11)
    patients = [f"p{i}" for i in range(len(labels))]
    for split in k_folds(patients, labels, k=5, seed=1):
        counts = np.bincount(labels[split.test], minlength=3)
        assert (np.abs(counts - np.array([53, 21, 11]) / 5) < 1).all()


@settings(max_examples=15, deadline=None)
@given(cohorts, st.integers(0, 3))
def test_a_site_is_on_one_side_even_where_patients_went_to_several(cohort, seed):
    patients, labels, sites = table(cohort)
    patients = [*patients, "traveler", "traveler"]
    labels, sites = np.append(labels, [0, 0]), [*sites, "site0", "site5"]
    try:
        splits = k_folds(patients, labels, k=2, sites=sites, seed=seed)
    except TrainingDataError:  # in some draws a fold has one other site only
        return
    for s in splits:
        sides = [{sites[i] for i in rows} for rows in (s.train, s.validation, s.test)]
        assert len(set.union(*sides)) == sum(map(len, sides))


def test_the_same_seed_deals_the_same_and_repeats_differ():
    patients, labels = [f"p{i}" for i in range(40)], np.arange(40) % 2
    a, b = (k_folds(patients, labels, k=4, repeats=2, seed=3) for _ in range(2))
    assert all(np.array_equal(x.test, y.test) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0].test, a[4].test)


def test_inner_folds_never_see_the_outer_test_slides():
    patients, labels = [f"p{i // 2}" for i in range(80)], np.arange(80) // 2 % 2
    for outer in k_folds(patients, labels, k=4):
        inner = nested_folds(outer, patients, labels, k=3)
        seen = np.concatenate([np.concatenate([s.train, s.validation, s.test]) for s in inner])
        assert not set(seen) & set(outer.test)
        assert sorted(np.concatenate([s.test for s in inner])) == sorted([*outer.train, *outer.validation])


def test_too_few_patients_are_said_with_numbers():
    with pytest.raises(TrainingDataError, match=r"class 1 has 2 patient\(s\), fewer than 3"):
        k_folds(["a", "b", "c", "d", "e", "e"], [0, 0, 0, 1, 1, 1], k=3)
    with pytest.raises(TrainingDataError, match="3 sites cannot be dealt into 4"):
        k_folds(list("abcdef"), [0, 1] * 3, k=4, sites=list("xyzxyz"))


def test_numbers_are_put_into_classes_of_equal_size():
    bins = strata(np.array([*range(100), np.nan], float))
    assert Counter(bins.tolist()) == {0: 25, 1: 25, 2: 25, 3: 25, 4: 1}


SLIDES, PATIENTS = ["s0", "s1", "s2", "s3"], ["a", "a", "b", "c"]


def sides(split):
    return [[SLIDES[i] for i in rows] for rows in (split.train, split.validation, split.test)]


def test_splits_of_patho_bench():
    rows = [
        {"case_id": "a", "slide_id": "s0", "grade": "1", "fold_0": "train", "fold_1": "test"},
        {"case_id": "a", "slide_id": "s1", "grade": "1", "fold_0": "train", "fold_1": "test"},
        {"case_id": "b", "slide_id": "s2", "grade": "0", "fold_0": "val", "fold_1": "train"},
        {"case_id": "c", "slide_id": "s3", "grade": "0", "fold_0": "test", "fold_1": ""},
    ]
    first, second = from_columns(rows, SLIDES, PATIENTS)
    assert sides(first) == [["s0", "s1"], ["s2"], ["s3"]]
    assert sides(second) == [["s2"], [], ["s0", "s1"]]
    with pytest.raises(TrainingDataError, match="'tset' is no side"):
        from_columns([rows[0] | {"fold_1": "tset"}], SLIDES, PATIENTS)


def test_splits_of_clam_in_both_forms():
    rows = [{"": "0", "train": "s0", "val": "s2", "test": "s3"}, {"": "1", "train": "s1", "val": "", "test": ""}]
    assert sides(from_clam(rows, SLIDES, PATIENTS)) == [["s0", "s1"], ["s2"], ["s3"]]
    where = {"s0": "train", "s1": "train", "s2": "val", "s3": "test"}
    flags = [{"": s} | {side: str(at == side) for side in ("train", "val", "test")} for s, at in where.items()]
    assert sides(from_clam(flags, SLIDES, PATIENTS)) == [["s0", "s1"], ["s2"], ["s3"]]
    with pytest.raises(TrainingDataError, match="s0 is on two sides"):
        from_clam([rows[0] | {"test": "s0"}], SLIDES, PATIENTS)


def test_splits_of_stamp_go_by_patient():
    text = json.dumps({"splits": [{"train_patients": ["a", "b"], "test_patients": ["c"]}]})
    (split,) = from_stamp(text, SLIDES, PATIENTS)
    assert sides(split) == [["s0", "s1", "s2"], [], ["s3"]]
    with pytest.raises(TrainingDataError, match="no STAMP split"):
        from_stamp("{}", SLIDES, PATIENTS)
    with pytest.raises(TrainingDataError, match="names no slide of the job"):
        from_stamp(text, ["x"], ["y"])
