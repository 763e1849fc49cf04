"""Which files a slide is made of: some formats keep the pixels beside the file that is opened."""

from __future__ import annotations

from pathlib import Path

_BESIDE = {".vms", ".vmu", ".ndpis"}


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold a slide, the one to open first.

    MIRAX keeps its data in a folder of the same name; Hamamatsu's VMS, VMU and NDPIS name files that begin like them.
    The files of a DICOM series are found with `wsi.series_uid`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return (path, *sorted(file for file in path.with_suffix("").glob("*") if file.is_file()))
    if suffix in _BESIDE:
        beside = (file for file in path.parent.glob("*") if file.name.startswith(path.stem) and file.is_file())
        return (path, *sorted(file for file in beside if file != path))
    return (path,)
