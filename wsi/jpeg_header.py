"""What the head of a JPEG stream says, without decoding it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

START, END = b"\xff\xd8", b"\xff\xd9"
_SPARE = 64
"""Bytes that may follow the end of a JPEG, beside zeros: some writers fill tiles up."""
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""The marker that names a stream's colors, but for its last byte."""
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xDA)}


@dataclass(frozen=True)
class JpegHeader:
    """Size and colours of a JPEG stream.

    Attributes:
        width: in pixels, 0 where no frame header was found.
        height: in pixels.
        components: 3 for colour.
        length: bytes up to the end of the frame header.
        colour: the colours the stream itself names by a JFIF or Adobe marker, None where it is silent.
    """

    width: int
    height: int
    components: int
    length: int
    colour: Literal["rgb", "ycbcr"] | None


def read_header(data: bytes) -> JpegHeader:
    """Read the markers up to the first frame header.

    Source: ITU T.81 annex B; T.871 (JFIF); Adobe technical note 5116 (APP14).
    """
    place, colour = 2, None
    width = height = components = 0
    while place + 4 <= len(data) and data[:2] == b"\xff\xd8" and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _ALONE or marker == 0xFF:
            place += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        body = data[place + 4 : place + 2 + length]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            colour = colour or "ycbcr"
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            colour = "ycbcr" if body[11] == 1 else "rgb"
        elif marker in _FRAMES and len(body) >= 6:
            height, width, components = struct.unpack_from(">HHB", body, 1)
            place += 2 + length
            break
        elif marker == 0xDA:
            break
        place += 2 + length
    return JpegHeader(width, height, components, place, colour if components == 3 else None)  # type: ignore[arg-type]


def shared_part(tables: bytes) -> bytes:
    """Return the tables that the tiles of a TIFF share, as the beginning of a stream; empty `tables` are none."""
    return tables.removesuffix(END) if tables.startswith(START) else START


def color_marker(colour: Literal["rgb", "ycbcr"]) -> bytes:
    """Return the Adobe marker that names the colors of a stream which is silent about them."""
    return _ADOBE + (b"\0" if colour == "rgb" else b"\1")


def has_end(data: bytes | bytearray | memoryview) -> bool:
    """Say whether a JPEG was written to its end; zeros and a few other bytes may follow it."""
    return END in bytes(data[-_SPARE:]) or END in bytes(data).rstrip(b"\0")[-_SPARE:]
