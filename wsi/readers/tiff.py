"""TIFF files through tifffile: OME-TIFF, whose levels OpenSlide does not see, and plain TIFF that it refuses.

Tiles are fetched from the open file, or from an address, and decoded by libjpeg-turbo or imagecodecs, so that threads
do not wait for each other.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi import mpp as pixel_size
from wsi.errors import NotBrightfieldError, OtherPictureError, SlideError, UnreadableSlideError
from wsi.geometry import downsample_of
from wsi.jpeg2000 import read_codestream
from wsi.jpeg_header import START, color_marker, has_end, read_header, shared_part
from wsi.ranges import RemoteError
from wsi.readers.base import Facts, on_white
from wsi.readers.codecs import JPEG2000, rgb_of_ycbcr
from wsi.readers.mosaic import MosaicSlide
from wsi.remote_path import RemotePath
from wsi.slide import Level
from wsi.sources import ByteSource, SourceFile, fetch_error, open_source
from wsi.tiff_directory import MOST_TILE_PIXELS

# What tifffile finds odd it logs; what matters of it becomes our error, and nothing goes to stderr unasked.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_JPEG, _RGB, _PALETTE, _YCBCR = 7, 2, 3, 6
_ICC = 34675
_ELSEWHERE = "its pixels lie in another file, which its OME description names"
_RETILE = "Convert it to a tiled pyramid, e.g. `vips tiffsave IN OUT --tile --pyramid --compression jpeg`."


class TiffSlide(MosaicSlide):
    """A TIFF that tifffile reads.

    Raises:
        UnreadableSlideError: tifffile does not take it, or its pixels are of a kind that is not handled.
        NotBrightfieldError: its channels are not red, green and blue.
    """

    def __init__(
        self, file: Path | ByteSource, *, slide_mpp: float | None = None, manifest_mpp: float | None = None
    ) -> None:
        opened = open_source(file) if isinstance(file, RemotePath) else file
        path = opened if isinstance(opened, Path) else opened.path
        try:
            with tifffile.TiffFile(opened if isinstance(opened, Path) else BufferedReader(SourceFile(opened))) as tiff:
                series = _slide_series(tiff, path.name)
                self._planes = _planes(series, path.name)
                stated, source = _stated_mpp(tiff, series)
                icc = _profile(series)
                power = _power(tiff)
                vendor = "aperio" if tiff.is_svs else "hamamatsu" if tiff.is_ndpi else None
        except RemoteError as error:
            raise fetch_error(error) from None
        except SlideError:
            raise
        except Exception as error:  # the border: tifffile raises some forty kinds
            raise UnreadableSlideError(path.name, f"tifffile cannot open it ({error})") from error.with_traceback(None)
        first = self._planes[0]
        value, problem = pixel_size.resolve(stated, source, power, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
        super().__init__(
            Facts(
                path=path,
                name=path.name,
                reader=f"tifffile {tifffile.__version__}",
                levels=tuple(Level(p.width, p.height, p.downsample_of(first)) for p in self._planes),
                vendor=vendor,
                mpp=value,
                mpp_problem=problem,
                objective_power=power,
                icc=icc,
            ),
            tuple((p.tile_width, p.tile_height) for p in self._planes),
        )
        self.source: ByteSource = open_source(opened) if isinstance(opened, Path) else opened.share()
        self._identity = self.source.identity
        self._lock = threading.Lock()
        self._reading = 0

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        with self._lock:
            self._reading += 1
        try:
            return super()._read(x, y, width, height, level)
        finally:
            with self._lock:
                self._reading -= 1
            self._close_file()

    def _load(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        plane = self._planes[level]
        index = row * plane.across + column
        parts = [self._bytes(plane, index + p * plane.pieces) for p in range(plane.separate)]
        if all(part is None for part in parts):
            return None  # left out by the scanner: glass
        return plane.decode(parts, index)

    def _bytes(self, plane: _Plane, index: int) -> bytes | None:
        offset, count = plane.offsets[index], plane.counts[index]
        if count == 0:
            return None
        data = self.source.read(offset, count)
        if len(data) < count:
            raise ValueError(f"{count} bytes expected at {offset}, {len(data)} found")
        return data

    def _close(self) -> None:
        self._close_file()

    def _close_file(self) -> None:
        with self._lock:
            if self._closed and not self._reading:
                self.source.close()


@dataclass(frozen=True)
class _Plane:
    """One level of the file: where its tiles lie, and how one is decoded. Strips are tiles as wide as the image."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    across: int
    pieces: int
    separate: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Callable[[list[bytes | None], int], NDArray[np.uint8]]

    def downsample_of(self, first: _Plane) -> tuple[float, float]:
        """Level-0 pixels per pixel; shapes were compared before."""
        return downsample_of((first.width, first.height), (self.width, self.height)) or (1.0, 1.0)


def _slide_series(tiff: tifffile.TiffFile, name: str) -> Any:
    """Return the largest of the pictures that a file holds, with its levels: the others are its label and macro."""

    def area(page: Any) -> int:
        return int(page.keyframe.imagewidth * page.keyframe.imagelength)

    series = max(tiff.series, key=area)
    if area(series) < max(area(page) for page in tiff.pages):
        raise OtherPictureError(name, "its description leaves out the largest of its pictures", _RETILE)
    if holds_other_files(tiff):
        raise OtherPictureError(name, _ELSEWHERE, "Name the file that holds the pixels.")
    return series


def holds_other_files(tiff: tifffile.TiffFile) -> bool:
    """Say whether an OME description takes pixels from other files: they are not of what is hashed and checked."""
    return any(level.keyframe.parent is not tiff for series in tiff.series for level in series.levels)


def _planes(series: Any, name: str) -> tuple[_Plane, ...]:
    _check_axes(series, name)
    pages = sorted((level.keyframe for level in series.levels), key=lambda p: -p.imagewidth * p.imagelength)
    first = pages[0].imagewidth, pages[0].imagelength
    return tuple(
        _plane(page, name) for page in pages if downsample_of(first, (page.imagewidth, page.imagelength)) is not None
    )


def _check_axes(series: Any, name: str) -> None:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    samples = sizes.pop("S", 1)
    others = {axis: n for axis, n in sizes.items() if axis not in "YX" and n > 1}
    if samples not in (3, 4) and sizes.get("C", 1) in (3, 4) and len(others) == 1 and series.keyframe.planarconfig == 2:
        return
    if others:
        what = ", ".join(f"{axis}: {n}" for axis, n in others.items())
        raise NotBrightfieldError(
            name,
            f"the picture has several planes ({what}) instead of one of red, green and blue",
            "Only stained slides scanned under white light can be used.",
        )


def _plane(page: Any, name: str) -> _Plane:
    tiled = page.is_tiled
    tile_width = page.tilewidth if tiled else page.imagewidth
    tile_height = page.tilelength if tiled else min(page.rowsperstrip or page.imagelength, page.imagelength)
    if tile_width * tile_height > MOST_TILE_PIXELS:
        raise UnreadableSlideError(name, f"its pixels lie in pieces of {tile_width:,} x {tile_height:,}", _RETILE)
    across = -(-page.imagewidth // tile_width)
    separate = page.samplesperpixel if page.planarconfig == 2 else 1
    return _Plane(
        width=page.imagewidth,
        height=page.imagelength,
        tile_width=tile_width,
        tile_height=tile_height,
        across=across,
        pieces=across * -(-page.imagelength // tile_height),
        separate=separate,
        offsets=tuple(page.dataoffsets),
        counts=tuple(page.databytecounts),
        decode=_decoder(page, name, tile_height, tile_width),
    )


def _decoder(
    page: Any, name: str, tile_height: int, tile_width: int
) -> Callable[[list[bytes | None], int], NDArray[np.uint8]]:
    """Return a function from the bytes of a tile (one per plane) and its index to RGB (h, w, 3)."""
    photometric, samples, dtype = int(page.photometric), page.samplesperpixel, page.dtype
    if int(page.compression) not in tifffile.TIFF.DECOMPRESSORS:
        raise UnreadableSlideError(name, f"its compression ({int(page.compression)}) is not known", _RETILE)
    if dtype not in (np.uint8, np.uint16) or (dtype == np.uint16 and page.bitspersample != 16):
        raise UnreadableSlideError(name, f"its pixels are {dtype}, not 8 or 16 bit whole numbers", _RETILE)
    jpeg = int(page.compression) == _JPEG and page.is_jfif is not None  # looked up while the file is open
    if samples == 3 and dtype == np.uint8 and page.planarconfig == 1 and _is_jpeg2000(page):
        return lambda parts, index: _decode_jpeg2000(page, parts, index)
    if photometric == _PALETTE and samples == 1 and page.colormap is not None:
        table = np.ascontiguousarray((page.colormap.T >> 8).astype(np.uint8))
        return lambda parts, index: table[_raw(page, parts, index)[..., 0]]
    if not (samples in (3, 4) and (photometric == _RGB or (photometric == _YCBCR and jpeg and samples == 3))):
        kind = getattr(page.photometric, "name", photometric)
        raise UnreadableSlideError(name, f"its colours are stored as {kind} with {samples} channels", _RETILE)
    if jpeg and page.planarconfig == 1 and samples == 3 and dtype == np.uint8:
        tables = page.jpegtables
        named: Literal["rgb", "ycbcr"] = "ycbcr" if photometric == _YCBCR else "rgb"
        return lambda parts, _: decode_jpeg(parts[0] or b"", tables, named, tile_height, tile_width)
    premultiplied = 1 in tuple(int(e) for e in page.extrasamples)
    return lambda parts, index: _to_rgb(_raw(page, parts, index), premultiplied)


def _raw(page: Any, parts: list[bytes | None], index: int) -> NDArray[Any]:
    """Decode one tile with tifffile: (h, w, samples)."""
    step = len(page.dataoffsets) // len(parts)
    planes = []
    for number, part in enumerate(parts):
        if part is None:
            raise ValueError("one colour of the tile is missing")
        segment = page.decode(part, index + number * step, jpegtables=page.jpegtables)[0]
        if segment is None:
            raise ValueError("the tile is empty")
        planes.append(segment[0])
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)


def _to_rgb(pixels: NDArray[Any], premultiplied: bool) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # the high byte, as OpenSlide does
    return on_white(pixels, premultiplied=premultiplied) if pixels.shape[-1] == 4 else pixels


def decode_jpeg(
    data: bytes, tables: bytes | None, tag_colour: Literal["rgb", "ycbcr"], tile_height: int, tile_width: int
) -> NDArray[np.uint8]:
    """Decode a JPEG tile; the stream's own markers decide on the colours, the TIFF tag where they are silent.

    What libjpeg only warns of (wrong codes, too few or too many bytes) is an error here.
    """
    header = read_header(data)
    if header.width != tile_width or header.height > tile_height or header.components != 3:
        raise ValueError(f"the tile holds a JPEG of {header.width} x {header.height} px")
    if not has_end(data):
        raise ValueError("the JPEG has no end: it is cut short or overwritten")
    named = b"" if header.colour else color_marker(tag_colour)
    stream = shared_part(tables or b"") + named + data[len(START) :]
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(stream)
    return pixels


def _is_jpeg2000(page: Any) -> bool:
    stored = JPEG2000.get(int(page.compression))
    return stored == _YCBCR or (stored == _RGB and int(page.photometric) == _RGB)


def _decode_jpeg2000(page: Any, parts: list[bytes | None], index: int) -> NDArray[np.uint8]:
    """Decode a JPEG 2000 tile; tifffile gives the components as they are, and pixels of damaged streams."""
    stream = read_codestream(parts[0] or b"")
    pixels: NDArray[np.uint8] = _raw(page, parts, index)
    stored = JPEG2000[int(page.compression)]
    # imagecodecs takes components of different sizes for YCbCr, and gives RGB
    return rgb_of_ycbcr(pixels) if stored == _YCBCR and stream.step == 1 else pixels


_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _stated_mpp(tiff: tifffile.TiffFile, series: Any) -> tuple[tuple[float | None, float | None], str]:
    """Return µm/px (x, y) as the file states it, and where."""
    text = tiff.pages.first.description or ""
    if tiff.is_ome:
        return _ome_sizes(text, series.keyframe.imagewidth, series.keyframe.imagelength), "ome.PhysicalSizeX"
    if tiff.is_svs and (found := re.search(r"\|\s*MPP\s*=\s*([^|]*)", text)):
        value = pixel_size.parse_number(found[1])
        return (value, value), "aperio.MPP"
    per_unit = {2: 25400.0, 3: 10000.0}.get(int(getattr(series.keyframe, "resolutionunit", 1)))
    tags = series.keyframe.tags
    if per_unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return (None, None), "tiff.XResolution"
    x, y = (_rational(tags[name].value) for name in ("XResolution", "YResolution"))
    return (per_unit / x if x else None, per_unit / y if y else None), "tiff.XResolution"


def _power(tiff: tifffile.TiffFile) -> float | None:
    """Return the power of the objective, where an Aperio scanner states it."""
    found = re.search(r"\|\s*AppMag\s*=\s*([^|]*)", tiff.pages.first.description or "") if tiff.is_svs else None
    return pixel_size.parse_number(found[1]) if found else None


def _profile(series: Any) -> bytes | None:
    tag = series.keyframe.tags.get(_ICC)
    return bytes(tag.value) if tag is not None and isinstance(tag.value, bytes) else None


def _rational(value: Any) -> float | None:
    try:
        return float(value[0]) / float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None


def _ome_sizes(xml: str, width: int, height: int) -> tuple[float | None, float | None]:
    """Return µm/px (x, y) of the picture of this size; none where several differ, or the description tells of others.

    A search, not an XML parser: nothing to expand.
    """
    found = set()
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml):
        told = [re.search(rf'\bSize{axis}\s*=\s*["\'](\d+)["\']', pixels) for axis in "XY"]
        if all(side is None or int(side[1]) == wanted for side, wanted in zip(told, (width, height), strict=True)):
            found.add((_ome_size(pixels, "X"), _ome_size(pixels, "Y")))
    return found.pop() if len(found) == 1 else (None, None)


def _ome_size(pixels: str, axis: str) -> float | None:
    """Return PhysicalSizeX or Y of a Pixels element in µm."""
    size = re.search(rf'\bPhysicalSize{axis}\s*=\s*["\']([^"\']*)["\']', pixels)
    unit = re.search(rf'\bPhysicalSize{axis}Unit\s*=\s*["\']([^"\']*)["\']', pixels)
    value = pixel_size.parse_number(size[1]) if size else None
    factor = _UNITS.get(unit[1].replace("&#181;", "µ").replace("&#xB5;", "µ")) if unit else 1.0
    return value * factor if value is not None and factor is not None else None
