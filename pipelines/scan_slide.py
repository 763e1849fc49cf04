"""One slide under the eye of `slidemil scan`: what it is, and what a job would meet on it.

Each slide is looked at in a process of its own that may be lost: see `pipelines.losable`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

import wsi
from wsi.anatomy import anatomy
from wsi.geometry import best_level
from wsi.probe import LevelProbe, Probe, probe, zeros_in
from wsi.remote_path import RemotePath
from wsi.resize import resize_area

from .manifest import SlideEntry
from .tissue_of_slide import unread_told
from .units import counted

Light = Literal["green", "amber", "red"]
LIGHTS: tuple[Light, ...] = ("green", "amber", "red")

_BLOCK = 1 << 16
"""Bytes of each file that a first digest looks at: at its start, middle and end."""
_MOST_FOR_TISSUE = 4e8
"""Pixels that are read for the tissue at most: a huge slide without a pyramid takes a job minutes there."""
_SOME, _MUCH = 0.02, 0.2
"""Shares of the tissue from which on a flaw is told, and from which on it is a warning."""
_OPENED, _COPIED = 180.0, 3600.0
"""Seconds that looking at a slide may take, and getting a copy of one that lies elsewhere."""
_SIGNATURE = 32
"""Side of the small picture by which slides are compared, px: a biopsy of a millimeter must show."""


@dataclass(frozen=True)
class ScanSettings:
    """What a job would be asked, and how closely to look.

    Attributes:
        mpp: µm per pixel of the tiles.
        tile: side of a tile in px at `mpp`.
        slide_mpp: µm per pixel for slides whose own value is missing or refused.
        allow_upsampling: take slides coarser than `mpp`, too.
        max_bad_tiles: share of unreadable tiles over which a slide fails.
        deep: decode every tile.
        quality: look for blur, pen, folds, bubbles and edges.
    """

    mpp: float = 0.5
    tile: int = 224
    slide_mpp: float | None = None
    allow_upsampling: bool = False
    max_bad_tiles: float = 0.01
    deep: bool = False
    quality: bool = True


@dataclass(frozen=True)
class Finding:
    """Something odd about a slide.

    Attributes:
        light: `green` (a note), `amber` (runs, or needs an option) or `red` (fails).
        code: its group in the summary.
        what: what was found, without a full stop.
        mend: what helps, as whole sentences; may be empty.
    """

    light: Light
    code: str
    what: str
    mend: str = ""


@dataclass(frozen=True)
class SlideRow:
    """All that is known of one slide; None where it could not be found out.

    Attributes:
        entry: the slide, as a job would name it.
        findings: what is odd about it, worst first.
        file_count: how many files it is made of.
        total_bytes: of all its files.
        digest: of a few blocks of them: equal for equal files.
        reader: the library that reads it.
        vendor: the scanner's maker.
        container: kind of file.
        compression: of level 0.
        native_tile: width and height, px.
        levels: (width, height) of each, sharpest first.
        mpp: µm per px, x and y.
        mpp_source: where they come from; `missing` or `refused` where there are none.
        mpp_problem: why the slide's own are not used.
        objective: 20 for 20x.
        icc: the name of its color profile.
        direct: whether tiles are taken straight from the file.
        tissue_share: the share of the slide that is tissue.
        tiles: how many a job would cut.
        probe: what came of decoding, in words.
        quality: flaw → share of the tissue that has it; empty where that was not looked for.
        signature: a small picture of it.
    """

    entry: SlideEntry
    findings: tuple[Finding, ...] = ()
    file_count: int = 1
    total_bytes: int | None = None
    digest: str | None = None
    reader: str | None = None
    vendor: str | None = None
    container: str | None = None
    compression: str | None = None
    native_tile: tuple[int, int] | None = None
    levels: tuple[tuple[int, int], ...] = ()
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    mpp_problem: str | None = None
    objective: float | None = None
    icc: str | None = None
    direct: bool | None = None
    tissue_share: float | None = None
    tiles: int | None = None
    probe: str | None = None
    quality: dict[str, float] = field(default_factory=dict)
    signature: bytes | None = None

    @property
    def light(self) -> Light:
        """The worst of its findings."""
        return max((finding.light for finding in self.findings), key=LIGHTS.index, default="green")

    @property
    def worst(self) -> Finding | None:
        """What decides the light, None where it is green."""
        return None if self.light == "green" else self.findings[0]

    def having(self, *more: Finding) -> SlideRow:
        """Return the row with more findings, worst first."""
        found = sorted((*self.findings, *more), key=lambda finding: -LIGHTS.index(finding.light))
        return replace(self, findings=tuple(dict.fromkeys(found)))


@dataclass(frozen=True)
class Task:
    """What a process is asked."""

    entry: SlideEntry
    settings: ScanSettings


def look(task: Task) -> SlideRow:
    """Look at one slide: its files, what they say, its tissue, and whether its tiles can be decoded."""
    entry, settings = task.entry, task.settings
    row = SlideRow(entry)
    try:
        row = _with_files(row)
        with wsi.open_slide(entry.path, slide_mpp=settings.slide_mpp, manifest_mpp=entry.mpp) as slide:
            return _with_pixels(_with_facts(row, slide), slide, settings)
    except wsi.NotBrightfieldError as error:
        return row.having(Finding("red", "not-brightfield", error.what, error.mend))
    except wsi.SlideError as error:
        zeros = zeros_in(entry.path)
        more = [Finding("red", "damaged", zeros, "Copy the slide again.")] if zeros else []
        return row.having(*more, Finding("red", "unreadable", error.what, error.mend))
    except OSError as error:  # a disk that fails, a share that is gone
        return row.having(_cannot_be_read(error))
    except MemoryError:
        return row.having(
            Finding("red", "unreadable", "it asks for more memory than a slide should", "Convert it anew.")
        )


def _with_files(row: SlideRow) -> SlideRow:
    digest = hashlib.sha256()
    total = 0
    try:
        files = row.entry.files
        for path in files:
            if not path.is_file():
                continue  # what it is, or that it is gone, is said when it is opened
            size = path.stat().st_size
            total += size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                for place in sorted({0, max(0, size // 2 - _BLOCK // 2), max(0, size - _BLOCK)}):
                    file.seek(place)
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        return row.having(_cannot_be_read(error))
    return replace(row, file_count=len(files), total_bytes=total, digest=digest.hexdigest() if total else None)


def _cannot_be_read(error: OSError) -> Finding:
    what = f"it cannot be read ({error.strerror or error})"
    return Finding("red", "unreadable", what, getattr(error, "mend", "Check the disk, the path and its rights."))


def _with_facts(row: SlideRow, slide: wsi.Slide) -> SlideRow:
    form, mpp = anatomy(slide), slide.mpp
    missing = "missing" if "does not state" in (slide.mpp_problem or "does not state") else "refused"
    row = replace(
        row,
        reader=slide.reader,
        vendor=slide.vendor,
        container=form.container,
        compression=form.compression,
        native_tile=form.tile,
        levels=tuple((level.width, level.height) for level in slide.levels),
        mpp=None if mpp is None else (mpp.x, mpp.y),
        mpp_source=missing if mpp is None else mpp.source,
        mpp_problem=slide.mpp_problem,
        objective=slide.objective_power,
        icc=None if slide.profile is None else slide.profile.description or "unnamed",
        direct=getattr(slide, "native", None) is not None,
    )
    if slide.profile is not None and slide.profile.problem:
        what = f"its color profile is damaged ({slide.profile.problem})"
        row = row.having(Finding("green", "icc", what, "Do not give `--set icc=srgb`: it fails this slide."))
    if mpp is not None and slide.mpp_problem:
        row = row.having(Finding("green", "mended-mpp", f"{mpp.source} serves: {slide.mpp_problem}"))
    return row


def _with_pixels(row: SlideRow, slide: wsi.Slide, settings: ScanSettings) -> SlideRow:
    spec = wsi.TileSpec(size=settings.tile, mpp=settings.mpp)
    grid, refusal = _grid(slide, None, spec, settings)
    if refusal:
        row = row.having(refusal)
    tissue, problem = tissue_or_why(slide)
    if problem:
        row = row.having(problem)
    if tissue is not None:
        row = replace(row, tissue_share=round(tissue.share, 6), signature=_signature(tissue))
        row = row.having(
            *(Finding("amber", "damaged", what, "Best copy the slide again.") for what in unread_told(tissue))
        )
        if grid is not None:
            grid = _grid(slide, tissue, spec, settings)[0]
            assert grid is not None
            row = replace(row, tiles=len(grid)).having(*_why_empty(grid))
        elif tissue.reason:
            row = row.having(Finding("amber", "no-tissue", tissue.reason))
    if any(finding.code == "not-brightfield" for finding in row.findings):
        return row
    found = probe(slide, tissue, deep=settings.deep)
    row = replace(row, probe=_in_words(found)).having(*_damage(found, grid, settings))
    return _with_quality(row, slide, tissue) if settings.quality and tissue is not None else row


def _grid(
    slide: wsi.Slide, tissue: wsi.Tissue | None, spec: wsi.TileSpec, settings: ScanSettings
) -> tuple[wsi.TileGrid | None, Finding | None]:
    """Return the tiles a job would cut, or why it would cut none."""
    try:
        return wsi.tile_grid(slide, tissue, spec, allow_upsampling=settings.allow_upsampling), None
    except wsi.MissingMppError as error:
        return None, Finding("amber", "no-mpp", error.what, error.mend)
    except wsi.MppError as error:
        return None, Finding("amber", "refused-mpp", error.what, error.mend)
    except wsi.TooCoarseError as error:
        return None, Finding("amber", "too-coarse", error.what, error.mend)
    except wsi.GridError as error:
        return None, Finding("amber", "no-grid", error.what, error.mend)


def tissue_or_why(slide: wsi.Slide) -> tuple[wsi.Tissue | None, Finding | None]:
    """Find the tissue as a job does, unless that reads a huge level whole."""
    ratio = max(slide.size) / 1024
    level = slide.levels[best_level([one.downsample for one in slide.levels], (ratio, ratio))]
    if level.width * level.height > _MOST_FOR_TISSUE:
        what = f"no small level: a job reads all {level.width:,} x {level.height:,} px to find the tissue"
        return None, Finding("amber", "no-pyramid", what, "It runs, but slowly; a pyramid would help.")
    try:
        return wsi.find_tissue(slide), None
    except wsi.NotBrightfieldError as error:
        return None, Finding("red", "not-brightfield", error.what, error.mend)
    except wsi.SlideError as error:
        mend = error.mend or "Copy the slide again."
        zeros = zeros_in(slide.path)  # says more than what some decoder makes of them
        what = f"its tissue cannot be found: {error.what}" if zeros is None else f"{zeros}; its tissue cannot be found"
        return None, Finding("red", "damaged", what, mend)


def _why_empty(grid: wsi.TileGrid) -> Iterable[Finding]:
    if grid.reason:
        yield Finding("amber", "no-tissue", grid.reason)


def _damage(found: Probe, grid: wsi.TileGrid | None, settings: ScanSettings) -> Iterable[Finding]:
    """Judge what the decoder said: the share of a job's tiles decides, other levels are worth a warning."""
    for one in found.levels:
        if not one.bad:
            continue
        if one.level != (grid.level if grid else 0):
            yield Finding("amber", "damaged", _bad_tiles(one), "Best copy the slide again.")
            continue
        share = one.share_of(grid) if grid else one.share
        about = "" if one.complete else "about "
        what = f"{_bad_tiles(one)}; {about}{share:.1%} of a job's tiles touch such"
        if share > settings.max_bad_tiles:
            yield Finding("red", "damaged", what, "Copy the slide again.")
        else:
            yield Finding("amber", "damaged", what, "Best copy the slide again.")
    left_out = found.levels[0].left_out
    if left_out:
        what = f"the scanner left out {left_out:,} of {counted(found.levels[0].tiles, 'tile')}, taken for glass"
        yield Finding("green", "sparse", what)
    if not found.in_time:
        yield Finding("green", "slow", "decoding is so slow that fewer tiles than usual were looked at")


def _bad_tiles(one: LevelProbe) -> str:
    where = f"level {one.level}"
    if one.zeroed:
        never = (
            f", {one.never_written:,} of them in parts of the file that were never written" if one.never_written else ""
        )
        return f"{one.zeroed:,} of {one.tiles:,} tiles of {where} are zeros{never}"
    first = one.examples[0]
    looked = f"{one.bad:,} of {one.decoded:,} tiles" + ("" if one.decoded == one.tiles else " looked at")
    return f"{looked} of {where} cannot be read, e.g. column {first.column}, row {first.row}: {first.cause}"


def _with_quality(row: SlideRow, slide: wsi.Slide, tissue: wsi.Tissue) -> SlideRow:
    """Add what is wrong with the tissue; a job takes such a slide all the same."""
    if not tissue.mask.any():
        return row
    try:
        shares = wsi.check_quality(slide, tissue).shares
    except wsi.SlideError as error:
        return row.having(Finding("green", "quality", f"its quality cannot be told: {error.what}"))
    row = replace(row, quality={name: round(share, 4) for name, share in shares.items()})
    much = [name for name, share in shares.items() if share >= _MUCH]
    told = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share >= _SOME)
    if not told:
        return row
    return row.having(Finding("amber" if much else "green", "quality", f"of its tissue: {told}"))


def _in_words(found: Probe) -> str:
    bad = sum(level.bad for level in found.levels)
    total = sum(level.tiles for level in found.levels)
    which = (
        f"all of {counted(found.decoded, 'tile')}"
        if found.complete
        else f"{found.decoded:,} of {counted(total, 'tile')}"
    )
    return f"{which} decoded, {f'{bad:,} bad' if bad else 'none bad'}"


def _signature(tissue: wsi.Tissue) -> bytes | None:
    """Return a small picture of a slide with tissue, by which copies in other formats are found."""
    if not tissue.mask.any():
        return None
    return resize_area(tissue.thumbnail, _SIGNATURE, _SIGNATURE).tobytes()


def alike(one: SlideRow, other: SlideRow) -> bool:
    """Say whether two slides of one size show the same picture, to within what codecs change."""
    if one.signature is None or other.signature is None or one.levels[:1] != other.levels[:1]:
        return False
    a, b = (np.frombuffer(row.signature or b"", np.uint8).astype(np.int16) for row in (one, other))
    return bool(np.abs(a - b).mean() < 1.5 and np.abs(a - b).max() < 12)


def seconds_for(task: Task) -> float:
    """Return the time limit of a slide; with `deep`, by its size; far more where it may have to be copied first."""
    first = _OPENED + (_COPIED if isinstance(task.entry.path, RemotePath) else 0.0)
    if not task.settings.deep:
        return first
    with_files = sum(path.stat().st_size for path in _files(task.entry))
    return first + math.ceil(with_files / 1e6)


def _files(entry: SlideEntry) -> list[Path]:
    try:
        return [path for path in entry.files if path.is_file()]
    except OSError:
        return []
