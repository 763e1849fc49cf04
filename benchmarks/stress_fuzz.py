"""Do mutated slides give anything but slides and our errors?    python benchmarks/stress_fuzz.py [--quick]

10,000 files made from small slides of many formats by flipping bits, overwriting bytes and tags, blanking, cutting and
moving parts, with a fixed seed. Each is used as a job uses a slide, in a process that may be lost. Then every slide cut
at 200 places: refused, or the very pixels. Then 2,000 single bits flipped in a JPEG tile: how many are seen. JPEG has
no checksum, so not all can be; OpenSlide reports about 23 %.
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
}
SECONDS = 10.0
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


def flips(room: Path, count: int) -> dict[str, float]:
    """Flip single bits of a JPEG tile; return the share that is reported, and that of silently wrong pixels."""
    import tifffile

    rng, dice = np.random.default_rng(0), random.Random(0)
    y, x = np.mgrid[:256, :256]
    picture = np.stack([150 + 60 * np.sin(x / f) * np.cos(y / f) + rng.normal(0, 12, x.shape) for f in (9, 11, 13)], -1)
    path = room / "flip.svs"
    text = "Aperio Image Library v12.0\n256x256 (256x256) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5"
    options: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 80}, "description": text}
    image = np.clip(picture, 0, 255).astype(np.uint8)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", metadata=None, software=False, **options)
    with tifffile.TiffFile(path) as tiff:
        (begin,), (length,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    data, truth = path.read_bytes(), whole(path).astype(int)
    reported = silent = 0
    for _ in range(count):
        out = bytearray(data)
        out[begin + dice.randrange(length)] ^= 1 << dice.randrange(8)
        path.write_bytes(out)
        found = tile_of(path)
        reported += found is None
        silent += found is not None and (abs(found.astype(int) - truth) > 16).any(-1).mean() > 0.01
    line(flips=count, reported=reported, silently_wrong=silent)
    return {"flips_reported": reported / count, "flips_silently_wrong": silent / count}


def tile_of(path: Path) -> Any:
    """Return the one tile of a slide as it is streamed, None where that fails."""
    import wsi
    from wsi.plan import read_plan

    try:
        with wsi.open_slide(path) as slide:
            plan = read_plan(slide, wsi.tile_grid(slide, None, wsi.TileSpec(256, 0.5)))
            tile = np.empty((256, 256, 3), np.uint8)
            failed = [plan.read(request, lambda _: tile) for request in plan.requests()]
    except wsi.SlideError:
        return None
    return None if any(failed) else tile


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
        figures |= flips(Path(folder), bits)
    summary("stress_fuzz", figures, GOALS, {"slides": len(slides), "seed": 0, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
