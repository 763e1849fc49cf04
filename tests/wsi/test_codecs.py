"""Tiles that are no JPEG, straight from the file: what other decoders show, or a tile that is missing."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache, partial

import imagecodecs
import numpy as np
import pytest
import tifffile
from _jpeg2000 import half_color_stream
from _shared import shared_path
from _slides import APERIO, MPP, halved, opened, smooth_picture, streamed
from PIL import Image

import wsi
from wsi.blocks import BlockPlan
from wsi.jpeg2000 import low_band_stream, read_codestream
from wsi.plan import read_plan
from wsi.readers.codecs import rgb_of_ycbcr

SIZE = 700, 600
LOSSLESS = {
    "deflate": {"compression": "adobe_deflate"},
    "old deflate": {"compression": "deflate"},
    "deflate, differences": {"compression": "adobe_deflate", "predictor": True},
    "lzw": {"compression": "lzw"},
    "lzw, differences": {"compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd"},
    "zstd, differences": {"compression": "zstd", "predictor": True},
    "none": {"compression": None},
}
JPEG2000 = {
    "33005": {"compression": "aperio_jp2000_rgb"},
    "33003": {"compression": "aperio_jp2000_ycbc"},
    "34712": {"compression": "jpeg2000"},
}

ALL = {**LOSSLESS, **JPEG2000}
FEW = ("deflate, differences", "lzw", "zstd", "none", "33003", "33005")


@lru_cache
def tissue_like(width, height, channels=3):
    """Return pixels that no codec finds easy: waves with noise."""
    picture = smooth_picture(width, height)
    noise = np.random.default_rng(1).integers(-9, 10, picture.shape)
    picture = (picture + noise).clip(0, 255).astype(np.uint8)
    alpha = np.broadcast_to(np.arange(width, dtype=np.int64)[:, None] * 255 // width, (height, width, 1))
    return np.concatenate([picture, alpha.astype(np.uint8)], -1) if channels == 4 else picture


def tiles_of(image, side=256):
    """Yield the tiles of an image, filled up with its last pixels."""
    height, width = image.shape[:2]
    filled = np.pad(image, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield np.ascontiguousarray(filled[y : y + side, x : x + side])


def ycbcr_of(image):
    return np.asarray(Image.fromarray(image).convert("YCbCr"))


def write(path, image, *, levels=1, aperio=False, **options):
    """Write a tiled pyramid. JPEG 2000 tiles are encoded here, for tifffile knows no YCbCr in them."""
    options = {"photometric": "rgb", "metadata": None, **options}
    kind = str(options.get("compression"))
    if aperio:
        options["description"] = APERIO.format(w=image.shape[1], h=image.shape[0], power=20, mpp=0.5)
    with tifffile.TiffWriter(path) as tiff:
        for number in range(levels):
            data = image
            if "jp2000" in kind or kind == "jpeg2000":
                stored = ycbcr_of(image) if kind.endswith("ycbc") else image
                level = {"level": 80} if not options.get("lossless") else {}
                data = (imagecodecs.jpeg2k_encode(tile, codecformat="j2k", **level) for tile in tiles_of(stored))
            tiff.write(
                data,
                shape=image.shape,
                dtype=np.uint8,
                tile=(256, 256),
                subfiletype=1 if number else 0,
                **options,
            )
            image = halved(image[..., :3]) if image.shape[-1] == 3 else image[::2, ::2]
    return path


def grid_of(slide, size=224, factor=1):
    return wsi.tile_grid(slide, None, wsi.TileSpec(size, factor * MPP))


def written(tmp_path, name, options, **more):
    return write(tmp_path / "slide.tif", tissue_like(*SIZE), aperio=name.startswith("33"), **options, **more)


def psnr(one, other):
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))


@pytest.mark.parametrize(("name", "options"), ALL.items())
def test_every_codec_shows_what_the_reference_readers_show(name, options, tmp_path):
    """Lossless ones also the very pixels that were written; JPEG 2000 decoders may differ by two gray levels."""
    path = written(tmp_path, name, options, levels=2)
    with opened(path) as slide:
        for level in (0, 1):
            assert slide.native.levels[level] is not None
        for factor in (1, 2):
            grid = grid_of(slide, factor=factor)
            assert isinstance(read_plan(slide, grid), BlockPlan)
            tiles, errors = streamed(slide, grid)
            assert not errors
            truth = tissue_like(*SIZE) if factor == 1 else halved(tissue_like(*SIZE))
            for i, pixels in tiles.items():
                x, y = (place // factor for place in grid.places[i])
                difference = np.abs(pixels.astype(int) - wsi.read_tile(slide, grid, i))
                assert difference.max() <= (2 if name in JPEG2000 else 0)
                if name in LOSSLESS:
                    assert np.array_equal(pixels, truth[y : y + 224, x : x + 224])
                else:
                    assert psnr(pixels, truth[y : y + 224, x : x + 224]) > 35


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("factor", [2, 4, 2.7])
def test_halves_are_the_area_means_of_the_full_size(name, factor, tmp_path):
    """The oracle: the reference reader's pixels and the exact mean over them."""
    with opened(written(tmp_path, name, ALL[name])) as slide:
        grid = grid_of(slide, 100, factor)
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        assert not errors
        for i, pixels in tiles.items():
            truth = wsi.read_tile(slide, grid, i)
            assert np.array_equal(pixels, truth) if name in LOSSLESS else psnr(pixels, truth) >= 42


@pytest.mark.parametrize("premultiplied", [False, True])
def test_alpha_is_laid_on_white(premultiplied, tmp_path):
    """The oracle is the closed form: c a + 1 - a, in floats."""
    image = tissue_like(*SIZE, channels=4).copy()
    alpha = image[..., 3:] / 255
    if premultiplied:
        image[..., :3] = np.round(image[..., :3] * alpha)
    path = write(
        tmp_path / "alpha.tif",
        image,
        compression="adobe_deflate",
        extrasamples=["assocalpha" if premultiplied else "unassalpha"],
    )
    color = image[..., :3] if premultiplied else image[..., :3] * alpha
    truth = color + 255 * (1 - alpha)
    with opened(path) as slide:
        grid = grid_of(slide, 64)
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, _ = streamed(slide, grid)
        for i, pixels in tiles.items():
            x, y = grid.places[i]
            assert np.abs(pixels - truth[y : y + 64, x : x + 64]).max() <= 1


def test_an_unnamed_fourth_channel_is_left_to_the_readers(tmp_path):
    image = tissue_like(*SIZE, channels=4)
    path = write(tmp_path / "four.tif", image, compression="adobe_deflate", extrasamples=["unspecified"])
    with opened(path) as slide:
        assert slide.native is None


def damaged(path, tile, change):
    """Change the bytes of one tile of level 0, in their place; fewer of them are written as fewer."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        counts, offset = list(page.databytecounts), page.dataoffsets[tile]
        tiff.filehandle.seek(offset)
        data = change(tiff.filehandle.read(counts[tile]))
        assert len(data) <= counts[tile]
        tiff.filehandle.seek(offset)
        tiff.filehandle.write(data)
        counts[tile] = len(data)
        page.tags["TileByteCounts"].overwrite(counts)
    return path


def half_noise(data):
    half = len(data) // 2
    return data[:half] + np.random.default_rng(0).bytes(len(data) - half)


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "noise": half_noise,
    "last half zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "of another size": lambda _: None,
}


def of_another_size(name):
    small = tissue_like(128, 128)
    if name in JPEG2000:
        return imagecodecs.jpeg2k_encode(small, codecformat="j2k", level=40)
    packer = {"d": zlib.compress, "l": imagecodecs.lzw_encode, "z": imagecodecs.zstd_encode}
    return {**packer, "o": zlib.compress, "n": bytes}[name[0]](small.tobytes())


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FEW for damage in DAMAGES if name != "none" or damage in ("cut", "of another size")],
)
def test_damaged_tiles_are_missing_never_invented(name, damage, tmp_path):
    """Only where nothing is packed can other bytes be noticed by nobody."""
    change = DAMAGES[damage] if damage != "of another size" else lambda _: of_another_size(name)
    path = damaged(written(tmp_path, name, ALL[name]), 2, change)  # the last column of the first line
    with opened(path) as slide:
        grid = grid_of(slide, 64)
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        x, y = grid.xy.T
        touched = (x + 64 > 512) & (y < 256)
        assert set(errors) == set(np.flatnonzero(touched).tolist())
        assert all("at (512, 0) of level 0" in str(error) for error in errors.values())
        for i, pixels in tiles.items():
            x0, y0 = grid.places[i]
            assert psnr(pixels, tissue_like(*SIZE)[y0 : y0 + 64, x0 : x0 + 64]) > 35


@pytest.mark.parametrize("name", JPEG2000)
def test_where_openslide_refuses_the_file_its_colors_are_right_too(name, tmp_path):
    """tifffile gives components as they are, and pixels of damaged streams: neither may get out."""
    path = write(tmp_path / "other.tif", tissue_like(*SIZE), **JPEG2000[name])
    damaged(path, 2, lambda data: data[: len(data) // 2])
    with opened(path) as slide:
        assert slide.reader.startswith("tifffile")
        assert slide.native.levels[0] is not None
        assert psnr(slide.read(0, 0, 256, 256), tissue_like(*SIZE)[:256, :256]) > 35
        with pytest.raises(wsi.TileReadError, match="cut short"):
            slide.read(520, 10, 64, 64)


@pytest.mark.parametrize("low_band", [False, True])
def test_color_at_half_the_columns_is_what_openslide_shows(low_band, tmp_path):
    """Aperio's 33003 has such streams."""
    image = tissue_like(512, 256)
    coded = [half_color_stream(ycbcr_of(tile)) for tile in tiles_of(image)]
    path = tmp_path / "half.svs"
    text = APERIO.format(w=512, h=256, power=20, mpp=0.5)
    options = {"photometric": "rgb", "compression": "aperio_jp2000_ycbc", "tile": (256, 256), "metadata": None}
    tifffile.imwrite(path, iter(coded), shape=image.shape, dtype=np.uint8, description=text, **options)
    with wsi.open_slide(path, manifest_mpp=MPP, low_band=low_band) as slide:
        assert slide.reader.startswith("openslide")
        for factor in (1, 2):
            grid = grid_of(slide, 64, factor)
            assert read_plan(slide, grid).scale == (factor if low_band else 1)
            tiles, errors = streamed(slide, grid)
            assert not errors
            for i, pixels in tiles.items():
                truth = wsi.read_tile(slide, grid, i)
                if factor == 1:
                    assert np.abs(pixels.astype(int) - truth).max() <= 2
                assert psnr(pixels, truth) > (20 if low_band and factor == 2 else 42)


@pytest.mark.parametrize("name", ["lzw", "33005", "none", "zstd, differences"])
def test_tiles_that_were_left_out_are_white(name, tmp_path):
    path = damaged(written(tmp_path, name, ALL[name]), 1, lambda _: b"")
    with opened(path) as slide:
        grid = grid_of(slide, 128)
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, errors = streamed(slide, grid)
        assert not errors
        white = {grid.places[i] for i, pixels in tiles.items() if (pixels == 255).all()}
        assert white == {(x, y) for x in (256, 384) for y in (0, 128)}


@pytest.mark.parametrize("name", ["lzw", "deflate", "zstd", None])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_byte_too_few_or_too_many_is_damage(name, more):
    from wsi.readers.codecs import Packed, _unpack

    codec = Packed((16, 16, 3), partial(_unpack, name), differences=False, premultiplied=False)
    pack = getattr(imagecodecs, f"{name}_encode") if name else bytes
    good, bad = tissue_like(16, 16).tobytes(), np.zeros(16 * 16 * 3 + more, np.uint8).tobytes()
    assert codec.decode(memoryview(pack(good)), 1).tobytes() == good
    with pytest.raises(ValueError, match=r"."):
        codec.decode(memoryview(pack(bad)), 1)


ORDERS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")
KINDS = {
    "plain": {},
    "layers": {"quality_mode": "rates", "quality_layers": [20, 10, 5]},
    "precincts": {"precinct_size": (64, 64)},
    "lengths": {"plt": True},
    "three": {"num_resolutions": 3},
}


def pillow_jpeg2000(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", no_jp2=True, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("irreversible", [False, True])
def test_the_low_band_is_what_openjpeg_reduces_to(kind, irreversible):
    """The oracle is openjpeg's own `reduce`, through Pillow; bit for bit."""
    image = tissue_like(256, 192)
    for order in ORDERS:
        data = pillow_jpeg2000(image, progression=order, irreversible=irreversible, **KINDS[kind])
        stream = read_codestream(data)
        assert (stream.width, stream.height, stream.components) == (256, 192, 3)
        for times in (1, 2):
            shorter = low_band_stream(data, stream, times)
            assert (shorter is None) == (order in ("PCRL", "CPRL") or (order == "LRCP" and kind == "layers"))
            if shorter is not None:
                with Image.open(io.BytesIO(data)) as truth:
                    truth.reduce = times
                    assert np.array_equal(imagecodecs.jpeg2k_decode(shorter), np.asarray(truth))


@pytest.mark.parametrize(
    "segment", [b"\xff\x53\0\x09\0\0\4\4\4\0\0", b"\xff\x5f\0\x09\0\0\0\1\5\3\0", b"\xff\x60\0\4\0\0"]
)
def test_streams_that_say_more_than_the_usual_are_not_shortened(segment):
    """Components coded otherwise, another order from some point on, packet headers elsewhere."""
    data = pillow_jpeg2000(tissue_like(64, 64))
    stream = read_codestream(data)
    assert stream.coarse_first
    more = data[: stream.qcd.stop] + segment + data[stream.qcd.stop :]
    assert not read_codestream(more).coarse_first


@pytest.mark.parametrize("name", ["33005", "33003"])
@pytest.mark.parametrize("factor", [2, 4])
def test_the_low_band_is_only_read_when_asked_for(name, factor, tmp_path):
    """It is half a pixel off; moved there it is like the area mean, and it is like the reader's either way."""
    path = written(tmp_path, name, JPEG2000[name])
    pictures = {}
    for low_band in (False, True):
        with wsi.open_slide(path, manifest_mpp=MPP, low_band=low_band) as slide:
            grid = grid_of(slide, 512 // factor // 2, factor)
            assert read_plan(slide, grid).scale == (factor if low_band else 1)
            tiles, errors = streamed(slide, grid)
            assert not errors
            pictures[low_band] = np.stack([tiles[i] for i in range(len(grid))])
            means = np.stack([wsi.read_tile(slide, grid, i) for i in range(len(grid))])
    assert psnr(pictures[False], means) >= 42
    assert 20 < psnr(pictures[True], means) < 42


@pytest.mark.parametrize("name", ["33003", "lzw, differences", "none"])
def test_another_process_gives_the_same_bytes(name, tmp_path):
    """The codec, and whether finer bands are left out, travel with the plan."""
    with wsi.open_slide(written(tmp_path, name, ALL[name]), manifest_mpp=MPP, low_band=True) as slide:
        grid = grid_of(slide, 128, 2)
        here, _ = streamed(slide, grid)
        there, errors = streamed(slide, grid, processes=1)
        assert not errors
        assert all(np.array_equal(there[i], here[i]) for i in here)


@pytest.mark.parametrize("order", ["LRCP", "PCRL"])
def test_a_stream_with_fewer_halvings_is_reduced_further_by_means(order, tmp_path):
    from wsi.readers.codecs import Jpeg2000

    image = tissue_like(256, 256)
    data = pillow_jpeg2000(image, progression=order, irreversible=False, num_resolutions=2)
    codec = Jpeg2000(256, 256, ycbcr=False, scales=(8, 4, 2, 1))
    half = codec.decode(memoryview(data), 2)
    assert np.array_equal(codec.decode(memoryview(data), 4), np.asarray(Image.fromarray(half).reduce(2)))


def test_overwritten_streams_are_noticed_before_they_are_decoded():
    """The decoder itself would make pixels of all of these, without a word."""
    rng = np.random.default_rng(0)
    data = pillow_jpeg2000(tissue_like(256, 256), irreversible=False)
    for at in rng.integers(200, len(data) - 5000, 20):
        for hole in (bytes(4096), rng.bytes(4096)):
            with pytest.raises(ValueError, match=r"cut short or overwritten|hole of zeros"):
                read_codestream(data[:at] + hole + data[at + 4096 :])
        with pytest.raises(ValueError, match="cut short or overwritten"):
            read_codestream(data[:at] + b"\xff\xd9")


def test_colors_of_ycbcr_are_those_of_the_formula():
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    y, cb, cr = (values[..., i].astype(float) - (128 if i else 0) for i in range(3))
    truth = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    assert np.abs(rgb_of_ycbcr(values) - truth.clip(0, 255)).max() <= 1


def test_real_slides_without_jpeg_are_read_from_the_file():
    path = shared_path("data/slides/conformance/boxes.tiff")
    with opened(path) as slide:
        grid = grid_of(slide, 32)
        assert isinstance(read_plan(slide, grid), BlockPlan)
        tiles, _ = streamed(slide, grid)
        assert all(np.array_equal(tiles[i], wsi.read_tile(slide, grid, i)) for i in tiles)
