"""Fit a slide once, then normalize every batch of it; parameters can be kept as JSON.

Example: `params = stain.fit("macenko", tissue_pixels)`, then `params.apply(batch)` for each batch.

What a slide looks like never raises. Where a fit would be a guess, `status` says why and `apply` returns the
pixels unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import macenko, reinhard, vahadane
from .cohort import CohortReference
from .density import (
    Array,
    check_pixels,
    estimate_white,
    ink_mask,
    map_pixels,
    optical_density,
    sample_pixels,
    tissue_mask,
)
from .errors import (
    ParametersError,
    PixelFormatError,
    StainError,
    UnknownMethodError,
    UnknownReferenceError,
    UnusableReferenceError,
    unknown,
)
from .macenko import StainMatrix
from .references import DEFAULT_REFERENCE, REFERENCES
from .reinhard import LabStatistics
from .replace import apply_tables_normalized, check_out, check_planes, planes_of, put

METHODS: Final = ("macenko", "vahadane", "reinhard")
STATUSES: Final = ("ok", "too little tissue", "ink", "single stain", "other stains", "degenerate")
MIN_TISSUE_PIXELS: Final = 500
"""Tissue pixels under which nothing is fitted; 1,000 fix haematoxylin to 0.3° and eosin to 1.3°."""

BYTES: Final = 2
"""Raised when the same parameters give other bytes than before; 2: two stains by tables of whole numbers."""

_FORMAT: Final = 1

Measure = StainMatrix | LabStatistics
"""What a method measures on a slide."""


@dataclass(frozen=True)
class StainParams:
    """How one slide is normalized; immutable.

    Attributes:
        method: "macenko", "vahadane" or "reinhard".
        status: "ok", or why the slide is left as it is: "too little tissue", "ink" (most of what is not glass
            has the hue of a pen), "single stain", "other stains" (the reference has other dyes, as H&E
            for a brown immunostain or much pigment: nothing sensible can come of it), "degenerate" (all pixels alike).
        reference: name of the built-in reference, or "custom".
        white: the slide's white point (R, G, B) in grey levels.
        white_source: "measured" on the slide's glass, "assumed" where none was seen, "given" by the caller.
        tissue_pixels: how many pixels the fit rests on.
        source: what was measured on the slide; None unless `status` is "ok".
        target: what the reference has.
    """

    method: str
    status: str
    reference: str
    white: tuple[float, float, float]
    white_source: str
    tissue_pixels: int
    source: Measure | None
    target: Measure

    def apply(self, batch: Array, out: Array | None = None) -> Array:
        """Normalize a batch of pixels of this slide.

        Args:
            batch: (..., 3) uint8 numpy or torch array, any device, any leading shape.
            out: where to, like `batch` and contiguous; none makes a new one.

        Returns:
            `out`, or a new array of the same library, device, shape and type. White and glass keep their bytes; unless
            `status` is "ok" everything does.

        Raises:
            PixelFormatError: not uint8 RGB, or `out` has another shape or type.
        """
        if isinstance(self.source, StainMatrix) and isinstance(self.target, StainMatrix):
            return macenko.normalize(batch, self.white, self.source, self.target, out)
        check_pixels(batch)
        check_out(out, tuple(batch.shape), "uint8")
        if isinstance(self.source, LabStatistics) and isinstance(self.target, LabStatistics):
            return put(reinhard.normalize(batch, self.white, self.source, self.target), out)
        return put(map_pixels(batch, lambda _xp, piece: piece), out)

    def apply_normalized(self, batch: Array, levels: NDArray[np.float32], out: Array | None = None) -> Array:
        """Normalize a batch and lay it out as a network takes it, on the host in one pass.

        Args:
            batch: (B, H, W, 3) uint8 numpy or torch array, any device.
            levels: (3, 256) float32: what each value of R, G, B becomes, as (value / 255 - mean) / std.
            out: where to, (B, 3, H, W) float32, contiguous; none makes a new one.

        Returns:
            (B, 3, H, W) float32 of the same library and device: `levels` of the bytes that `apply` gives.

        Raises:
            PixelFormatError: not tiles of uint8 RGB, or `levels` or `out` has another shape or type.
        """
        if isinstance(self.source, StainMatrix) and isinstance(self.target, StainMatrix):
            return apply_tables_normalized(macenko.tables_of(self.white, self.source, self.target), batch, levels, out)
        check_planes(batch, levels, out)
        return put(planes_of(self.apply(batch), levels), out)

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values; `from_json` gives them back exactly."""
        return {
            "version": _FORMAT,
            "method": self.method,
            "status": self.status,
            "reference": self.reference,
            "white": list(self.white),
            "white_source": self.white_source,
            "tissue_pixels": self.tissue_pixels,
            "source": None if self.source is None else self.source.to_json(),
            "target": self.target.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StainParams:
        """Read what `to_json` wrote.

        Raises:
            ParametersError: something is missing, or is not what it should be.
        """
        try:
            return _from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError, StainError) as error:
            raise ParametersError(
                f"these are no stain parameters ({type(error).__name__}: {error}). "
                "Make them anew with stain.fit(...).to_json()."
            ) from error


def fit(
    method: str,
    pixels: Array,
    *,
    reference: str | StainParams | CohortReference | Array | None = None,
    white: Sequence[float] | None = None,
) -> StainParams:
    """Measure the stains of one slide on pooled pixels of its tissue.

    5,000 to 20,000 tissue pixels from all over the slide are enough; more than 100,000 are thinned out. Some
    glass among them (the gaps in tissue) lets the white point be measured.

    Args:
        method: "macenko", "vahadane" or "reinhard".
        pixels: (..., 3) uint8 numpy or torch array; any content, also none.
        reference: what to normalize to: the name of a built-in reference (default "tiatoolbox-target"), the
            parameters fitted on another slide by the same method, a cohort's reference by the same method, or pixels
            (..., 3) of a reference image.
        white: the slide's white point (R, G, B) in grey levels where the caller knows it.

    Returns:
        Parameters; look at `status`.

    Raises:
        UnknownMethodError: no such method.
        UnknownReferenceError: no such built-in reference.
        UnusableReferenceError: the reference itself cannot be fitted, or was fitted by another method.
        PixelFormatError: not uint8 RGB, or a white point that is not three levels in (0, 255].
    """
    if method not in METHODS:
        raise UnknownMethodError(unknown("stain normalizer", method, METHODS))
    name, target = _target(method, reference)
    sample = sample_pixels(pixels)
    point, origin = _white_point(sample, white)
    source, status, count = _measure(method, sample, point)
    if source is not None and source.brown != target.brown:
        source, status = None, "other stains"
    return StainParams(method, status, name, point, origin, count, source, target)


def measure(
    method: str, pixels: Array, *, white: Sequence[float] | None = None
) -> tuple[Measure | None, str, tuple[float, float, float]]:
    """Measure what one slide shows, held to no reference: also a brown immunostain has stains.

    Args:
        method: "macenko", "vahadane" or "reinhard".
        pixels: as for `fit`.
        white: as for `fit`.

    Returns:
        What was measured or None, the status, and the white point (R, G, B) in grey levels.

    Raises:
        UnknownMethodError: no such method.
        PixelFormatError: not uint8 RGB, or no white point.
    """
    if method not in METHODS:
        raise UnknownMethodError(unknown("stain normalizer", method, METHODS))
    sample = sample_pixels(pixels)
    point = _white_point(sample, white)[0]
    source, status, _ = _measure(method, sample, point)
    return source, status, point


def _white_point(sample: NDArray[np.uint8], white: Sequence[float] | None) -> tuple[tuple[float, float, float], str]:
    """Return the white point and where it comes from."""
    if white is None:
        return estimate_white(sample)
    return check_white(white), "given"


def check_white(white: Sequence[float]) -> tuple[float, float, float]:
    """Return a white point as three floats.

    Raises:
        PixelFormatError: it is not three levels in (0, 255].
    """
    try:
        levels = [float(level) for level in white]
    except (TypeError, ValueError):
        raise PixelFormatError(f"the white point {white!r} is not three numbers (R, G, B).") from None
    if len(levels) != 3 or not all(0.0 < level <= 255.0 for level in levels):
        raise PixelFormatError(f"the white point {list(white)} is not three grey levels above 0, up to 255.")
    return levels[0], levels[1], levels[2]


def _measure(
    method: str, sample: NDArray[np.uint8], white: tuple[float, float, float]
) -> tuple[Measure | None, str, int]:
    """Return what was measured on (N, 3) pixels, the status, and the number of tissue pixels."""
    density = optical_density(sample, white)
    dense = tissue_mask(density)
    tissue = dense & ~ink_mask(density)
    count = int(tissue.sum())
    if 2 * count < int(dense.sum()) and int(dense.sum()) >= MIN_TISSUE_PIXELS:
        return None, "ink", count
    if count < MIN_TISSUE_PIXELS:
        return None, "too little tissue", count
    source: Measure | None
    if method == "reinhard":
        # Shifted to the colors of two stains, one alone would take the hue of the other.
        stains, status = macenko.estimate(density[tissue])
        source = None
        if stains is not None:
            source, status = reinhard.estimate(sample[tissue], density[tissue])
            source = None if source is None else replace(source, brown=stains.brown)
    else:
        source, status = (macenko if method == "macenko" else vahadane).estimate(density[tissue])
    return source, status, count


def _target(method: str, reference: str | StainParams | CohortReference | Array | None) -> tuple[str, Measure]:
    """Return the name and the measure of a reference."""
    if reference is None or isinstance(reference, str):
        name = DEFAULT_REFERENCE if reference is None else reference
        if name not in REFERENCES:
            raise UnknownReferenceError(unknown("stain reference", name, REFERENCES))
        return name, REFERENCES[name].measure(method)
    if isinstance(reference, StainParams | CohortReference):
        if reference.method != method:
            raise UnusableReferenceError(
                f"the reference was fitted by {reference.method!r}, not by {method!r}. "
                f"Fit it again: stain.fit({method!r}, pixels)."
            )
        if isinstance(reference, CohortReference):
            return "custom", reference.target
        source, status = reference.source, reference.status
    else:
        check_pixels(reference)
        sample = sample_pixels(reference)
        source, status, _ = _measure(method, sample, estimate_white(sample)[0])
    if source is None:
        raise UnusableReferenceError(
            f"the reference cannot serve: {status}. Give an image with enough tissue in both stains, "
            f"or leave it out to use {DEFAULT_REFERENCE!r}."
        )
    return "custom", source


def _from_json(data: Mapping[str, Any]) -> StainParams:
    """Read parameters; what is wrong comes out as KeyError, TypeError, ValueError or StainError."""
    method, status = data["method"], data["status"]
    if data["version"] != _FORMAT or method not in METHODS or status not in STATUSES:
        raise ValueError(f"version {data['version']!r}, method {method!r}, status {status!r}")
    kind = LabStatistics if method == "reinhard" else StainMatrix
    source = None if data["source"] is None else kind.from_json(data["source"])
    if (source is None) == (status == "ok"):
        raise ValueError(f"status {status!r} does not go with source {data['source']!r}")
    return StainParams(
        method=method,
        status=status,
        reference=str(data["reference"]),
        white=check_white(data["white"]),
        white_source=str(data["white_source"]),
        tissue_pixels=int(data["tissue_pixels"]),
        source=source,
        target=kind.from_json(data["target"]),
    )
