"""Do mutated slides give anything but slides and our errors?    python benchmarks/stress_fuzz.py [--quick]

10,000 files made from small slides of many formats by flipping bits, overwriting bytes and tags, blanking, cutting and
moving parts, with a fixed seed. Each is used as a job uses a slide, in a process that may be lost. Then every slide cut
at 200 places: refused, or the very pixels. Then 2,000 single bits flipped in a JPEG tile: how many are seen. JPEG has
no checksum, so not all can be; but whatever OpenSlide reports must be reported.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _bad_slides import write_zoo
from _fuzz import Item, look, whole
from _slides import SHARED
from _summary import line, summary
from _tree import Watch

GOALS = {
    "hangs": ("<=", 0),
    "foreign": ("<=", 0),
    "processes_lost": ("<=", 0),
    "cuts_wrong": ("<=", 0),
    "flips_reported": (">=", 0.2),
    "flips_only_openslide_reports": ("<=", 0),
}
SECONDS = 10.0
TILE = 5
"""The tile of the Aperio slide whose bits are flipped."""
SOURCES = (
    "good/aperio.svs",
    "good/plain.tiff",
    "good/ome.ome.tiff",
    "good/aperio_big.svs",
    "good/big_endian.tiff",
    "good/jpeg_tables.tiff",
    "good/jpeg2000.svs",
    "good/sparse.tiff",
    "format/rgba.tiff",
    "format/planar.tiff",
    "format/strips.tiff",
    "format/palette.tiff",
    "format/cmyk.tiff",
)
MORE = ("conformance/boxes.tiff", "conformance/boxes_0.dcm", "conformance/small.svs")


def sources(folder: Path) -> list[Path]:
    """Return small slides of many formats: those of the generator, and real ones where they are at hand."""
    write_zoo(folder, lambda case: case["file"] in SOURCES)
    made = [folder / name for name in SOURCES]
    return made + [path for name in MORE if (path := SHARED / "data/slides" / name).exists()]


def fuzz(slides: list[Path], count: int) -> dict[str, float]:
    """Use mutated slides in processes that may be lost; return what became of them."""
    from pipelines.losable import Done, each

    dice = random.Random(0)
    items = [Item(str(dice.choice(slides)), number) for number in range(count)]
    ends: Counter[str] = Counter()
    began = time.monotonic()
    with Watch(os.getpid(), every=0.25) as watch:
        for item, answer in each(look, items, workers=2, seconds=SECONDS, memory=4 << 30):
            end, said = answer.value if isinstance(answer, Done) else (answer.kind, answer.what)
            ends[end] += 1
            if end in ("foreign", "died", "late", "raised"):
                line(file=str(item), end=end, said=said)
    line(ends=dict(ends), seconds=round(time.monotonic() - began, 1))
    watch.peaks.pop(os.getpid(), None)
    return {
        "files": count,
        "hangs": ends["late"],
        "foreign": ends["foreign"] + ends["raised"],
        "processes_lost": ends["died"],
        "refused_share": (ends["refused"] + ends["tiles failed"]) / count,
        "worst_mb": max(watch.peaks.values(), default=0) / 1e6,
    }


def cuts(slides: list[Path], room: Path, places: int) -> int:
    """Cut each slide at many places; return how many of the parts show anything but the slide's own pixels."""
    wrong = 0
    for path in slides:
        data, truth = path.read_bytes(), whole(path)
        short = room / f"cut-{path.name}"
        for length in np.unique(np.linspace(0, len(data) - 1, places).astype(int)).tolist():
            short.write_bytes(data[:length])
            found = whole(short)
            if not isinstance(found, str) and not (np.shape(found) == np.shape(truth) and (found == truth).all()):
                wrong += 1
                line(cut=path.name, at=length)
        short.unlink()
    return wrong


def flips(slide: Path, room: Path, count: int) -> dict[str, float]:
    """Flip single bits of a JPEG tile; return the share that is reported, and how many OpenSlide alone reports."""
    import tifffile

    with tifffile.TiffFile(slide) as tiff:
        begin, length = tiff.pages.first.dataoffsets[TILE], tiff.pages.first.databytecounts[TILE]
    data, path, dice = slide.read_bytes(), room / "flip.svs", random.Random(0)
    truth = tile_of(slide).astype(int)
    ends: Counter[str] = Counter()
    for _ in range(count):
        out = bytearray(data)
        out[begin + dice.randrange(length)] ^= 1 << dice.randrange(8)
        path.write_bytes(out)
        found = tile_of(path)
        if found is None:
            ends["reported"] += 1
        else:
            wrong = (abs(found.astype(int) - truth) > 16).any(-1).mean()
            ends["silently wrong" if wrong > 0.01 else "slightly wrong" if wrong else "harmless"] += 1
            ends["missed"] += not shown_by_openslide(path)
    line(flips=count, ends=dict(ends))
    return {
        "flips_reported": ends["reported"] / count,
        "flips_silently_wrong": ends["silently wrong"] / count,
        "flips_only_openslide_reports": ends["missed"],
    }


def place_of() -> tuple[int, int]:
    """Return where the tile lies whose bits are flipped: the slide is four tiles wide."""
    return TILE % 4 * 256, TILE // 4 * 256


def tile_of(path: Path) -> Any:
    """Return one tile of a slide as it is streamed, None where that fails."""
    import wsi
    from wsi.plan import read_plan

    try:
        with wsi.open_slide(path, slide_mpp=0.5) as slide:
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(256, 0.5))
            plan, row = read_plan(slide, grid), grid.xy.tolist().index(list(place_of()))
            tiles = np.zeros((len(grid), 256, 256, 3), np.uint8)
            failed = [plan.read(request, tiles.__getitem__) for request in plan.requests()]
    except wsi.SlideError:
        return None
    return None if any(row in one for one in failed) else tiles[row]


def shown_by_openslide(path: Path) -> bool:
    import openslide

    try:
        with openslide.OpenSlide(path) as handle:
            handle.read_region(place_of(), 0, (256, 256))
    except openslide.OpenSlideError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="150 files, 10 places, 60 bits")
    parser.add_argument("--files", type=int)
    args = parser.parse_args()
    files, places, bits = (150, 10, 60) if args.quick else (args.files or 10_000, 200, 2000)
    with tempfile.TemporaryDirectory() as folder:
        slides = sources(Path(folder) / "slides")
        figures = fuzz(slides, files)
        figures["cuts_wrong"] = cuts(slides, Path(folder), places)
        figures |= flips(slides[0], Path(folder), bits)
    summary("stress_fuzz", figures, GOALS, {"slides": len(slides), "seed": 0, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
