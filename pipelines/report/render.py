"""Job folder → the page: facts are read, told, pictured, and put into the template."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from .card import licence_rows, run_card, run_rows
from .charts import curve_charts, roc_chart
from .images import Gallery
from .looks import contact_sheet, errors_of, heatmaps_of, quality_sheet
from .read import JobFacts, Model, Row, read_job
from .results import Results, results_of
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
    spread,
)

MOST_PREDICTIONS = 5000
MOST_FAILED = 2000
MOST_RESULTS = 6
"""Models whose figures and pictures are shown; of the others there is a line each."""
_ERRORS, _UNSURE, _HEATMAPS, _SHEET, _QUALITY = 0.28, 0.08, 0.22, 0.36, 0.05
"""Shares of the bytes that the pictures of each part may take."""


def render(job: Path) -> bytes:
    """Return the report of a job as one self-contained HTML file.

    It holds what lies in the job folder and nothing else: no clock time, no path of this machine; equal folders
    give equal bytes. Parts the job does not have are said to be absent.

    Args:
        job: The job folder.
    """
    import jinja2
    from markupsafe import Markup

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
    environment.filters["spread"] = spread
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"script": Markup(script), "script_hash": digest}  # noqa: S704 - a file of ours, nothing is put into it
    page = environment.get_template("page.html").render(_context(read_job(job)) | own)
    return page.encode("utf-8", "replace")


def _context(facts: JobFacts) -> dict[str, Any]:
    """Return what the template shows."""
    shown = facts.models[:MOST_RESULTS]
    sheets = {"sheet": Gallery(_SHEET), "quality": Gallery(_QUALITY)}
    models, left_out = [], 0
    drawn = max(1, sum(bool(model.heatmaps) for model in shown))
    for model in shown:
        part = 1 / drawn if model.heatmaps else 0.2 / len(shown)  # outlines stand in for heatmaps
        shares = {"errors": _ERRORS, "unsure": _UNSURE, "heatmaps": _HEATMAPS}
        galleries = {name: Gallery(share * part) for name, share in shares.items()}
        models.append(_model(model, facts, galleries))
        left_out += sum(gallery.left_out for gallery in galleries.values())
    slides = facts.slides or facts.manifest
    lost = failed(facts)
    context = {
        "demo": facts.demo,
        "card": run_card(facts),
        "runs": run_rows(facts),
        "licences": licence_rows(facts),
        "steps": funnel(facts),
        "tiles": sum(_count(row, "n_tiles") for row in facts.slides),
        "missing": sum(_count(row, "n_missing") for row in facts.slides),
        "models": models,
        "other_models": [model.name for model in facts.models[MOST_RESULTS:]],
        "failed": lost[:MOST_FAILED],
        "n_failed": len(lost),
        "warned": [row for row in facts.slides if row.get("warning")][:MOST_FAILED],
        "rates": rate_rows(facts.run),
        "bottleneck": str(facts.run.get("bottleneck") or ""),
        "notes": [str(note) for note in facts.run.get("notes") or []],
        "settings": settings_pairs(facts),
        "encoder": encoder_pairs(facts.passport),
        "versions": sorted((str(k), str(v)) for k, v in dict(facts.run.get("versions") or {}).items()),
        "contours": contact_sheet(facts, sheets["sheet"]),
        "n_contours": len(facts.contours),
        "quality": quality_sheet(facts, sheets["quality"]),
        "n_quality": len(facts.quality),
        "methods": methods(facts),
        "limits": limits(facts),
        "problems": facts.problems,
        "n_slides": len(slides),
    }
    left_out += sum(gallery.left_out for gallery in sheets.values())
    return context | {"left_out": left_out}


def _model(model: Model, facts: JobFacts, galleries: dict[str, Gallery]) -> dict[str, Any]:
    """Return what the page shows of one model."""
    results = results_of(model, facts)
    test = model.metrics.get("test") or {}
    validation = model.metrics.get("validation") or {}
    rows = ordered(model)
    errors = errors_of(model, results, facts, galleries["errors"], galleries["unsure"])
    seen = [one["row"].get("slide_id", "") for one in (*errors["wrong"], *errors["unsure"])]
    return {
        "name": model.name,
        "classes": model.classes,
        "members": len(model.members),
        "results": results,
        "stored": [] if results is not None else result_pairs(test),
        "test": test,
        "validation": result_pairs(validation),
        "n_validation": validation.get("n", "?"),
        "threshold": model.threshold,
        "headline": _headline(results, test),
        "charts": roc_chart(test, model.classes)
        if results is None
        else curve_charts(results.points, results.bands, results.parts[0].n if results.parts else 0),
        "confusion": _confusion(results, test, model.classes),
        "predictions": [_prediction(row, model) for row in rows[:MOST_PREDICTIONS]],
        "n_predictions": len(rows),
        "table": model.table,
        "errors": errors,
        "heatmaps": heatmaps_of(model, facts, galleries["heatmaps"], seen),
        "n_heatmaps": len(model.heatmaps),
        "explained": model.explained,
        "concepts": model.concepts,
        "older": model.older,
    }


def _headline(results: Results | None, test: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first figure of a model: name, value, ends of its interval, number of slides."""
    if results is not None and results.parts and results.parts[0].figures:
        name, value, ends, _ = results.parts[0].figures[0]
        return {"name": name, "value": value, "ends": ends, "n": results.parts[0].n}
    if test.get("auc") is not None:
        return {"name": "AUC", "value": test["auc"], "ends": test.get("auc_interval"), "n": test.get("n", "?")}
    return None


def _prediction(row: Row, model: Model) -> dict[str, Any]:
    shares = []
    for name in model.classes:
        try:
            shares.append(min(max(float(row.get(f"p_{name}") or "nan"), 0.0), 1.0))
        except ValueError:
            shares.append(float("nan"))
    keys = ("slide_id", "case_id", "label", "pred", "n_tiles", "split", "fold", "warning")
    return {**{key: row.get(key, "") for key in keys}, "shares": shares, "wrong": is_wrong(row, model)}


def _confusion(results: Results | None, test: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """Return rows of (true class, cells with count and shade); empty where there is no matrix."""
    matrix = test.get("confusion")
    if results is not None:
        if not results.confusion:
            return []
        matrix = [[results.confusion.get((true, said), 0) for said in classes] for true in classes]
    if not isinstance(matrix, list) or len(matrix) != len(classes):
        return []
    return [
        {
            "name": name,
            "cells": [{"n": n, "shade": round(n / max(1, sum(row)), 2), "right": i == j} for j, n in enumerate(row)],
        }
        for i, (name, row) in enumerate(zip(classes, matrix, strict=True))
    ]


def _count(row: Row, name: str) -> int:
    try:
        return int(float(row.get(name) or 0))
    except ValueError:
        return 0
