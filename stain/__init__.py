"""Stain normalization: fitted once per slide, applied to each batch where it is (numpy or torch, any device).

Example: `stain.fit("macenko", tissue_pixels).apply(batch)`.
"""

from .augment import jitter_stains, rand_stain_na
from .cohort import CohortReference, combine
from .density import FIT_PIXELS, estimate_white, optical_density, sample_pixels
from .errors import (
    ParametersError,
    PixelFormatError,
    StainError,
    UnknownMethodError,
    UnknownReferenceError,
    UnusableReferenceError,
)
from .macenko import StainMatrix
from .normalize import BYTES, METHODS, STATUSES, StainParams, fit, measure
from .references import DEFAULT_REFERENCE, REFERENCES
from .reinhard import LabStatistics

__all__ = [
    "BYTES",
    "DEFAULT_REFERENCE",
    "FIT_PIXELS",
    "METHODS",
    "REFERENCES",
    "STATUSES",
    "CohortReference",
    "LabStatistics",
    "ParametersError",
    "PixelFormatError",
    "StainError",
    "StainMatrix",
    "StainParams",
    "UnknownMethodError",
    "UnknownReferenceError",
    "UnusableReferenceError",
    "combine",
    "estimate_white",
    "fit",
    "jitter_stains",
    "measure",
    "optical_density",
    "rand_stain_na",
    "sample_pixels",
]
