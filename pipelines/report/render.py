"""Job folder → the page: facts are read, told, pictured, and put into the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import ARTIFACTS

from .charts import roc_svg
from .images import Gallery
from .read import JobFacts, Model, Row, read_job
from .tell import (
    encoder_pairs,
    failed,
    funnel,
    interval,
    is_wrong,
    limits,
    methods,
    number,
    ordered,
    rate_rows,
    result_pairs,
    settings_pairs,
)

MOST_PREDICTIONS = 400
MOST_HEATMAPS = 36
MOST_TOP = 12
MOST_CONTOURS = 120
MOST_QUALITY = 24
_FLAGGED = 0.01
MOST_FAILED = 300


def render(job: Path) -> bytes:
    """Return the report of a job as one self-contained HTML file.

    It holds what lies in the job folder and nothing else: no clock time, no path of this machine; equal folders
    give equal bytes. Parts the job does not have are said to be absent.

    Args:
        job: The job folder.
    """
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["interval"] = interval
    page = environment.get_template("page.html").render(_context(read_job(job)))
    return page.encode("utf-8", "replace")


def _context(facts: JobFacts) -> dict[str, Any]:
    """Return what the template shows."""
    gallery = Gallery()
    models = [_model(model, facts, gallery) for model in facts.models]
    main = facts.models[0] if facts.models else None
    slides = facts.slides or facts.manifest
    return {
        "demo": facts.demo,
        "steps": funnel(facts),
        "tiles": sum(_count(row, "n_tiles") for row in facts.slides),
        "missing": sum(_count(row, "n_missing") for row in facts.slides),
        "models": models,
        "failed": failed(facts)[:MOST_FAILED],
        "n_failed": len(failed(facts)),
        "warned": [row for row in facts.slides if row.get("warning")][:MOST_FAILED],
        "rates": rate_rows(facts.run),
        "bottleneck": str(facts.run.get("bottleneck") or ""),
        "notes": [str(note) for note in facts.run.get("notes") or []],
        "settings": settings_pairs(facts),
        "encoder": encoder_pairs(facts.passport),
        "versions": sorted((str(k), str(v)) for k, v in dict(facts.run.get("versions") or {}).items()),
        "contours": _contours(facts, gallery),
        "n_contours": len(facts.contours),
        "quality": _quality(facts, gallery),
        "n_quality": len(facts.quality),
        "methods": methods(facts, main),
        "limits": limits(facts, main),
        "problems": facts.problems,
        "left_out": gallery.left_out,
        "n_slides": len(slides),
    }


def _model(model: Model, facts: JobFacts, gallery: Gallery) -> dict[str, Any]:
    """Return what the page shows of one model."""
    test = model.metrics.get("test") or {}
    validation = model.metrics.get("validation") or {}
    rows = ordered(model)
    return {
        "name": model.name,
        "classes": model.classes,
        "test": test,
        "results": result_pairs(test),
        "validation": result_pairs(validation),
        "n_validation": validation.get("n", "?"),
        "threshold": test.get("threshold"),
        "roc": roc_svg(test, model.classes),
        "confusion": _confusion(test, model.classes),
        "predictions": [_prediction(row, model) for row in rows[:MOST_PREDICTIONS]],
        "n_predictions": len(rows),
        "n_wrong": sum(is_wrong(row) for row in rows if row.get("split") == "test"),
        "heatmaps": _heatmaps(model, rows, facts, gallery),
        "n_heatmaps": len(model.heatmaps),
    }


def _prediction(row: Row, model: Model) -> dict[str, Any]:
    shares = []
    for name in model.classes:
        try:
            shares.append(min(max(float(row.get(f"p_{name}") or "nan"), 0.0), 1.0))
        except ValueError:
            shares.append(float("nan"))
    keys = ("slide_id", "case_id", "label", "pred", "n_tiles", "split", "warning")
    return {**{key: row.get(key, "") for key in keys}, "shares": shares, "wrong": is_wrong(row)}


def _confusion(test: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """Return rows of (true class, cells with count and shade); empty where there is no matrix."""
    matrix = test.get("confusion")
    if not isinstance(matrix, list) or len(matrix) != len(classes):
        return []
    return [
        {
            "name": name,
            "cells": [{"n": n, "shade": round(n / max(1, sum(row)), 2), "right": i == j} for j, n in enumerate(row)],
        }
        for i, (name, row) in enumerate(zip(classes, matrix, strict=True))
    ]


def _heatmaps(model: Model, rows: list[Row], facts: JobFacts, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the heatmaps shown, in the order of the predictions."""
    known = {row.get("slide_id", ""): row for row in rows}
    names = [name for name in known if name in model.heatmaps]
    names += [name for name in model.heatmaps if name not in known]
    shown = []
    for place, name in enumerate(names[:MOST_HEATMAPS]):
        picture = gallery.add(model.heatmaps[name], width=860, truth=facts.truth.get(name))
        top = None
        if place < MOST_TOP and name in model.top:
            top = gallery.add(model.top[name], width=760)
        if picture is not None:
            row = _prediction(known.get(name, {"slide_id": name}), model)
            shown.append({"picture": picture, "top": top, "row": row})
    return shown


def _contours(facts: JobFacts, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the contact sheet: slides with a warning or a cause first."""
    odd = {row.get("slide_id", "") for row in facts.slides if row.get("warning") or row.get("cause")}
    names = sorted(facts.contours, key=lambda name: (name not in odd, name))
    pictures = ((name, gallery.add(facts.contours[name], width=340)) for name in names[:MOST_CONTOURS])
    return [{"name": name, "picture": picture, "odd": name in odd} for name, picture in pictures if picture]


def _quality(facts: JobFacts, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the pictures of slides with flagged tissue, most of it first, each with what is flagged."""
    found = []
    for row in facts.slides:
        shares = {name: _share(row, f"{name}_share") for name in ARTIFACTS}
        told = [f"{name} {share:.1%}" for name, share in shares.items() if share >= _FLAGGED]
        name = row.get("slide_id", "")
        if told and name in facts.quality:
            found.append((-max(shares.values()), name, ", ".join(told)))
    found.sort()
    pictures = ((name, told, gallery.add(facts.quality[name], width=340)) for _, name, told in found[:MOST_QUALITY])
    return [{"name": name, "told": told, "picture": picture} for name, told, picture in pictures if picture]


def _share(row: Row, name: str) -> float:
    try:
        value = float(row.get(name) or 0)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


def _count(row: Row, name: str) -> int:
    try:
        return int(float(row.get(name) or 0))
    except ValueError:
        return 0
