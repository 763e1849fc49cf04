"""DICOM slides: right colours or a refusal, whatever the tags say, and whoever can read them."""

from __future__ import annotations

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
from _dicom import JPEG2000, JPEG_LS, PLAIN, RLE, write_dicom
from _shared import shared_path

import wsi
from wsi import opening
from wsi.anatomy import anatomy
from wsi.dicom_header import PHOTOMETRIC, read_dicom_header
from wsi.dicom_series import series_files
from wsi.readers.dicom import DicomSlide

SLIDES = "data/slides"
LOSSLESS = 0


@pytest.fixture(scope="module")
def tissue():
    """Real stained tissue, (400, 600, 3): whether channels are colours is told from how they darken together."""
    with openslide.OpenSlide(shared_path(f"{SLIDES}/CMU-1-Small-Region.svs")) as slide:
        return np.asarray(slide.read_region((700, 900), 0, (600, 400)).convert("RGB"))


def written(folder, image, **options):
    return write_dicom(folder, [image, image[::2, ::2]], **options)


def psnr(one, other):
    return 10 * np.log10(255**2 / max(1e-9, ((one.astype(float) - other) ** 2).mean()))


def test_the_real_series_shows_the_colours_of_the_slide_it_was_made_from():
    """Its tag says RGB, its frames are YCbCr: OpenSlide and wsidicom itself show pink glass. The SVS is the oracle."""
    path = shared_path(f"{SLIDES}/cmu-1-small-region-dicom/level-0.dcm")
    with wsi.open_slide(path) as slide, wsi.open_slide(shared_path(f"{SLIDES}/CMU-1-Small-Region.svs")) as truth:
        assert slide.reader.startswith("wsidicom")
        assert slide.size == truth.size
        assert (slide.mpp.x, slide.mpp.y, slide.vendor) == (0.499, 0.499, "dicom")
        ours, wanted = slide.read(0, 0, *slide.size), truth.read(0, 0, *truth.size)
        assert abs(ours.mean((0, 1)) - wanted.mean((0, 1))).max() < 1
        assert psnr(ours, wanted) > 30  # it was compressed anew
        assert abs(wsi.find_tissue(slide).share - wsi.find_tissue(truth).share) < 0.02
        low = slide.read(0, 0, slide.levels[2].width, slide.levels[2].height, level=2)
        assert abs(low.mean((0, 1)) - wanted.mean((0, 1))).max() < 2


@pytest.mark.parametrize(
    ("options", "reader", "least"),
    [
        ({}, "openslide", 32),
        ({"photometric": "RGB", "stream": "rgb", "subsampled": False}, "openslide", 38),
        ({"photometric": "RGB"}, "wsidicom", 32),
        ({"photometric": "RGB", "subsampled": False}, "wsidicom", 36),
        ({"stream": "rgb", "subsampled": False}, "wsidicom", 38),
        ({"sparse": True}, "openslide", 32),
        ({"parts": 3}, "openslide", 32),
        ({"parts": 3, "photometric": "RGB"}, "wsidicom", 32),
        ({"sparse": True, "photometric": "RGB"}, "wsidicom", 32),
        ({"syntax": JPEG2000, "photometric": "YBR_RCT"}, "openslide", LOSSLESS),
        ({"syntax": JPEG_LS, "photometric": "RGB"}, "wsidicom", LOSSLESS),
        ({"syntax": RLE, "photometric": "RGB"}, "wsidicom", LOSSLESS),
        ({"syntax": PLAIN, "photometric": "RGB"}, "openslide", LOSSLESS),
        ({"syntax": RLE, "photometric": "YBR_FULL"}, "wsidicom", 46),
        ({"syntax": JPEG2000, "photometric": "YBR_FULL"}, "wsidicom", 46),
        ({"planes": 2}, "wsidicom", 32),
    ],
)
def test_the_pixels_are_those_written(options, reader, least, tissue, tmp_path):
    paths = written(tmp_path, tissue, **options)
    with wsi.open_slide(paths[0]) as slide:
        assert slide.reader.startswith(reader)
        assert [(level.width, level.height) for level in slide.levels] == [(600, 400), (300, 200)]
        assert slide.mpp.x == pytest.approx(0.5)
        pixels, half = slide.read(0, 0, 600, 400), slide.read(0, 0, 300, 200, level=1)
        if least:
            assert min(psnr(pixels, tissue), psnr(half, tissue[::2, ::2])) > least - 6
            assert abs(pixels.mean((0, 1)) - tissue.mean((0, 1))).max() < 2
        else:
            assert np.array_equal(pixels, tissue)
            assert np.array_equal(half, tissue[::2, ::2])
        assert (slide.read(-20, 390, 30, 30)[10:] == 255).all()
        assert (slide.read(590, -10, 30, 30)[:, 10:] == 255).all()


@pytest.mark.parametrize("options", [{}, {"syntax": PLAIN, "photometric": "RGB"}, {"sparse": True}, {"parts": 2}])
def test_both_readers_show_the_same(options, tissue, tmp_path):
    path = written(tmp_path, tissue, **options)[0]
    with wsi.open_slide(path) as one, DicomSlide(path) as other:
        assert one.reader.startswith("openslide")
        assert one.levels == other.levels
        for level in one.levels:
            number = one.levels.index(level)
            box = 0, 0, level.width, level.height
            assert np.array_equal(one.read(*box, level=number), other.read(*box, level=number))


def test_both_readers_tell_the_same_of_a_real_slide():
    path = shared_path(f"{SLIDES}/conformance/boxes_0.dcm")
    with wsi.open_slide(path) as one, DicomSlide(path) as other:
        assert (one.size, one.objective_power, one.vendor) == (other.size, other.objective_power, other.vendor)
        assert (one.mpp.x, one.mpp.y, one.profile) == (other.mpp.x, other.mpp.y, other.profile)
        assert np.array_equal(one.read(0, 0, 16, 16), other.read(0, 0, 16, 16))


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_frames_that_a_sparse_slide_lacks_are_white(photometric, tissue, tmp_path):
    paths = write_dicom(tmp_path, [tissue], sparse=True, left_out=(0, 6), photometric=photometric)
    with wsi.open_slide(paths[0]) as slide:
        pixels = slide.read(0, 0, 600, 400)
        assert (pixels[:128, :128] == 255).all()
        assert (pixels[128:256, 128:256] == 255).all()
        assert psnr(pixels[:128, 128:384], tissue[:128, 128:384]) > 28
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, 1.0))
        assert (wsi.read_tile(slide, grid, 0) == 255).all()


def test_of_several_focal_planes_the_one_shown_is_named(tissue, tmp_path):
    with wsi.open_slide(written(tmp_path, tissue, planes=2)[0]) as slide:
        assert slide.reader.endswith("(focal plane 1 of 2)")


def test_colours_that_no_reader_shows_rightly_are_refused(tissue, tmp_path):
    paths = written(tmp_path, tissue, syntax=JPEG2000, photometric="YBR_FULL_422")
    with pytest.raises(wsi.UnreadableSlideError, match="YBR_FULL_422"):
        wsi.open_slide(paths[0])


def test_several_optical_paths_are_refused(tissue, tmp_path):
    with pytest.raises(wsi.UnreadableSlideError, match="2 optical paths"):
        wsi.open_slide(written(tmp_path, tissue, paths=2)[0])


def test_colours_that_the_pixels_do_not_bear_out_are_refused(tissue, tmp_path):
    """The marker and the tag differ, and the channels hang together neither well nor hardly."""
    noise = np.random.default_rng(0).integers(0, 256, (384, 640), np.uint8)
    hardly = (noise[..., None] * 0.5 + np.random.default_rng(1).integers(0, 256, (384, 640, 3)) * 0.5).clip(0, 255)
    paths = written(tmp_path / "a", hardly.astype(np.uint8), stream="rgb", subsampled=False)
    with pytest.raises(wsi.UnreadableSlideError, match="tag says YCBCR, its JPEG frames rgb"):
        wsi.open_slide(paths[0])
    flat = written(tmp_path / "b", np.full((384, 640, 3), 240, np.uint8), photometric="RGB")
    with pytest.raises(wsi.UnreadableSlideError, match="fit neither"):
        wsi.open_slide(flat[0])


def test_without_the_extra_the_error_names_it(tissue, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    for folder, options in (("a", {"photometric": "RGB"}), ("b", {"syntax": RLE, "photometric": "RGB"})):
        with pytest.raises(wsi.UnreadableSlideError, match=r"pip install 'slidemil\[dicom\]'"):
            wsi.open_slide(written(tmp_path / folder, tissue, **options)[0])
    with wsi.open_slide(written(tmp_path / "c", tissue)[0]) as slide:
        assert slide.reader.startswith("openslide")


def test_a_series_is_found_whatever_lies_beside_it(tissue, tmp_path):
    paths = written(tmp_path, tissue, syntax=RLE, photometric="RGB")
    write_dicom(tmp_path / "x", [tissue[:100, :100]])[0].rename(tmp_path / "other.dcm")
    (tmp_path / "notes.txt").write_text("beside")
    assert series_files(paths[1]) == tuple(sorted(paths))
    assert len({wsi.series_uid(path) for path in paths}) == 1
    with wsi.open_slide(paths[1]) as slide:  # any file of the series opens the slide
        assert slide.size == (600, 400)


def test_the_files_of_a_slide_are_those_of_its_series_the_one_opened_first(tissue, tmp_path):
    paths = written(tmp_path, tissue, parts=2)
    write_dicom(tmp_path / "x", [tissue[:100, :100]])[0].rename(tmp_path / "other.dcm")
    assert wsi.files_of(paths[2]) == (paths[2], *(path for path in sorted(paths) if path != paths[2]))


def test_what_a_file_is_made_of_is_known_where_openslide_refuses_it(tissue, tmp_path):
    with wsi.open_slide(written(tmp_path, tissue, syntax=JPEG_LS, photometric="RGB")[0]) as slide:
        form = anatomy(slide)
        assert (form.container, form.compression) == ("DICOM", "JPEG-LS")


def test_headers_say_what_pydicom_reads(tissue, tmp_path):
    files = sorted(shared_path(SLIDES).rglob("*.dcm"))
    files += written(tmp_path / "a", tissue) + written(tmp_path / "b", tissue, sparse=True, syntax=PLAIN)
    implicit = pydicom.dcmread(files[-1])
    implicit.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    implicit.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True)
    for file in [*files, tmp_path / "implicit.dcm"]:
        header = read_dicom_header(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = pydicom.dcmread(file)
            assert header.series == truth.SeriesInstanceUID
            assert header.text[PHOTOMETRIC] == truth.PhotometricInterpretation
            assert header.optical_paths == len(truth.get("OpticalPathSequence", []))
            frame = b""
            if truth.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50":
                count = int(truth.NumberOfFrames)
                frame = next(pydicom.encaps.generate_frames(truth.PixelData, number_of_frames=count))
        assert frame.startswith(header.frame[:65536].rstrip(b"\0"))
        assert bool(frame) == bool(header.frame)


def test_every_cut_of_a_file_ends_as_a_slide_error_or_right(tissue, tmp_path):
    whole = write_dicom(tmp_path, [tissue[:200, :200]], photometric="RGB")[0]
    data = whole.read_bytes()
    with wsi.open_slide(whole) as slide:
        truth = slide.read(0, 0, 200, 200)
    refused = 0
    for end in np.linspace(0, len(data) - 1, 40).astype(int).tolist():
        whole.write_bytes(data[:end])
        try:
            with wsi.open_slide(whole) as slide:
                assert np.array_equal(slide.read(0, 0, 200, 200), truth)
        except wsi.SlideError:
            refused += 1
    assert refused >= 38


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_level_that_lacks_a_file_is_refused_not_shown_as_glass(missing, photometric, sparse, tissue, tmp_path):
    paths = written(tmp_path, tissue, parts=3, photometric=photometric, sparse=sparse)
    paths[missing].unlink()
    with pytest.raises(wsi.UnreadableSlideError, match=r"missing|not found|Missing SOP|found 2"):
        wsi.open_slide(next(path for path in paths if path.exists()))


def test_a_level_that_cannot_be_read_is_not_passed_over(tissue, tmp_path):
    """wsidicom leaves such files out without a word: the half-sized level would become the slide."""
    paths = written(tmp_path, tissue, photometric="RGB", sparse=True)
    data = paths[0].read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00")
    for end in range(400, pixels, 97):
        paths[0].write_bytes(data[:end])
        with pytest.raises(wsi.UnreadableSlideError):
            wsi.open_slide(paths[0])


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_a_copy_within_a_series_is_named(photometric, tissue, tmp_path):
    """Readers show it as an object of Python, or take either."""
    paths = written(tmp_path, tissue, photometric=photometric)
    (tmp_path / "copy.dcm").write_bytes(paths[0].read_bytes())
    with pytest.raises(wsi.UnreadableSlideError, match=rf"copy\.dcm and {paths[0].name} are the same picture"):
        wsi.open_slide(paths[1])


def test_a_library_s_words_name_neither_folders_nor_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = f"Reader({tmp_path}/in/a.dcm: no end) and [<wsidicom.reader.Reader object at 0x7f9e622fad10>]"
    for path in (tmp_path / "in/a.dcm", Path("in/a.dcm")):
        assert opening._plain(said, path) == "Reader(a.dcm: no end) and […]"


def test_a_damaged_frame_costs_itself(tissue, tmp_path):
    path = write_dicom(tmp_path, [tissue], photometric="RGB")[0]
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    data[starts[8] + 20 : starts[8] + 40] = bytes(20)
    path.write_bytes(data)
    with wsi.open_slide(path) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(128, 0.5))
        bad = []
        for i in range(len(grid)):
            try:
                wsi.read_tile(slide, grid, i)
            except wsi.TileReadError:
                bad.append(grid.places[i])
        assert bad == [(384, 128)]


def test_eight_threads_see_what_one_sees_and_closing_ends_cleanly(tissue, tmp_path):
    path = written(tmp_path, tissue, syntax=JPEG_LS, photometric="RGB")[0]
    boxes = [(x, y, 90, 70) for x in range(0, 560, 40) for y in range(0, 360, 40)]
    with DicomSlide(path) as slide, ThreadPoolExecutor(8) as pool:
        slide._cache._limit = 1  # every read decodes
        for (x, y, w, h), pixels in zip(boxes, pool.map(lambda b: slide.read(*b), boxes), strict=True):
            assert np.array_equal(pixels[: 400 - y, : 600 - x], tissue[y : y + h, x : x + w])
    foreign = []

    def reading():
        try:
            while True:
                slide.read(0, 0, 300, 300)
        except (ValueError, wsi.TileReadError):
            pass
        except Exception as error:
            foreign.append(error)

    slide = DicomSlide(path)
    threads = [threading.Thread(target=reading) for _ in range(4)]
    for thread in threads:
        thread.start()
    slide.close()
    for thread in threads:
        thread.join(10)
    assert not foreign
