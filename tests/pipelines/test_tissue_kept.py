"""Tissue is found once for several µm/px: what is kept is what was found, or it is found again."""

from __future__ import annotations

import numpy as np
import pytest
from _command import digests, slidemil
from _slides import smooth_picture, write_aperio

import wsi
from pipelines.jobfolder import JobFolder
from pipelines.tissue_kept import keeping, kept_or
from wsi.focus import Focus

PARTS = {"slide": "a", "tissue": {"min_tissue": 0.25}, "mpp": {"manifest": None}, "encoder": {"name": "x"}}


def found(*, focus=True, quality=True):
    rng = np.random.default_rng(0)
    masks = {name: rng.random((31, 53)) < 0.5 for name in ("mask", "pen", "area", "blur", "folds")}
    picture = rng.integers(0, 256, (31, 53, 3)).astype(np.uint8)
    tissue = wsi.Tissue("a.svs", masks["mask"], masks["pen"], (7.25, 7.5), picture, "why", drawn=True, unread=0.03)
    sharp = Focus(rng.integers(0, 999, (4, 2)), np.array([0.5, np.nan, -1, 2], np.float32)) if focus else None
    flagged = {name: masks[name] for name in ("blur", "folds")}
    return tissue, wsi.Quality("a.svs", flagged, masks["area"], (7.25, 7.5), 8.0, sharp) if quality else None


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, wsi.Tissue | wsi.Quality | Focus):
        return type(one) is type(other) and all(same(vars(one)[name], vars(other)[name]) for name in vars(one))
    return one == other


@pytest.mark.parametrize("how", [{}, {"focus": False}, {"quality": False}])
def test_what_is_kept_is_what_was_found(tmp_path, how):
    job, wanted, asked = JobFolder(tmp_path), found(**how), []

    def find():
        asked.append(1)
        return wanted

    with keeping(job, several=True):
        for times in (1, 1, 1):
            tissue, quality = kept_or(job, "a", PARTS | {"encoder": {"name": str(times)}}, find)
            assert same(tissue, wanted[0])
            assert same(quality, wanted[1])
            assert len(asked) == times
        kept_or(job, "a", PARTS | {"slide": "another"}, find)
        assert len(asked) == 2
        (job.kept_tissue / "a.npz").write_bytes((job.kept_tissue / "a.npz").read_bytes()[:-40])
        kept_or(job, "a", PARTS | {"slide": "another"}, find)
        assert len(asked) == 3
    assert not job.kept_tissue.exists()
    kept_or(job, "a", PARTS, find)
    assert not job.kept_tissue.exists(), "one µm/px keeps nothing"


def test_a_run_at_several_scales_looks_once(tmp_path, monkeypatch):
    """And writes what a run at the second of them alone writes."""
    path = write_aperio(tmp_path / "a.svs", smooth_picture(900, 700), mpp=0.25, power=40)
    look, looked = wsi.find_tissue, []
    monkeypatch.setattr(wsi, "find_tissue", lambda slide: looked.append(slide.name) or look(slide))
    common = ["-q", "--set", "processes=0", "--tile", 64]
    assert slidemil("extract", path, "-o", tmp_path / "both", "--mpp", "0.5,1", *common)[0] == 0
    assert looked == ["a.svs"]
    assert slidemil("extract", path, "-o", tmp_path / "alone", "--mpp", 1, *common)[0] == 0
    both, alone = digests(tmp_path / "both"), digests(tmp_path / "alone")
    own = (".yaml", ".csv", ".yaml.json", ".csv.json")
    wanted = {name: sha for name, sha in alone.items() if not name.endswith(own)}
    assert len(wanted) > 8
    assert wanted.items() <= both.items()
