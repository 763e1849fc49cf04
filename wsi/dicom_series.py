"""Which DICOM files belong to one slide: in DICOM a slide is a series of files, one per level."""

from __future__ import annotations

from pathlib import Path

_PREAMBLE = 128


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do: a preamble of 128 bytes, then `DICM`."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def series_uid(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a DICOM slide file.

    None for any other file, and for DICOM that OpenSlide does not take for a slide: such a file stands alone.
    """
    if not is_dicom(path):
        return None
    import openslide

    try:
        with openslide.OpenSlide(str(path)) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except openslide.OpenSlideError:
        return None
