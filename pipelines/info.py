"""`slidemil info`: what a slide is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wsi
from wsi.errors import printable

from .errors import ExitCode
from .manifest import SlideEntry, Sources, find_slides
from .outcome import Said
from .scan_slide import tissue_or_why
from .slide_work import reader_of


def look(sources: Sequence[Path] | Sources, *, slide_mpp: float | None = None) -> Said:
    """Open each slide and say what it is; a slide that cannot be opened is said with its cause.

    Raises:
        NothingMatchedError: no slide was found.
    """
    rows = [_describe(entry, slide_mpp) for entry in find_slides(sources).entries]
    lines = [line for row in rows for line in _lines(row)]
    failed = any("error" in row for row in rows)
    status = "partial" if failed else "done"
    return Said(tuple(lines), {"status": status, "slides": rows}, ExitCode.SOME_FAILED if failed else ExitCode.DONE)


def _describe(entry: SlideEntry, slide_mpp: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"slide_id": entry.slide_id, "path": str(entry.path)}
    try:
        with wsi.open_slide(entry.path, slide_mpp=slide_mpp, manifest_mpp=entry.mpp) as slide:
            mpp = slide.mpp
            return row | {
                "reader": reader_of(slide),
                "vendor": slide.vendor,
                "width": slide.size[0],
                "height": slide.size[1],
                "levels": [[level.width, level.height] for level in slide.levels],
                "mpp": None if mpp is None else [mpp.x, mpp.y],
                "mpp_source": None if mpp is None else mpp.source,
                "mpp_problem": slide.mpp_problem,
                "objective_power": slide.objective_power,
                "icc_profile": None if slide.profile is None else slide.profile.description or "unnamed",
                "icc_problem": None if slide.profile is None else slide.profile.problem,
                "files": len(entry.files),
                "problem": _problem(slide),
            }
    except wsi.SlideError as error:
        return row | {"error": error.what, "mend": error.mend}


def _problem(slide: wsi.Slide) -> str | None:
    """Return why a job would refuse the slide for its picture, None where it would not."""
    finding = tissue_or_why(slide)[1]
    return f"{finding.what}. {finding.mend}".rstrip() if finding is not None and finding.light == "red" else None


def _lines(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [f"{row['slide_id']}: {row['error']}. {row['mend']}".rstrip()]
    mpp = row["mpp"]
    resolution = f"{mpp[0]:.4g} × {mpp[1]:.4g} µm/px ({row['mpp_source']})" if mpp else str(row["mpp_problem"])
    levels = ", ".join(f"{width} × {height}" for width, height in row["levels"])
    power = f", objective {row['objective_power']:g}x" if row["objective_power"] else ""
    colors = [f"  colors      {_profile(row)}"] if row["icc_profile"] else []
    problem = [f"  problem     {printable(row['problem'])}"] if row["problem"] else []
    return [
        f"{row['slide_id']}: {row['width']} × {row['height']} px, {row['vendor'] or 'maker unknown'}{power}",
        f"  resolution  {resolution}",
        f"  levels      {levels}",
        *colors,
        f"  reader      {row['reader']}",
        *problem,
    ]


def _profile(row: dict[str, Any]) -> str:
    if row["icc_problem"]:
        return f"damaged profile ({row['icc_problem']}): --set icc=srgb would fail this slide"
    return f"profile `{row['icc_profile']}`, applied with --set icc=srgb"
