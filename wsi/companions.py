"""Which files a slide is made of: some formats keep the pixels beside the file that is opened."""

from __future__ import annotations

from pathlib import Path

from wsi.dicom_header import is_dicom
from wsi.dicom_series import series_files

_BESIDE = {".vms", ".vmu", ".ndpis"}


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold a slide, the one to open first.

    MIRAX keeps its data in a folder of the same name; Hamamatsu's VMS, VMU and NDPIS name files that begin like them.
    A DICOM slide is all files of its series in the folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return (path, *sorted(file for file in path.with_suffix("").glob("*") if file.is_file()))
    if suffix in _BESIDE:
        beside = (file for file in path.parent.glob("*") if file.name.startswith(path.stem) and file.is_file())
        return (path, *sorted(file for file in beside if file != path))
    if is_dicom(path):
        return (path, *(file for file in series_files(path) if file != path))
    return (path,)
