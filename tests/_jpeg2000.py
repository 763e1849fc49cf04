"""JPEG 2000 streams that no encoder at hand writes: color with half as many columns, as Aperio's scanners wrote it."""

from __future__ import annotations

import io
import struct
from itertools import pairwise

import numpy as np
from PIL import Image

_COD, _QCD, _PLT, _SOT, _SOD = 0xFF52, 0xFF5C, 0xFF58, 0xFF90, 0xFF93


def half_color_stream(ycbcr: np.ndarray) -> bytes:
    """Return Y, Cb and Cr (H, W, 3) as one lossless stream; of Cb and Cr every second column is left out.

    Each component is encoded alone; then their packets are put together in the order layer, resolution, component.
    """
    height, width = ycbcr.shape[:2]
    planes = ycbcr[..., 0], ycbcr[:, ::2, 1], ycbcr[:, ::2, 2]
    headers, packets = zip(*(_taken_apart(_gray(plane)) for plane in planes), strict=True)
    size = struct.pack(">H8IH", 0, width, height, 0, 0, width, height, 0, 0, 3) + bytes((7, 1, 1, 7, 2, 1, 7, 2, 1))
    packed = b"".join(b"".join(of_one_resolution) for of_one_resolution in zip(*packets, strict=True))
    part = struct.pack(">HHHIBBH", _SOT, 10, 0, 14 + len(packed), 0, 1, _SOD) + packed
    main = _segment(0xFF51, size) + _segment(_COD, headers[0][_COD]) + _segment(_QCD, headers[0][_QCD])
    return b"\xff\x4f" + main + part + b"\xff\xd9"


def _gray(plane: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane)).save(file, "JPEG2000", no_jp2=True, irreversible=False, plt=True)
    return file.getvalue()


def _taken_apart(data: bytes) -> tuple[dict[int, bytes], list[bytes]]:
    """Return the marker segments and the packets of a stream that states their lengths."""
    headers, place, lengths = {}, 2, []
    while (marker := struct.unpack_from(">H", data, place)[0]) != _SOD:
        length = 10 if marker == _SOT else struct.unpack_from(">H", data, place + 2)[0]
        headers[marker] = data[place + 4 : place + 2 + length]
        place += 2 + length
    value = 0
    for byte in headers[_PLT][1:]:  # seven bits each, the eighth says that more follow
        value = value << 7 | byte & 127
        if byte < 128:
            lengths.append(value)
            value = 0
    ends = np.cumsum([place + 2, *lengths]).tolist()
    return headers, [data[a:b] for a, b in pairwise(ends)]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">HH", marker, len(body) + 2) + body
