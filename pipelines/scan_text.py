"""How a scan reads, on a terminal and without one: a line for each slide, then the groups of causes."""

from __future__ import annotations

import io
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from wsi.errors import printable

from .scan_slide import LIGHTS, Finding, SlideRow
from .units import counted

_STYLES = {"green": "green", "amber": "yellow", "red": "bold red"}
_NARROWEST, _WIDEST = 60, 160

_GROUPS = {
    "no-mpp": "without a stated µm/px",
    "refused-mpp": "with a µm/px that cannot be true",
    "too-coarse": "coarser than the asked µm/px",
    "no-grid": "that give no tiles of the asked width",
    "unreadable": "that cannot be opened",
    "not-brightfield": "not stained, or not under white light",
    "damaged": "with tiles that cannot be read",
    "no-tissue": "with no tissue to cut tiles from",
    "no-pyramid": "without a small level",
    "quality": "with much blur, pen or other flaws of the tissue",
    "duplicate": "with the same bytes as another",
    "same-picture": "with the same picture as another",
    "lost-died": "that end the process which reads them",
    "lost-late": "that take too long",
    "lost-raised": "that meet a bug",
}
_MENDS = {
    "no-mpp": "Give it with --slide-mpp, or fill in a manifest: --manifest FILE.",
    "refused-mpp": "Give it with --slide-mpp, or fill in a manifest: --manifest FILE.",
}


def lines_of(rows: Sequence[SlideRow], notes: Sequence[str], written: Sequence[str]) -> list[str]:
    """Return the lines: slides with the worst last, notes, groups of causes, counts."""
    ordered = sorted(rows, key=lambda row: (LIGHTS.index(row.light), row.entry.slide_id))
    head = _table(ordered) if sys.stdout.isatty() else [line for row in ordered for line in _plain(row)]
    told = [f"note   {printable(note, limit=1000)}" for note in notes]
    return [*head, "", *told, *groups_of(rows), counts_of(rows), *(f"wrote  {text}" for text in written)]


def counts_of(rows: Sequence[SlideRow]) -> str:
    """Return how many slides have which light, and how large they are."""
    lights = ", ".join(f"{sum(row.light == light for row in rows)} {light}" for light in LIGHTS)
    slides = counted(len(rows), "slide")
    return f"{slides}: {lights} · {size_of(sum(row.total_bytes or 0 for row in rows))}"


def groups_of(rows: Sequence[SlideRow]) -> list[str]:
    """Return one line per kind of trouble: how many slides have it, and what helps most of them."""
    mends = _usual_mends(rows)
    groups = Counter(group for row in rows for group in {(f.light, f.code) for f in row.findings if f.light != "green"})
    ordered = sorted(groups.items(), key=lambda group: (-LIGHTS.index(group[0][0]), -group[1], group[0][1]))
    return [
        f"{light:<5}  {counted(count, 'slide')} {_GROUPS.get(code, code)}. {mends.get(code, '')}".rstrip()
        for (light, code), count in ordered
    ]


def _usual_mends(rows: Iterable[SlideRow]) -> dict[str, str]:
    """Return what helps most slides of each kind of trouble."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        for finding in row.findings:
            if finding.mend:
                found.setdefault(finding.code, Counter())[finding.mend] += 1
    return {code: counts.most_common(1)[0][0] for code, counts in found.items()} | _MENDS


def size_of(size: int) -> str:
    """Return bytes as people write them."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def _plain(row: SlideRow) -> Iterator[str]:
    """One line for each slide, and one for each finding, for a log or `grep`."""
    yield f"{row.light:<5}  {printable(row.entry.slide_id)}  {' · '.join(_facts(row))}".rstrip()
    for finding in row.findings:
        yield f"         {_sentence(finding)}"


def _facts(row: SlideRow) -> list[str]:
    if not row.levels:
        return [size_of(row.total_bytes)] if row.total_bytes else []
    width, height = row.levels[0]
    resolution = f"{row.mpp[0]:.4g} µm/px ({row.mpp_source})" if row.mpp else f"µm/px {row.mpp_source}"
    power = f"{row.objective:g}x" if row.objective else None
    levels = counted(len(row.levels), "level")
    tile = "{} × {}".format(*row.native_tile) if row.native_tile else None
    kind = " ".join(part for part in (row.vendor, row.container, row.compression, tile) if part)
    how = "direct" if row.direct else (row.reader or "").split(" ")[0]
    icc = "ICC" if row.icc else None
    size = size_of(row.total_bytes or 0) + (f" in {row.file_count:,} files" if row.file_count > 1 else "")
    tiles = None if row.tiles is None else counted(row.tiles, "tile")
    found = (f"{width} × {height} px", levels, resolution, power, kind, how, icc, size, tiles)
    return [part for part in (*found, row.probe) if part]


def _sentence(finding: Finding) -> str:
    return f"{printable(finding.what, limit=400)}. {printable(finding.mend)}".rstrip()


def _table(rows: Sequence[SlideRow]) -> list[str]:
    """Draw the slides for a terminal: columns that fit its width, findings below their slide."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, emoji=False, markup=False)
    name, usual = width - 54, _usual_mends(rows)
    console.print(Text(f"{'':<8}{'slide':<{name}} {'px':>15} {'µm/px':>7} {'kind':<13} {'size':>7}", "dim"))
    for row in rows:
        line = Text(f"● {row.light:<6}", _STYLES[row.light])
        line.append(f"{_fitted(printable(row.entry.slide_id), name)} ", "default")
        line.append(" ".join(_cells(row)), "default")
        console.print(line, no_wrap=True, overflow="ellipsis")
        for finding in row.findings:
            known = finding.code in _MENDS or finding.mend == usual.get(finding.code)  # the summary tells it once
            text = Text(
                _sentence(replace(finding, mend="") if known else finding), "dim" if finding.light == "green" else ""
            )
            console.print(Padding(text, (0, 0, 0, 8), expand=False))
    if any(row.levels and not row.direct for row in rows):
        console.print(Text("* read through a library: its tiles cannot be taken straight from the file", "dim"))
    drawn: str = console.file.getvalue()  # type: ignore[attr-defined]
    return drawn.splitlines()


def _cells(row: SlideRow) -> tuple[str, ...]:
    size = "{} × {}".format(*row.levels[0]) if row.levels else ""
    resolution = f"{row.mpp[0]:.4g}" if row.mpp else "?" if row.levels else ""
    kind = f"{row.compression or row.container or ''}{'' if row.direct or not row.levels else ' *'}"
    return f"{size:>15}", f"{resolution:>7}", _fitted(kind, 13), f"{size_of(row.total_bytes or 0):>7}"


def _fitted(text: str, width: int) -> str:
    """Return text of exactly so many columns, its middle left out where it is longer."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    half = (width - 1) // 2
    tail = text[-half:]
    while cell_len(tail) > half:
        tail = tail[1:]
    return set_cell_size(set_cell_size(text, width - 1 - cell_len(tail)).rstrip() + "…" + tail, width)
