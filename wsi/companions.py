"""Which files a slide is made of: some formats keep the pixels beside the file that is opened."""

from __future__ import annotations

import os
from pathlib import Path

from wsi.dicom_header import is_dicom
from wsi.dicom_series import series_files
from wsi.remote_path import RemotePath, path_of

_BESIDE = {".vms", ".vmu", ".ndpis"}


def would_belong(file: Path, slide: Path) -> bool:
    """Say whether a file that is new would count as one of a slide's files."""
    folder, suffix = Path(os.path.abspath(file.parent)), slide.suffix.lower()  # noqa: PTH100 - links keep their names
    if suffix == ".mrxs":
        return folder == Path(os.path.abspath(slide.with_suffix("")))  # noqa: PTH100
    beside = folder == Path(os.path.abspath(slide.parent))  # noqa: PTH100
    return suffix in _BESIDE and beside and file.name.startswith(slide.stem)


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold a slide, the one to open first.

    MIRAX keeps its data in a folder of the same name; Hamamatsu's VMS, VMU and NDPIS name files that begin like them.
    A DICOM slide is all files of its series in the folder.
    """
    path = path_of(path) if isinstance(path, str) else path
    if isinstance(path, RemotePath):
        return (path,)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return (path, *sorted(file for file in path.with_suffix("").glob("*") if file.is_file()))
    if suffix in _BESIDE:
        beside = (file for file in path.parent.glob("*") if file.name.startswith(path.stem) and file.is_file())
        return (path, *sorted(file for file in beside if file != path))
    if is_dicom(path):
        return (path, *(file for file in series_files(path) if file != path))
    return (path,)
