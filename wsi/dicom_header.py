"""What the head of a DICOM file says, without its pixels and without a DICOM library.

Enough to tell which files are one slide, and whether the colours that the tags state are those of the frames.

Source: DICOM PS3.5 §7 (data elements), annex A (transfer syntaxes); PS3.10 §7 (file meta information).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOP_CLASS, SOP_INSTANCE, IMAGE_TYPE, SERIES = 0x0008_0016, 0x0008_0018, 0x0008_0008, 0x0020_000E
PHOTOMETRIC, OPTICAL_PATHS, SYNTAX = 0x0028_0004, 0x0048_0105, 0x0002_0010

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""The class of whole-slide microscopy images."""
_BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"

_PREAMBLE = 128
_WANTED = frozenset({SOP_CLASS, SOP_INSTANCE, IMAGE_TYPE, SERIES, PHOTOMETRIC, SYNTAX})
_AFTER_META = 0x0003_0000
_LAST = 0x5200_0000
"""Tags from here on are not looked at: the places of each frame, then the pixels."""
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
_UNDEFINED = 0xFFFF_FFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_DEEPEST = 32
_PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
"""The element of compressed frames, up to its undefined length."""


@dataclass(frozen=True)
class DicomHeader:
    """Some elements of a file.

    Attributes:
        text: tag → value, for those that were sought and found.
        optical_paths: items of the sequence of that name, 0 where there is none.
        frame: the head of the first compressed frame, at most 64 kB; empty where there is none.
    """

    text: dict[int, str] = field(default_factory=dict)
    optical_paths: int = 0
    frame: bytes = b""

    @property
    def is_slide(self) -> bool:
        """Whether it belongs to a whole-slide image, as DICOM has it: of that class, and saying which image of it."""
        return self.text.get(SOP_CLASS) == WHOLE_SLIDE and self.text.get(IMAGE_TYPE, "").count("\\") >= 2

    @property
    def is_level(self) -> bool:
        """Whether it holds a level of the pyramid, or a part of one; not a label, an overview or a thumbnail."""
        return self.is_slide and self.text[IMAGE_TYPE].split("\\")[2] == "VOLUME"

    @property
    def series(self) -> str | None:
        """The SeriesInstanceUID."""
        return self.text.get(SERIES)


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do: a preamble of 128 bytes, then `DICM`."""
    try:
        if not path.is_file():  # a pipe would never answer
            return False
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_dicom_header(path: Path) -> DicomHeader | None:
    """Return what a DICOM file says of itself, None for any other file and for one that is damaged."""
    if not is_dicom(path):
        return None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(data)
    except (OSError, ValueError, struct.error):
        return None


def _header(data: mmap.mmap) -> DicomHeader:
    text: dict[int, str] = {}
    paths, place = 0, _PREAMBLE + 4
    for tag, start, length, following in _elements(data, place, last=_AFTER_META):
        if tag == SYNTAX:
            text[tag] = _text(data, start, length)
        place = following
    syntax = text.get(SYNTAX, "")
    if syntax in (_BIG_ENDIAN, _DEFLATED):
        return DicomHeader(text)
    implicit = syntax == _IMPLICIT
    for tag, start, length, following in _elements(data, place, last=_LAST, implicit=implicit):
        if tag in _WANTED:
            text[tag] = _text(data, start, length)
        elif tag == OPTICAL_PATHS:
            paths = sum(1 for _ in _items(data, start, length, implicit))
        place = following
    return DicomHeader(text, paths, _first_frame(data, place) if syntax == _BASELINE_JPEG else b"")


def _text(data: mmap.mmap, start: int, length: int) -> str:
    return data[start : start + min(length, 1024)].decode("ascii", "replace").strip(" \0")


def _elements(
    data: mmap.mmap, place: int, *, last: int, implicit: bool = False, depth: int = 0, until: int | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, where the value begins, its length, and where the next element begins, up to the tag `last`."""
    until = len(data) if until is None else until
    while place + 8 <= until:
        tag, start, length = _element(data, place, implicit)
        if tag >= last:
            return
        end = start + length
        if length == _UNDEFINED:
            end = start
            for _, end in _items(data, start, length, implicit, depth):  # noqa: B007 - the last one counts
                pass
            end += 8  # the delimiter
        if end > len(data):
            raise ValueError("an element reaches beyond the end of the file")
        yield tag, start, length, end
        place = end


def _element(data: mmap.mmap, place: int, implicit: bool) -> tuple[int, int, int]:
    """Return tag, start of the value, length."""
    group, number = struct.unpack_from("<HH", data, place)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        return tag, place + 8, struct.unpack_from("<I", data, place + 4)[0]
    if data[place + 4 : place + 6] in _LONG:
        return tag, place + 12, struct.unpack_from("<I", data, place + 8)[0]
    return tag, place + 8, struct.unpack_from("<H", data, place + 6)[0]


def _items(data: mmap.mmap, start: int, length: int, implicit: bool, depth: int = 0) -> Iterator[tuple[int, int]]:
    """Yield where each item of a sequence begins and ends; the delimiter of an item belongs to it."""
    if depth > _DEEPEST:
        raise ValueError("its sequences are nested too deeply")
    place, until = start, len(data) if length == _UNDEFINED else start + length
    while place + 8 <= until:
        tag, begin, size = _element(data, place, implicit)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            raise ValueError("a sequence holds something else than items")
        end = begin + size
        if size == _UNDEFINED:
            end = begin
            for *_, end in _elements(data, begin, last=_ITEM_END, implicit=implicit, depth=depth + 1):  # noqa: B007
                pass
            end += 8
        yield place, end
        place = end


def _first_frame(data: mmap.mmap, place: int) -> bytes:
    """Return the head of the first frame: behind the pixel element stand an item of offsets, then one per fragment."""
    found = data.find(_PIXELS, place)
    if found < 0:
        return b""
    offsets = found + len(_PIXELS)
    _, start, length = _element(data, offsets, implicit=True)
    _, start, length = _element(data, start + length, implicit=True)
    return data[start : start + min(length, 65536)]
