"""Feature maps in shards: what zarr alone reads is what was written, in any order, with rows that never came."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

zarr = pytest.importorskip("zarr", reason="needs the extra zarr")

from pipelines.formats import sharded  # noqa: E402
from pipelines.formats.maps_store import MapWriter  # noqa: E402

SHAPE = (2, 3, 5)


def written(folder, rows, kept, order, dtype="float16"):
    """Write the kept rows in an order, by threes; return what was meant to be there, and the files."""
    maps = np.random.default_rng(rows).standard_normal((rows, *SHAPE)).astype(np.float32)
    xy = np.stack([np.arange(rows), 7 * np.arange(rows)], 1)
    writer = MapWriter(folder, rows, SHAPE, dtype)
    for start in range(0, len(order), 3):
        some = np.array(order[start : start + 3])
        writer.put(some, maps[some])
    kept = np.array(sorted(kept), np.int64)
    files = writer.close(kept, xy[kept], {"patch_size": np.int64(224)}, {"id": "test"})
    return maps[kept].astype(dtype), xy[kept], files


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_zarr_reads_what_was_written_in_any_order_with_gaps(tmp_path_factory, data):
    rows = data.draw(st.integers(0, 12))
    kept = data.draw(st.permutations([row for row in range(rows) if data.draw(st.integers(0, 3))]))
    each = data.draw(st.integers(1, 5))
    folder = tmp_path_factory.mktemp("maps") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "SHARD_BYTES", each * 2 * np.prod(SHAPE))
        maps, xy, files = written(folder, rows, kept, kept)
    root = zarr.open_group(folder, mode="r", use_consolidated=False)
    assert np.array_equal(root["maps"][...], maps)
    assert np.array_equal(root["coords"][...], xy)
    assert root["maps"].chunks == (1, *SHAPE)
    if len(maps):
        assert np.array_equal(root["maps"][len(maps) - 1], maps[-1]), "one tile alone"
    assert [path.name for path in folder.parent.iterdir()] == ["a.zarr"], "nothing is left beside it"
    assert files[0] == folder / "zarr.json"
    assert set(files) == {path for path in folder.rglob("*") if path.is_file()}


def test_the_store_says_what_it_is_and_is_sharded(tmp_path):
    maps, _, _ = written(tmp_path / "a.zarr", 4, range(4), [3, 1, 0, 2], "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=True)
    assert root.metadata.zarr_format == 3
    assert root.attrs["encoder_passport"] == {"id": "test"}
    assert (root.attrs["format"], root.attrs["patch_size"]) == ("slidemil-maps", 224)
    assert root["maps"].shards == (4, *SHAPE)
    assert len([path for path in (tmp_path / "a.zarr" / "maps" / "c").rglob("*") if path.is_file()]) == 1
    assert np.array_equal(root["maps"][...], maps)


def test_an_older_store_of_that_name_gives_way_whole(tmp_path):
    written(tmp_path / "a.zarr", 9, range(9), range(9))
    maps, _, _ = written(tmp_path / "a.zarr", 2, [1], [1])
    assert np.array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")["maps"][...], maps)


def test_a_damaged_index_is_seen_by_zarr(tmp_path):
    """So the checksum is the one that readers compute."""
    _, _, files = written(tmp_path / "a.zarr", 2, [0, 1], [0, 1])
    shard = next(path for path in files if path.parent.name == "0" and "maps" in path.parts)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        zarr.open_group(tmp_path / "a.zarr", mode="r")["maps"][...]


def test_what_is_given_up_leaves_nothing(tmp_path):
    writer = MapWriter(tmp_path / "a.zarr", 3, SHAPE, "float16")
    writer.put(np.array([1]), np.ones((1, *SHAPE), np.float32))
    writer.drop()
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit_the_type_are_told(tmp_path):
    writer = MapWriter(tmp_path / "a.zarr", 3, SHAPE, "float16")
    writer.put(np.array([0]), np.ones((1, *SHAPE), np.float32))
    assert writer.bad is None
    writer.put(np.array([2, 1]), np.stack([np.ones(SHAPE), np.full(SHAPE, 1e6)]))
    assert writer.bad == 1
    writer.drop()


def test_the_checksum_is_that_of_the_standard():
    assert sharded.crc32c(b"123456789") == 0xE3069283
