"""Numbers → inline SVG. Every text in it is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

_SIDE, _LEFT, _TOP = 260, 46, 14
_COLORS = ("#0b6e8f", "#b5541c", "#4a7c2f", "#7a4d9f", "#a88a00", "#a03a5a")


def roc_svg(test: Mapping[str, Any], classes: Sequence[str]) -> Markup:
    """Return the ROC curve(s) of one side; empty where there are none."""
    curves = _curves(test.get("roc"), classes)
    if not curves:
        return Markup("")
    ticks = "".join(
        f'<line x1="{_x(v)}" y1="{_y(0)}" x2="{_x(v)}" y2="{_y(1)}" class="grid"/>'
        f'<line x1="{_x(0)}" y1="{_y(v)}" x2="{_x(1)}" y2="{_y(v)}" class="grid"/>'
        f'<text x="{_x(v)}" y="{_y(0) + 16}" text-anchor="middle">{v:g}</text>'
        f'<text x="{_x(0) - 6}" y="{_y(v) + 4}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    lines = ""
    for k, (name, points) in enumerate(curves):
        color = _COLORS[k % len(_COLORS)]
        joined = " ".join(f"{_x(x)},{_y(y)}" for x, y in points)
        lines += f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2.5"/>'
        if len(curves) > 1:
            lines += f'<text x="{_x(0.45)}" y="{_y(0.04 + 0.07 * k)}" fill="{color}">{escape(name)}</text>'
    width, height = _LEFT + _SIDE + 14, _TOP + _SIDE + 44
    return Markup(  # noqa: S704 - numbers are formatted and names escaped above
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="ROC curve">{ticks}'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#9aa3ad" stroke-dasharray="4 4"/>{lines}'
        f'<text x="{_x(0.5)}" y="{_y(0) + 36}" text-anchor="middle">1 − specificity</text>'
        f'<text transform="translate(12 {_y(0.5)}) rotate(-90)" text-anchor="middle">sensitivity</text></svg>'
    )


def _curves(roc: Any, classes: Sequence[str]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return (class, points) of each curve."""
    if not isinstance(roc, Mapping):
        return []
    if "fpr" in roc:
        named = [(classes[1] if len(classes) == 2 else "", roc)]
    else:
        named = [(classes[int(k)] if str(k).isdigit() and int(k) < len(classes) else str(k), v) for k, v in roc.items()]
    out = []
    for name, curve in named:
        try:
            points = [(float(x), float(y)) for x, y in zip(curve["fpr"], curve["tpr"], strict=True)]
        except (KeyError, TypeError, ValueError):
            continue
        if len(points) > 1 and all(0 <= v <= 1 for point in points for v in point):
            out.append((name, points))
    return out


def _x(value: float) -> float:
    return round(_LEFT + value * _SIDE, 2)


def _y(value: float) -> float:
    return round(_TOP + (1 - value) * _SIDE, 2)
