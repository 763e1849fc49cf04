"""`slidemil demo`: the whole job on a small cohort made here, or the first look at a slide of the user's own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import stages
from .config import load_settings
from .demo_cohort import CLASSES, Cohort, DemoSlide, compose_cohort, region_share
from .errors import UsageError
from .files import open_h5, write_bytes, write_csv, write_json
from .jobfolder import JobFolder
from .outcome import Outcome, Said
from .progress import progress
from .targets import check_job

TRUE_SHARE = 0.25
"""A tile counts as part of the planted region where at least this share of it lies inside."""

_SLIDES = "demo-slides"


def demo(out: Path, *, seed: int = 0, quiet: bool = False) -> Said:
    """Compose a cohort, run the whole job on it, and compare with the planted truth.

    Raises:
        UsageError: `out` holds something that is no demo.
    """
    began = time.monotonic()
    check_job(out)
    job = JobFolder(out)
    _check_own(job)
    with progress("composing", "slides", quiet=quiet) as bar:
        cohort = compose_cohort(out / _SLIDES, seed=seed, on_slide=lambda _: bar.advance(1))
    write_truth(job, cohort)
    settings = load_settings(options={"seed": seed})
    outcome = stages.run(
        [out / _SLIDES], out, settings, labels=job.truth / "labels.csv", quiet=quiet, with_report=False
    )
    model = str(outcome.more["model"])
    figures = measure(job, cohort, model)
    write_json(out / "demo.json", figures)
    stages.report(out)
    seconds = round(time.monotonic() - began, 1)
    return _said(job, outcome, figures, seconds)


def demo_slide(slide: Path, out: Path, *, slide_mpp: float | None = None, quiet: bool = False) -> Outcome:
    """Extract features from one slide of the user's own, with pictures of its tissue and tile grid.

    Raises:
        UsageError: there is no such file.
    """
    if not slide.is_file():
        raise UsageError(f"--slide {slide}: no such file.")
    settings = load_settings(options={"slide_mpp": slide_mpp})
    outcome = stages.extract([slide], out, settings, quiet=quiet)
    stages.report(out)
    job, tiling = JobFolder(out), stages.tiling_of(JobFolder(out), settings.extract)
    pictures = [
        f"{what}: {path}"
        for name in (*outcome.done, *outcome.skipped)
        for what, path in (("tissue", job.contour(name)), ("tiles", tiling.picture(name)))
    ]
    return replace(outcome, text=(*outcome.text, *pictures, f"report: {job.report}"))


def write_truth(job: JobFolder, cohort: Cohort) -> None:
    """Write `truth/labels.csv` and the outline of each planted region."""
    rows = [{"slide_id": s.slide_id, "case_id": s.case_id, "label": s.label, "split": s.split} for s in cohort.slides]
    write_csv(job.truth / "labels.csv", ("slide_id", "case_id", "label", "split"), rows)
    for slide in cohort.slides:
        data = json.dumps(_outline(slide), separators=(",", ":")).encode()
        write_bytes(job.truth / f"{slide.slide_id}.geojson", data)


def measure(job: JobFolder, cohort: Cohort, model: str) -> dict[str, Any]:
    """Compare predictions and attention of the held-out slides with the truth.

    Returns:
        `slide_auc` with its interval, and `localization_auc`: on each positive held-out slide the AUC of tile
        attention against the planted region, averaged over the slides.
    """
    import mil

    metrics = json.loads((job.model(model) / "metrics.json").read_text(encoding="utf-8"))["test"]
    found: dict[str, float] = {}
    for slide in cohort.slides:
        if slide.split == "test" and slide.region:
            xy, footprint, attention = _attention(job, model, slide.slide_id)
            inside = region_share(xy, footprint, slide.region) >= TRUE_SHARE
            if inside.any() and not inside.all():
                found[slide.slide_id] = round(mil.auc(inside, attention), 6)
    return {
        "slide_auc": metrics["auc"],
        "slide_auc_interval": metrics["auc_interval"],
        "localization_auc": round(float(np.mean(list(found.values()))), 6) if found else None,
        "localization_auc_per_slide": found,
        "held_out": {"slides": metrics["n"], "patients": metrics["n_patients"]},
        "note": cohort.note,
    }


def _attention(
    job: JobFolder, model: str, slide_id: str
) -> tuple[NDArray[np.int64], tuple[int, int], NDArray[np.float32]]:
    with open_h5(job.heatmaps(model) / f"{slide_id}.scores.h5") as file:
        coords = file["coords"]
        footprint = int(coords.attrs["footprint_x"]), int(coords.attrs["footprint_y"])
        return coords[()], footprint, file["attention"][()]


def _outline(slide: DemoSlide) -> Mapping[str, Any]:
    from shapely.geometry import mapping

    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": mapping(polygon), "properties": {"classification": CLASSES[1]}}
            for polygon in slide.region
        ],
    }


def _check_own(job: JobFolder) -> None:
    """Refuse a folder that holds a job of the user's own."""
    if job.root.exists() and any(job.root.iterdir()) and not (job.root / _SLIDES).is_dir():
        raise UsageError(f"{job.root}: the folder is not empty and no demo. Give another with --out.")


def _said(job: JobFolder, outcome: Outcome, figures: Mapping[str, Any], seconds: float) -> Said:
    low, high = figures["slide_auc_interval"]
    held = figures["held_out"]
    lines: Sequence[str] = (
        f"slide AUC {figures['slide_auc']:.3f} ({low:.3f} to {high:.3f}) on {held['slides']} slides of "
        f"{held['patients']} patients held out",
        f"localization AUC {figures['localization_auc']:.3f}: tile attention against the planted region",
        str(figures["note"]),
        f"{outcome.bottleneck} · {seconds:.0f} s in all",
        f"report: {job.report}",
    )
    data = {
        "status": outcome.status,
        "seconds": seconds,
        "slide_auc": figures["slide_auc"],
        "slide_auc_interval": figures["slide_auc_interval"],
        "localization_auc": figures["localization_auc"],
        "job": str(job.root),
        "report": str(job.report),
    }
    return Said(tuple(lines), data, outcome.exit_code)
