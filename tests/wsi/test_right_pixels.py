"""Right pixels, in both ways of reading: single tiles through a slide's reader, and the stream, straight from the file
where it can be.

The references are other libraries, called here without any of our readers between: OpenSlide, tifffile, and for DICOM
frames pydicom with imagecodecs. Where the maker of bad slides knows the true colours, a reference counts only where
these confirm it.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from _dicom import write_dicom
from _shared import shared_path
from _slides import MPP, opened, smooth_picture, streamed, write_aperio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wsi
from wsi import blocks
from wsi.plan import read_plan

SLIDES = "data/slides"
SIDE = 224
_LOOKS = 40
"""Tiles of a slide that are also read one by one: the stream is compared whole."""


# ------------------------------------------------------------------ references


def by_openslide(path):
    """The sharpest level as OpenSlide shows it; what the scanner left out laid on white, by the formula."""
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((0, 0), 0, slide.dimensions)).astype(np.uint16)
    return np.minimum(rgba[..., :3] + (255 - rgba[..., 3:]), 255).astype(np.uint8)


def by_tifffile(path):
    """The largest picture of the file as tifffile gives it, as 8-bit RGB; places left out, and what is clear, white."""
    with warnings.catch_warnings(), tifffile.TiffFile(path) as tiff:
        warnings.simplefilter("ignore")
        page = max((one for one in tiff.pages), key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength)
        page = page.keyframe
        pixels = page.asarray()
        if page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            pixels = page.colormap.T[pixels]
        if pixels.dtype == np.uint16:
            pixels = pixels >> 8
        if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError("not RGB")
        if pixels.shape[2] == 4:
            alpha = pixels[..., 3:] / 255
            pixels = pixels[..., :3] * alpha + 255 * (1 - alpha) + 0.5
        pixels = pixels.astype(np.uint8)
        if page.is_tiled and page.planarconfig == 1:
            across = -(-page.imagewidth // page.tilewidth)
            for number in np.flatnonzero(np.asarray(page.databytecounts) == 0).tolist():
                y, x = number // across * page.tilelength, number % across * page.tilewidth
                pixels[y : y + page.tilelength, x : x + page.tilewidth] = 255
    return pixels


def by_pydicom(path):
    """Frames in their order, TILED_FULL, decoded as the YCbCr that their JFIF marker says they are."""
    import imagecodecs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pydicom.dcmread(path)
        width, height, side = image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows, image.Rows
        frames = pydicom.encaps.generate_frames(image.PixelData, number_of_frames=int(image.NumberOfFrames))
        across = -(-width // side)
        out = np.zeros((-(-height // side) * side, across * side, 3), np.uint8)
        for number, data in enumerate(frames):
            y, x = number // across * side, number % across * side
            out[y : y + side, x : x + side] = imagecodecs.jpeg8_decode(data, colorspace="ycbcr", outcolorspace="rgb")
    return out[:height, :width]


REAL = {
    "CMU-1-Small-Region.svs": by_openslide,
    "TCGA-XK-AAJU-section.tif": by_openslide,
    "hamamatsu-DAPI-387.ndpi": by_openslide,
    "OS-1-detail.ome.tif": by_tifffile,
    "OS-2-ndpi.ome.tif": by_tifffile,
    "kidney-48-5.tif": by_tifffile,
    "cmu-1-small-region-dicom/level-0.dcm": by_pydicom,
    "conformance/boxes.tiff": by_openslide,
    "conformance/boxes_0.dcm": by_openslide,
    "conformance/small.svs": by_openslide,
}


@functools.lru_cache(maxsize=2)
def truth_of(file):
    return REAL[file](shared_path(f"{SLIDES}/{file}"))


# ------------------------------------------------------------------ what is held to them


def tiles_of(slide, size, factor=1):
    """Return the grid and all its tiles, in both ways: {index: pixels} of the stream, and of some single reads."""
    slide.levels = slide.levels[:1]  # so that level 0 is reduced, not what the scanner made of it
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(size, factor * slide.mpp.x))
    assert len(grid)
    flowing, errors = streamed(slide, grid)
    assert not errors
    some = np.unique(np.linspace(0, len(grid) - 1, _LOOKS).astype(int)).tolist()
    return grid, (flowing, {i: wsi.read_tile(slide, grid, i) for i in some})


def cut(truth, grid, i):
    x, y = grid.places[i]
    return truth[y : y + grid.footprint_xy[1], x : x + grid.footprint_xy[0]]


def area_mean(pixels, factor):
    """The exact mean of blocks, in floating point."""
    height, width = (side // factor for side in pixels.shape[:2])
    return pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean((1, 3))


def tile_side(slide):
    return min(SIDE, *(side // 2 * 2 for side in slide.size))


@pytest.mark.parametrize("file", REAL)
def test_real_slides_are_the_same_bytes_at_scale_1(file):
    truth = truth_of(file)
    with opened(shared_path(f"{SLIDES}/{file}")) as slide:
        assert truth.shape[:2] == slide.size[::-1]
        grid, ways = tiles_of(slide, tile_side(slide))
        for way in ways:
            for i, pixels in way.items():
                assert np.array_equal(pixels, cut(truth, grid, i)), (slide.reader, grid.places[i])


@pytest.mark.parametrize("file", REAL)
@pytest.mark.parametrize("factor", [2, 4])
def test_real_slides_reduced_are_like_full_decode_and_exact_mean(file, factor):
    """PSNR of at least 42 dB, over all tiles of a slide and for each; the mean is not shifted."""
    truth = truth_of(file)
    with opened(shared_path(f"{SLIDES}/{file}")) as slide:
        grid, ways = tiles_of(slide, max(2, tile_side(slide) // factor // 2), factor)
        for way in ways:
            for i, pixels in way.items():
                error = pixels - area_mean(cut(truth, grid, i), factor)
                assert (error**2).mean() <= 255**2 / 10**4.2, (slide.reader, grid.places[i])
                assert abs(error.mean()) < 0.75


def test_no_real_slide_is_left_out():
    """Whatever else lies there is refused by name, or is another file of a series that is compared."""
    folder = shared_path(SLIDES)
    series = {wsi.series_uid(folder / file) for file in REAL} - {None}
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        if file in REAL or not wsi.is_slide_file(path) or wsi.series_uid(path) in series:
            continue
        with pytest.raises(wsi.SlideError):
            opened(path)


def known(zoo):
    """Yield the cases of the zoo that must show something."""
    for case in zoo["cases"]:
        if case["group"] in ("good", "format"):
            yield case, zoo["folder"] / case["file"]


def confirmed(path, case):
    """Return what the references show, where the probes bear them out to the manifest's tolerance."""
    found = []
    for reference in (by_openslide, by_tifffile):
        try:
            picture = reference(path)
        except Exception:  # a reference that cannot read it has no say
            continue
        tight = max(case.get("tolerance") or 0, 0.51)
        if case.get("size") and list(picture.shape[1::-1]) != case["size"]:
            continue
        if all(abs(mean_at(picture, probe) - probe["rgb"]).max() <= tight for probe in case.get("probes") or []):
            found.append(picture)
    return found


def mean_at(picture, probe):
    x, y, side = probe["x"], probe["y"], probe["side"]
    return picture[y : y + side, x : x + side].reshape(-1, 3).mean(0)


def test_every_known_slide_of_the_zoo_is_the_same_bytes_as_a_confirmed_reference(zoo):
    compared = set()
    for case, path in known(zoo):
        try:
            slide = opened(path)
        except wsi.SlideError:
            assert case["expect"] != "opens", case["file"]
            continue
        truths = confirmed(path, case)
        with slide:
            if min(slide.size) < 16:
                assert any(np.array_equal(slide.read(0, 0, *slide.size), truth) for truth in truths), case["file"]
                compared.add(case["file"])
                continue
            grid, ways = tiles_of(slide, 64)
            for way in ways:
                right = [all(np.array_equal(tile, cut(truth, grid, i)) for i, tile in way.items()) for truth in truths]
                assert any(right), case["file"]
        compared.add(case["file"])
    must = {case["file"] for case, _ in known(zoo) if case["expect"] == "opens"}
    assert must <= compared
    assert len(compared) >= len(must) + 8


@pytest.mark.parametrize("factor", [1, 2])
def test_known_slides_of_the_zoo_show_the_true_colours(zoo, factor):
    """The manifest's probes, laid over what the tiles show: no reader has a say in them."""
    probed = 0
    for case, path in known(zoo):
        if not case.get("probes"):
            continue
        try:
            slide = opened(path)
        except wsi.SlideError:
            continue
        with slide:
            size = slide.size
            grid, ways = tiles_of(slide, 64, factor)
        for way in ways:
            canvas = np.full((size[1], size[0], 3), np.nan)
            for i, tile in way.items():
                x, y = grid.places[i]
                canvas[y : y + 64 * factor, x : x + 64 * factor] = tile.repeat(factor, 0).repeat(factor, 1)
            rim = 0 if factor == 1 else 4  # a probe may begin between two reduced pixels
            for probe in case["probes"]:
                seen = mean_at(canvas, probe)
                if not np.isnan(seen).any():
                    off = abs(seen - probe["rgb"]).max()
                    assert off <= max(case["tolerance"], 0.51) + rim, (case["file"], probe, off)
                    probed += 1
    assert probed > 150


# ------------------------------------------------------------------ what was left out


def holes(path, tiles):
    """Leave tiles of a TIFF out, as scanners do."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for tag in ("TileByteCounts", "TileOffsets"):
            values = list(tiff.pages[0].tags[tag].value)
            for tile in tiles:
                values[tile] = 0
            tiff.pages[0].tags[tag].overwrite(values)
    return path


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("kind", ["svs", "ome", "deflate", "dicom"])
def test_tiles_that_were_left_out_are_white_in_both_ways(kind, factor, tmp_path):
    """The picture with white painted over the holes is the oracle."""
    picture = smooth_picture(640, 512, seed=5)
    gaps = (1, 4)
    truth = picture.astype(float).copy()
    side = 128 if kind == "dicom" else 256
    for gap in gaps:
        y, x = gap // -(-640 // side) * side, gap % -(-640 // side) * side
        truth[y : y + side, x : x + side] = 255
    if kind == "dicom":
        path = write_dicom(tmp_path, [picture], sparse=True, left_out=gaps, subsampled=False)[0]
    elif kind == "ome":
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, picture, tile=(256, 256), photometric="rgb", compression="zstd")
    elif kind == "deflate":
        path = write_aperio(tmp_path / "a.svs", picture, compression="deflate", compressionargs={})
    else:
        path = write_aperio(tmp_path / "a.svs", picture)
    with opened(path if kind == "dicom" else holes(path, gaps)) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, factor * MPP))
        flowing, errors = streamed(slide, grid)
        assert not errors
        for i, tile in flowing.items():
            wanted = area_mean(cut(truth, grid, i), factor)
            for one in (tile, wsi.read_tile(slide, grid, i)):
                white = (wanted == 255).all(-1)
                assert (one[white] == 255).all()
                assert abs(one - wanted).mean() < 6
                assert not (one == 0).all(-1).any()


def test_what_is_clear_is_white_in_both_ways(tmp_path):
    """Alpha of 0, half and 255: by the formula."""
    picture = smooth_picture(512, 512, seed=6)
    alpha = np.zeros((512, 512, 1), np.uint8)
    alpha[:, 150:300], alpha[:, 300:] = 128, 255
    path = tmp_path / "clear.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, np.concatenate([picture, alpha], -1), extrasamples=["unassalpha"], **options)
    share = alpha / 255
    truth = picture * share + 255 * (1 - share)
    with opened(path) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(128, MPP))
        flowing, errors = streamed(slide, grid)
        assert not errors
        for i, tile in flowing.items():
            for one in (tile, wsi.read_tile(slide, grid, i)):
                assert abs(one - cut(truth, grid, i)).max() <= 1


# ------------------------------------------------------------------ whatever the order


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One slide read in blocks, one tile by tile."""
    folder = tmp_path_factory.mktemp("mixed")
    picture = smooth_picture(520, 430, seed=7)
    straight = write_aperio(folder / "a.svs", picture, levels=2)
    frames = write_dicom(folder, [picture, picture[::2, ::2]])[0]
    with opened(straight) as one, opened(frames) as other:
        assert one.native is not None
        assert other.native is None
        yield one, other


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(30, 120),
    zoom=st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]),
    overlap=st.integers(0, 16),
    workers=st.integers(1, 4),
    batch=st.integers(1, 40),
    side=st.sampled_from([64, 256, 400]),
)
def test_any_grid_thread_count_and_block_size_give_the_same_bytes(
    mixed, monkeypatch, size, zoom, overlap, workers, batch, side
):
    """One worker with the usual blocks is the reference; at native scale also the single reads."""
    for slide in mixed:
        spec = wsi.TileSpec(size, zoom * MPP, overlap=overlap)
        try:
            grid = wsi.tile_grid(slide, None, spec)
        except wsi.GridError:
            continue
        with monkeypatch.context() as patched:
            patched.setattr(blocks.BlockPlan.__init__, "__kwdefaults__", {"side": side})
            ours, errors = streamed(slide, grid, workers=workers, batch_size=batch)
        usual, _ = streamed(slide, grid, workers=1, batch_size=16)
        assert not errors
        assert ours.keys() == usual.keys()
        for i, pixels in ours.items():
            assert np.array_equal(pixels, usual[i]), (slide.name, spec, i)
        if zoom == 1:
            for i in list(ours)[::7]:
                assert np.array_equal(ours[i], wsi.read_tile(slide, grid, i)), (slide.name, spec, i)


def test_the_block_size_is_really_varied(mixed):
    """Else the property above would compare a plan with itself."""
    slide = mixed[0]
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(32, MPP))
    plans = [
        blocks.BlockPlan(slide.native, grid, slide.levels[grid.level].downsample, side=side) for side in (64, 2048)
    ]
    assert plans[0].most_rows < plans[1].most_rows
    assert type(read_plan(slide, grid)) is blocks.BlockPlan
    assert all(len(list(plan.requests())) for plan in plans)
