"""Numbers → inline SVG. Every text in it is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from .bands import Band

_SIDE, _LEFT, _TOP = 240, 46, 14
_COLORS = ("#0b6e8f", "#b5541c", "#4a7c2f", "#7a4d9f", "#a88a00", "#a03a5a")
_MOST_POINTS = 240
_LOOK = {
    "roc": ("ROC curve", "1 − specificity", "sensitivity"),
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "calibration": ("Calibration", "mean predicted chance", "share of positives"),
    "kaplan_meier": ("Kaplan-Meier", "time", "share without event"),
    "truth": ("Answer against truth", "truth", "answer"),
}
_UNIT = ("roc", "precision_recall", "calibration")

Curves = list[tuple[str, list[tuple[float, float]]]]


def curve_charts(
    points: Sequence[Mapping[str, Any]], bands: Mapping[tuple[str, str], Band], n: int
) -> list[tuple[str, Markup]]:
    """Return (title, picture) of each kind of curve that there is.

    Args:
        points: rows of `curve`, `of`, `x`, `y`, see `pipelines.curves`.
        bands: by (curve, of).
        n: slides that the points are of; a bin of the calibration holds as many as any other.
    """
    made = []
    for kind, (title, _, _) in _LOOK.items():
        curves: Curves = []
        for name in dict.fromkeys(str(row["of"]) for row in points if row["curve"] == kind):
            mine = [(float(r["x"]), float(r["y"])) for r in points if r["curve"] == kind and str(r["of"]) == name]
            curves.append((name, mine))
        if curves:
            made.append((title, _chart(kind, curves, bands, n)))
    return made


def roc_chart(test: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[str, Markup]]:
    """Return the ROC curve(s) that were stored with a model; nothing where there are none."""
    curves = _stored(test.get("roc"), classes)
    return [(_LOOK["roc"][0], _chart("roc", curves, {}, 0))] if curves else []


def _chart(kind: str, curves: Curves, bands: Mapping[tuple[str, str], Band], n: int) -> Markup:
    title, across, up = _LOOK[kind]
    frame = _Frame.unit() if kind in _UNIT else _Frame.of(curves)
    parts = [frame.grid()]
    if kind in ("roc", "calibration", "truth"):
        parts.append(frame.diagonal())
    for k, (name, points) in enumerate(curves):
        color = _COLORS[k % len(_COLORS)]
        band = bands.get((kind, name))
        if band is not None:
            parts.append(frame.band(band, color))
        if kind == "calibration":
            parts.append(frame.whiskers(points, n, color))
        steps = {"kaplan_meier": "after", "precision_recall": "before"}.get(kind, "")
        parts.append(frame.dots(points, color) if kind == "truth" else frame.line(points, color, steps))
        if kind == "calibration":
            parts.append(frame.dots(points, color))
        if len(curves) > 1:
            parts.append(
                f'<text x="{_LEFT + _SIDE - 6}" y="{_TOP + _SIDE - 10 - 15 * k}" text-anchor="end" '
                f'fill="{color}">{escape(name)}</text>'
            )
    width, height = _LEFT + _SIDE + 14, _TOP + _SIDE + 44
    return Markup(  # noqa: S704 - numbers are formatted and names escaped above
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}'
        f'<text x="{_LEFT + _SIDE / 2}" y="{_TOP + _SIDE + 36}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(12 {_TOP + _SIDE / 2}) rotate(-90)" text-anchor="middle">{up}</text></svg>'
    )


class _Frame:
    """Where values lie in the picture."""

    def __init__(self, low: tuple[float, float], high: tuple[float, float]) -> None:
        self.low, self.high = low, high

    @classmethod
    def unit(cls) -> _Frame:
        return cls((0.0, 0.0), (1.0, 1.0))

    @classmethod
    def of(cls, curves: Curves) -> _Frame:
        """Frame all points; Kaplan-Meier starts at 0, a flat axis gets some width."""
        xs, ys = ([point[k] for _, points in curves for point in points] for k in (0, 1))
        ends = [(min(v), max(v) if max(v) > min(v) else min(v) + 1) for v in (xs, ys)]
        return cls((ends[0][0], ends[1][0]), (ends[0][1], ends[1][1]))

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self.low[0]) / (self.high[0] - self.low[0]) * _SIDE, 1)

    def y(self, value: float) -> float:
        return round(_TOP + (1 - (value - self.low[1]) / (self.high[1] - self.low[1])) * _SIDE, 1)

    def grid(self) -> str:
        out = ""
        for share in (0, 0.25, 0.5, 0.75, 1):
            x, y = (self.low[k] + share * (self.high[k] - self.low[k]) for k in (0, 1))
            out += (
                f'<line x1="{self.x(x)}" y1="{_TOP + _SIDE}" x2="{self.x(x)}" y2="{_TOP}" class="grid"/>'
                f'<line x1="{_LEFT}" y1="{self.y(y)}" x2="{_LEFT + _SIDE}" y2="{self.y(y)}" class="grid"/>'
                f'<text x="{self.x(x)}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{x:.3g}</text>'
                f'<text x="{_LEFT - 6}" y="{self.y(y) + 4}" text-anchor="end">{y:.3g}</text>'
            )
        return out

    def diagonal(self) -> str:
        low, high = max(self.low), min(self.high)
        if low >= high:
            return ""
        return (
            f'<line x1="{self.x(low)}" y1="{self.y(low)}" x2="{self.x(high)}" y2="{self.y(high)}" '
            'stroke="#9aa3ad" stroke-dasharray="4 4"/>'
        )

    def line(self, points: list[tuple[float, float]], color: str, steps: str) -> str:
        path, before = [], None
        for x, y in _thinned(points):
            if before is not None and steps:  # the value holds after its place, or before it
                path.append((x, before[1]) if steps == "after" else (before[0], y))
            path.append((x, y))
            before = (x, y)
        joined = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in path)
        return f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2.2"/>'

    def dots(self, points: list[tuple[float, float]], color: str) -> str:
        return "".join(
            f'<circle cx="{self.x(x)}" cy="{self.y(y)}" r="3" fill="{color}" fill-opacity="0.7"/>'
            for x, y in _thinned(points)
        )

    def band(self, band: Band, color: str) -> str:
        there = [*zip(band.x, band.high, strict=True), *reversed([*zip(band.x, band.low, strict=True)])]
        joined = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in there)
        return f'<polygon points="{joined}" fill="{color}" fill-opacity="0.16" stroke="none"/>'

    def whiskers(self, points: list[tuple[float, float]], n: int, color: str) -> str:
        """Intervals of the share of positives in each bin."""
        from mil.metrics import interval_of_agreement

        out, each = "", max(1, round(n / len(points)))
        for x, y in points:
            low, high = interval_of_agreement(y, each)
            out += (
                f'<line x1="{self.x(x)}" y1="{self.y(low)}" x2="{self.x(x)}" y2="{self.y(high)}" '
                f'stroke="{color}" stroke-opacity="0.45"/>'
            )
        return out


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_MOST_POINTS` of them, evenly, with both ends."""
    if len(points) <= _MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (_MOST_POINTS - 1))] for k in range(_MOST_POINTS)]


def _stored(roc: Any, classes: Sequence[str]) -> Curves:
    """Return (class, points) of each stored ROC curve."""
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
