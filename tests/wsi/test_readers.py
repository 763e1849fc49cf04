"""One suite that every reader passes; the oracle is the array a file was written from, or another library."""

from __future__ import annotations

import contextlib
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
import tifffile
from _shared import shared_path
from _slides import smooth_picture, write_aperio

import wsi
from wsi.readers.base import on_white
from wsi.readers.openslide import OpenSlideSlide
from wsi.readers.tiff import TiffSlide
from wsi.readers.tiffslide import TiffslideSlide

READERS = {"openslide": OpenSlideSlide, "tiff": TiffSlide, "tiffslide": TiffslideSlide}


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def halved(image):
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return (image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)


LEVELS = [picture(700, 500)]
LEVELS += [halved(LEVELS[0])]
LEVELS += [halved(LEVELS[1])]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A lossless pyramid of known pixels."""
    path = tmp_path_factory.mktemp("readers") / "pyramid.tif"
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(LEVELS):
            tiff.write(
                level,
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                subfiletype=1 if number else 0,
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


@pytest.fixture(params=[*READERS, "memory"])
def slide(request, file):
    made = wsi.MemorySlide(LEVELS, mpp=0.5) if request.param == "memory" else READERS[request.param](file)
    with made:
        yield made


def expected(level, x, y, width, height):
    """Paint the level on a white canvas, then cut: the oracle."""
    pad = 2000
    canvas = np.full((level.shape[0] + 2 * pad, level.shape[1] + 2 * pad, 3), 255, np.uint8)
    canvas[pad : pad + level.shape[0], pad : pad + level.shape[1]] = level
    return canvas[y + pad : y + pad + height, x + pad : x + pad + width]


def test_geometry(slide):
    assert slide.size == (700, 500)
    assert [(one.width, one.height, one.downsample) for one in slide.levels] == [
        (700, 500, (1.0, 1.0)),
        (350, 250, (2.0, 2.0)),
        (175, 125, (4.0, 4.0)),
    ]
    assert (slide.mpp.x, slide.mpp.y) == (0.5, 0.5)


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (100, 52, 300, 200), (120, 120, 16, 16), (0, 0, 700, 500)])
def test_regions_inside_are_the_pixels_written(slide, box):
    assert np.array_equal(slide.read(*box), expected(LEVELS[0], *box))


@pytest.mark.parametrize(
    "box", [(-20, -30, 60, 70), (680, 480, 50, 60), (-10, -10, 720, 520), (900, 900, 8, 8), (-99, 10, 50, 20)]
)
def test_outside_is_white(slide, box):
    assert np.array_equal(slide.read(*box), expected(LEVELS[0], *box))


@pytest.mark.parametrize("level", [1, 2])
def test_places_are_level_0_pixels_and_sizes_are_the_levels(slide, level):
    k = 2**level
    for x, y, width, height in ((0, 0, 30, 20), (40, 60, 50, 33), (500, 400, 200, 200), (-40, -20, 30, 30)):
        got = slide.read(x, y, width, height, level=level)
        assert np.array_equal(got, expected(LEVELS[level], x // k, y // k, width, height))


def test_eight_threads_read_the_same_pixels(slide):
    boxes = [(x, y, 60, 60) for x in range(-20, 700, 90) for y in range(-20, 500, 90)] * 3
    with ThreadPoolExecutor(8) as pool:
        for box, pixels in zip(boxes, pool.map(lambda b: slide.read(*b), boxes), strict=True):
            assert np.array_equal(pixels, expected(LEVELS[0], *box))


def test_closing_while_others_read_ends_cleanly(slide):
    """OpenSlide ends the whole process when it is closed during a read."""
    stop, foreign = threading.Event(), []

    def reading():
        while not stop.is_set():
            try:
                slide.read(0, 0, 300, 300)
            except (ValueError, wsi.TileReadError):
                return
            except Exception as error:
                foreign.append(error)
                return

    threads = [threading.Thread(target=reading) for _ in range(4)]
    for thread in threads:
        thread.start()
    slide.close()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not foreign
    with pytest.raises(ValueError, match="closed"):
        slide.read(0, 0, 8, 8)


def test_nonsense_is_refused(slide):
    for box in ((0, 0, 0, 5), (0, 0, 5, -1)):
        with pytest.raises(ValueError, match="cannot read"):
            slide.read(*box)
    with pytest.raises(ValueError, match="level 3"):
        slide.read(0, 0, 5, 5, level=3)


@pytest.mark.parametrize("file_name", ["CMU-1-Small-Region.svs", "TCGA-XK-AAJU-section.tif"])
def test_a_real_slide_is_the_same_through_three_libraries(file_name):
    path = shared_path(f"data/slides/{file_name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slides = [kind(path) for kind in READERS.values()]
    for box in ((900, 900, 200, 300), (0, 0, 64, 64), (2000, 2000, 400, 400)):
        first, *others = [slide.read(*box) for slide in slides]
        for other in others:
            assert np.array_equal(first, other)
    for slide in slides:
        slide.close()


def test_openslide_pixels_are_those_of_openslide_itself():
    path = shared_path("data/slides/CMU-1-Small-Region.svs")
    with openslide.OpenSlide(path) as truth, wsi.open_slide(path) as slide:
        region = np.asarray(truth.read_region((1000, 1200), 0, (300, 200)))
        assert (region[..., 3] == 255).all()
        assert np.array_equal(slide.read(1000, 1200, 300, 200), region[..., :3])


def test_one_bad_tile_costs_itself_alone(tmp_path):
    """An OpenSlide handle is dead after an error: each tile beside the bad one must still be read."""
    path = tmp_path / "damaged.tif"
    image = picture(1024, 768, 3)
    options = {"tile": (256, 256), "photometric": "ycbcr", "compression": "jpeg", "metadata": None}
    tifffile.imwrite(path, image, **options)
    with tifffile.TiffFile(path) as tiff:
        place, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * count)
    # the tile in the middle is not the bad one, so the probe at opening passes
    with OpenSlideSlide(path) as slide:
        assert slide.reader.startswith("openslide")
        spots = [(x, y) for y in range(0, 768, 256) for x in range(0, 1024, 256)]
        failed = []
        with ThreadPoolExecutor(4) as pool:

            def attempt(spot):
                try:
                    slide.read(*spot, 256, 256)
                except wsi.TileReadError:
                    failed.append(spot)

            list(pool.map(attempt, spots * 3))
    assert failed == [(256, 256)] * 3


@pytest.mark.parametrize("harm", ["second half zeros", "other size"])
def test_a_jpeg_that_the_decoder_would_only_warn_about_is_an_error(tmp_path, harm):
    path = tmp_path / "harmed.tif"
    tifffile.imwrite(path, picture(512, 512), tile=(256, 256), photometric="ycbcr", compression="jpeg", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        place, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    if harm == "second half zeros":
        data[place + count // 2 : place + count] = bytes(count - count // 2)
    else:
        frame = data.index(b"\xff\xc0", place)
        data[frame + 7 : frame + 9] = (65500).to_bytes(2, "big")
    path.write_bytes(data)
    with TiffSlide(path) as slide:
        with pytest.raises(wsi.TileReadError, match=r"no end|65500"):
            slide.read(0, 0, 100, 100)
        assert slide.read(256, 256, 100, 100).shape == (100, 100, 3)


@pytest.mark.parametrize("spare", [60, 63, 1000])
def test_zeros_behind_a_jpeg_are_no_damage(tmp_path, spare):
    whole, padded = tmp_path / "whole.svs", tmp_path / "padded.svs"
    write_aperio(whole, picture(256, 256))
    with tifffile.TiffFile(whole) as tiff:
        page = tiff.pages[0]
        place, count = page.dataoffsets[0], page.databytecounts[0]
        offset, counted = page.tags["TileOffsets"].valueoffset, page.tags["TileByteCounts"].valueoffset
    data = bytearray(whole.read_bytes())
    data[offset : offset + 4] = len(data).to_bytes(4, "little")
    data[counted : counted + 4] = (count + spare).to_bytes(4, "little")
    padded.write_bytes(data + data[place : place + count] + bytes(spare))
    for reader in (wsi.open_slide, TiffSlide):
        with reader(whole) as one, reader(padded) as other:
            assert (one.read(0, 0, 256, 256) == other.read(0, 0, 256, 256)).all()
    with wsi.open_slide(padded) as slide:
        assert slide.native is not None


def test_a_hexadecimal_pixel_size_is_not_believed(tmp_path):
    with wsi.open_slide(write_aperio(tmp_path / "hex.svs", picture(256, 256), mpp="0x1p-1")) as slide:
        assert slide.reader.startswith("openslide")
        assert slide.mpp is None


def test_a_file_replaced_while_it_is_read_is_noticed(tmp_path, file):
    path = tmp_path / "swap.tif"
    path.write_bytes(file.read_bytes())
    with OpenSlideSlide(path) as slide:
        other = tmp_path / "other.tif"
        other.write_bytes(file.read_bytes()[:-100])
        other.replace(path)
        slide._handle = None  # as after an error
        with pytest.raises(wsi.TileReadError, match="changed"):
            slide.read(0, 0, 10, 10)


@pytest.mark.parametrize("premultiplied", [False, True])
def test_alpha_is_laid_on_white(premultiplied):
    """The formula in floating point is the oracle."""
    rgba = np.random.default_rng(1).integers(0, 256, (40, 30, 4)).astype(np.uint8)
    if premultiplied:
        rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
    share = rgba[..., 3:] / 255
    colour = rgba[..., :3] if premultiplied else rgba[..., :3] * share
    assert abs(on_white(rgba, premultiplied=premultiplied) - (colour + 255 * (1 - share))).max() <= 0.51


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "compression": "lzw", "tile": (64, 64)},
        {"photometric": "rgb", "rowsperstrip": 17},
        {"photometric": "rgb"},
        {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 64), "compression": "deflate"},
        {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 10},
        {"photometric": "rgb", "compression": "zstd", "predictor": True, "tile": (64, 64)},
        {"photometric": "rgb", "bigtiff": True, "byteorder": ">", "tile": (64, 64)},
    ],
)
def test_tiff_layouts_give_the_pixels_written(tmp_path, options):
    image = picture(150, 110, 5)
    stored = np.moveaxis(image, -1, 0) if options.get("planarconfig") == "separate" else image
    tifffile.imwrite(tmp_path / "a.tif", stored, metadata=None, **options)
    with TiffSlide(tmp_path / "a.tif") as slide:
        assert np.array_equal(slide.read(-5, -5, 160, 120), expected(image, -5, -5, 160, 120))


def test_sixteen_bits_keep_their_high_byte_and_alpha_is_white(tmp_path):
    image = np.random.default_rng(2).integers(0, 65536, (60, 50, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", image, photometric="rgb", metadata=None)
    with TiffSlide(tmp_path / "deep.tif") as slide:
        assert np.array_equal(slide.read(0, 0, 50, 60), (image >> 8).astype(np.uint8))
    rgba = np.dstack([picture(50, 60), np.zeros((60, 50), np.uint8)])
    tifffile.imwrite(tmp_path / "clear.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    with TiffSlide(tmp_path / "clear.tif") as slide:
        assert (slide.read(0, 0, 50, 60) == 255).all()


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}),
        (np.zeros((64, 64, 3), np.float32), {"photometric": "rgb"}),
        (np.zeros((64, 64, 3), np.uint8), {"photometric": "cielab"}),
    ],
)
def test_colours_that_would_come_out_wrong_are_refused(tmp_path, array, options):
    tifffile.imwrite(tmp_path / "odd.tif", array, metadata=None, **options)
    with pytest.raises(wsi.UnreadableSlideError, match=r"stored as|float32"):
        TiffSlide(tmp_path / "odd.tif")


def test_ome_levels_in_sub_images_are_all_seen(tmp_path):
    path = tmp_path / "levels.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        units = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
        tiff.write(LEVELS[0], subifds=2, tile=(128, 128), photometric="rgb", metadata={"axes": "YXS", **units})
        for level in LEVELS[1:]:
            tiff.write(level, subfiletype=1, tile=(128, 128), photometric="rgb")
    with wsi.open_slide(path) as slide:
        assert slide.reader.startswith("tifffile")
        assert len(slide.levels) == 3
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.25, 0.5))
        assert np.array_equal(slide.read(100, 80, 40, 30, level=1), expected(LEVELS[1], 50, 40, 40, 30))


def test_several_channels_in_an_ome_file_are_no_brightfield(tmp_path):
    path = tmp_path / "channels.ome.tif"
    tifffile.imwrite(path, np.zeros((5, 64, 64), np.uint8), metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(wsi.NotBrightfieldError, match="5 separate grey channels"):
        wsi.open_slide(path)


def test_memory_slide_says_what_is_wrong_with_its_arrays():
    with pytest.raises(ValueError, match=r"RGB|uint8"):
        wsi.MemorySlide(np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="shape"):
        wsi.MemorySlide([np.zeros((100, 100, 3), np.uint8), np.zeros((50, 10, 3), np.uint8)])


def test_a_failing_hook_becomes_a_tile_error():
    def fail(*box):
        raise OSError("disk on fire")

    with pytest.raises(wsi.TileReadError, match="disk on fire") as caught:
        wsi.MemorySlide(LEVELS[0], on_read=fail).read(0, 0, 5, 5)
    assert isinstance(caught.value.__cause__, OSError)


def test_what_libjpeg_only_warns_of_is_an_error_in_every_reader(tmp_path):
    """Single bits flipped in a tile: whatever OpenSlide reports, the others report, too; it reports some of them."""
    image = smooth_picture(512, 512, 3)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    path = write_aperio(tmp_path / "whole.svs", noisy, compressionargs={"level": 75})
    with tifffile.TiffFile(path) as tiff:
        place, length = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    data, dice = path.read_bytes(), random.Random(4)
    seen = []
    for _ in range(120):
        flipped = bytearray(data)
        flipped[place + dice.randrange(length)] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        with openslide.OpenSlide(path) as handle, contextlib.suppress(openslide.OpenSlideError):
            handle.read_region((256, 256), 0, (256, 256))
            continue
        with pytest.raises(wsi.SlideError), TiffSlide(path) as slide:
            slide.read(256, 256, 256, 256)
        with pytest.raises(wsi.SlideError), wsi.open_slide(path) as slide:
            slide.read(256, 256, 256, 256)
        seen.append(flipped)
    assert len(seen) >= 3
