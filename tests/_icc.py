"""A colour profile written by hand, of which the right answer is a formula."""

from __future__ import annotations

import struct

import numpy as np

_PRIMARIES = ((0.4360657, 0.2224884, 0.0139160), (0.3851471, 0.7168732, 0.0970764), (0.1430664, 0.0606079, 0.7140961))
"""XYZ of sRGB's red, green and blue under D50, from IEC 61966-2-1 and the Bradford adaptation of ICC.1:2010."""
_WHITE = (0.9642, 1.0, 0.8249)


def linear_profile(order: tuple[int, int, int] = (0, 1, 2), name: str = "linear scanner") -> bytes:
    """Return a profile whose channels are light itself; `order` says which primary each channel is.

    Source: ICC.1:2001-04 §6 (version 2 profiles).
    """
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    line = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_WHITE)}
    tags |= {b"rgb"[i : i + 1] + b"XYZ": _xyz(_PRIMARIES[order[i]]) for i in range(3)}
    tags |= {b"rgb"[i : i + 1] + b"TRC": line for i in range(3)}
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x0210_0000, b"scnr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(24) + struct.pack(">I", 1)
    head += struct.pack(">3i", *(round(v * 65536) for v in _WHITE))
    return head + bytes(128 - len(head)) + table + data


def expected(pixels: np.ndarray, order: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    """Return the sRGB of pixels that are light itself: the curve of IEC 61966-2-1, 0 to 255, not rounded."""
    light = np.empty(pixels.shape)
    for channel, primary in enumerate(order):
        light[..., primary] = pixels[..., channel] / 255
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))
