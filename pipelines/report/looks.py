"""Which slides are worth a look, and their pictures: errors, the least sure, the others; and the contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipelines.config import ARTIFACTS

from .images import Gallery
from .read import JobFacts, Model, Row
from .results import Results
from .tell import is_wrong, names_classes, or_zero, ordered, sureness

MOST_ERRORS, MOST_UNSURE, MOST_HEATMAPS, MOST_SHEET = 48, 12, 240, 5000
FLAGGED = 0.01
_FEW, _SOME = 60, 300
"""Up to so many slides the pictures of a section are large, or middling; then small."""


def errors_of(
    model: Model, results: Results | None, facts: JobFacts, gallery: Gallery, beside: Gallery
) -> dict[str, Any]:
    """Return the wrong answers on held-out slides, the surest first, and right ones that were the least sure.

    A number is as wrong as it is far from the truth. The pictures of right ones go into the gallery `beside`.
    """
    rows = results.rows if results is not None else [row for row in model.predictions if row.get("split") == "test"]
    wrong = sorted((row for row in rows if is_wrong(row, model)), key=_surest) if names_classes(model) else _far(rows)
    right = [row for row in rows if row.get("label") and not is_wrong(row, model)] if names_classes(model) else []
    right = [row for row in right if not math.isnan(sureness(row))]
    right.sort(key=lambda row: (sureness(row), row.get("slide_id", "")))
    shown = [_look(row, _error_words(row), model, facts, gallery, 720) for row in wrong[:MOST_ERRORS]]
    unsure = [
        _look(row, f"right, with a probability of {sureness(row):.3f}", model, facts, beside, 560)
        for row in right[:MOST_UNSURE]
    ]
    return {"wrong": shown, "n_wrong": len(wrong), "unsure": unsure, "n_rows": len(rows)}


def heatmaps_of(model: Model, facts: JobFacts, gallery: Gallery, seen: Sequence[str]) -> list[dict[str, Any]]:
    """Return the heatmaps that were not shown among the errors, in the order of the predictions."""
    known = {row.get("slide_id", ""): row for row in ordered(model)}
    names = [name for name in known if name in model.heatmaps and name not in seen]
    names += [name for name in model.heatmaps if name not in known]
    width = 860 if len(names) <= 12 else 640 if len(names) <= _FEW else 420
    looks = []
    for place, name in enumerate(names[:MOST_HEATMAPS]):
        one = _look(known.get(name, {"slide_id": name}), "", model, facts, gallery, width, tiles=place < 12)
        if one["picture"] is not None:
            looks.append(one)
    return looks


def contact_sheet(facts: JobFacts, gallery: Gallery) -> list[dict[str, Any]]:
    """Return a small picture of every slide with its outline, those that want a look first."""
    rows = {row.get("slide_id", ""): row for row in facts.slides}
    names = sorted(facts.contours, key=lambda name: (-_oddness(rows.get(name, {})), name))[:MOST_SHEET]
    width, quality = (340, 80) if len(names) <= _FEW else (240, 75) if len(names) <= _SOME else (132, 62)
    sheet = []
    for name in names:
        picture = gallery.add(facts.contours[name], width=width, quality=quality)
        if picture is not None:
            row = rows.get(name, {})
            sheet.append({"name": name, "picture": picture, "odd": _oddness(row) > 0, "told": _sheet_words(row)})
    return sheet


def quality_sheet(facts: JobFacts, gallery: Gallery, most: int = 24) -> list[dict[str, Any]]:
    """Return the pictures of slides with flagged tissue, most of it first, each with what is flagged."""
    found = []
    for row in facts.slides:
        name, told = row.get("slide_id", ""), flagged(row)
        if told and name in facts.quality:
            found.append((-max(_share(row, f"{kind}_share") for kind in ARTIFACTS), name, ", ".join(told)))
    found.sort()
    pictures = ((name, told, gallery.add(facts.quality[name], width=340)) for _, name, told in found[:most])
    return [{"name": name, "told": told, "picture": picture} for name, told, picture in pictures if picture]


def flagged(row: Row) -> list[str]:
    """Say what of a slide's tissue is no good to look at, from 1 % on."""
    shares = {name: _share(row, f"{name}_share") for name in ARTIFACTS}
    return [f"{name} {share:.1%}" for name, share in shares.items() if share >= FLAGGED]


def _look(
    row: Row, words: str, model: Model, facts: JobFacts, gallery: Gallery, width: int, *, tiles: bool = True
) -> dict[str, Any]:
    """Return the pictures of one slide: its heatmap, or its outline where there is none; its tiles."""
    name = row.get("slide_id", "")
    picture, top, overlay, told = None, None, None, ""
    if name in model.heatmaps:
        picture = gallery.add(model.heatmaps[name], width=width, truth=facts.truth.get(name))
        told = model.drawn.get(name, "")
    elif name in facts.contours:
        picture = gallery.add(facts.contours[name], width=min(width, 420))
    if tiles and name in model.top:
        top = gallery.add(model.top[name], width=width)
    if tiles and name in model.overlays:
        overlay = gallery.add(model.overlays[name], width=width)
    pictures = {"picture": picture, "drawn": told, "top": top, "overlay": overlay}
    return {"row": row, "words": words, "wrong": is_wrong(row, model), **pictures}


def _surest(row: Row) -> tuple[float, str]:
    return -or_zero(sureness(row)), row.get("slide_id", "")


def _far(rows: Sequence[Row]) -> list[Row]:
    """Return rows whose answer is a number, the farthest from the truth first, as far as ten."""
    found = []
    for row in rows:
        try:
            found.append((-abs(float(row["label"]) - float(row["pred"])), row))
        except (KeyError, ValueError):
            continue
    found.sort(key=lambda pair: (pair[0], pair[1].get("slide_id", "")))
    return [row for _, row in found[:10]]


def _error_words(row: Row) -> str:
    sure = sureness(row)
    if math.isnan(sure):
        return f"the truth is {row.get('label')}, the answer {row.get('pred')}"
    return f"called {row.get('pred')} with a probability of {sure:.3f}; the label says {row.get('label')}"


def _sheet_words(row: Row) -> str:
    parts = [f"{_share(row, 'tissue_share'):.0%} tissue"] if row.get("tissue_share") else []
    parts += [f"{row['n_tiles']} tiles"] if row.get("n_tiles") else []
    parts += flagged(row)
    parts += [text for text in (row.get("cause"), row.get("warning")) if text]
    return " · ".join(parts)


def _oddness(row: Row) -> float:
    """How much a slide wants a look: failed, then with a remark, then by its flagged tissue."""
    shares = [_share(row, f"{name}_share") for name in ARTIFACTS]
    worst = max(shares) if max(shares) >= FLAGGED else 0.0
    return 3 * bool(row.get("cause")) + 2 * bool(row.get("warning")) + worst


def _share(row: Row, name: str) -> float:
    try:
        value = float(row.get(name) or 0)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
