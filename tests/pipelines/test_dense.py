"""Feature maps beside features: the encoder's own, row by row; done only together; nothing stays of what failed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from _command import digests, slidemil, slidemil_json

zarr = pytest.importorskip("zarr", reason="needs the extra zarr")

import wsi  # noqa: E402
from mil import create_encoder  # noqa: E402
from pipelines import extract_stage  # noqa: E402
from pipelines.features import read_features  # noqa: E402
from wsi.errors import TileReadError  # noqa: E402

COMMON = ("--set", "quality=false", "--set", "processes=0", "--limit", 2, "--dense", "--set", "dtype=float32")
BOTH = ("--encoder", "test_vit,test_resnet", "--weights", "random,random")


@pytest.fixture
def slides(cohort):
    return cohort.slides[0].path.parent


@pytest.fixture(scope="module")
def made(cohort, tmp_path_factory):
    job = tmp_path_factory.mktemp("dense") / "job"
    code, said = slidemil_json("extract", cohort.slides[0].path.parent, "-o", job, *COMMON, *BOTH)
    assert (code, len(said["outputs"])) == (0, 8)
    return job


@pytest.fixture
def job(made, slides):
    """A copy beside the slides, where `manifest.csv` finds them."""
    copy = made.with_name("copy")
    shutil.copytree(made, copy)
    yield copy
    shutil.rmtree(copy)


def stores(job):
    return sorted(job.glob("*/dense_*/*.zarr"))


def test_maps_are_the_encoders_and_belong_to_the_rows_of_the_features(slides, job):
    """Tiles are read one by one, and encoded alone."""
    assert len(stores(job)) == 4
    for store in stores(job):
        name = store.parent.name.removeprefix("dense_")
        root = zarr.open_group(store, mode="r")
        file = read_features(store.parents[1] / f"features_{name}" / f"{store.stem}.h5")
        assert np.array_equal(root["coords"][...], file.xy)
        assert root.attrs["encoder_passport"] == file.passport
        encoder = create_encoder(name, weights="random", device="cpu")
        assert root["maps"].shape == (len(file.xy), *encoder.map_shape)
        with wsi.open_slide(slides / f"{store.stem}.svs") as slide:
            grid = wsi.tile_grid(slide, wsi.find_tissue(slide), wsi.TileSpec(size=224, mpp=0.5))
            with wsi.stream([(slide, grid)], batch_size=1) as stream:
                for batch in list(stream)[::20]:
                    row = int(np.flatnonzero((file.xy == grid.xy[batch.index[0]]).all(1))[0])
                    assert np.array_equal(root["maps"][row], encoder.dense(batch.pixels)[0])
                    assert np.array_equal(file.features[row], encoder(batch.pixels)[0])


def test_maps_and_features_are_done_together_and_the_same_bytes_again(slides, job, tmp_path):
    before = digests(job)
    again = ("extract", slides, "-o", job, *COMMON, *BOTH)
    assert slidemil_json(*again)[1]["slides"]["skipped"] == 2
    next((stores(job)[0] / "maps" / "c").rglob("0")).rename(tmp_path / "lost")
    code, said = slidemil_json(*again)
    assert (code, said["slides"]["done"], said["slides"]["skipped"]) == (0, 1, 1)
    assert digests(job) == before
    assert slidemil("verify", job)[0] == 0
    shard = next(path for path in (stores(job)[1] / "maps" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, text = slidemil("verify", job)
    assert (code, "was changed after it was written" in text) == (7, True)


def test_tiles_that_cannot_be_read_have_no_row(made, slides, tmp_path, monkeypatch):
    """Every fifth tile fails: what is left is closed up, in the maps as in the features."""

    class Torn:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __iter__(self):
            for batch in self.inner:
                ok = batch.ok & (batch.index % 5 != 2)
                lost = tuple(TileReadError("a", "torn", "copy it") for _ in np.flatnonzero(batch.ok & ~ok))
                yield replace(batch, ok=ok, errors=(*batch.errors, *lost))

    whole = wsi.stream
    monkeypatch.setattr(wsi, "stream", lambda sources, **more: Torn(whole(sources, **more)))
    one = ("--encoder", "test_vit", "--weights", "random", "--max-bad-tiles", 0.5, "--limit", 1)
    code, _ = slidemil_json("extract", slides, "-o", tmp_path / "job", *COMMON, *one)
    assert code == 0
    (store,) = stores(tmp_path / "job")
    file = read_features(next((tmp_path / "job").glob("*/features_*/*.h5")))
    root = zarr.open_group(store, mode="r")
    assert np.array_equal(root["coords"][...], file.xy)
    whole = zarr.open_group(made / store.relative_to(tmp_path / "job"), mode="r")
    rows = [int(np.flatnonzero((whole["coords"][...] == place).all(1))[0]) for place in file.xy]
    assert 0 < len(rows) < whole["maps"].shape[0]
    assert np.array_equal(root["maps"][...], whole["maps"][...][rows])


def test_a_slide_that_fails_leaves_nothing(slides, tmp_path, monkeypatch):
    encoder = create_encoder("test_vit", weights="random", device="cpu")
    inner = encoder.with_map
    monkeypatch.setattr(
        encoder, "with_map", lambda pixels: [np.where(values > 0, np.nan, values) for values in inner(pixels)]
    )
    monkeypatch.setattr(extract_stage, "encoders_of", lambda settings, *, offline=False: [encoder])
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *COMMON)
    assert (code, said["slides"]["failed"]) == (3, 2)
    assert not list((tmp_path / "job").glob("*/dense_*/*"))
    assert not list((tmp_path / "job").glob("*/dense_*/.*"))


def test_an_encoder_without_a_map_is_refused_before_anything_is_read(slides, tmp_path):
    code, text = slidemil("extract", slides, "-o", tmp_path / "job", "--dense")
    assert (code, "has no map" in text) == (2, True)
    assert not (tmp_path / "job" / "20x_224px_0px_overlap").exists()


def test_a_plan_says_how_much_the_maps_take(slides):
    code, said = slidemil_json("plan", slides, *COMMON, "--encoder", "test_vit", "--weights", "random", "--probe", 1)
    encoder = create_encoder("test_vit", weights="random", device="cpu")
    expected = said["tiles"]["expected"] * 4 * np.prod(encoder.map_shape)
    assert (code, said["gb"]["maps"]) == (0, pytest.approx(expected / 1e9, rel=0.1, abs=1e-3))
