"""The feature file: what other tools read from it, and what it refuses."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsi
from pipelines.errors import CheckFailedError, JobError
from pipelines.features import coords_attributes, feature_bytes, read_features, same_passport

PASSPORT = {"id": "toy", "stain": "none", "tile": {"size": 224, "mpp": 0.5}}


def grid(mpp=0.25, size=224, tile_mpp=0.5, pixels=2000):
    slide = wsi.MemorySlide([np.full((pixels, pixels, 3), 200, np.uint8)], mpp=mpp)
    return wsi.tile_grid(slide, None, wsi.TileSpec(size=size, mpp=tile_mpp))


def write(path, tiles, missing=(), values=None):
    rows = len(tiles.xy)
    values = np.arange(rows * 3, dtype=np.float16).reshape(rows, 3) if values is None else values
    path.write_bytes(feature_bytes(coords_attributes("s", tiles), tiles.xy, values, missing, PASSPORT, {}))
    return path


def trident_reads(path):
    """Read by the rules other tools follow: which kind of file is it, where is each tile, how large is it."""
    with h5py.File(path, "r") as file:
        assert "feats" not in file
        assert "stamp_version" not in file.attrs
        assert isinstance(file["features"], h5py.Dataset)
        attributes = file["coords"].attrs
        assert {"patch_size", "patch_size_level0", "level0_magnification", "target_magnification"} <= set(attributes)
        assert {"overlap", "name", "savetodir", "level0_width", "level0_height"} <= set(attributes)
        footprint = int(
            attributes["patch_size"] * attributes["level0_magnification"] // attributes["target_magnification"]
        )
        assert footprint == int(attributes["patch_size_level0"])
        assert file["features"].attrs["encoder"] == "toy"
        return file["features"][:], file["coords"][:], footprint


def test_a_trident_reader_takes_the_file(tmp_path):
    tiles = grid()
    features, coords, footprint = trident_reads(write(tmp_path / "s.h5", tiles))
    assert footprint == 448
    assert coords.dtype == np.int64
    assert (coords == tiles.xy).all()
    assert features.shape == (len(tiles.xy), 3)


@given(st.floats(0.1, 0.43), st.sampled_from([64, 224, 256, 512]), st.sampled_from([0.5, 0.44, 1.0, 2.0]))
def test_the_footprint_another_tool_computes_is_the_true_one(mpp, size, tile_mpp):
    tiles = grid(mpp=mpp, size=size, tile_mpp=tile_mpp, pixels=64)
    a = coords_attributes("s", tiles)
    assert int(a["patch_size"] * a["level0_magnification"] // a["target_magnification"]) == tiles.footprint


def test_missing_tiles_are_listed_with_their_cause(tmp_path):
    tiles = grid()
    path = write(tmp_path / "s.h5", tiles, missing=[(448, 0, "Corrupt JPEG: premature end")])
    with h5py.File(path) as file:
        (row,) = file["missing"][()]
        assert (row["x"], row["y"], row["cause"]) == (448, 0, b"Corrupt JPEG: premature end")


def test_what_is_written_is_read_back(tmp_path):
    tiles = grid()
    file = read_features(write(tmp_path / "s.h5", tiles))
    assert file.passport == PASSPORT
    assert file.footprint == (448, 448)
    assert file.slide_size == (2000, 2000)
    assert (file.xy == tiles.xy).all()


def test_a_file_that_points_outside_itself_is_refused(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.ones((2, 3))
    path = tmp_path / "planted.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((2, 2), np.int64)
        file["features"] = h5py.ExternalLink(str(secret), "features")
    with pytest.raises(JobError, match=r"another file.* refused"):
        read_features(path)


def test_storage_outside_the_file_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"x" * 48)
    path = tmp_path / "planted.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((2, 2), np.int64)
        file.create_dataset("features", (2, 3), "f8", external=[(str(tmp_path / "text"), 0, 48)])
    with pytest.raises(JobError, match=r"another file.* refused"):
        read_features(path)


@pytest.mark.parametrize("damage", [b"", b"no hdf5", None])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = write(tmp_path / "s.h5", grid())
    path.write_bytes(path.read_bytes()[:900] if damage is None else damage)
    with pytest.raises(JobError, match=r"s\.h5"):
        read_features(path)


def test_passports_that_differ_are_not_mixed():
    with pytest.raises(CheckFailedError, match="stain: 'none' against 'macenko'"):
        same_passport(PASSPORT, {**PASSPORT, "stain": "macenko"}, what="s")
    same_passport(PASSPORT, dict(PASSPORT), what="s")


def test_mapped_features_are_those_that_are_read_and_change_no_file(tmp_path):
    path = write(tmp_path / "s.h5", grid())
    before = path.read_bytes()
    mapped = read_features(path, mapped=True).features
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, read_features(path).features)
    mapped[0] = -1
    assert path.read_bytes() == before


def test_features_in_chunks_are_read_where_mapping_is_asked_for(tmp_path):
    path = write(tmp_path / "s.h5", grid())
    with h5py.File(path, "a") as file:
        values = file["features"][()]
        del file["features"]
        file.create_dataset("features", data=values, chunks=(1, 3), compression="gzip")
    found = read_features(path, mapped=True).features
    assert not isinstance(found, np.memmap)
    assert np.array_equal(found, values)
