"""The life of the process that opens and reads the viewer's slides: see `slides`.

What it says are finished pictures and plain words; nothing of it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import wsi
from pipelines.manifest import SlideEntry
from wsi.remote_reader import serve_wires
from wsi.wire import Wire

from . import images
from .pool import SlideGoneError, SlidePool
from .pyramid import Zoomed

if TYPE_CHECKING:
    from pipelines.reread import SlideTiles

PICTURE, WORDS = b"p", b"w"
"""First byte of an answer: then a JPEG or pixels, or JSON."""
_EARLY = (
    *("openslide", "tifffile", "simplejpeg", "imagecodecs", "PIL.ImageFile", "wsi.dicom_header"),
    *(f"wsi.readers.{name}" for name in ("openslide", "tiff", "native_levels", "vote", "codecs")),
)


def main(control: int, _: int, owner: int, *, icc: str, slide_mpp: float | None) -> None:
    """Serve until the owner hangs up.

    Args:
        control: descriptor of the socket over which wires come.
        owner: the process that started this one.
        icc: how slides are opened, see `wsi.open_slide`.
        slide_mpp: likewise.
    """

    def opening(entry: SlideEntry) -> wsi.Slide:
        more: dict[str, Any] = {"manifest_mpp": entry.mpp, "slide_mpp": slide_mpp}
        return wsi.open_slide(entry.path, icc=icc, **more)

    def begin() -> Callable[[Wire], None]:
        for name in _EARLY:  # half a second that the first tile would else take
            importlib.import_module(name)
        pool = SlidePool(opening)
        return lambda wire: _serve(wire, pool)

    serve_wires(control, owner, begin)


def _serve(wire: Wire, pool: SlidePool) -> None:
    with contextlib.suppress(EOFError):
        while True:
            wire.send(_answer(wire.receive(), pool))


def _answer(message: bytes, pool: SlidePool) -> bytes:
    try:
        what, entry, numbers = pickle.loads(message)  # noqa: S301 - from our owner
        with pool.lease(entry) as opened:
            found = _WHAT[what](opened, *numbers)
        return PICTURE + found if isinstance(found, bytes) else WORDS + json.dumps({"found": found}).encode()
    except (SlideGoneError, wsi.SlideError) as error:
        return WORDS + json.dumps({"error": str(error)}).encode()
    except BaseException:
        return WORDS + json.dumps({"bug": traceback.format_exc()}).encode()


def _tile(opened: Zoomed, level: int, column: int, row: int) -> bytes | None:
    pixels = opened.tile(level, column, row)
    return None if pixels is None else images.jpeg(pixels)


def _crop(opened: Zoomed, x: int, y: int, width: int, height: int) -> bytes | None:
    return images.crop(opened, (x, y, width, height))


def _facts(opened: Zoomed) -> dict[str, Any]:
    mpp = opened.slide.mpp
    pyramid = opened.pyramid
    told = None if mpp is None else [mpp.x, mpp.y]
    return {"width": pyramid.width, "height": pyramid.height, "top": pyramid.top, "mpp": told}


def _encoded(_: Zoomed, tiles: SlideTiles) -> bytes:
    return tiles.all().tobytes()


_WHAT: dict[str, Callable[..., Any]] = {
    "tile": _tile,
    "crop": _crop,
    "thumbnail": images.thumbnail,
    "facts": _facts,
    "encoded": _encoded,
}
