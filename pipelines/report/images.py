"""Pictures of the job → small pictures inside the page, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 18_000_000
"""All pictures of a page together: 24 MB as base64, which leaves room under 30 MB for the tables of 2,000 slides."""


@dataclass(frozen=True)
class Picture:
    """One picture inside the page."""

    uri: str
    width: int
    height: int
    paths: tuple[str, ...] = ()
    """Outlines of the truth as SVG paths, in pixels of the original picture."""
    view: tuple[int, int] = (1, 1)
    """Size of the original picture in pixels."""


class Gallery:
    """Makes pictures for one part of the page and keeps count of their bytes.

    Args:
        share: of `MOST_BYTES` that they may take together.
    """

    def __init__(self, share: float) -> None:
        self.most = share * MOST_BYTES
        self.bytes = 0
        self.left_out = 0

    def add(self, path: Path, *, width: int, truth: Path | None = None, quality: int = 80) -> Picture | None:
        """Return the picture at most `width` pixels wide; None where it is damaged or the budget is spent.

        Args:
            path: PNG or JPEG.
            width: Of the picture in the page, in pixels.
            truth: GeoJSON of the true region, drawn over a heatmap that says where the slide lies in it.
            quality: of the JPEG.
        """
        from PIL import Image

        if self.bytes >= self.most:
            self.left_out += 1
            return None
        try:
            with Image.open(path) as image:
                outline = _outline(image.info, truth) if truth is not None else ()
                view = image.size
                data, size = _small(image, width, quality)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
        self.bytes += len(data)
        uri = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
        return Picture(uri, size[0], size[1], outline, view)


def _small(image: Image.Image, width: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Return JPEG bytes of the picture at most `width` wide, and its size."""
    from PIL import Image

    image.draft("RGB", (2 * width, 2 * width))  # a JPEG is decoded no larger than needed
    shown = image.convert("RGB")
    if shown.width > width:
        size = (width, max(1, round(shown.height * width / shown.width)))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue(), shown.size


def _outline(info: Mapping[Any, Any], truth: Path) -> tuple[str, ...]:
    """Return the truth's rings as SVG paths in pixels of the heatmap."""
    from pipelines.heatmap import FRAME_KEY

    try:
        frame = json.loads(str(info[FRAME_KEY]))
        x_scale = frame["width"] / frame["slide_size"][0]
        y_scale = frame["height"] / frame["slide_size"][1]
        features = json.loads(truth.read_text(encoding="utf-8"))["features"]
        paths = []
        for ring in (ring for feature in features for ring in _rings(feature["geometry"])):
            points = (
                f"{frame['left'] + float(x) * x_scale:.1f} {frame['top'] + float(y) * y_scale:.1f}" for x, y, *_ in ring
            )
            paths.append("M" + "L".join(points) + "Z")
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return ()
    return tuple(paths)


def _rings(geometry: Mapping[str, Any]) -> list[Any]:
    """Return all rings of a polygon or multi-polygon."""
    if geometry["type"] == "Polygon":
        return list(geometry["coordinates"])
    if geometry["type"] == "MultiPolygon":
        return [ring for polygon in geometry["coordinates"] for ring in polygon]
    return []
