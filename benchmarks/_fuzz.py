"""What is done to slides to break them, and what is then looked at; for processes that may be lost."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import wsi.plan
import wsi.readers.openslide
import wsi.readers.tiff
import wsi.readers.tiffslide
import wsi.thumbnail

_OFTEN = (0, 1, 2, 3, 7, 8, 255, 256, 65535, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1)


class Item(NamedTuple):
    """One mutated file: made from a good one and a number, the same in every run."""

    source: str
    number: int

    def __str__(self) -> str:
        return f"{Path(self.source).name} #{self.number}"


def mutated(data: bytes, number: int) -> bytes:
    """Return a file with one to three things wrong with it: bits, bytes, numbers of tags, holes, cuts."""
    dice = random.Random(number)
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if out:
            dice.choice((_bit, _bit, _bytes, _tag, _tag, _tag, _hole, _cut, _moved))(out, dice)
    return bytes(out)


def _near(out: bytearray, dice: random.Random) -> int:
    """Return a place: mostly in the first or the last pages, where tables lie."""
    where = dice.random()
    if where < 0.4:
        return dice.randrange(min(len(out), 4096))
    return len(out) - 1 - dice.randrange(min(len(out), 4096)) if where < 0.6 else dice.randrange(len(out))


def _bit(out: bytearray, dice: random.Random) -> None:
    out[_near(out, dice)] ^= 1 << dice.randrange(8)


def _bytes(out: bytearray, dice: random.Random) -> None:
    place, length = _near(out, dice), dice.randint(1, 8)
    out[place : place + length] = dice.randbytes(len(out[place : place + length]))


def _tag(out: bytearray, dice: random.Random) -> None:
    """Change a number in an entry of a TIFF directory; where there is none, some number."""
    entries = list(_entries(out))
    if not entries:
        return _bytes(out, dice)
    place, order, big = dice.choice(entries)
    what = dice.random()
    if what < 0.15:
        struct.pack_into(order + "H", out, place, dice.choice((254, 256, 257, 258, 259, 262, 277, 284, 322, 324, 325)))
    elif what < 0.3:
        struct.pack_into(order + "H", out, place + 2, dice.randrange(20))
    elif what < 0.5:
        struct.pack_into(order + ("Q" if big else "I"), out, place + 4, dice.choice(_OFTEN))
    else:
        struct.pack_into(order + "I", out, place + (12 if big else 8), dice.choice(_OFTEN))
    return None


def _hole(out: bytearray, dice: random.Random) -> None:
    place = _near(out, dice)
    length = len(out[place : place + dice.choice((16, 200, 4096, 60_000))])
    out[place : place + length] = bytes(length)


def _cut(out: bytearray, dice: random.Random) -> None:
    del out[dice.randrange(len(out)) :]


def _moved(out: bytearray, dice: random.Random) -> None:
    """Lose or gain some bytes, so that all that follows lies elsewhere."""
    place = _near(out, dice)
    if dice.random() < 0.5:
        del out[place : place + dice.randint(1, 300)]
    else:
        out[place:place] = dice.randbytes(dice.randint(1, 300))


def _entries(data: bytearray) -> Iterator[tuple[int, str, bool]]:
    """Yield place, byte order and width of each entry of a TIFF's directories."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 16:
        return
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    head, each, inline = (8, 20, 8) if big else (2, 12, 4)
    for _ in range(8):
        if not 8 <= at < len(data) - head:
            return
        count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
        end = at + head + count * each
        if count > 100 or end + inline > len(data):
            return
        yield from ((at + head + i * each, order, big) for i in range(count))
        at = struct.unpack_from(order + ("Q" if big else "I"), data, end)[0]


# ------------------------------------------------------------------ looking


@cache
def _source(path: str) -> bytes:
    return Path(path).read_bytes()


@cache
def _room() -> Path:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))


def look(item: Item) -> tuple[str, str]:
    """Use a mutated slide as a job does: open it, read its thumbnail, read its tiles the way they are streamed.

    Of every eighth the tissue is sought, too: no reader takes part in that, and it takes as long as all else.

    Returns:
        How it ended (`read`, `refused`, `tiles failed`, or `foreign`), and the words of the error.
    """
    source = Path(item.source)
    path = _room() / f"{os.getpid()}-{item.number}{''.join(source.suffixes)}"
    path.write_bytes(mutated(_source(item.source), item.number))
    try:
        return used(path, tissue=item.number % 8 == 0)
    finally:
        path.unlink()


def used(path: Path, *, tissue: bool) -> tuple[str, str]:
    """Open a slide, read its thumbnail and its tiles; see `look`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries; they have said enough when they raise
            with wsi.open_slide(path, slide_mpp=0.5) as slide:
                spec = wsi.TileSpec(224, 0.5)
                grid = wsi.tile_grid(slide, None, spec, allow_upsampling=True)
                if tissue:
                    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), spec, allow_upsampling=True)
                else:
                    wsi.thumbnail.thumbnail(slide, wsi.TissueSettings())
                failed = _read_all(wsi.plan.read_plan(slide, grid))
    except wsi.SlideError as error:
        text = str(error)
        good = len(text) <= 300 and text.isprintable()
        return ("refused" if good else "foreign"), text
    except Exception:
        return "foreign", traceback.format_exc()
    return ("tiles failed" if failed else "read"), failed


def _read_all(plan: Any, most: int = 64) -> str:
    """Read the tiles of a plan; return the words of the last that failed."""
    said = ""
    for number, request in enumerate(plan.requests()):
        if number >= most:
            break
        tiles = {row: np.empty((224, 224, 3), np.uint8) for row in request.rows}
        try:
            failed = plan.read(request, tiles.__getitem__)
        except wsi.SlideError as error:
            said = str(error)
        else:
            said = next((str(error) for error in failed.values()), said)
    return said


def whole(path: Path) -> Any:
    """Return all pixels of a slide's level 0, or the words of the error."""
    try:
        with wsi.open_slide(path, slide_mpp=0.5) as slide:
            return slide.read(0, 0, *slide.size)
    except wsi.SlideError as error:
        return str(error)
