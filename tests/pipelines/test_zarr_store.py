"""The cohort store: read by zarr alone, brought up to date slide by slide, behind an fsspec URL."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

zarr = pytest.importorskip("zarr", reason="needs the extra zarr")

from _command import slidemil, slidemil_json  # noqa: E402
from _tile_features import PASSPORT, slide  # noqa: E402

from pipelines.errors import CheckFailedError  # noqa: E402
from pipelines.feature_sets import feature_folders  # noqa: E402
from pipelines.features import read_features  # noqa: E402
from pipelines.formats import zarr_store  # noqa: E402
from pipelines.jobfolder import JobFolder  # noqa: E402


def write(url, *slides, digest="1"):
    return zarr_store.write(url, [(one.slide_id, f"{digest}{one.slide_id}", lambda one=one: one) for one in slides])


def test_zarr_alone_reads_it_sharded_and_consolidated(tmp_path):
    one, two = slide("a", 1500), slide("b", 3, seed=1)
    assert write(str(tmp_path / "c.zarr"), one, two) == (2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_group(tmp_path / "c.zarr", mode="r", use_consolidated=True)
    assert root.metadata.zarr_format == 3
    assert root.attrs["encoder_passport"] == PASSPORT
    assert list(root.attrs["slides"]) == ["a", "b"]
    array = root["a/features"]
    assert (array.chunks, array.shards) == ((1024, 5), (2048, 5))
    assert np.array_equal(array[:], one.features)
    assert np.array_equal(root["a/coords"][:], one.xy)
    assert root["a"].attrs["patch_size_level0"] == 448
    objects = list((tmp_path / "c.zarr" / "a" / "features").rglob("c/*/*"))
    assert len(objects) == 1, "one shard is one object"


def test_a_slide_is_written_once_and_again_when_it_has_changed(tmp_path):
    url = str(tmp_path / "c.zarr")
    write(url, slide("a"), slide("b", seed=1))
    assert write(url, slide("a"), slide("b", seed=1), slide("empty", 0)) == (1, 2)
    assert zarr_store.write(url, [("a", "other", lambda: slide("a", 3, seed=9))]) == (1, 0)
    found = {one.slide_id: one for one in zarr_store.read(url)}
    assert {name: len(one.xy) for name, one in found.items()} == {"a": 3, "b": 7, "empty": 0}


def test_features_made_differently_are_not_mixed(tmp_path):
    url = str(tmp_path / "c.zarr")
    write(url, slide("a"))
    with pytest.raises(CheckFailedError, match="weights_sha256"):
        write(url, slide("b", passport={**PASSPORT, "weights_sha256": "cd"}))


def test_an_fsspec_url_serves_as_well(tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
    one = slide("a", 30)
    url = "memory://cohort.zarr"
    fsspec.filesystem("memory").store.clear()
    assert write(url, one) == (1, 0)
    (found,) = zarr_store.read(url)
    assert np.array_equal(found.features, one.features)
    assert found.mpp == (0.25, 0.25)


def test_a_store_is_known_by_any_name(tmp_path):
    write(str(tmp_path / "cohort"), slide("a", 30))
    code, said = slidemil_json("check", tmp_path / "cohort")
    assert (code, [row["format"] for row in said["files"]]) == (0, ["zarr"])


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(CheckFailedError, match="no zarr store"):
        list(zarr_store.read(str(tmp_path / "absent.zarr")))
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(CheckFailedError, match="no cohort store"):
        list(zarr_store.read(str(tmp_path / "other.zarr")))


def test_extract_keeps_a_store_beside_its_files(cohort, tmp_path):
    slides, job = cohort.slides[0].path.parent, tmp_path / "job"
    common = ("extract", slides, "-o", job, "--store", "zarr", "--limit", 2, "--set", "quality=false")
    code, said = slidemil_json(*common)
    assert code == 0
    found = {one.slide_id: one for one in zarr_store.read(said["store"])}
    files = {path.stem: read_features(path) for path in (job / said["features"]).glob("*.h5")}
    assert found.keys() == files.keys()
    for name, file in files.items():
        assert np.array_equal(found[name].features, file.features)
        assert np.array_equal(found[name].xy, file.xy)
        assert found[name].passport == file.passport
    code, text = slidemil(*common)
    assert (code, "0 slides written, 2 were there" in text) == (0, True)
    assert feature_folders(JobFolder(job)) == [said["features"]], "the store is taken for no feature folder"
