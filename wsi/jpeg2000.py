"""JPEG 2000 codestreams: what is wrong with one, and one that gives the decoder its low band alone.

The decoder fills gaps without a word, since it was written for streams that arrive piece by piece. So a stream is
walked through before it is decoded. Packed data never holds 0xFF and then a byte above 0x8F: most damage does.

Source: ITU-T T.800 (JPEG 2000), annexes A and B.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

_START, _END = b"\xff\x4f", b"\xff\xd9"
_SIZ, _COD, _QCD, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF5C, 0xFF90, 0xFF93
_DECIDE_NOTHING = {0xFF57, 0xFF58, 0xFF63, 0xFF64}
"""Markers of lengths of packets (PLM, PLT), registration (CRG) and comments."""
_NO_DATA = re.compile(rb"\xff[\x90-\xff]")
_NO_DATA_NOR_SIGN = re.compile(rb"\xff[\x90\x93-\xff]")
"""Likewise where packets may begin and end with a sign (SOP, EPH)."""
_LAYER_FIRST, _RESOLUTION_FIRST = 0, (1, 2)
_ZEROS = 32
"""So many zero bytes in a row, beyond one for each empty packet, are a hole."""
_DAMAGED = "the JPEG 2000 stream is cut short or overwritten"


@dataclass(frozen=True)
class Codestream:
    """What the headers of a codestream say.

    Attributes:
        width: in pixels; `height` likewise.
        components: 3 for color.
        step: pixels for each pixel of the component that has fewest; 1 where all have as many.
        halvings: how often the wavelet halved the picture.
        coarse_first: whether what a coarser picture needs comes before all else, and the main header says it all.
        siz: where the body of this marker segment lies; `cod` and `qcd` likewise.
    """

    width: int
    height: int
    components: int
    step: int
    halvings: int
    coarse_first: bool
    siz: slice
    cod: slice
    qcd: slice


def read_codestream(data: bytes) -> Codestream:
    """Walk through a codestream from its first marker to its last.

    Raises:
        ValueError: it is none, it is cut short, or its data was overwritten.
    """
    if data[:2] != _START:
        raise ValueError("this is no JPEG 2000 stream")
    try:
        return _walk(data)
    except (struct.error, IndexError, KeyError):
        raise ValueError(_DAMAGED) from None


def low_band_stream(data: bytes, stream: Codestream, times: int) -> bytes | None:
    """Return a stream whose picture is the low band of this one after `times` halvings.

    The headers are made to tell of a picture that was halved less often. What the finer bands need comes last, and
    decoders pass it over.

    Returns:
        None where the stream is of another order, or some component has no whole number of pixels then.
    """
    whole = stream.step == 1 or not (stream.width | stream.height) % (stream.step * 2**times)
    if not (stream.coarse_first and whole) or times > stream.halvings:
        return None
    siz, cod, qcd = (bytearray(data[part]) for part in (stream.siz, stream.cod, stream.qcd))
    sides = struct.unpack_from(">8I", siz, 2)
    struct.pack_into(">8I", siz, 2, *(-(-side // 2**times) for side in sides))
    cod[5] -= times
    if cod[0] & 1:
        del cod[-times:]  # sizes of precincts, coarsest first
    style = qcd[0] & 31  # 0: a byte for each band, 1: one value for all, 2: two bytes for each
    if style != 1:
        del qcd[len(qcd) - 3 * times * (1 + style // 2) :]
    out, end = b"", 0
    bodies = ((stream.siz, siz), (stream.cod, cod), (stream.qcd, qcd))
    for part, body in sorted(bodies, key=lambda one: one[0].start):
        out += data[end : part.start - 2] + struct.pack(">H", len(body) + 2) + body
        end = part.stop
    return out + data[end:]


def _walk(data: bytes) -> Codestream:
    place, decided = 2, True
    segments: dict[int, slice] = {}
    while (marker := _number(">H", data, place)) != _SOT:
        decided &= marker in _DECIDE_NOTHING or (marker in {_SIZ, _COD, _QCD} and marker not in segments)
        stop = place + 2 + _number(">H", data, place + 2)
        segments[marker] = slice(place + 4, stop)
        place = stop
    siz, cod = data[segments[_SIZ]], data[segments[_COD]]
    right, bottom, left, top, wide, high, x, y, components = struct.unpack_from(">8IH", siz, 2)
    one_tile = not (left or top or x or y) and wide >= right and high >= bottom
    layers, halvings = _number(">H", cod, 2), cod[5]
    packets = layers * components * _precincts(cod, right, bottom) if one_tile else 0
    decided &= _walk_parts(data, place, signs=bool(cod[0] & 6), packets=packets)
    coarse_first = cod[1] in _RESOLUTION_FIRST or (cod[1] == _LAYER_FIRST and layers == 1)
    return Codestream(
        width=right - left,
        height=bottom - top,
        components=components,
        step=max(siz[37::3] + siz[38::3]),
        halvings=halvings,
        coarse_first=coarse_first and one_tile and decided,
        siz=segments[_SIZ],
        cod=segments[_COD],
        qcd=segments[_QCD],
    )


def _precincts(cod: bytes, width: int, height: int) -> int:
    """Return the precincts of all resolutions of one component."""
    halvings, count = cod[5], 0
    for resolution in range(halvings + 1):
        size = cod[10 + resolution] if cod[0] & 1 else 0xFF
        reduced = 2 ** (halvings - resolution)
        across = math.ceil(math.ceil(width / reduced) / 2 ** (size & 15))
        count += across * math.ceil(math.ceil(height / reduced) / 2 ** (size >> 4))
    return count


def _walk_parts(data: bytes, place: int, *, signs: bool, packets: int) -> bool:
    """Go from tile-part to tile-part up to the end; say whether no part has a header that decides anything."""
    plain = True
    while data[place : place + 2] != _END:
        if _number(">H", data, place) != _SOT:
            raise ValueError(_DAMAGED)
        length = _number(">I", data, place + 6)
        end = place + length if length else max(data.rfind(_END), 0)
        body = place + 12
        while (marker := _number(">H", data, body)) != _SOD:
            plain &= marker in _DECIDE_NOTHING
            body += 2 + _number(">H", data, body + 2)
        packed = data[body + 2 : end]
        if len(packed) != end - body - 2 or (_NO_DATA_NOR_SIGN if signs else _NO_DATA).search(packed):
            raise ValueError(_DAMAGED)
        if packets and bytes(packets + _ZEROS) in packed:
            raise ValueError("the JPEG 2000 stream has a hole of zeros")
        place = end
    return plain


def _number(kind: str, data: bytes, place: int) -> int:
    return int(struct.unpack_from(kind, data, place)[0])
