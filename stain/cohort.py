"""A reference from many slides: what is usual in a cohort, instead of what one image happens to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import macenko
from .errors import ParametersError, StainError, UnusableReferenceError
from .macenko import StainMatrix
from .reinhard import LabStatistics

_FORMAT: Final = 1
_KIND: Final = "stain reference"


@dataclass(frozen=True)
class CohortReference:
    """What to normalize to; immutable.

    Attributes:
        method: the method that it was fitted by, and serves for.
        target: its stains, or its colors.
        slides: how many it rests on.
        spread: median distance of a slide from it: degrees of the two stains, or ΔE of the mean color.
        left_out: how many were left out, by cause.
    """

    method: str
    target: StainMatrix | LabStatistics
    slides: int
    spread: tuple[float, ...]
    left_out: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` gives them back exactly."""
        return {
            "kind": _KIND,
            "version": _FORMAT,
            "method": self.method,
            "target": self.target.to_json(),
            "slides": self.slides,
            "spread": list(self.spread),
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CohortReference:
        """Read what `to_json` wrote.

        Raises:
            ParametersError: something is missing, or is not what it should be.
        """
        try:
            if data["kind"] != _KIND or data["version"] != _FORMAT:
                raise ValueError(f"kind {data['kind']!r}, version {data['version']!r}")
            if data["method"] not in ("macenko", "vahadane", "reinhard"):
                raise ValueError(f"method {data['method']!r}")
            kind = LabStatistics if data["method"] == "reinhard" else StainMatrix
            left_out = {str(cause): int(count) for cause, count in data["left_out"].items()}
            spread = tuple(float(value) for value in data["spread"])
            return cls(data["method"], kind.from_json(data["target"]), int(data["slides"]), spread, left_out)
        except (KeyError, TypeError, ValueError, AttributeError, StainError) as error:
            raise ParametersError(
                f"this is no stain reference ({type(error).__name__}: {error}). "
                "Make it anew: slidemil stain fit FOLDER -o reference.json"
            ) from error


def combine(
    method: str, measures: Sequence[StainMatrix | LabStatistics], left_out: Mapping[str, int] | None = None
) -> CohortReference:
    """Take the middle of many slides, so that up to half of them may be odd without moving it far.

    Directions: the geometric median, made a unit vector again. Amounts: the median of their logarithms. Colors: the
    geometric median of the means, and the median of each spread. Slides with other dyes than most (brown ones among
    H&E, or reversed) are left out.

    Args:
        method: that fitted them.
        measures: of each slide that could be fitted.
        left_out: how many could not, by cause.

    Raises:
        UnusableReferenceError: there are none.
    """
    counts = dict(left_out or {})
    if not measures:
        told = ", ".join(f"{count} × {cause}" for cause, count in sorted(counts.items()))
        raise UnusableReferenceError(f"no slide serves as a reference ({told or 'none was given'}). Give H&E slides.")
    brown = 2 * sum(one.brown for one in measures) > len(measures)
    kept = [one for one in measures if one.brown == brown]
    if len(kept) < len(measures):
        counts["other stains"] = counts.get("other stains", 0) + len(measures) - len(kept)
    stains = [one for one in kept if isinstance(one, StainMatrix)]
    colors = [one for one in kept if isinstance(one, LabStatistics)]
    target, spread = _middle_stains(stains, brown) if stains else _middle_colors(colors, brown)
    return CohortReference(method, target, len(kept), spread, counts)


def geometric_median(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the point with the least sum of distances to (N, D) points.

    Source: Weiszfeld 1937; Vardi and Zhang, PNAS 2000, doi:10.1073/pnas.97.4.1423 (it may land on a point).
    """
    middle: NDArray[np.float64] = np.median(points, axis=0)
    for _ in range(1000):
        away = np.maximum(np.linalg.norm(points - middle, axis=1), 1e-9)
        new = (points / away[:, None]).sum(axis=0) / (1.0 / away).sum()
        if np.linalg.norm(new - middle) < 1e-10:
            break
        middle = new
    return middle


def _middle_stains(stains: Sequence[StainMatrix], brown: bool) -> tuple[StainMatrix, tuple[float, ...]]:
    """Return the middle, and the median angle of each stain to it."""
    vectors = np.array([one.vectors for one in stains])  # (slide, stain, channel)
    middle = np.stack([geometric_median(vectors[:, k]) for k in range(2)])
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    amounts = np.exp(np.median(np.log([one.max_concentrations for one in stains]), axis=0))
    angles = np.degrees(np.arccos(np.clip((vectors * middle).sum(axis=-1), -1.0, 1.0)))
    return macenko.frozen(middle, amounts, brown), tuple(float(angle) for angle in np.median(angles, axis=0))


def _middle_colors(colors: Sequence[LabStatistics], brown: bool) -> tuple[LabStatistics, tuple[float, ...]]:
    """Return the middle, and the median distance of mean colors to it."""
    means = np.array([one.mean for one in colors])
    mean, sd = geometric_median(means), np.median([one.sd for one in colors], axis=0)
    target = LabStatistics(
        (float(mean[0]), float(mean[1]), float(mean[2])), (float(sd[0]), float(sd[1]), float(sd[2])), brown
    )
    return target, (float(np.median(np.linalg.norm(means - mean, axis=1))),)
