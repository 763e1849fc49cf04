"""`slidemil stain apply|train|validate`: from the command, on real tiles and on slides."""

from __future__ import annotations

import json
import shutil

import _harms
import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _shared import shared_path
from _slides import write_aperio
from PIL import Image

import mil
import stain
import wsi
from pipelines.errors import UsageError
from pipelines.slide_regions import STEP, at_resolution
from pipelines.stain_target import read_image
from pipelines.tissue_images import find_images
from stain.transfer import load
from stain.transfer.model import FILES


def picture(name, side=None):
    image = np.asarray(Image.open(shared_path(f"data/tiles/stain/{name}.png")).convert("RGB"))
    return image[:side, :side].copy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of images, one lab each, and a transfer between them: made once."""
    folder = tmp_path_factory.mktemp("labs")
    for lab, names in {"a": ("torchstain_source", "histoqc_template3"), "b": ("tia_target_1000",)}.items():
        (folder / lab).mkdir()
        for name in names:
            Image.fromarray(picture(name, SIDE)).save(folder / lab / f"{name}.png", compress_level=1)
    code, said = slidemil_json("stain", "train", folder / "a", folder / "b", "-o", folder / "model", *TINY)
    assert (code, said["status"]) == (0, "done")
    return folder


@pytest.fixture
def labs(made, tmp_path):
    """The folders of the two labs, to be changed at will."""
    for lab in ("a", "b"):
        shutil.copytree(made / lab, tmp_path / lab)
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def trained(made, tmp_path):
    """The folder of the transfer, to be changed at will."""
    return shutil.copytree(made / "model", tmp_path / "model")


SIDE = 512
TINY = ("--steps", 4, "--crop", 64, "--width", 4, "--blocks", 1, "--keep-every", 2, "--device", "cpu", "--rate", 0.01)


def test_images_are_normalized_as_the_library_does_and_say_how(labs, tmp_path):
    code, said = slidemil_json("stain", "apply", labs[0], "-o", tmp_path / "out", "--method", "macenko")
    assert (code, said["status"], len(said["outputs"])) == (0, "done", 2)
    record = json.loads((tmp_path / "out" / "stain.json").read_text())
    for one in record["files"]:
        before = np.asarray(Image.open(labs[0] / f"{one['file']}.png"))
        after = np.asarray(Image.open(tmp_path / "out" / one["output"]))
        params = stain.StainParams.from_json({k: v for k, v in one.items() if k not in ("file", "output")})
        np.testing.assert_array_equal(after, params.apply(before))
        assert params == stain.fit("macenko", before)


def test_tiles_of_one_slide_get_one_fit(labs, tmp_path):
    """An image cut in two: pooled, both halves are changed alike; alone, they are not."""
    image = picture("torchstain_source")
    halves = tmp_path / "halves"
    halves.mkdir()
    for number, part in enumerate((image[:200], image[200:400])):
        Image.fromarray(part).save(halves / f"{number}.png")
    params = {}
    for name, more in {"pooled": ("--pool",), "alone": ()}.items():
        slidemil_json("stain", "apply", halves, "-o", tmp_path / name, "--method", "macenko", *more)
        files = json.loads((tmp_path / name / "stain.json").read_text())["files"]
        params[name] = [one["source"] for one in files]
    assert params["pooled"][0] == params["pooled"][1]
    assert params["alone"][0] != params["alone"][1]


def test_a_slide_is_written_as_a_slide(tmp_path):
    """It opens again at the same µm/px, and its pixels are the normalized ones but for the JPEG."""
    image = picture("tia_target_1000", 900)
    (tmp_path / "slides").mkdir()
    write_aperio(tmp_path / "slides" / "one.svs", image, mpp=0.5)
    code, said = slidemil_json(
        "stain", "apply", tmp_path / "slides", "-o", tmp_path / "out", "--method", "macenko", "--quality", 98
    )
    assert (code, said["outputs"]) == (0, ["one.ome.tif"]), said
    record = json.loads((tmp_path / "out" / "stain.json").read_text())["files"][0]
    with wsi.open_slide(tmp_path / "slides" / "one.svs") as slide:
        before = slide.read(0, 0, *slide.size)
    with wsi.open_slide(tmp_path / "out" / "one.ome.tif") as slide:
        assert slide.size == (before.shape[1], before.shape[0])
        assert slide.mpp.x == pytest.approx(0.5, rel=0.01)
        after = slide.read(0, 0, *slide.size)
    keys = set(stain.fit("macenko", before).to_json())
    params = stain.StainParams.from_json({name: value for name, value in record.items() if name in keys})
    assert params.status == "ok"
    assert np.abs(params.apply(before).astype(int) - after).mean() < 3


@pytest.mark.parametrize("own", [0.25, 0.2527, 0.5])
def test_a_slide_read_in_pieces_is_one_image(tmp_path, own):
    """Pieces of any size at multiples of STEP have the pixels of the whole."""
    write_aperio(tmp_path / "one.svs", picture("tia_target_1000", 1000), mpp=own)
    with wsi.open_slide(tmp_path / "one.svs") as slide:
        image = at_resolution(slide, 0.5)
        assert image.mpp[0] == pytest.approx(0.5, rel=0.01)
        whole = image.read(0, 0, image.width, image.height)
        for x, y, width, height in ((STEP, 0, 200, 130), (0, STEP, 57, 1), (2 * STEP, STEP, 99, 2 * STEP)):
            part = image.read(x, y, min(width, image.width - x), height)
            np.testing.assert_array_equal(part, whole[y : y + height, x : x + width][:, : part.shape[1]])


def test_a_transfer_is_applied_to_a_slide_without_a_seam(trained, tmp_path):
    """Beside the model on the whole slide at once; what differs is the JPEG."""
    image = picture("tia_target_1000", 700)
    (tmp_path / "slides").mkdir()
    write_aperio(tmp_path / "slides" / "one.svs", image, mpp=0.5)
    code, said = slidemil_json(
        "stain", "apply", tmp_path / "slides", "-o", tmp_path / "out", "--model", trained, "--quality", 100
    )
    assert code == 0, said
    with wsi.open_slide(tmp_path / "slides" / "one.svs") as slide:
        before = slide.read(0, 0, *slide.size)
    with wsi.open_slide(tmp_path / "out" / "one.ome.tif") as slide:
        after = slide.read(0, 0, *slide.size)
    whole = load({name: (trained / name).read_bytes() for name in FILES}).apply(before[None])[0]
    apart = np.abs(whole.astype(int) - after)
    assert apart.mean() < 2
    seam = apart[:, 508:516].mean()
    assert seam < 1.5 * apart.mean() + 0.5


def test_training_goes_on_and_says_what_it_was_made_of(labs, trained, tmp_path):
    weights = (trained / "model.safetensors").read_bytes()
    config = json.loads((trained / "config.json").read_text())
    assert config["stains"] == ["a", "b"]
    assert {one["name"] for some in config["trained_on"] for one in some} == {
        "torchstain_source.png", "histoqc_template3.png", "tia_target_1000.png",
    }  # fmt: skip
    (trained / "model.safetensors").unlink()
    code, _ = slidemil_json("stain", "train", *labs, "-o", trained, *TINY)
    assert code == 0
    assert (trained / "model.safetensors").read_bytes() == weights
    code, said = slidemil("stain", "train", *labs, "-o", trained, *TINY[2:], "--steps", 6, "-q")
    assert code == 2
    assert "other steps" in said
    code, _ = slidemil_json("stain", "train", *labs, "-o", trained, *TINY[2:], "--steps", 5, "--force")
    assert code == 0


def test_pairs_are_files_of_the_same_name(labs, tmp_path):
    code, said = slidemil("stain", "train", *labs, "-o", tmp_path / "m", *TINY, "--paired", "-q")
    assert code == 2
    assert "has no partner" in said
    partner = tmp_path / "partner"
    partner.mkdir()
    for path in labs[0].iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(partner / path.name)
    code, _ = slidemil_json("stain", "train", labs[0], partner, "-o", tmp_path / "m", *TINY, "--paired")
    assert code == 0
    code, said = slidemil("stain", "apply", labs[0], "-o", tmp_path / "x", "--model", tmp_path / "m", "--backwards")
    assert code == 2
    assert "no way back" in said


def test_paired_slides_are_read_at_the_same_places(tmp_path):
    image = picture("tia_target_1000", 1000)
    for lab, pixels in {"a": image, "b": 255 - image}.items():
        (tmp_path / lab).mkdir()
        write_aperio(tmp_path / lab / "one.svs", pixels, mpp=0.5)
    code, said = slidemil_json(
        "stain", "train", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "m", *TINY, "--paired", "--tile", 128
    )
    assert code == 0, said


def test_an_honest_macenko_gets_a_go_and_a_page(labs, tmp_path):
    code, said = slidemil_json(
        "stain", "validate", labs[0], "-t", labs[1], "-o", tmp_path / "v", "--method", "macenko", "--tile", 128
    )
    assert (code, said["status"], said["go"]) == (0, "go", True), said
    written = json.loads((tmp_path / "v" / "validation.json").read_text())
    assert written["measures"] == said["measures"]
    assert {one["name"] for one in written["measures"]} >= {"cycle", "identity", "dice", "variation", "components"}
    page = (tmp_path / "v" / "validation.html").read_text()
    assert ">Go</p>" in page
    assert page.count("data:image/png;base64") == sum(len(tiles) for tiles in written["worst"].values()) > 10
    again = slidemil_json(
        "stain", "validate", labs[0], "-t", labs[1], "-o", tmp_path / "w", "--method", "macenko", "--tile", 128
    )
    assert again[0] == 0
    assert (tmp_path / "w" / "validation.html").read_text() == page


def test_a_model_that_was_trained_on_the_tiles_proves_nothing(labs, trained, tmp_path):
    """Seen tiles are a no-go by themselves, whatever the measures say; exit 7."""
    code, said = slidemil_json(
        "stain", "validate", labs[0], "-t", labs[1], "-o", tmp_path / "v", "--model", trained, "--tile", 128
    )
    assert (code, said["status"]) == (7, "no-go")
    assert said["seen_in_training"] == ["histoqc_template3.png", "tia_target_1000.png", "torchstain_source.png"]
    assert "No evidence" in (tmp_path / "v" / "validation.html").read_text()


def test_files_of_one_name_in_two_folders_are_two_images(labs, trained, tmp_path):
    """Pooled, two labs would have one stain; and what was trained on is known wherever it lies."""
    for lab in ("x", "y"):
        (tmp_path / "held" / lab).mkdir(parents=True)
    for lab, name in {"x": "torchstain_source", "y": "tia_target_1000"}.items():
        shutil.copy((labs[0] if lab == "x" else labs[1]) / f"{name}.png", tmp_path / "held" / lab / "1.png")
    asked = ("-t", labs[1], "-o", tmp_path / "v", "--method", "macenko", "--tile", 128, "--per-slide", 4)
    _, said = slidemil_json("stain", "validate", tmp_path / "held", *asked)
    assert said["images"] == 2
    assert {name.split(" ")[0] for name in said["worst"]["dice"]} <= {"x/1.png", "y/1.png"}
    _, said = slidemil_json("stain", "validate", tmp_path / "held" / "x", tmp_path / "held" / "y", *asked)
    assert said["images"] == 2
    shutil.copy(labs[0] / "torchstain_source.png", tmp_path / "held" / "x")
    asked = (*asked[:4], "--model", trained, *asked[6:])
    _, said = slidemil_json("stain", "validate", tmp_path / "held", *asked)
    assert "x/torchstain_source.png" in said["seen_in_training"]


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA", "LA", "P"])
def test_images_are_read_as_they_are_seen_or_refused(mode, tmp_path):
    pixels = picture("tia_target_1000", 64)
    if mode in ("I;16", "F"):
        path = tmp_path / ("one.png" if mode == "I;16" else "one.tif")
        Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 200).save(path)
        with pytest.raises(UsageError, match="more than 8 bits"):
            read_image(path)
        return
    image = Image.fromarray(pixels)
    if mode == "P":
        image.quantize(16).save(tmp_path / "one.png", transparency=0)
        shown = np.asarray(Image.open(tmp_path / "one.png").convert("RGBA"))
    else:
        image.putalpha(Image.fromarray(np.repeat([[0], [255]], 32, axis=0).repeat(64, axis=1).astype(np.uint8)))
        image.convert(mode).save(tmp_path / "one.png")
        shown = np.asarray(image.convert(mode).convert("RGBA"))
    got = read_image(tmp_path / "one.png")
    assert (got[shown[..., 3] == 0] == 255).all()
    np.testing.assert_array_equal(got[shown[..., 3] == 255], shown[..., :3][shown[..., 3] == 255])


def test_a_predictor_is_asked_before_and_after(labs, tmp_path):
    """A model that learned to tell the two labs: normalizing one to the other must change its mind, and be refused."""
    encoder = mil.create_encoder("descriptors")
    crops = [_harms.crops(picture(name), 128)[:12] for name in ("torchstain_source", "tia_target_1000")]
    features, labels = encoder(np.concatenate(crops)), np.repeat([0, 1], [len(one) for one in crops])
    sides = []
    for start in (0, 1):
        rows = np.arange(len(labels))[start::2]
        bags = [mil.Bag.from_list([features[row : row + 1]]) for row in rows]
        sides.append(mil.BagSet(bags, labels[rows], tuple(f"p{row}" for row in rows)))
    model = mil.train(sides[0], sides[1], ("a", "b"), mil.TrainSettings(head="mean", epochs=30))
    folder = tmp_path / "predictor"
    folder.mkdir()
    for name, data in model.described(encoder=encoder.passport()).to_files().items():
        (folder / name).write_bytes(data)
    normalized = tmp_path / "normalized"
    normalized.mkdir()
    for name, data in model.described(encoder={**encoder.passport(), "stain": "macenko"}).to_files().items():
        (normalized / name).write_bytes(data)
    asked = ("-o", tmp_path / "v", "--predictor", folder, "--method", "macenko", "--tile", 128, "--per-slide", 12)
    code, said = slidemil_json("stain", "validate", labs[0] / "torchstain_source.png", "-t", labs[1], *asked)
    agreement = next(one for one in said["measures"] if one["name"] == "agreement")
    assert (code, agreement["verdict"]) == (7, "fail"), agreement
    code, said = slidemil_json("stain", "validate", labs[1], "-t", labs[1], *asked)
    agreement = next(one for one in said["measures"] if one["name"] == "agreement")
    assert agreement["verdict"] == "pass"
    assert said["predictor"] == "predictor"
    code, said = slidemil("stain", "validate", labs[1], "-t", labs[1], *asked[:3], normalized, *asked[4:], "-q")
    assert code == 2
    assert "normalized by macenko" in said


def test_what_cannot_be_read_is_named_and_left_out_unless_it_is_most(labs, tmp_path):
    """The verdict rests on the others: beside a file cut short, and slides without tissue."""
    (labs[0] / "cut.png").write_bytes((labs[0] / "torchstain_source.png").read_bytes()[:3000])
    asked = ("-t", labs[1], "-o", tmp_path / "v", "--method", "macenko", "--tile", 128, "--per-slide", 4)
    code, said = slidemil_json("stain", "validate", labs[0], *asked)
    assert (code, said["images"]) == (0, 2)
    (left,) = said["left_out"]
    assert left["file"] == "cut.png"
    assert "truncated" in left["cause"]
    assert "cut.png (cannot be read" in (tmp_path / "v" / "validation.html").read_text()
    for number in range(2):
        write_aperio(labs[0] / f"{number}.svs", np.full((600, 600, 3), 243, np.uint8))
    code, said = slidemil("stain", "validate", labs[0], *asked)
    assert code == 2
    assert "3 of 5 files cannot be read" in " ".join(said.split())


def test_training_names_what_cannot_be_read_and_goes_on_unless_it_is_most(labs, tmp_path):
    """A run of days began with the reading of all, and ended at the first file cut short."""
    (labs[0] / "cut.png").write_bytes((labs[0] / "torchstain_source.png").read_bytes()[:3000])
    code, said = slidemil_json("stain", "train", *labs, "-o", tmp_path / "m", *TINY)
    assert (code, said["status"]) == (3, "partial")
    (left,) = said["left_out"]
    assert (left["file"], "truncated" in left["cause"]) == ("cut.png", True)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["left_out"] == [left]
    assert "cut.png" not in {one["name"] for one in config["trained_on"][0]}
    for number in range(3):
        (labs[0] / f"{number}.png").write_bytes(b"")
    code, said = slidemil("stain", "train", *labs, "-o", tmp_path / "n", *TINY, "-q")
    assert code == 2
    assert "4 of 6 files cannot be read" in " ".join(said.split())


def test_a_pair_of_which_one_cannot_be_read_is_left_out(labs, tmp_path):
    partner = shutil.copytree(labs[0], tmp_path / "partner")
    for path in partner.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    (partner / "torchstain_source.png").write_bytes(b"no picture")
    code, said = slidemil_json("stain", "train", labs[0], partner, "-o", tmp_path / "m", *TINY, "--paired")
    assert (code, [one["file"] for one in said["left_out"]]) == (3, ["torchstain_source"])
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert [[one["name"] for one in some] for some in config["trained_on"]] == [["histoqc_template3.png"]] * 2


def test_small_tiff_without_mpp_are_tiles(tmp_path):
    """They were taken for slides, and refused for their µm/px; with --slide-mpp they are slides."""
    (tmp_path / "t" / "a").mkdir(parents=True)
    for name in ("kather1.tif", "kather2.tif"):
        shutil.copy(shared_path(f"data/tiles/stain/{name}"), tmp_path / "t" / "a" / name)
    write_aperio(tmp_path / "t" / "slide.tif", picture("tia_target_1000", 512), mpp=0.5)
    code, said = slidemil_json("stain", "fit", tmp_path / "t", "-o", tmp_path / "r.json")
    assert (code, said["status"], said["reference"]["slides"]) == (0, "done", 3)
    found = find_images([tmp_path / "t"])
    assert (found.names, [entry.slide_id for entry in found.slides]) == (("a/kather1.tif", "a/kather2.tif"), ["slide"])
    known = find_images([tmp_path / "t"], slide_mpp=0.5)
    assert (known.names, [entry.slide_id for entry in known.slides]) == ((), ["kather1", "kather2", "slide"])
    named = find_images([tmp_path / "t" / "a" / "kather1.tif"])
    assert (named.names, named.slides) == (("kather1.tif",), ())


def test_an_image_too_large_says_what_helps(tmp_path, monkeypatch):
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "one.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert read_image(tmp_path / "one.png").shape == (64, 64, 3), "what Pillow warns of is read, without a word"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="Cut it into tiles"):
        read_image(tmp_path / "one.png")


def test_lines_can_be_given_anew(labs, tmp_path):
    code, said = slidemil_json(
        "stain", "validate", labs[0], "-t", labs[1], "-o", tmp_path / "v", "--method", "macenko", "--tile", 128,
        "--threshold", "dice=0.9999",
    )  # fmt: skip
    dice = next(one for one in said["measures"] if one["name"] == "dice")
    assert (code, dice["threshold"], dice["verdict"]) == (7, [">=", 0.9999], "fail")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("apply", "A", "-o", "X"), 2, "either --method"),
        (("apply", "A", "-o", "X", "--method", "macenko", "--backwards"), 2, "--backwards is for --model"),
        (("apply", "A", "-o", "A", "--method", "macenko"), 2, "would be overwritten"),
        (("apply", "A", "-o", "X", "--method", "makenco"), 2, "Did you mean 'macenko'"),
        (("apply", "A", "-o", "X", "--model", "A"), 2, "Train one"),
        (("apply", "E", "-o", "X", "--method", "macenko"), 4, ""),
        (("train", "A", "E", "-o", "X"), 4, ""),
        (("train", "A", "B", "-o", "X", "--crop", "70"), 2, "multiple of 4"),
        (("train", "A", "B", "-o", "X", "--crop", "600"), 2, "smaller crops"),
        (("train", "A", "B", "-o", "X", "--rate", "nan"), 2, "rate = nan: a number from 0"),
        (("validate", "A", "-t", "B", "-o", "X"), 2, "either --method"),
        (("validate", "A", "-t", "B", "-o", "X", "--method", "macenko", "--threshold", "dice"), 2, "NAME=NUMBER"),
        (("validate", "A", "-t", "B", "-o", "X", "--method", "macenko", "--threshold", "dize=1"), 2, "Did you mean"),
        *[
            (("validate", "A", "-t", "B", "-o", "X", "--method", "macenko", "--threshold", f"dice={line}"), 2, "from 0")
            for line in ("nan", "inf", "-inf", "-0.1")
        ],
        (("validate", "A", "-t", "B", "-o", "X", "--method", "macenko", "--tile", "2000"), 2, "smaller tiles"),
    ],
)
def test_mistakes_are_told(labs, tmp_path, arguments, code, told):
    places = {"A": labs[0], "B": labs[1], "X": tmp_path / "x", "E": tmp_path / "empty"}
    places["E"].mkdir()
    got, said = slidemil("stain", *(places.get(word, word) for word in arguments), "-q")
    assert got == code, said
    assert told in said
    assert sorted(path.name for path in labs[0].iterdir()) == ["histoqc_template3.png", "torchstain_source.png"]
