"""Many slides through one stream, with a toy encoder: right rows, right stain, honest failures, honest resume."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import wsi
from pipelines import extract_stage, stages, tables_of_job
from pipelines.config import load_settings
from pipelines.features import read_features
from pipelines.jobfolder import JobFolder
from wsi.errors import TileReadError

TILING = "20x_64px_0px_overlap"
SIDE = 64


class MeanColor:
    """Mean RGB of a tile: a feature that tells which pixels came in."""

    id, dim, input_size, device = "toy", 3, SIDE, "cpu"

    def __init__(self, broken_above=None, weights="1"):
        self.broken_above, self.weights = broken_above, weights

    def __call__(self, pixels):
        values = pixels.reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)
        if self.broken_above is not None:
            values[values[:, 0] > self.broken_above] = np.nan
        return values

    def passport(self):
        return {"id": self.id, "weights_sha256": self.weights}


def picture(seed, tiles=4):
    """Tissue-colored tiles, each of its own shade."""
    rng = np.random.default_rng(seed)
    shades = rng.integers(90, 200, (tiles, tiles, 3)) * np.array([1.0, 0.6, 0.9])
    grain = rng.normal(0, 12, (tiles * SIDE, tiles * SIDE, 1))
    return np.clip(np.kron(shades, np.ones((SIDE, SIDE, 1))) + grain, 0, 255).astype(np.uint8)


def stained(seed, strength, tiles=4):
    """H&E by the law of Beer and Lambert: two dyes, amounts that vary from pixel to pixel."""
    rng = np.random.default_rng(seed)
    dyes = np.array([[0.65, 0.70, 0.29], [0.09, 0.95, 0.28]])
    amounts = rng.gamma(1.2, strength, (tiles * SIDE, tiles * SIDE, 2))
    return np.clip(245 * np.exp(-amounts @ dyes), 0, 255).astype(np.uint8)


class Shelf:
    """Slides by file name; the files hold only a token of the pixels, so that their hash follows them."""

    def __init__(self, folder):
        self.folder, self.pixels, self.mpp, self.bad = folder, {}, {}, {}
        folder.mkdir()

    def put(self, name, pixels, mpp=0.5, bad=()):
        (self.folder / f"{name}.svs").write_bytes(pixels.tobytes()[:4096] + repr((mpp, bad)).encode())
        self.pixels[name], self.mpp[name], self.bad[name] = pixels, mpp, bad

    def open(self, path, *, slide_mpp=None, manifest_mpp=None, icc="none", low_band=False):
        name = path.stem
        if name not in self.pixels:
            raise wsi.UnreadableSlideError(path.name, "is no slide", "Copy it again.")
        own = self.mpp[name]
        mpp = wsi.Mpp(own, own, "file") if own else slide_mpp and wsi.Mpp(slide_mpp, slide_mpp, "--slide-mpp")
        return FaultySlide(self.pixels[name], mpp or None, path, self.bad[name])


class FaultySlide(wsi.MemorySlide):
    def __init__(self, pixels, mpp, path, bad):
        super().__init__([pixels], mpp=(mpp.x, mpp.y) if mpp else None, name=path.name)
        self._bad, self.closed = bad, False
        self.mpp = mpp

    def read(self, x, y, width, height, *, level=0):
        if (x, y) in self._bad and (width, height) == (SIDE, SIDE):
            raise TileReadError(self.name, "the tile is damaged")
        return super().read(x, y, width, height, level=level)

    def close(self):
        self.closed = True
        super().close()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path / "slides")
    monkeypatch.setattr(wsi, "open_slide", shelf.open)
    return shelf


@pytest.fixture
def encoder(monkeypatch):
    box = {"encoder": MeanColor()}
    monkeypatch.setattr(extract_stage, "encoders_of", lambda settings, *, offline=False: [box["encoder"]])
    return box


def extract(shelf, tmp_path, force=False, **options):
    settings = load_settings(options={"tile": SIDE, "batch_size": 7, "dtype": "float32"} | options)
    return stages.extract([shelf.folder], tmp_path / "job", settings, force=force, quiet=True)


def features_of(tmp_path, name, tiling=TILING):
    return read_features(tmp_path / "job" / tiling / "features_toy" / f"{name}.h5")


def expected(pixels, xy):
    return np.stack([pixels[y : y + SIDE, x : x + SIDE].reshape(-1, 3).mean(axis=0) for x, y in xy])


def test_rows_of_mixed_batches_come_to_their_own_slide(shelf, encoder, tmp_path):
    for number, name in enumerate("abc"):
        shelf.put(name, picture(number))
    outcome = extract(shelf, tmp_path)
    assert len(outcome.done) == 3
    for name in "abc":
        file = features_of(tmp_path, name)
        assert len(file.xy) == 16
        np.testing.assert_allclose(file.features, expected(shelf.pixels[name], file.xy), rtol=1e-5)


def test_each_slide_is_normalized_with_its_own_stain(shelf, encoder, tmp_path):
    """The oracle fits and applies tile by tile; a batch of two slides must not share one fit."""
    import stain
    from pipelines.slide_work import fit_stain

    for number, name in enumerate("ab"):
        shelf.put(name, stained(number, 0.3 + 0.3 * number))
    extract(shelf, tmp_path, stain="reinhard")
    for name in "ab":
        file = features_of(tmp_path, name)
        slide = shelf.open(shelf.folder / f"{name}.svs")
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=SIDE, mpp=0.5))
        params = fit_stain(slide, grid, "reinhard")
        assert params.status == "ok"
        assert isinstance(params, stain.StainParams)
        tiles = np.stack([shelf.pixels[name][y : y + SIDE, x : x + SIDE] for x, y in file.xy])
        wanted = params.apply(tiles).reshape(len(tiles), -1, 3).mean(axis=1)
        np.testing.assert_allclose(file.features, wanted, rtol=1e-4)


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_an_encoder_that_says_its_levels_gets_planes_of_the_same_bytes(shelf, encoder, tmp_path, method):
    """Levels that are the bytes themselves: the features must be those of normalized bytes, slide by slide."""

    class OfPlanes(MeanColor):
        levels = np.tile(np.arange(256, dtype=np.float32), (3, 1))
        seen = 0

        def __call__(self, pixels):
            assert (pixels.dtype, pixels.shape[1:]) == (np.float32, (3, SIDE, SIDE))
            self.seen += len(pixels)
            return super().__call__(pixels.transpose(0, 2, 3, 1))

    for number, name in enumerate("abc"):
        shelf.put(name, stained(number, 0.3 + 0.3 * number))
    extract(shelf, tmp_path, stain=method)
    bytes_ = {name: features_of(tmp_path, name).features for name in "abc"}
    encoder["encoder"] = OfPlanes(weights="2")
    extract(shelf, tmp_path, stain=method)
    assert encoder["encoder"].seen == 48
    for name in "abc":
        np.testing.assert_allclose(features_of(tmp_path, name).features, bytes_[name], rtol=1e-5)


@pytest.mark.parametrize(("tile", "method"), [(160, "macenko"), (64, "reinhard")])
def test_stains_replaced_in_front_of_the_network_give_the_same_features(shelf, tmp_path, monkeypatch, tile, method):
    """As on a device: passes that cut across slides, tiles as the network takes them (160 px) and tiles resized."""
    from mil.encoders import lanes
    from mil.encoders.timm_encoder import TimmEncoder
    from stain.device import OnDevice

    monkeypatch.setattr(lanes, "CPU_PART", 3)
    for number, name in enumerate("abc"):
        shelf.put(name, stained(number, 0.3 + 0.3 * number, tiles=5))
    shelf.put("glass", np.full((320, 320, 3), 244, np.uint8))
    how = {"stain": method, "tile": tile, "encoder": "test_vit", "weights": "random", "quality": False}
    files, mixed = [], []
    changed = OnDevice.__call__
    there = lambda self, tiles, slides, *more: mixed.append(set(slides.tolist())) or changed(self, tiles, slides, *more)  # noqa: E731
    monkeypatch.setattr(OnDevice, "__call__", there)
    for on_device in (False, True):
        monkeypatch.setattr(TimmEncoder, "takes_change", on_device)
        extract(shelf, tmp_path, force=True, **how)
        assert bool(mixed) == on_device
        found = {path.stem: read_features(path) for path in tmp_path.glob("job/*/features_test_vit/*.h5")}
        files.append({name: file.features for name, file in found.items()})
    assert max(map(len, mixed)) > 1, "a pass held tiles of several slides"
    assert len(files[0]) >= 3
    for name, features in files[0].items():
        # Of tables the bytes are the same; powers differ between libraries in the last place.
        near = 0.0 if method == "macenko" else 5e-3
        np.testing.assert_allclose(files[1][name], features, rtol=0, atol=near)


@pytest.mark.parametrize(("method", "augment"), [("macenko", "hed:0.3:7"), ("none", "hed:0.3:7:tile")])
def test_colors_changed_by_chance_are_those_of_slide_tile_and_seed(shelf, encoder, tmp_path, method, augment):
    """Whatever the batch; a tile that is read again is what the encoder saw; the oracle solves for the amounts."""
    import stain
    from pipelines.manifest import find_slides
    from pipelines.reread import SlideTiles

    for number, name in enumerate("ab"):
        shelf.put(name, stained(number, 0.3 + 0.3 * number))
    extract(shelf, tmp_path, stain=method)
    plain = {name: features_of(tmp_path, name) for name in "ab"}
    extract(shelf, tmp_path, stain=method, augment=augment)
    changed = {name: features_of(tmp_path, name) for name in "ab"}
    extract(shelf, tmp_path, force=True, stain=method, augment=augment, batch_size=3)
    entries = {entry.slide_id: entry for entry in find_slides([shelf.folder]).entries}
    factors = []
    for name, file in changed.items():
        assert file.passport["augment"] == augment
        np.testing.assert_array_equal(features_of(tmp_path, name).features, file.features)
        tiles = SlideTiles(entries[name], file).all()
        np.testing.assert_allclose(tiles.reshape(16, -1, 3).mean(axis=1), file.features, rtol=1e-5)
        before = SlideTiles(entries[name], plain[name]).all()
        stains = stain.StainParams.from_json(json.loads(file.attributes["augment_stains"]))
        vectors = np.array(stains.source.vectors)
        for one, other in zip(before, tiles, strict=True):
            first, second = (
                -np.log(np.maximum(t, 1) / stains.white).reshape(-1, 3) @ np.linalg.pinv(vectors) for t in (one, other)
            )
            strong = (first > 0.3).all(axis=1) & (other.min(axis=-1) > 20).ravel()
            factors.append(np.median(second[strong] / first[strong], axis=0))
    factors = np.reshape(factors, (2, 16, 2))
    assert 0.69 < factors.min() < factors.max() < 1.31
    within = factors.std(axis=1).max() if "tile" not in augment else factors.std(axis=1).min()
    assert (within > 0.05) == ("tile" in augment), factors
    assert np.abs(factors[0].mean(axis=0) - factors[1].mean(axis=0)).max() > 0.01, "each slide has its own"


def test_features_of_changed_colors_are_not_mixed_with_plain_ones(shelf, encoder, tmp_path):
    from pipelines.errors import CheckFailedError
    from pipelines.feature_sets import load_features

    shelf.put("a", stained(0, 0.4))
    extract(shelf, tmp_path)
    shelf.put("b", stained(1, 0.4))
    settings = load_settings(options={"tile": SIDE, "dtype": "float32", "augment": "hed:0.1:3"})
    stages.extract([shelf.folder / "b.svs"], tmp_path / "job", settings, quiet=True)
    with pytest.raises(CheckFailedError, match=r"augment: None against 'hed:0.1:3'"):
        load_features(JobFolder(tmp_path / "job"), f"{TILING}/features_toy", ["a", "b"])
    (only,) = load_features(JobFolder(tmp_path / "job"), f"{TILING}/features_toy", ["b"]).notes
    assert "changed by chance (hed:0.1:3)" in only


def test_a_tile_that_cannot_be_read_is_missing_and_never_invented(shelf, encoder, tmp_path):
    shelf.put("a", picture(0), bad=((64, 0),))
    shelf.put("b", picture(1))
    outcome = extract(shelf, tmp_path, max_bad_tiles=0.1)
    assert len(outcome.done) == 2
    file = features_of(tmp_path, "a")
    assert len(file.features) == 15
    assert [64, 0] not in file.xy.tolist()
    np.testing.assert_allclose(file.features, expected(shelf.pixels["a"], file.xy), rtol=1e-5)
    with h5py.File(tmp_path / "job" / TILING / "features_toy" / "a.h5") as h5:
        (row,) = h5["missing"][()]
    assert (row["x"], row["y"], row["cause"]) == (64, 0, b"the tile is damaged")


def test_too_many_missing_tiles_fail_the_slide_alone_and_the_option_it_names_mends_it(shelf, encoder, tmp_path):
    shelf.put("a", picture(0), bad=((64, 0),))
    shelf.put("b", picture(1))
    outcome = extract(shelf, tmp_path)
    (failure,) = outcome.failed
    assert failure.slide == "a"
    assert "1 of 16 tiles" in failure.cause
    again = extract(shelf, tmp_path, max_bad_tiles=0.07)
    assert (again.done, again.skipped) == (("a",), ("b",))
    strict = extract(shelf, tmp_path)
    assert [f.slide for f in strict.failed] == ["a"], "a stricter rule holds for finished slides, too"


def test_features_that_are_no_numbers_are_never_saved(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    encoder["encoder"] = MeanColor(broken_above=100)
    outcome = extract(shelf, tmp_path)
    (failure,) = outcome.failed
    assert "no finite" in failure.cause
    assert not (tmp_path / "job" / TILING / "features_toy" / "a.h5").exists()


def test_a_slide_that_changes_while_it_is_read_fails(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    inner = encoder["encoder"]

    class Meddler(MeanColor):
        def __call__(self, pixels):
            (shelf.folder / "a.svs").write_bytes(b"another slide")
            return inner(pixels)

    encoder["encoder"] = Meddler()
    (failure,) = extract(shelf, tmp_path).failed
    assert "changed while it was read" in failure.cause


CHANGES = [
    {"min_tissue": 0.9},
    {"stain": "macenko"},
    {"dtype": "float16"},
    {"mpp": 1.0},
    {"tile": 128},
    {"overlap": 8},
    {"icc": "srgb"},
    {"jpeg2000": "low-band"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_changed_setting_is_noticed(shelf, encoder, tmp_path, change):
    shelf.put("a", picture(0))
    assert extract(shelf, tmp_path).done == ("a",)
    assert extract(shelf, tmp_path).skipped == ("a",)
    assert extract(shelf, tmp_path, **change).done == ("a",)


def test_changed_weights_a_changed_slide_and_force_are_noticed(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    shelf.put("b", picture(1))
    extract(shelf, tmp_path)
    shelf.put("a", picture(2))
    assert extract(shelf, tmp_path).done == ("a",)
    encoder["encoder"] = MeanColor(weights="2")
    assert extract(shelf, tmp_path).done == ("a", "b")
    assert extract(shelf, tmp_path, force=True).done == ("a", "b")
    assert extract(shelf, tmp_path).skipped == ("a", "b")


def test_options_that_one_slide_needs_do_not_redo_the_others(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    shelf.put("b", picture(1), mpp=None)
    assert [f.slide for f in extract(shelf, tmp_path).failed] == ["b"]
    again = extract(shelf, tmp_path, slide_mpp=0.5, allow_upsampling=True, max_bad_tiles=0.5)
    assert (again.done, again.skipped) == (("b",), ("a",))
    assert extract(shelf, tmp_path, slide_mpp=0.4, allow_upsampling=True).done == ("b",)


def test_a_slide_that_fails_now_no_longer_counts_as_done(shelf, encoder, tmp_path):
    from pipelines.feature_sets import load_features

    shelf.put("a", picture(0))
    shelf.put("b", picture(1))
    extract(shelf, tmp_path)
    (shelf.folder / "a.svs").write_bytes(b"cut")
    del shelf.pixels["a"]
    outcome = extract(shelf, tmp_path)
    assert [f.slide for f in outcome.failed] == ["a"]
    assert list(load_features(JobFolder(tmp_path / "job"), f"{TILING}/features_toy", ["a", "b"]).records) == ["b"]


def test_a_slide_out_of_reach_keeps_its_finished_features(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    extract(shelf, tmp_path)
    manifest = tables_of_job.read_manifest(JobFolder(tmp_path / "job"))
    (shelf.folder / "a.svs").unlink()
    from pipelines import extract as module
    from pipelines.progress import Quiet
    from pipelines.provenance import Run

    job = JobFolder(tmp_path / "job")
    settings = load_settings(options={"tile": SIDE, "batch_size": 7, "dtype": "float32"}).extract
    work = module.Extraction(job, settings, MeanColor(), Run(job, "extract", {}), Quiet())
    outcome = module.extract(work, manifest)
    assert outcome.skipped == ("a",)
    assert any("kept" in text for text in outcome.warnings)


@pytest.mark.parametrize("lost", ["thumbnails/a.jpg", f"{TILING}/patches/a_patches.h5", "contours_geojson/a.geojson"])
def test_a_lost_companion_is_made_again(shelf, encoder, tmp_path, lost):
    shelf.put("a", picture(0))
    extract(shelf, tmp_path)
    (tmp_path / "job" / lost).unlink()
    assert extract(shelf, tmp_path).done == ("a",)
    assert (tmp_path / "job" / lost).is_file()


def test_every_slide_is_closed_when_the_encoder_breaks(shelf, encoder, tmp_path, monkeypatch):
    opened = []

    def opening(path, **options):
        opened.append(shelf.open(path, **options))
        return opened[-1]

    monkeypatch.setattr(wsi, "open_slide", opening)
    for number, name in enumerate("abc"):
        shelf.put(name, picture(number))

    class Stop(MeanColor):
        def __call__(self, pixels):
            raise KeyboardInterrupt

    encoder["encoder"] = Stop()
    with pytest.raises(KeyboardInterrupt):
        extract(shelf, tmp_path)
    assert opened
    assert all(slide.closed for slide in opened)


def test_slides_of_earlier_runs_keep_their_rows(shelf, encoder, tmp_path):
    shelf.put("a", picture(0))
    shelf.put("b", picture(1))
    extract(shelf, tmp_path)
    settings = load_settings(options={"tile": SIDE, "batch_size": 7, "dtype": "float32"})
    stages.extract([shelf.folder / "b.svs"], tmp_path / "job", settings, quiet=True)
    rows = {row["slide_id"]: row["status"] for row in tables_of_job.read_slides(JobFolder(tmp_path / "job"))}
    assert rows == {"a": "done", "b": "done"}


def test_names_of_any_blanks_come_back(shelf, encoder, tmp_path):
    shelf.put("x  y", picture(0))
    for _ in range(2):
        extract(shelf, tmp_path)
        (entry,) = tables_of_job.read_manifest(JobFolder(tmp_path / "job")).entries
        assert entry.path.name == "x  y.svs"
        assert replace(entry, path=entry.path).path.exists()


def test_the_low_band_of_jpeg2000_makes_other_features_and_says_so(encoder, tmp_path):
    """A real file of JPEG 2000 tiles at half its resolution; the oracle is openjpeg's `reduce`, through Pillow."""
    pixels = stained(0, 0.6, tiles=8)
    tiles = [pixels[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    coded = [imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), codecformat="j2k", level=80) for tile in tiles]
    (tmp_path / "slides").mkdir()
    text = "Aperio Image Library v12.0\n512x512 (256x256)|AppMag = 40|MPP = 0.25"
    options = {"shape": pixels.shape, "dtype": np.uint8, "tile": (256, 256), "compression": "aperio_jp2000_rgb"}
    tifffile.imwrite(
        tmp_path / "slides" / "a.svs", iter(coded), photometric="rgb", description=text, metadata=None, **options
    )

    def run(**more):
        settings = load_settings(options={"tile": SIDE, "dtype": "float32", "min_tissue": 0.0, **more})
        outcome = stages.extract([tmp_path / "slides"], tmp_path / "job", settings, force=False, quiet=True)
        assert not outcome.failed
        return features_of(tmp_path, "a")

    full, low = run(), run(jpeg2000="low-band")
    assert "jpeg2000" not in full.passport
    assert low.passport["jpeg2000"] == "low-band"
    halves = []
    for data in coded:
        with Image.open(io.BytesIO(data)) as image:
            image.reduce = 1
            halves.append(np.asarray(image))
    truth = np.concatenate([np.concatenate(halves[:2], 1), np.concatenate(halves[2:], 1)])
    np.testing.assert_allclose(low.features, expected(truth, low.xy // 2), rtol=1e-5)
    assert np.abs(low.features - full.features).max() > 0.01
