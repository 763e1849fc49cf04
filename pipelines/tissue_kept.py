"""Tissue found at one µm/px, kept for the other ones of the same run: it lies under `.state`, and may be lost any time.

One file per slide: the thumbnail as PNG, masks bit by bit, the rest as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import EnvironmentFault
from .files import sha256_json, write_bytes
from .jobfolder import JobFolder

if TYPE_CHECKING:
    from wsi import Quality, Tissue

    Found = tuple[Tissue, Quality | None]

_DECIDE = ("slide", "tissue", "mpp")
"""What of the parts of a feature file decides on the tissue."""


@contextlib.contextmanager
def keeping(job: JobFolder, *, several: bool) -> Iterator[None]:
    """Keep tissue while `several` µm/px are worked through."""
    if not several:
        yield
        return
    with contextlib.suppress(OSError):  # whether the job folder can be written, the run finds out by itself
        job.kept_tissue.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(job.kept_tissue, ignore_errors=True)


def kept_or(job: JobFolder, slide_id: str, parts: Mapping[str, Any], find: Callable[[], Found]) -> Found:
    """Return the tissue that is kept for just these parts, or what `find` finds, which is kept then.

    Args:
        job: where it is kept, if the run keeps any.
        slide_id: the slide.
        parts: of its feature file.
        find: looks for the tissue.
    """
    if not job.kept_tissue.is_dir():
        return find()
    path, key = job.kept_tissue / f"{slide_id}.npz", sha256_json({name: parts[name] for name in _DECIDE})
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), path.open("rb") as file:
        with np.load(file, allow_pickle=False) as arrays:
            found = _unpacked(arrays, key)
        if found is not None:
            return found
    tissue, quality = find()
    with contextlib.suppress(EnvironmentFault):  # it is found once more
        write_bytes(path, _packed(key, tissue, quality))
    return tissue, quality


def _packed(key: str, tissue: Tissue, quality: Quality | None) -> bytes:
    from PIL import Image

    picture, out = io.BytesIO(), io.BytesIO()
    Image.fromarray(tissue.thumbnail).save(picture, "PNG", compress_level=1)
    masks = {"mask": tissue.mask, "pen": tissue.pen}
    facts: dict[str, Any] = {
        "key": key,
        "slide": tissue.slide,
        "scale": tissue.scale,
        "reason": tissue.reason,
        "drawn": tissue.drawn,
        "unread": tissue.unread,
        "quality": None,
    }
    arrays: dict[str, NDArray[Any]] = {"thumbnail": np.frombuffer(picture.getvalue(), np.uint8)}
    if quality is not None:
        facts["quality"] = {"names": list(quality.masks), "mpp": quality.mpp, "focus": quality.focus is not None}
        masks |= {"area": quality.area, **{f"quality_{name}": mask for name, mask in quality.masks.items()}}
        if quality.focus is not None:
            arrays |= {"focus_xy": quality.focus.xy, "focus_defocus": quality.focus.defocus}
    arrays |= {name: np.packbits(mask) for name, mask in masks.items()}
    np.savez(out, allow_pickle=False, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    return out.getvalue()


def _unpacked(arrays: Mapping[str, NDArray[Any]], key: str) -> Found | None:
    """Return what was packed, None where it was for other parts."""
    from PIL import Image

    import wsi
    from wsi.focus import Focus

    facts = json.loads(arrays["facts"].tobytes())
    if facts["key"] != key:
        return None
    thumbnail = np.array(Image.open(io.BytesIO(arrays["thumbnail"].tobytes()), formats=["PNG"]).convert("RGB"))
    height, width = thumbnail.shape[:2]

    def mask(name: str) -> NDArray[np.bool_]:
        return np.unpackbits(arrays[name], count=height * width).reshape(height, width).astype(bool)

    slide, scale = facts["slide"], (facts["scale"][0], facts["scale"][1])
    found = mask("mask"), mask("pen"), scale, thumbnail
    tissue = wsi.Tissue(slide, *found, facts["reason"], facts["drawn"], facts["unread"])
    told = facts["quality"]
    if told is None:
        return tissue, None
    focus = Focus(arrays["focus_xy"], arrays["focus_defocus"]) if told["focus"] else None
    masks = {name: mask(f"quality_{name}") for name in told["names"]}
    return tissue, wsi.Quality(slide, masks, mask("area"), scale, told["mpp"], focus)
