"""Which DICOM files belong to one slide: in DICOM a slide is a series of files, one or several per level."""

from __future__ import annotations

from pathlib import Path

from wsi.dicom_header import SOP_INSTANCE, read_dicom_header


def series_uid(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a DICOM slide file.

    None for any other file, and for DICOM that is no whole-slide image as the standard has it: such a file stands
    alone.
    """
    header = read_dicom_header(path)
    return header.series if header is not None and header.is_slide else None


def series_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside a DICOM slide file that are of its series, itself among them, by name."""
    uid = series_uid(path)
    if uid is None:
        return (path,)
    beside = (file for file in path.parent.iterdir() if file.is_file())
    return tuple(sorted(file for file in beside if series_uid(file) == uid))


def same_twice(path: Path) -> tuple[str, str] | None:
    """Return the names of two files of the series that are one and the same picture, None where there are none."""
    seen: dict[str, str] = {}
    for file in series_files(path):
        header = read_dicom_header(file)
        instance = None if header is None else header.text.get(SOP_INSTANCE)
        if instance is not None and seen.setdefault(instance, file.name) != file.name:
            return seen[instance], file.name
    return None
