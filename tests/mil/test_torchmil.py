"""torchmil 1.0.2 with the same weights: kept answers of it (`benchmarks/references/torchmil_agreement.py --write`)."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

KEPT = json.loads((Path(__file__).parent / "data/torchmil.json").read_text())
REFERENCES = Path(__file__).resolve().parents[2] / "benchmarks/references"


@pytest.fixture(scope="module")
def cases():
    sys.path.append(str(REFERENCES))
    try:
        yield importlib.import_module("_torchmil_cases")
    finally:
        sys.path.remove(str(REFERENCES))


@pytest.fixture(scope="module")
def ours(cases):
    return cases.ours(KEPT)


@pytest.mark.parametrize("name", sorted(KEPT["right"]))
def test_where_torchmil_is_right_the_answers_agree(ours, name):
    np.testing.assert_allclose(ours[name].numpy(), KEPT["right"][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(KEPT["wrong"]))
def test_where_torchmil_is_wrong_its_two_answers_differ(name):
    """Padding that is masked, the other bag of a batch, or a second question changes what it says of a bag."""
    first, second = KEPT["wrong"][name]
    assert np.abs(np.subtract(first, second)).max() > 1e-3


def test_there_ours_do_not(cases):
    slips = cases.our_slips(KEPT)
    assert {"dsmil_padding", "clam_sb_padding", "dtfd_asked_twice", "abmil_empty"} <= set(slips)
    assert max(slips.values()) <= 1e-6, slips


def test_the_instance_loss_of_clam_is_the_formula_and_theirs_is_not(cases):
    theirs, formula = KEPT["wrong"]["clam_loss_formula"]
    assert cases.our_clam_loss(KEPT) == pytest.approx(formula, abs=1e-5)
    assert abs(theirs - formula) > 1
    assert KEPT["clam_loss_of_sure_tiles"].startswith("RuntimeError")


def test_of_a_bag_that_is_masked_whole_torchmil_says_nan():
    assert KEPT["empty_bag_is_finite"] == dict.fromkeys(("abmil", "gated_abmil", "clam_sb", "dsmil"), False)
