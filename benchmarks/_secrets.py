"""Search everything that a run wrote for words, also inside what is packed."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_EMBEDDED = re.compile(rb"data:[\w/+.-]+;base64,([A-Za-z0-9+/=]+)")


def leaks(root: Path, secrets: Sequence[str]) -> list[str]:
    """Name each file below `root` whose name or bytes hold one of the secrets, and which."""
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found += [f"{name!r}: its name says {word}" for word in secrets if word.lower() in name.lower()]
        if path.is_file() and not path.is_symlink():
            held = {word for layer in layers(path.read_bytes()) for word in secrets if holds(layer, word)}
            found += [f"{name!r}: its bytes say {word}" for word in sorted(held)]
    return found


def holds(data: bytes, word: str) -> bool:
    """Say whether bytes hold a word as text of any of the usual encodings, in any case of its letters."""
    lower = data.lower()
    forms = {word.lower().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")}
    return any(form in lower for form in forms)


def layers(data: bytes) -> Iterator[bytes]:
    """Yield the bytes, and what is inside: gzip, PNG, HDF5 (attributes and datasets), pictures embedded in a page."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from layers(gzip.decompress(data))
    if data[:4] == b"\x89PNG":
        yield from _of_png(data)
    if data[:4] == b"\x89HDF":
        yield from _of_hdf5(data)
    for match in _EMBEDDED.finditer(data):
        yield from layers(base64.b64decode(match[1]))


def _of_png(data: bytes) -> Iterator[bytes]:
    place, pixels = 8, b""
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        chunk = data[place + 8 : place + 8 + size]
        if kind == b"IDAT":
            pixels += chunk
        elif kind in (b"zTXt", b"iCCP"):
            yield zlib.decompress(chunk.split(b"\0", 1)[1][1:])
        place += 12 + size
    if pixels:
        yield zlib.decompress(pixels)


def _of_hdf5(data: bytes) -> Iterator[bytes]:
    import h5py

    texts: list[bytes] = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        texts.append(name.encode())
        texts.extend(f"{key}={value}".encode() for key, value in item.attrs.items())
        if isinstance(item, h5py.Dataset):
            value = item[()]
            texts.append(value.tobytes() if hasattr(value, "tobytes") else bytes(value))
            if item.dtype.hasobject or item.dtype.names:
                texts.append(repr(value.tolist()).encode())

    with h5py.File(io.BytesIO(data), "r") as file:
        look("", file)
        file.visititems(look)
    yield from texts


def shows(path: Path, color: tuple[int, int, int], near: int = 24) -> int:
    """Return how many pixels of a picture are of a color, or nearly (JPEG)."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - color).max(-1) <= near).sum())
