"""Pictures of a slide on its way in: thumbnail, tissue outline, tile grid. Arrays in, JPEG bytes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .drawing import BLUE, GREEN, INK, ORANGE, PAPER, Color, fitted, font, jpeg, resized, rings, stroke

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from wsi import Quality, TileGrid, Tissue
    from wsi.focus import Focus

_LEAST, _MOST = 640, 1600
_LINE = 22  # pixels of one line of the legend
_TEXT = 13
_ARTIFACT_COLORS: dict[str, Color] = {
    "blur": BLUE,
    "pen": ORANGE,
    "folds": (204, 0, 150),
    "bubbles": (0, 158, 200),
    "edges": (120, 60, 0),
}

Swatch = tuple[Color | None, str]


def thumbnail_jpeg(tissue: Tissue) -> bytes:
    """Return the picture the mask was made from, pixel for pixel, without anything drawn in."""
    from PIL import Image

    return jpeg(Image.fromarray(np.ascontiguousarray(tissue.thumbnail)))


def contour_jpeg(tissue: Tissue) -> bytes:
    """Return the thumbnail with outlines of tissue, its holes and pen marks, and a legend below.

    Args:
        tissue: What was found on the slide.
    """
    from PIL import ImageDraw

    image = resized(tissue.thumbnail, least=_LEAST, most=_MOST)
    image = _tinted(image, tissue.pen, ORANGE, 0.55)
    scale = _picture_scale(image, tissue)
    polygons = tissue.polygons()
    outer, inner = rings(polygons)
    draw = ImageDraw.Draw(image)
    stroke(draw, inner, scale, BLUE, 2)
    stroke(draw, outer, scale, GREEN, 3)
    pieces = "1 piece" if len(outer) == 1 else f"{len(outer)} pieces"
    legend: list[Swatch] = [(GREEN, f"tissue: {tissue.share:.1%} of the slide, {pieces}")]
    legend += [(BLUE, f"holes: {len(inner)}")] if inner else []
    legend += [(ORANGE, "pen, left out")] if tissue.pen.any() else []
    legend += [(None, tissue.reason)] if tissue.reason else []
    return jpeg(_with_legend(image, tissue.slide, legend))


def quality_jpeg(tissue: Tissue, quality: Quality) -> bytes:
    """Return the thumbnail with what is wrong with the tissue tinted, the patches that were looked at, and a legend.

    Args:
        tissue: Gives the thumbnail and its scale.
        quality: Of the same slide.
    """
    from PIL import ImageDraw

    image = resized(tissue.thumbnail, least=_LEAST, most=_MOST)
    for name, mask in quality.masks.items():
        image = _tinted(image, mask, _ARTIFACT_COLORS[name], 0.6)
    scale = _picture_scale(image, tissue)
    draw = ImageDraw.Draw(image)
    outer, inner = rings(tissue.polygons())
    stroke(draw, [*outer, *inner], scale, GREEN, 1, halo=False)
    legend: list[Swatch] = [(GREEN, f"tissue: {tissue.share:.1%} of the slide")]
    legend += [(_ARTIFACT_COLORS[name], f"{name}: {share:.1%} of the tissue") for name, share in quality.shares.items()]
    if quality.focus is None:
        legend.append((None, "blur: not measured, the slide is coarser than 1 µm/px or does not say"))
    else:
        _mark_patches(draw, quality.focus, scale)
        legend.append((None, f"circles: {len(quality.focus.xy)} patches looked at for blur, filled where blurred"))
    return jpeg(_with_legend(image, tissue.slide, legend))


def _mark_patches(draw: ImageDraw.ImageDraw, focus: Focus, scale: tuple[float, float]) -> None:
    for (x, y), defocus in zip((focus.xy * scale).tolist(), focus.defocus.tolist(), strict=True):
        box = (x - 3, y - 3, x + 3, y + 3)
        draw.ellipse(box, outline=INK, fill=_ARTIFACT_COLORS["blur"] if defocus > 0 else None)


def grid_jpeg(tissue: Tissue, grid: TileGrid) -> bytes:
    """Return the thumbnail with the tiles that are read drawn in, and a legend below.

    Args:
        tissue: Gives the thumbnail and its scale.
        grid: Tiles of the same slide.
    """
    from PIL import ImageDraw

    image = resized(tissue.thumbnail, least=_LEAST, most=_MOST)
    scale = _picture_scale(image, tissue)
    outer, inner = rings(tissue.polygons())
    boxes = _boxes(grid.xy, grid.footprint_xy, scale)
    image = _tinted(image, _covered(boxes, (image.height, image.width)), BLUE, 0.16)
    draw = ImageDraw.Draw(image)
    stroke(draw, [*outer, *inner], scale, GREEN, 1, halo=False)
    if len(boxes) and (boxes[:, 2] - boxes[:, 0]).mean() >= 5:
        for x0, y0, x1, y1 in boxes.tolist():
            draw.rectangle((x0, y0, x1, y1), outline=BLUE)
    width_um = grid.footprint_xy[0] * grid.mpp.x
    legend: list[Swatch] = [
        (BLUE, f"{len(grid.xy):,} tiles of {grid.spec.size} px at {grid.spec.mpp:g} µm/px ({width_um:.0f} µm)"),
        (GREEN, "tissue"),
    ]
    legend += [(None, grid.reason)] if grid.reason else []
    return jpeg(_with_legend(image, tissue.slide, legend))


def _picture_scale(image: Image.Image, tissue: Tissue) -> tuple[float, float]:
    """Return pixels of the picture per level-0 pixel, (x, y)."""
    height, width = tissue.thumbnail.shape[:2]
    return image.width / (width * tissue.scale[0]), image.height / (height * tissue.scale[1])


def _boxes(xy: NDArray[np.int64], footprint: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.int64]:
    """Return left, top, right, bottom of each tile in pixels of the picture, (N, 4)."""
    corners = np.asarray(xy, np.float64).reshape(-1, 2)
    low = corners * scale
    high = (corners + footprint) * scale
    return np.rint(np.hstack([low, high])).astype(np.int64)


def _covered(boxes: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels lie in a box, (height, width)."""
    covered = np.zeros(shape, np.bool_)
    for x0, y0, x1, y1 in boxes.tolist():
        covered[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return covered


def _tinted(image: Image.Image, mask: NDArray[np.bool_], color: Color, strength: float) -> Image.Image:
    """Return the picture with a color laid over `mask`, which may have any size."""
    from PIL import Image

    weight = Image.fromarray((np.asarray(mask) * round(255 * strength)).astype(np.uint8))
    if weight.size != image.size:
        weight = weight.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, color), image, weight)


def _with_legend(image: Image.Image, title: str, legend: list[Swatch]) -> Image.Image:
    """Return the picture with its title and legend on white below it, so that nothing is covered."""
    from PIL import Image, ImageDraw

    margin = 10
    entries = [(color, fitted(text, _TEXT, image.width - 2 * margin - 20)) for color, text in legend]
    rows = _rows(entries, image.width - 2 * margin)
    out = Image.new("RGB", (image.width, image.height + _LINE * (1 + len(rows)) + margin), PAPER)
    out.paste(image, (0, 0))
    draw = ImageDraw.Draw(out)
    y = image.height + 6
    title = fitted(title, _TEXT, image.width - 2 * margin, bold=True)
    draw.text((margin, y), title, fill=INK, font=font(_TEXT, bold=True))
    for row in rows:
        y += _LINE
        x = float(margin)
        for color, text in row:
            if color is not None:
                draw.rectangle((x, y + 3, x + 11, y + 14), fill=color)
                x += 17
            draw.text((x, y), text, fill=INK, font=font(_TEXT))
            x += font(_TEXT).getlength(text) + 22
    return out


def _rows(entries: list[Swatch], width: float) -> list[list[Swatch]]:
    """Break legend entries into rows that fit into `width` pixels."""
    rows: list[list[Swatch]] = []
    left = 0.0
    for entry in entries:
        need = font(_TEXT).getlength(entry[1]) + 39
        if not rows or left < need:
            rows.append([])
            left = width + 22
        rows[-1].append(entry)
        left -= need
    return rows
