"""Files as Philips, Leica and Ventana lay them out, as far as OpenSlide needs it; lossless, so every pixel is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from _slides import halved

TILE = 256
_OPTIONS = {"photometric": "rgb", "compression": "adobe_deflate", "tile": (TILE, TILE), "metadata": None}


def write_philips(path: Path, image: np.ndarray, *, levels: int = 3, filling: int = 90) -> Path:
    """Write a pyramid whose levels are filled up to whole tiles, of gray `filling`; level 0 as it is."""
    spacings = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
        f'"{2**n * 0.00025}" "{2**n * 0.00025}"</Attribute></DataObject>'
        for n in range(levels)
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">"0.00025" "0.00025"</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{spacings}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number in range(levels):
            rows, columns = (-side % TILE for side in image.shape[:2])
            stored = np.pad(image, ((0, rows), (0, columns), (0, 0)), constant_values=filling)
            software, subfile = "Philips DP v1.0", 1 if number else 0
            tiff.write(
                stored, software=software, description=text if not number else None, subfiletype=subfile, **_OPTIONS
            )
            image = halved(image)
    return path


def write_leica(
    path: Path,
    parts: list[tuple[int, int, np.ndarray]],
    canvas: tuple[int, int],
    *,
    levels: int = 3,
    with_macro: bool = True,
):
    """Write scanned parts (left, top, pixels) of a canvas, each a pyramid of its own, and a macro; 250 nm a pixel."""
    images, pages = [], []
    macro = np.full((canvas[1] // 10, canvas[0] // 10, 3), 220, np.uint8)
    for left, top, pixels, width, height, count in (
        *((*part, part[2].shape[1], part[2].shape[0], levels) for part in parts),
        *([(0, 0, macro, *canvas, 1)] if with_macro else []),
    ):
        dimensions = ""
        for number in range(count):
            dimensions += (
                f'<dimension sizeX="{pixels.shape[1]}" sizeY="{pixels.shape[0]}" r="{number}" ifd="{len(pages)}"/>'
            )
            pages.append((number, pixels))
            pixels = halved(pixels)
        images.append(
            f'<image><device model="test"/><pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
            f'<view sizeX="{width * 250}" sizeY="{height * 250}" '
            f'offsetX="{round(left * 250)}" offsetY="{round(top * 250)}"/>'
            "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>"
            "<illuminationSource>brightfield</illuminationSource><numericalAperture>0.65</numericalAperture>"
            "</illuminationSettings></scanSettings></image>"
        )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{canvas[0] * 250}" sizeY="{canvas[1] * 250}">{"".join(images)}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for place, (number, pixels) in enumerate(pages):
            scale = 40000 / 2**number
            description = text if place == 0 else None
            tiff.write(
                pixels, description=description, resolution=(scale, scale), resolutionunit="CENTIMETER", **_OPTIONS
            )
    return path


def write_ventana(path: Path, image: np.ndarray, *, overlap: int = 0, levels: int = 2) -> Path:
    """Write one area of whole tiles, numbered like a snake from below, each `overlap` px over its neighbors."""
    across, down = image.shape[1] // TILE, image.shape[0] // TILE
    joints = ""
    for row in range(down):
        for column in range(across):
            tile = _snake(column, row, across, down)
            for other, name in (((column + 1, row), "RIGHT"), ((column, row - 1), "UP")):
                if other[0] < across and other[1] >= 0:
                    sides = (
                        f'OverlapX="{overlap if name == "RIGHT" else 0}" OverlapY="{overlap if name == "UP" else 0}"'
                    )
                    numbers = f'Tile1="{tile}" Tile2="{_snake(*other, across, down)}"'
                    joints += f'<TileJointInfo Confidence="99" Direction="{name}" {numbers} {sides}/>'
    size = f'Width="{TILE}" Height="{TILE}" NumRows="{down}" NumCols="{across}"'
    encode = (
        f'<EncodeInfo><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" {size} Pos-X="0" Pos-Y="0">{joints}'
        '</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = '<iScan Magnification="40" ScanRes="0.25" Z-layers="1"/>'
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        label = np.full((64, 64, 3), 200, np.uint8)
        tiff.write(label, photometric="rgb", description="Label Image", metadata=None, extratags=[_xml(scan)])
        for number in range(levels):
            text = f"level={number} mag={40 // 2**number} quality=95"
            extra = [_xml(encode)] if number == 0 else []
            rows, columns = (-side % TILE for side in image.shape[:2])
            stored = np.pad(image, ((0, rows), (0, columns), (0, 0)), constant_values=255)
            tiff.write(stored, description=text, extratags=extra, **_OPTIONS)
            image = halved(image)
    return path


def _snake(column: int, row: int, across: int, down: int) -> int:
    """Return the number of a tile: rows from below, every second one from right to left."""
    line = down - row - 1
    return line * across + (across - column - 1 if line % 2 else column) + 1


def _xml(text: str) -> tuple[int, str, int, bytes, bool]:
    data = text.encode() + b"\0"
    return 700, "B", len(data), data, True
