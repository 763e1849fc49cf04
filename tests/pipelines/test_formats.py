"""Other tools' files: theirs read by us, ours read by their rules, and back again without loss."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from _command import digests, slidemil, slidemil_json
from _tile_features import PASSPORT, slide
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.convert import convert, find
from pipelines.errors import CheckFailedError
from pipelines.formats import adapter, kind_of, read
from pipelines.formats.slide_features import Given, SlideFeatures
from pipelines.score_files import scores_h5

# Readers by the rules of other tools: nothing of ours in them.


def trident_reads(path):
    """Patch level features as TRIDENT's slide encoders and Patho-Bench take them."""
    with h5py.File(path, "r") as file:
        attributes = dict(file["coords"].attrs)
        return file["features"][:], file["coords"][:], int(attributes["patch_size_level0"]), attributes["name"]


def trident_footprint(path):
    """Its patcher computes the footprint anew from magnifications."""
    with h5py.File(path, "r") as file:
        a = file["coords"].attrs
        return int(int(a["patch_size"]) * a["level0_magnification"] // a["target_magnification"])


def clam_reads(folder, name):
    """`Generic_MIL_Dataset`: a tensor; heatmaps: features and coordinates of the h5, the size from `patches`."""
    bag = torch.load(folder / "pt_files" / f"{name}.pt", weights_only=True)
    with h5py.File(folder / "h5_files" / f"{name}.h5", "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    with h5py.File(folder / "patches" / f"{name}.h5", "r") as file:
        a = file["coords"].attrs
        side = a["patch_size"] * int(a["downsample"][0])
        assert (file["coords"][:] == coords).all()
    return bag, features, coords, int(side)


def stamp_reads(path, newest=(2, 5, 0)):
    """`get_coords` and the dataset: features, µm, side of a tile in µm; newer files than the reader are refused."""
    with h5py.File(path, "r") as file:
        assert tuple(map(int, file.attrs["stamp_version"].split("."))) <= newest
        assert file.attrs.get("feat_type", "tile") == "tile"
        assert file.attrs["unit"] == "um"
        return file["feats"][:], file["coords"][:], float(file.attrs["tile_size_um"]), file.attrs["extractor"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A job of ours, by the command, and what the same slides are in other tools' files."""
    root = tmp_path_factory.mktemp("formats")
    one, two = slide("007", 1500), slide("b.2", 3, seed=1)
    for each in (one, two):
        adapter("trident").write(each, root / "theirs")
    assert slidemil("convert", root / "theirs", "-o", root / "job")[0] == 0
    for kind in ("clam", "stamp", "slide2vec", "atlaspatch", "anndata", "zarr"):
        out = root / ("store.zarr" if kind == "zarr" else kind)
        code, said = slidemil_json("convert", root / "job", "-o", out, "--to", kind)
        assert (code, said["done"]) == (0, 2), said
    return root, one, two


def test_a_job_is_read_by_the_rules_of_trident(made):
    root, one, _ = made
    path = root / "job" / "20x_224px_0px_overlap" / "features_uni_v1" / "007.h5"
    features, coords, side, name = trident_reads(path)
    assert np.array_equal(features, one.features)
    assert np.array_equal(coords, one.xy)
    assert (side, name, coords.dtype) == (448, "007", np.int64)
    patches = root / "job" / "20x_224px_0px_overlap" / "patches" / "007_patches.h5"
    assert trident_footprint(patches) == trident_footprint(path) == 448


def test_a_job_is_read_by_the_rules_of_clam(made):
    root, one, _ = made
    bag, features, coords, side = clam_reads(root / "clam", "007")
    assert bag.dtype == torch.float32
    assert np.array_equal(bag.numpy(), one.features.astype(np.float32))
    assert np.array_equal(features, bag.numpy())
    assert np.array_equal(coords, one.xy)
    assert (side, coords.dtype) == (448, np.int32)


def test_a_job_is_read_by_the_rules_of_stamp(made):
    root, one, _ = made
    (path,) = (root / "stamp").glob("uni-*/007.h5")
    features, microns, side, extractor = stamp_reads(path)
    assert features.dtype == np.float16
    assert np.array_equal(features, one.features)
    assert np.allclose(microns, one.xy * 0.25)
    assert (side, extractor, microns.dtype) == (112.0, "uni", np.float32)


@pytest.mark.parametrize("kind", ["clam", "stamp", "slide2vec", "atlaspatch", "zarr"])
def test_what_went_to_another_tool_comes_back_whole(made, kind, tmp_path):
    root, *slides = made
    source = root / ("store.zarr" if kind == "zarr" else kind)
    said = convert([str(source)], str(tmp_path / "back"), "slidemil", given=Given(mpp=0.25, tile=224))
    assert said.data["done"] == 2, said.text
    for one in slides:
        (path,) = (tmp_path / "back").glob(f"*/features_*/{one.slide_id}.h5")
        found = read(path, Given())
        order = np.lexsort((found.xy[:, 1], found.xy[:, 0])), np.lexsort((one.xy[:, 1], one.xy[:, 0]))
        assert np.array_equal(found.xy[order[0]], one.xy[order[1]])
        assert np.array_equal(found.features[order[0]].astype(np.float32), one.features[order[1]].astype(np.float32))
        assert found.footprint == (448, 448)
        assert found.encoder in ("uni_v1", "unknown")
        assert (found.encoder == "unknown") == (kind == "clam")
        assert (found.passport == one.passport) == (kind == "zarr")


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["trident", "clam", "stamp", "slide2vec", "atlaspatch"]),
    rows=st.integers(0, 40),
    dim=st.integers(1, 9),
    mpp=st.floats(0.1, 1.2),
    footprint=st.integers(30, 3000),
    seed=st.integers(0, 99),
)
def test_round_trips_lose_nothing(tmp_path_factory, kind, rows, dim, mpp, footprint, seed):
    folder = tmp_path_factory.mktemp("trip")
    one = slide("x", rows, dim, mpp, footprint, seed)
    path = adapter(kind).write(one, folder)
    assert kind_of(path) == ("slidemil" if kind == "trident" else kind)
    found = read(path, Given(mpp=mpp, tile=224))
    order = np.lexsort((one.xy[:, 1], one.xy[:, 0])) if kind == "slide2vec" else np.arange(rows)
    assert np.array_equal(found.xy, one.xy[order])
    assert np.array_equal(found.features.astype(np.float16), one.features[order])
    assert found.footprint == one.footprint
    assert found.mpp == pytest.approx((mpp, mpp))


# Files as other tools wrote them in other years


def write_h5(path, attributes=(), on="", **data):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
        target = file[on] if on else file
        for name, value in dict(attributes).items():
            target.attrs[name] = value
    return path


def test_old_stamp_files_have_their_own_units(tmp_path):
    grid = np.array([[0, 0], [224, 0], [448, 224]], np.float32)
    feats = np.ones((3, 4), np.float16)
    cases = {
        "stride": ({}, grid, grid * 256 / 224, 256),
        "size_um": ({"tile_size_um": 112.0}, grid / 2, grid / 2, 112),
        "size": ({"tile_size": 200.0, "unit": "um"}, grid, grid, 200),
        "pixels": ({"tile_size": 224}, grid, grid * 256 / 224, 256),
    }
    for name, (attributes, coords, microns, side) in cases.items():
        path = write_h5(tmp_path / "uni-1" / f"{name}.h5", attributes, feats=feats, coords=coords)
        found = read(path, Given(mpp=0.5))
        assert np.array_equal(found.xy, np.rint(microns / 0.5)), name
        assert found.footprint[0] == round(side / 0.5), name
        assert found.encoder == "uni_v1"
    with pytest.raises(CheckFailedError, match="--slide-mpp"):
        read(path, Given())
    odd = write_h5(tmp_path / "odd.h5", feats=feats, coords=grid * 1.3)
    with pytest.raises(CheckFailedError, match="unknown unit"):
        read(odd, Given(mpp=0.5))


def test_old_clam_files_and_what_they_lack(tmp_path):
    features, coords = np.ones((1, 3, 4), np.float32), np.array([[0, 0], [512, 0], [0, 512]], np.int32)
    path = write_h5(tmp_path / "FEATURES" / "h5_files" / "a.h5", features=features, coords=coords)
    with pytest.raises(CheckFailedError, match="--footprint"):
        read(path, Given())
    assert read(path, Given(footprint=512)).footprint == (512, 512)
    told = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "custom_downsample": 2, "level_dim": (9, 7)}
    write_h5(tmp_path / "RESULTS" / "patches" / "a.h5", told, on="coords", coords=coords)
    found = read(path, Given(mpp=0.25))
    assert (found.footprint, found.slide_size, found.features.shape) == ((1024, 1024), (9, 7), (3, 4))
    (tmp_path / "FEATURES" / "pt_files").mkdir()
    torch.save(torch.ones(3, 4), tmp_path / "FEATURES" / "pt_files" / "a.pt")
    assert np.array_equal(read(tmp_path / "FEATURES" / "pt_files" / "a.pt", Given()).xy, coords)
    assert [one.path.suffix for one in find([str(tmp_path / "FEATURES")])] == [".h5"], "the copy is not taken twice"


def test_trident_with_one_row_chunks_and_odd_magnifications(tmp_path):
    path = tmp_path / "features_gigapath" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        data = file.create_dataset("features", data=np.zeros((300, 8), np.float32), chunks=(1, 8), maxshape=(None, 8))
        data.attrs["encoder"] = "gigapath"
        coords = file.create_dataset("coords", data=np.arange(600).reshape(300, 2), chunks=(1, 2), maxshape=(None, 2))
        told = {"patch_size": 256, "patch_size_level0": 512.0, "level0_magnification": 40, "target_magnification": 20.0}
        for name, value in (told | {"overlap": 0, "name": "a"}).items():
            coords.attrs[name] = value
    found = read(path, Given())
    assert (found.footprint, found.mpp, found.encoder) == ((512, 512), (0.25, 0.25), "gigapath")
    assert "nominal magnification" in found.notes[0]
    assert read(path, Given(mpp=0.2325)).mpp == (0.2325, 0.2325)
    code, text = slidemil("check", path)
    assert (code, "stored 1 row at a time" in text) == (0, True)


def test_a_converted_job_can_be_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        one = slide(f"s{number:02}", 30, 8, seed=number, dtype=np.float32)
        shift = np.where(np.arange(30)[:, None] < 10, 3.0 * (number % 2), 0)
        adapter("clam").write(SlideFeatures(**{**vars(one), "features": one.features + shift}), tmp_path / "CLAM")
    rows = [f"s{n:02},p{n:02},{'tumor' if n % 2 else 'normal'}" for n in rng.permutation(12)]
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,case_id,label\n" + "\n".join(rows) + "\n")
    slides = tmp_path / "mpp.csv"
    slides.write_text("slide_id,mpp\n" + "".join(f"s{n:02},0.25\n" for n in range(12)))
    job = tmp_path / "job"
    code, _ = slidemil(
        "convert", tmp_path / "CLAM", "-o", job, "--slides", slides, "--encoder", "uni_v1", "--tile", 224, "-q"
    )
    assert code == 0
    code, said = slidemil_json("train", job, "-l", labels, "--head", "mean", "--epochs", 3)
    assert code == 0, said
    config = json.loads((job / "models" / "mean" / "config.json").read_text())
    assert config["encoder"]["made_by"] == "CLAM"


# What is refused


def test_pickles_and_damaged_files_are_refused_by_name(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckFailedError, match=r"a\.pkl.*could run code"):
        kind_of(tmp_path / "a.pkl")
    torch.save(np.ones((3, 4)), tmp_path / "b.pt")
    with pytest.raises(CheckFailedError, match=r"b\.pt: refused.*h5"):
        read(tmp_path / "b.pt", Given(footprint=4))
    embeddings = tmp_path / "tile_embeddings"
    embeddings.mkdir()
    np.savez(embeddings / "c.npz", features=np.array([{"x": 1}], dtype=object))
    with pytest.raises(CheckFailedError, match=r"c\.npz"):
        read(embeddings / "c.npz", Given(footprint=4))
    (tmp_path / "d.h5").write_bytes(b"nothing")
    with pytest.raises(CheckFailedError, match=r"d\.h5: not a whole HDF5"):
        read(tmp_path / "d.h5", Given())
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["coords"] = h5py.ExternalLink("d.h5", "coords")
    with pytest.raises(CheckFailedError, match="refused"):
        read(tmp_path / "e.h5", Given())


@pytest.mark.parametrize(
    ("features", "coords", "words"),
    [
        (np.ones((2, 4)), [[1.0, 2.0], [np.nan, 3.0]], "coordinates are no pixels"),
        (np.ones((2, 4)), [[1.0, 2.0], [1e18, 3.0]], "coordinates are no pixels"),
        (np.ones((2, 0)), [[1, 2], [3, 4]], "no features"),
        (np.full((2, 4), b"x"), [[1, 2], [3, 4]], "no features"),
        (np.ones((3, 4)), [[1, 2], [3, 4]], "do not fit together"),
        (np.full((2, 4), np.inf), [[1, 2], [3, 4]], "no numbers"),
    ],
)
def test_what_holds_no_features_is_not_taken_over(tmp_path, features, coords, words):
    """A value that is no number would spoil every bag it is trained in."""
    write_h5(tmp_path / "a.h5", {}, features=features, coords=np.array(coords))
    code, text = slidemil("convert", tmp_path, "-o", tmp_path / "job", "--footprint", 4, "--slide-mpp", 0.5)
    assert (code, words in text) == (7, True), text
    assert not list(tmp_path.glob("job/*/features_*/*.h5"))


def test_check_names_the_field_in_which_files_differ(tmp_path):
    first = adapter("trident").write(slide("a"), tmp_path)
    same = adapter("trident").write(slide("b", seed=1), tmp_path)
    assert slidemil("check", first, same)[0] == 0
    other = adapter("trident").write(slide("c", passport={**PASSPORT, "weights_sha256": "cd"}), tmp_path / "other")
    code, text = slidemil("check", first, other)
    assert (code, "weights_sha256: 'ab' against 'cd'" in text) == (7, True)
    broken = slide("d")
    broken.features[2, 1] = np.nan
    code, text = slidemil("check", adapter("trident").write(broken, tmp_path))
    assert (code, "no numbers" in text) == (7, True)


def test_check_passes_over_our_own_scores(tmp_path):
    (tmp_path / "a.scores.h5").write_bytes(scores_h5(np.zeros((1, 2), np.int64), {}, {"attention": [1.0]}))
    assert slidemil("check", tmp_path)[0] == 4, "nothing to check"
    features = adapter("trident").write(slide("b.scores"), tmp_path)
    assert [one.path for one in find([str(tmp_path)])] == [features], "only what is of no format goes by its name"
    assert slidemil("check", tmp_path)[0] == 0


def test_features_of_whole_slides_are_not_taken_for_tiles(tmp_path):
    coords = np.zeros((1, 2))
    path = write_h5(tmp_path / "v.h5", {"patch_size_level0": 4}, on="coords", features=np.ones(768), coords=coords)
    with pytest.raises(CheckFailedError, match="whole slides"):
        read(path, Given())


def test_nothing_found_says_what_was_seen(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    code, text = slidemil("convert", tmp_path, "-o", tmp_path / "out")
    assert (code, "no feature file" in text) == (4, True)
    assert slidemil("convert", tmp_path / "absent", "-o", tmp_path / "out")[0] == 2
    assert slidemil("convert", tmp_path, "-o", tmp_path / "out", "--to", "excel")[0] == 2


def test_what_is_converted_is_not_written_among_what_is_read(made, monkeypatch):
    root, *_ = made
    monkeypatch.chdir(root)
    before = digests(root)
    for source, out, to, why in (
        ("job", "job", "clam", "in a job of slidemil"),
        ("theirs", "job/sub", "stamp", "in a job of slidemil"),
        ("theirs", "job", "zarr", "in a job of slidemil"),
        ("job", "job", "slidemil", "the job's own features"),
        ("job/20x_224px_0px_overlap", "job/../job", "slidemil", "the job's own features"),
        ("theirs", "theirs", "clam", "this is what is read"),
        ("theirs", "theirs", "zarr", "this is what is read"),
    ):
        code, text = slidemil("convert", source, "-o", out, "--to", to)
        assert (code, why in " ".join(text.split())) == (2, True), text
        assert f"-o {'job' if 'job' in out else out}-{to}" in text
    assert digests(root) == before
    stores = "job/20x_224px_0px_overlap/features_uni_v1.zarr"
    assert slidemil("convert", "job", "-o", stores, "--to", "zarr")[0] == 0, "where extract --store zarr writes it"
    shutil.rmtree(stores)
    assert slidemil("convert", "theirs", "-o", "job")[0] == 0, "a job grows, and is made up to date"


def test_anndata_is_laid_out_as_its_readers_want(made):
    """By anndata itself where it is installed, else by the published layout."""
    root, one, _ = made
    path = Path(root / "anndata" / "007.h5ad")
    with h5py.File(path) as file:
        assert file.attrs["encoding-type"] == "anndata"
        assert np.array_equal(file["X"][:], one.features.astype(np.float32))
        assert np.array_equal(file["obsm/spatial"][:], one.xy + 224)
        assert file["obs"].attrs["_index"] in file["obs"]
        assert list(file["obs"].attrs["column-order"]) == ["tile_id", "slide_id", "case_id"]
        assert json.loads(file["uns/encoder_passport"].asstr()[()]) == one.passport
