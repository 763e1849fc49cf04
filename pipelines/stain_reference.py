"""`slidemil stain fit`: one reference from a folder of slides or images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import stain
import wsi

from .errors import ExitCode, UsageError
from .files import write_text
from .manifest import Sources
from .outcome import Said
from .progress import progress
from .slide_work import pooled_pixels
from .stain_target import read_image
from .targets import check_json
from .tissue_images import find_images


def fit_cohort(
    sources: Sequence[Path] | Sources,
    out: Path,
    method: str = "macenko",
    *,
    mpp: float = 0.5,
    slide_mpp: float | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> Said:
    """Fit every slide and image, and write the middle of them.

    Raises:
        NothingMatchedError: neither slide nor image was found.
        UsageError: `out` is something else than an earlier reference.
        stain.StainError: no such method, or none of them can be fitted.
    """
    check_json(out, "-o", "stain reference", ("kind", "method", "target"))
    measures: list[stain.StainMatrix | stain.LabStatistics] = []
    left_out: Counter[str] = Counter()
    lines, rows = [], []
    spec = wsi.TileSpec(size=224, mpp=mpp)
    for name, found in _each(sources, spec, slide_mpp, method, limit, quiet):
        cause = found if isinstance(found, str) else found.status
        rows.append({"name": name, "status": cause})
        if not isinstance(found, str) and found.source is not None:
            measures.append(found.source)
        else:
            left_out["unreadable" if isinstance(found, str) else cause] += 1
            lines.append(f"  left out  {name}: {cause}")
    reference = stain.combine(method, measures, dict(left_out))
    write_text(out, json.dumps(reference.to_json(), indent=1) + "\n")
    unit = "ΔE" if method == "reinhard" else "°"
    spread = ", ".join(f"{value:.1f} {unit}" for value in reference.spread)
    lines.insert(0, f"{out}: {method}, middle of {reference.slides} slides (median distance to it {spread})")
    lines.append(f"use it: slidemil extract SLIDES -o JOB --stain {method} --stain-reference {out}")
    code = ExitCode.SOME_FAILED if left_out["unreadable"] else ExitCode.DONE
    status = "partial" if left_out["unreadable"] else "done"
    return Said(tuple(lines), {"status": status, "reference": reference.to_json(), "slides": rows}, code)


def _each(
    sources: Sequence[Path] | Sources,
    spec: wsi.TileSpec,
    slide_mpp: float | None,
    method: str,
    limit: int | None,
    quiet: bool,
) -> Iterator[tuple[str, stain.StainParams | str]]:
    """Yield the name of each slide or image with its fit, or why it cannot be read."""
    given = find_images(sources, slide_mpp=slide_mpp)
    images, entries = given.images, given.slides
    with progress("stain fit", "slides", quiet=quiet) as bar:
        bar.total(len(images[:limit]) + len(entries[:limit]))
        for path in images[:limit]:
            try:
                found: stain.StainParams | str = stain.fit(method, read_image(path))
            except UsageError as error:
                found = str(error).removeprefix(f"{path.name}: ")
            yield path.name, found
            bar.advance(1)
        for entry in entries[:limit]:
            try:
                with wsi.open_slide(entry.path, slide_mpp=slide_mpp, manifest_mpp=entry.mpp) as slide:
                    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), spec)
                    found = stain.fit(method, pooled_pixels(slide, grid))
            except wsi.SlideError as error:
                found = f"{error.what}. {error.mend}"
            yield entry.slide_id, found
            bar.advance(1)
