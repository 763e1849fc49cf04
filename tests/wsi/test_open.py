"""Every file ends as a slide or as one clear error."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from _shared import shared_path
from hypothesis import given
from hypothesis import strategies as st

import wsi
from wsi import mpp as pixel_size
from wsi.readers.openslide import OpenSlideSlide

SLIDES = "data/slides"


@pytest.mark.parametrize(
    ("file", "reader", "size", "mpp"),
    [
        ("CMU-1-Small-Region.svs", "openslide", (2220, 2967), 0.499),
        ("OS-1-detail.ome.tif", "tifffile", (1101, 1101), 0.2270972),
        ("OS-2-ndpi.ome.tif", "tifffile", (2202, 2202), 0.2270972),
        ("kidney-48-5.tif", "tifffile", (1493, 901), None),
        ("TCGA-XK-AAJU-section.tif", "openslide", (3236, 2638), None),
        ("cmu-1-small-region-dicom/level-0.dcm", "wsidicom", (2220, 2967), 0.499),
        ("hamamatsu-DAPI-387.ndpi", "openslide", (3968, 4864), 0.2281751),
        ("conformance/boxes.tiff", "openslide", (300, 250), None),
        ("conformance/small.svs", "openslide", (16, 16), 0.499),
        ("conformance/boxes_0.dcm", "openslide", (16, 16), 0.499),
    ],
)
def test_real_slides_open_with_the_reader_that_can_read_them(file, reader, size, mpp):
    with wsi.open_slide(shared_path(f"{SLIDES}/{file}")) as slide:
        assert isinstance(slide, wsi.Slide)
        assert slide.reader.split()[0] == reader
        assert slide.size == size
        assert (slide.mpp is None) == (mpp is None) == (slide.mpp_problem is not None)
        if mpp:
            assert slide.mpp.x == pytest.approx(mpp, rel=1e-6)
        assert slide.read(0, 0, 16, 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("file", "kind", "word"),
    [
        ("vectra.qptiff", wsi.NotBrightfieldError, "3 separate grey channels"),
        ("conformance/mask-2level.tif", wsi.NotBrightfieldError, "label mask"),
        ("conformance/mask-4level.tif", wsi.NotBrightfieldError, "label mask"),
        ("conformance/broken.svs", wsi.UnreadableSlideError, "Unsupported"),
        ("conformance/unreadable.svs", wsi.UnreadableSlideError, "Bogus marker length"),
        ("conformance/unopenable.tiff", wsi.UnreadableSlideError, "52479"),
        ("TCGA-XK-AAJU-01A-01-TS1_noncompliant.dcm", wsi.UnreadableSlideError, "image flavor"),
    ],
)
def test_what_is_no_slide_is_refused_by_name(file, kind, word):
    path = shared_path(f"{SLIDES}/{file}")
    with pytest.raises(kind) as caught:
        wsi.open_slide(path)
    assert str(caught.value).startswith(path.name)
    assert word in str(caught.value)
    assert str(path.parent) not in str(caught.value)  # no place on this machine in what is shown


def test_what_only_pixels_betray_is_refused_when_tissue_is_sought():
    """Fluorescence; and a slide as OpenSlide shows it where it believes a wrong tag."""
    wrong = shared_path(f"{SLIDES}/cmu-1-small-region-dicom/level-0.dcm")
    for slide in (wsi.open_slide(shared_path(f"{SLIDES}/hamamatsu-DAPI-387.ndpi")), OpenSlideSlide(wrong)):
        with slide, pytest.raises(wsi.NotBrightfieldError):
            wsi.find_tissue(slide)


GROUPS = ("good", "format", "metadata", "truncated", "damaged", "structure", "bomb", "file", "privacy")


@pytest.mark.parametrize("group", GROUPS)
def test_the_zoo_of_bad_slides_ends_as_its_manifest_says(zoo, group):
    """Compared with the manifest's own colours; only our errors may leave; none is longer than a few lines."""
    for case in zoo["cases"]:
        if case["group"] != group or case["file"] == "file/forbidden.svs":  # an administrator may read that one
            continue
        path = zoo["folder"] / case["file"]
        text = error_of(path, case)
        if text is None:
            assert case["expect"] != "clear error", case["file"]
            continue
        assert case["expect"] != "opens", f"{case['file']}: {text}"
        assert text.startswith(path.name)
        assert text.isprintable()
        assert len(text) < 500


def error_of(path, case):
    """Open and read whole; return the slide error's text, None where there was none and all was right."""
    try:
        with wsi.open_slide(path) as slide:
            check_opened(case, slide, slide.read(0, 0, *slide.size))
    except wsi.SlideError as error:
        return str(error)
    return None


def check_opened(case, slide, pixels):
    if "mpp" in case and case["expect"] == "opens":
        wanted = tuple(case["mpp"]) if case["mpp"] else None
        assert (slide.mpp and (slide.mpp.x, slide.mpp.y)) == wanted, case["file"]
    if case["file"] == "damaged/tile_one_bit.svs":
        return  # JPEG has no checksum: it cannot be seen
    for probe in case.get("probes") or []:
        box = pixels[probe["y"] : probe["y"] + probe["side"], probe["x"] : probe["x"] + probe["side"]]
        off = abs(box.reshape(-1, 3).mean(0) - probe["rgb"]).max()
        assert off <= max(case.get("tolerance") or 0, 6), f"{case['file']}: {off} at {probe}"


def test_every_cut_of_a_slide_is_an_error_or_right(aperio, tmp_path):
    """The slide's own pixels are the oracle; whatever the length, nothing else leaves than our errors."""
    whole = aperio.read_bytes()
    with wsi.open_slide(aperio) as slide:
        truth = slide.read(0, 0, *slide.size)
    short = tmp_path / "cut.svs"
    refused = 0
    lengths = [*range(0, 600, 30), *np.linspace(600, len(whole) - 1, 100).astype(int)]
    for length in lengths:
        short.write_bytes(whole[:length])
        try:
            with wsi.open_slide(short) as slide:
                assert np.array_equal(slide.read(0, 0, *slide.size), truth)
        except wsi.UnreadableSlideError:
            refused += 1
    assert refused == len(lengths)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Flip bits, overwrite, cut or blank; mostly near the start, where the tables are."""
    out = bytearray(data)
    place = dice.randrange(min(len(out), 4000) if dice.random() < 0.6 else len(out))
    kind = dice.random()
    if kind < 0.5:
        out[place] ^= 1 << dice.randrange(8)
    elif kind < 0.8:
        out[place : place + dice.randint(1, 8)] = dice.randbytes(dice.randint(1, 8))
    elif kind < 0.9:
        del out[place:]
    else:
        out[place : place + 200] = bytes(200)
    return bytes(out)


def test_mutated_files_give_slides_or_our_errors_only(aperio, tmp_path):
    """Four hundred files with a fixed seed; a foreign exception or a hang fails."""
    plain, ome = tmp_path / "plain.tif", tmp_path / "ome.ome.tif"
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    tifffile.imwrite(plain, image, rowsperstrip=20, photometric="rgb")
    tifffile.imwrite(ome, image, tile=(128, 128), compression="deflate", photometric="rgb", metadata={"axes": "YXS"})
    seeds = [path.read_bytes() for path in (aperio, plain, ome)]
    dice, path, refused = random.Random(7), tmp_path / "mutated.svs", 0
    for _ in range(400):
        path.write_bytes(mutated(dice.choice(seeds), dice))
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the libraries; they have said enough when they raise
                with wsi.open_slide(path) as slide:
                    slide.read(0, 0, min(slide.size[0], 500), min(slide.size[1], 500))
        except wsi.SlideError:
            refused += 1
        assert time.monotonic() - began < 10
    assert 50 < refused < 390


@pytest.mark.parametrize("share", [0.6, 0.95, 0.9999])
def test_a_slide_cut_short_is_refused_when_opened(aperio, tmp_path, share):
    data = aperio.read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(wsi.UnreadableSlideError, match="cut short"):
        wsi.open_slide(path)


def test_tiles_cut_off_behind_whole_directories_are_seen_when_opened(tmp_path):
    """Directories first, pixels last: OpenSlide and tifffile both open such a file."""
    path = tmp_path / "front.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint8), tile=(256, 256), photometric="rgb", ome=False)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(wsi.UnreadableSlideError, match=r"cut short: 1 of 4 tiles .* beyond the end"):
        wsi.open_slide(path)


def test_only_regular_files_are_opened(tmp_path):
    """A pipe that nobody writes to would be waited for without end: the child is given ten seconds."""
    os.mkfifo(tmp_path / "pipe.svs")
    code = "import sys, wsi\ntry: wsi.open_slide(sys.argv[1])\nexcept wsi.UnreadableSlideError as e: print(e)"
    for name, word in (("pipe.svs", "no regular file"), ("", "folder")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=10, check=True
        )
        assert word in done.stdout


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"just some notes\n" * 50, "Unsupported"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "PNG picture"),
    ],
)
def test_other_files_named_as_slides_are_told_by_content(tmp_path, content, word):
    path = tmp_path / "named.svs"
    path.write_bytes(content)
    assert wsi.is_slide_file(path)  # a search must not pass it over in silence
    with pytest.raises(wsi.UnreadableSlideError, match=word):
        wsi.open_slide(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(wsi.UnreadableSlideError, match="No such file"):
        wsi.open_slide(tmp_path / "gone.svs")


def test_names_are_shown_on_one_printable_line():
    error = wsi.SlideError("a\nb\x1b[31m\u202e" + "x" * 300, "what\tit is.", "Mend it.")
    assert str(error).isprintable()
    assert "\n" not in str(error)
    assert str(error).endswith("what\\tit is. Mend it.")
    assert len(str(error)) < 150


def test_all_files_of_a_dicom_slide_are_of_one_series():
    files = sorted(shared_path(f"{SLIDES}/cmu-1-small-region-dicom").glob("*.dcm"))
    assert all(wsi.is_slide_file(path) for path in files)
    assert len({wsi.series_uid(path) for path in files} - {None}) == 1
    boxes = [wsi.series_uid(shared_path(f"{SLIDES}/conformance/boxes_{n}.dcm")) for n in (0, 1)]
    assert boxes[0] == boxes[1] is not None
    assert wsi.series_uid(shared_path(f"{SLIDES}/TCGA-XK-AAJU-01A-01-TS1_noncompliant.dcm")) is None


def test_a_folder_search_takes_slides(tmp_path):
    for name, expected in {"a.SVS": True, "._a.svs": False, "a.png": False, "notes.txt": False, "plain": False}.items():
        (tmp_path / name).write_bytes(b"some text")
        assert wsi.is_slide_file(tmp_path / name) is expected, name
    (tmp_path / "folder.svs").mkdir()
    assert not wsi.is_slide_file(tmp_path / "folder.svs")
    tifffile.imwrite(tmp_path / "no_extension", np.zeros((4, 4, 3), np.uint8))
    assert wsi.is_slide_file(tmp_path / "no_extension")


# ------------------------------------------------------------------ µm/px


@given(st.one_of(st.text(), st.floats().map(str), st.integers().map(str)), st.none() | st.floats())
def test_a_stated_mpp_is_none_or_a_number_in_range(text, power):
    number = pixel_size.parse_number(text)
    value, problem = pixel_size.resolve((number, number), "test", power)
    assert (value is None) == (problem is not None)
    if value is not None:
        assert 0.02 <= value.x <= 10


@pytest.mark.parametrize(
    ("x", "y", "power", "word"),
    [
        (None, None, None, "does not state"),
        (0.0, 0.0, None, "not above zero"),
        (-0.5, -0.5, None, "not above zero"),
        (float("nan"), 0.5, None, "nan"),
        (float("inf"), 0.5, None, "inf"),
        (352.78, 352.78, None, "outside"),
        (0.001, 0.001, None, "outside"),
        (0.25, 2.0, None, "differs between the axes"),
        (2.5, 2.5, 40.0, "40x"),
        (0.05, 0.05, 20.0, "20x"),
    ],
)
def test_absurd_mpp_is_refused_with_its_reason(x, y, power, word):
    value, problem = pixel_size.resolve((x, y), "openslide.mpp-x", power)
    assert value is None
    assert word in problem


@pytest.mark.parametrize(("mpp", "power"), [(0.2327, 20), (0.25, 40), (0.5, 20), (0.46, 20), (0.1625, 40), (1.0, 10)])
def test_scanners_real_values_pass(mpp, power):
    """0.2327 at "20x" is what 3DHISTECH writes."""
    assert pixel_size.problem_of(mpp, mpp, power, "") is None


def test_who_gives_the_mpp_is_recorded():
    resolve = pixel_size.resolve
    assert resolve((0.5, 0.4), "file", 20)[0] == wsi.Mpp(0.5, 0.4, "file")
    assert resolve((0.5, 0.5), "file", 20, slide_mpp=0.3)[0] == wsi.Mpp(0.5, 0.5, "file")
    assert resolve((0.0, 0.0), "file", 20, slide_mpp=0.3)[0] == wsi.Mpp(0.3, 0.3, "--slide-mpp")
    assert resolve((None, None), "file", 20, slide_mpp=0.3)[0] == wsi.Mpp(0.3, 0.3, "--slide-mpp")
    assert resolve((0.5, 0.5), "file", 20, slide_mpp=0.3, manifest_mpp=0.7)[0] == wsi.Mpp(0.7, 0.7, "manifest")
    assert resolve((None, None), "file", 20, slide_mpp=-1.0)[0] is None
    assert "--slide-mpp" in resolve((None, None), "file", 20, slide_mpp=-1.0)[1]


def test_a_real_slide_takes_the_users_mpp_only_where_its_own_is_missing():
    path = shared_path(f"{SLIDES}/TCGA-XK-AAJU-section.tif")
    with wsi.open_slide(path, slide_mpp=4.0) as slide:
        assert slide.mpp == wsi.Mpp(4.0, 4.0, "--slide-mpp")
    with wsi.open_slide(shared_path(f"{SLIDES}/conformance/boxes.tiff"), slide_mpp=1.0) as slide:
        assert slide.mpp == wsi.Mpp(1.0, 1.0, "--slide-mpp")
    with wsi.open_slide(shared_path(f"{SLIDES}/CMU-1-Small-Region.svs"), slide_mpp=4.0) as slide:
        assert slide.mpp.source == "openslide.mpp-x"
    with wsi.open_slide(shared_path(f"{SLIDES}/CMU-1-Small-Region.svs"), manifest_mpp=0.6) as slide:
        assert slide.mpp == wsi.Mpp(0.6, 0.6, "manifest")


def test_public_names_are_what_the_package_says():
    for name in wsi.__all__:
        assert getattr(wsi, name) is not None
    assert set(wsi.__all__) == set(wsi._WHERE)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, wsi; print(sorted({'numpy', 'torch', 'scipy', 'openslide', 'tifffile'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, wsi; [getattr(wsi, n) for n in wsi.__all__]; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_shared_folder_is_not_written_to():
    """The readers must not leave files beside slides."""
    folder: Path = shared_path(SLIDES)
    before = sorted(p.name for p in folder.iterdir())
    with wsi.open_slide(folder / "CMU-1-Small-Region.svs") as slide:
        slide.read(0, 0, 8, 8)
    assert sorted(p.name for p in folder.iterdir()) == before
