"""What of a slide is tissue, and how good it is: detected or drawn by hand, flagged, and cut down where asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import wsi

from .config import ExtractSettings
from .errors import UsageError
from .files import sha256_file
from .jobfolder import JobFolder
from .manifest import SlideEntry

if TYPE_CHECKING:
    from wsi import Quality, TileGrid, Tissue

_MUCH = 0.2
"""Share of the tissue from which on an artifact is worth a warning."""
_MUCH_INK = 0.05
"""The same of ink, which is not only flagged: no tile lies under it."""


def find(slide: wsi.Slide, entry: SlideEntry, settings: ExtractSettings) -> tuple[Tissue, Quality | None]:
    """Return a slide's tissue, without what is to be excluded, and its quality where that is asked.

    Raises:
        wsi.SlideError: the slide cannot be used, or the outline drawn for it cannot.
    """
    file = mask_file(settings, entry.slide_id)
    tissue = wsi.find_tissue(slide) if file is None else wsi.read_tissue(slide, file, origin=settings.mask_origin)
    quality = wsi.check_quality(slide, tissue) if settings.quality else None
    if quality is not None and settings.excluded:
        tissue = quality.without(tissue, settings.excluded)
    return tissue, quality


def parts_of(entry: SlideEntry, settings: ExtractSettings) -> dict[str, Any]:
    """Return everything that determines a slide's tissue, for the key of what is made from it."""
    parts = {**dataclasses.asdict(wsi.TissueSettings()), "min_tissue": settings.min_tissue}
    file = mask_file(settings, entry.slide_id)
    if file is not None:
        try:
            parts["mask"] = sha256_file(file)
        except OSError:  # reading it says so, as the error of this slide
            parts["mask"] = "unreadable"
        parts["mask_origin"] = settings.mask_origin
    if settings.quality:
        parts["quality"] = {**dataclasses.asdict(wsi.QualitySettings()), "exclude": sorted(settings.excluded)}
    return parts


def mask_file(settings: ExtractSettings, slide_id: str) -> Path | None:
    """Return the outline drawn for a slide, None where there is none and the tissue is detected.

    An outline as a job wrote it, which nobody changed, is none: a folder of them may be copied, and a few edited.
    """
    file = _file_given(settings, slide_id)
    return None if file is None or _is_untouched(file) else file


def _file_given(settings: ExtractSettings, slide_id: str) -> Path | None:
    if settings.masks is None:
        return None
    files = (Path(settings.masks) / f"{slide_id}{suffix}" for suffix in (".geojson", ".json"))
    return next((file for file in files if file.is_file()), None)


def _is_untouched(file: Path) -> bool:
    from wsi.outlines import is_as_detected

    try:
        return is_as_detected(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):  # reading it for the slide says so, as the error of this slide
        return False


def check_masks(settings: ExtractSettings, job: JobFolder, slide_ids: Iterable[str]) -> list[str]:
    """Refuse a folder of masks that cannot be meant; return what is worth saying of it.

    Raises:
        UsageError: no folder, no outline of any slide, or the job's own outlines, which the job writes anew.
    """
    if settings.masks is None:
        return []
    folder = Path(settings.masks)
    if not folder.is_dir():
        raise UsageError(f"--masks {folder}: no such folder. It holds one SLIDE.geojson for each slide drawn by hand.")
    own = job.contour_geojson("x").parent
    if own.is_dir() and folder.samefile(own):
        raise UsageError(
            f"--masks {folder}: these are the job's own outlines, which it writes anew. "
            f"Copy those you edit: cp {own}/SLIDE.geojson masks/, and give --masks masks."
        )
    names = set(slide_ids)
    given = {name for name in names if _file_given(settings, name) is not None}
    drawn = {name for name in given if mask_file(settings, name) is not None}
    there = {file.stem for file in folder.iterdir() if file.suffix in (".geojson", ".json")}
    if not given:
        example = sorted(names)[0] if names else "SLIDE"
        raise UsageError(f"--masks {folder}: no file there is named after a slide of this run, e.g. {example}.geojson.")
    strangers = sorted(there - names)
    notes = [f"{len(drawn)} of {len(names)} slides take their tissue from {folder}"]
    if len(given) > len(drawn):
        notes.append(f"--masks: {len(given) - len(drawn)} are as they were detected, and count as not drawn")
    return notes + ([f"--masks: no slide of this run is called {', '.join(strangers[:3])}"] if strangers else [])


def layers(tissue: Tissue, quality: Quality | None, grid: TileGrid) -> dict[str, tuple[NDArray[Any], dict[str, Any]]]:
    """Return what is known of each tile besides its place, by name of the dataset, each with its attributes.

    `tissue_share` (N,) float32; `piece` (N,) int32, the `tissue_id` of the outline that the tile lies on, -1 where
    none; `quality` (N, K) float32, the share of the tile's area that is flagged, `names` says as what.
    """
    out: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "tissue_share": (grid.tissue_share, {}),
        "piece": (tissue.pieces_at(grid.xy, grid.footprint_xy), {}),
    }
    if quality is not None:
        shares = quality.tile_shares(grid.xy, grid.footprint_xy)
        values = np.stack(list(shares.values()), axis=1)
        out["quality"] = values, {"names": list(shares)}
    return out


def shares_told(quality: Quality | None) -> dict[str, float]:
    """Return the columns of `slides.csv` about quality, rounded; what could not be measured has none."""
    return {} if quality is None else {f"{name}_share": round(share, 4) for name, share in quality.shares.items()}


def unread_told(tissue: Tissue) -> list[str]:
    """Return a warning where parts of the slide could not be read while its tissue was sought."""
    share = f"{tissue.unread:.1%}" if tissue.unread >= 0.0005 else "under 0.1%"
    return [f"{share} of the slide cannot be read, and counts as tissue"] if tissue.unread else []


def warnings_told(shares: Mapping[str, float]) -> list[str]:
    """Return a warning for each artifact on much of the tissue."""
    told = [f"{name}: {share:.0%} of the tissue" for name, share in shares.items() if share >= _MUCH and name != "pen"]
    ink = shares.get("pen", 0.0)
    return told + ([f"pen: {ink:.0%} of the tissue, left out"] if ink >= _MUCH_INK else [])
