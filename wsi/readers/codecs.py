"""Decoders of tiles that are no JPEG: each takes the bytes of a tile as they lie in the file and gives its pixels.

What a decoder would only warn of is an error here: too few bytes, too many, another size. JPEG itself is decoded in
`direct`, where nothing may stand between the file and libjpeg.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.jpeg2000 import low_band_stream, read_codestream
from wsi.readers.base import on_white
from wsi.resize import resize_area
from wsi.tiff_directory import COMPRESSION, PHOTOMETRIC, TILE_HEIGHT, TILE_WIDTH, Directory

_RGB, _YCBCR = 2, 6
_FILL_ORDER, _PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 266, 317, 338, 339
_PLAIN, _DIFFERENCES = 1, 2
_PREMULTIPLIED, _TRANSPARENT = 1, 2
_UNCOMPRESSED = 1
_PACKED = {5: "lzw", 8: "deflate", 32946: "deflate", 50000: "zstd"}
"""TIFF compressions that give back each byte, and who undoes them."""
JPEG2000 = {33003: _YCBCR, 33005: _RGB, 34712: _RGB}
"""TIFF compressions of JPEG 2000, and the colors that the components are."""


WORKING_BYTES = 24
"""The most that a codec takes while it decodes, for each pixel of the tile: three samples as 32-bit numbers, twice."""


class Codec(Protocol):
    """Decodes the tiles of one level; a plain value, for it travels between processes."""

    @property
    def scales(self) -> tuple[int, ...]:
        """By what it can reduce, most first; 1 is the last."""

    def decode(self, data: memoryview, scale: int) -> NDArray[np.uint8]:
        """Return the pixels of a tile, RGB (tile_height / scale, tile_width / scale, 3).

        Raises:
            ValueError: the bytes are no whole tile of the size that the tags state.
        """


def codec_of(directory: Directory, *, low_band: bool = False) -> Codec | None:
    """Return what decodes the tiles of a directory; None where it is unclear what they hold.

    Args:
        directory: tiled, with three or four 8-bit samples for each pixel side by side.
        low_band: reduce JPEG 2000 by leaving out its finer bands.
    """
    compression = directory.number(COMPRESSION, 1)
    height, width = directory.number(TILE_HEIGHT, 0), directory.number(TILE_WIDTH, 0)
    alpha = directory.number(_EXTRA_SAMPLES, 0)
    usual = directory.number(_FILL_ORDER, 1) == 1 and directory.number(_SAMPLE_FORMAT, 1) == 1
    if not usual or (directory.samples == 4 and alpha not in (_PREMULTIPLIED, _TRANSPARENT)):
        return None
    photometric = directory.number(PHOTOMETRIC, _RGB)
    if compression in JPEG2000 and directory.samples == 3 and photometric in (_RGB, _YCBCR):
        colors = JPEG2000[compression]
        if compression == 34712 and photometric != _RGB:
            return None
        return Jpeg2000(height, width, ycbcr=colors == _YCBCR, scales=(8, 4, 2, 1) if low_band else (1,))
    predictor = directory.number(_PREDICTOR, _PLAIN)
    if photometric != _RGB or predictor not in (_PLAIN, _DIFFERENCES):
        return None
    if compression not in _PACKED and compression != _UNCOMPRESSED:
        return None
    return Packed(
        (height, width, directory.samples),
        unpack=partial(_unpack, _PACKED.get(compression)),  # no closure: it travels between processes
        differences=predictor == _DIFFERENCES and compression != _UNCOMPRESSED,
        premultiplied=alpha == _PREMULTIPLIED,
    )


@dataclass(frozen=True)
class Packed:
    """Pixels whose bytes were packed without loss, or not at all.

    Attributes:
        shape: rows, columns and samples of a tile.
        unpack: from the packed bytes and how many are wanted to the unpacked ones; at most one more than wanted.
        differences: whether each pixel is stored as what it differs from the one left of it.
        premultiplied: whether colors were already multiplied by alpha.
    """

    shape: tuple[int, int, int]
    unpack: Callable[[memoryview, int], Any]
    differences: bool
    premultiplied: bool

    @property
    def scales(self) -> tuple[int, ...]:
        """Full size alone: the mean over an area is taken of the tile that was asked for, in one step."""
        return (1,)

    def decode(self, data: memoryview, scale: int) -> NDArray[np.uint8]:
        """Return the pixels of a tile; see `Codec.decode`."""
        wanted = self.shape[0] * self.shape[1] * self.shape[2]
        try:
            unpacked = self.unpack(data, wanted)
        except Exception as error:  # the border: each library has its own kinds
            raise ValueError(str(error) or type(error).__name__) from error.with_traceback(None)
        if len(unpacked) != wanted:
            raise ValueError(f"the tile holds {len(unpacked):,} bytes instead of {wanted:,}")
        pixels: NDArray[np.uint8] = np.frombuffer(unpacked, np.uint8).reshape(self.shape)
        if self.differences:
            import imagecodecs

            pixels = imagecodecs.delta_decode(pixels, axis=1)
        if self.shape[2] == 4:
            pixels = on_white(pixels, premultiplied=self.premultiplied)
        return _reduced(pixels, scale)


@dataclass(frozen=True)
class Jpeg2000:
    """Pixels as JPEG 2000 streams.

    Attributes:
        height: of a tile, px; `width` likewise.
        ycbcr: whether the components are Y, Cb and Cr without the stream saying so (Aperio 33003).
        scales: more than 1 where finer bands may be left out. The low band is no area mean: its pixels lie on every
            second pixel of the full size, not between two.
    """

    height: int
    width: int
    ycbcr: bool
    scales: tuple[int, ...]

    def decode(self, data: memoryview, scale: int) -> NDArray[np.uint8]:
        """Return the pixels of a tile; see `Codec.decode`."""
        whole = bytes(data)
        stream = read_codestream(whole)
        if (stream.width, stream.height, stream.components) != (self.width, self.height, 3):
            raise ValueError(f"the tile holds a JPEG 2000 of {stream.width} x {stream.height} px")
        if stream.step > 1 and not self.ycbcr:
            raise ValueError("the tile holds red, green and blue of different sizes")
        times = scale.bit_length() - 1
        if times > stream.halvings:
            return _reduced(self.decode(data, 2**stream.halvings), 2 ** (times - stream.halvings))
        smaller = low_band_stream(whole, stream, times) if times else whole
        if smaller is None and stream.step > 1:
            return _reduced(self.decode(data, 1), scale)
        try:
            pixels = _decode_jpeg2000(smaller) if smaller is not None else _pillow_jpeg2000(whole, times)
        except Exception as error:  # the border: each library has its own kinds
            raise ValueError(str(error) or type(error).__name__) from error.with_traceback(None)
        if pixels.shape != (self.height // scale, self.width // scale, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"the decoder gave {pixels.shape[1]} x {pixels.shape[0]} px of {pixels.dtype}")
        if stream.step > 1 or not self.ycbcr:
            return pixels  # imagecodecs takes components of different sizes for YCbCr, and gives RGB
        return rgb_of_ycbcr(pixels)


def rgb_of_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB of full-range YCbCr as JPEG has it, (H, W, 3)."""
    from PIL import Image

    height, width = pixels.shape[:2]
    return np.asarray(Image.frombytes("YCbCr", (width, height), pixels.tobytes()).convert("RGB"))


def _decode_jpeg2000(data: bytes) -> NDArray[np.uint8]:
    import imagecodecs

    pixels: NDArray[np.uint8] = imagecodecs.jpeg2k_decode(data)
    return pixels


def _pillow_jpeg2000(data: bytes, times: int) -> NDArray[np.uint8]:
    """Return the low band where coarse and fine lie mixed; slower, and one thread at a time."""
    from PIL import Jpeg2KImagePlugin

    with Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)) as image:
        image.reduce = times
        return np.asarray(image)


def _unpack(name: str | None, data: memoryview, wanted: int) -> Any:
    if name is None:
        return data
    import imagecodecs

    return getattr(imagecodecs, f"{name}_decode")(data, out=wanted + 1)


def _reduced(pixels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    return resize_area(pixels, pixels.shape[1] // scale, pixels.shape[0] // scale)
