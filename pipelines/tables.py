"""Column names that other tools use for the same thing, and how we read them."""

from __future__ import annotations

from collections.abc import Iterable

ALIASES: dict[str, tuple[str, ...]] = {
    "slide_id": ("slide_id", "sample_id", "slide", "SLIDE", "name"),
    "path": ("path", "wsi", "image_path", "filename", "FILENAME", "slide_path"),
    "case_id": ("case_id", "patient_id", "PATIENT", "patient", "case"),
    "mpp": ("mpp", "spacing_at_level_0", "mpp_x"),
    "split": ("split", "fold", "set"),
}


def first_of(columns: Iterable[str], kind: str) -> str | None:
    """Return the first column that means `kind`, None where there is none."""
    present = set(columns)
    return next((name for name in ALIASES[kind] if name in present), None)
