"""What a scan leaves behind: the inventory as CSV or JSON, and a manifest to be filled in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi.errors import printable
from wsi.remote_path import RemotePath

from .files import csv_bytes, write_bytes
from .filled_in import OF_THE_SCAN, Filled, says_something
from .manifest import SlideEntry
from .scan_slide import SlideRow
from .units import counted

INVENTORY = (
    *("light", "slide_id", "path", "cause", "mend", "notes", "reader", "vendor", "container", "compression"),
    *("native_tile", "direct", "width", "height", "levels", "um_per_px_x", "um_per_px_y", "um_per_px_source"),
    *("um_per_px_problem", "objective", "icc_profile", "bytes", "files", "tissue_share", "tiles", "probe"),
)
"""A manifest is read by none of these but slide_id and path: so the inventory may serve as SLIDES."""

MANIFEST = ("path", "slide_id", "case_id", "mpp", *OF_THE_SCAN)


def as_object(row: SlideRow) -> dict[str, Any]:
    """Return what `--json` tells of a slide."""
    worst = row.worst
    return {
        "slide_id": row.entry.slide_id,
        "path": _shown(row.entry.path),
        "light": row.light,
        "cause": None if worst is None else printable(worst.what),
        "mend": None if worst is None else printable(worst.mend),
        "findings": [
            {"light": f.light, "code": f.code, "what": printable(f.what), "mend": printable(f.mend)}
            for f in row.findings
        ],
        "reader": row.reader,
        "vendor": row.vendor,
        "container": row.container,
        "compression": row.compression,
        "native_tile": row.native_tile,
        "direct": row.direct,
        "levels": [list(level) for level in row.levels],
        "mpp": row.mpp,
        "mpp_source": row.mpp_source,
        "mpp_problem": row.mpp_problem and printable(row.mpp_problem),
        "objective_power": row.objective,
        "icc_profile": row.icc and printable(row.icc),
        "bytes": row.total_bytes,
        "files": row.file_count,
        "tissue_share": row.tissue_share,
        "tiles": row.tiles,
        "probe": row.probe,
        "quality": row.quality,
    }


def write_inventory(path: Path, rows: Sequence[SlideRow]) -> str:
    """Write one line per slide; return what was written, in words.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    flaws = dict.fromkeys(f"{flaw}_share" for row in rows for flaw in row.quality)
    lines = [_inventory_line(row, path) for row in rows]
    write_bytes(path, csv_bytes([*INVENTORY, *flaws], lines))
    return f"{path}: the inventory of {counted(len(rows), 'slide')}"


def write_manifest(path: Path, rows: Sequence[SlideRow], before: Filled | None = None) -> str:
    """Write the slides that can run as a table that SLIDES takes; `mpp` is left for the user to fill in.

    A value is proposed from the objective's power in a column of its own, which nothing reads. Nothing that the user
    filled in is lost: a slide of which an earlier manifest said something stays, even if it would fail.

    Args:
        path: of the table.
        rows: what the scan found.
        before: what the manifest at `path` said.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    told = [row for row in rows if row.light != "red" or (before is not None and says_something(row.entry))]
    others = () if before is None else before.others
    ordered = sorted(told, key=lambda row: (not _needs_mpp(row), row.entry.slide_id))
    lines = [*(_manifest_line(row, path) for row in ordered), *(_said_of(entry, path) for entry in others)]
    entries = [*(row.entry for row in told), *others]
    more = dict.fromkeys(column for entry in entries for column in entry.columns if column not in MANIFEST)
    write_bytes(path, csv_bytes([*MANIFEST, *more], lines))
    needy = sum(map(_needs_mpp, told))
    ask = f", {needy} to be filled in (column mpp)" if needy else ""
    left = f"; {len(rows) - len(told)} that would fail are left out" if len(told) < len(rows) else ""
    kept = f"; what was filled in before is kept ({counted(before.kept, 'slide')})" if before and before.kept else ""
    stay = f"; what was said of {counted(len(others), 'slide')} not looked at stays" if others else ""
    away = any(Path(str(line["path"])).is_absolute() for line in lines)
    switch = "; slides lie outside its folder: a job takes it with --allow-outside" if away else ""
    return f"{path}: a manifest of {counted(len(lines), 'slide')}{ask}{left}{kept}{stay}{switch}"


def _inventory_line(row: SlideRow, table: Path) -> dict[str, object]:
    worst = row.worst
    others = [finding for finding in row.findings if finding is not worst]
    return {
        "light": row.light,
        "slide_id": row.entry.slide_id,
        "path": _path_from(table, row.entry.path),
        "cause": printable(worst.what) if worst else None,
        "mend": printable(worst.mend) if worst else None,
        "notes": "; ".join(printable(finding.what) for finding in others),
        "reader": row.reader,
        "vendor": row.vendor,
        "container": row.container,
        "compression": row.compression,
        "native_tile": row.native_tile and "{}x{}".format(*row.native_tile),
        "direct": _yes(row.direct),
        "width": row.levels[0][0] if row.levels else None,
        "height": row.levels[0][1] if row.levels else None,
        "levels": " ".join("{}x{}".format(*level) for level in row.levels),
        "um_per_px_x": row.mpp and row.mpp[0],
        "um_per_px_y": row.mpp and row.mpp[1],
        "um_per_px_source": row.mpp_source,
        "um_per_px_problem": row.mpp_problem and printable(row.mpp_problem),
        "objective": row.objective,
        "icc_profile": row.icc and printable(row.icc),
        "bytes": row.total_bytes,
        "files": row.file_count,
        "tissue_share": row.tissue_share,
        "tiles": row.tiles,
        "probe": row.probe,
        **{f"{flaw}_share": share for flaw, share in row.quality.items()},
    }


def _manifest_line(row: SlideRow, table: Path) -> dict[str, object]:
    return {
        **_said_of(row.entry, table),
        "stated_by_slide": f"{row.mpp[0]:.6g}" if row.mpp and row.mpp_problem is None else row.mpp_problem,
        "objective": row.objective,
        "proposed": f"{10 / row.objective:.3g}" if _needs_mpp(row) and row.objective else None,
        "to_do": _to_do(row),
    }


def _said_of(entry: SlideEntry, table: Path) -> dict[str, object]:
    """Return what the user said of a slide."""
    return {
        **entry.columns,
        "path": _path_from(table, entry.path),
        "slide_id": entry.slide_id,
        "case_id": None if entry.case_id == entry.slide_id else entry.case_id,
        "mpp": entry.mpp,
    }


def _to_do(row: SlideRow) -> str | None:
    if row.light == "red" and row.worst is not None:
        return f"it would fail: {printable(row.worst.what)}"
    return "fill in mpp: µm per pixel of level 0" if _needs_mpp(row) else None


def _needs_mpp(row: SlideRow) -> bool:
    return row.mpp is None and row.light != "red"


def _path_from(table: Path, slide: Path) -> str:
    """Return a slide's path as a table names it: from the table's folder where it lies below that, else in full."""
    if isinstance(slide, RemotePath):
        return str(slide)
    folder, path = os.path.abspath(table.parent), os.path.abspath(slide)  # noqa: PTH100 - links keep their names
    relative = os.path.relpath(path, folder)
    if relative.startswith(".."):
        return path
    odd = relative != relative.strip() or relative[0] in "=+-@"  # blanks are lost at the ends, = would be a formula
    return f"./{relative}" if odd else relative


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _shown(path: Path) -> str:
    """Return a path that can be printed: bytes of its name that are no text are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
