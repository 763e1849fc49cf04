"""Which file of a DICOM series is listed as the slide: a look at one element, not a DICOM reader."""

from __future__ import annotations

import struct

_LONG = {b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR", b"OV", b"SV", b"UV"}
_IMAGE_TYPE = 0x0008, 0x0008


def image_type(head: bytes) -> tuple[str, ...]:
    """Return ImageType (0008,0008) from the first bytes of an explicit-VR little-endian file, () where absent.

    Source: DICOM PS3.5 §7.1, PS3.10 §7.1.
    """
    place = 132
    while place + 8 <= len(head):
        group, element = struct.unpack_from("<HH", head, place)
        kind = head[place + 4 : place + 6]
        if kind in _LONG:
            (size,) = struct.unpack_from("<I", head, place + 8) if place + 12 <= len(head) else (0,)
            start = place + 12
        else:
            (size,) = struct.unpack_from("<H", head, place + 6)
            start = place + 8
        if (group, element) == _IMAGE_TYPE:
            return tuple(
                part.strip(" \0") for part in head[start : start + size].decode("ascii", "replace").split("\\")
            )
        if group > _IMAGE_TYPE[0] or size == 0xFFFFFFFF:
            break
        place = start + size
    return ()


def stands_for_series(head: bytes) -> bool:
    """Say whether the file is level 0 of its series, or does not say what it is."""
    kinds = image_type(head)
    return not ({"RESAMPLED", "LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"} & set(kinds))
