"""How far it is, on stderr: counts are never cut, and an estimate is called one."""

from __future__ import annotations

import io

import pytest

from pipelines import progress
from pipelines.progress import Lines

NOTE = "encoder-bound: readers wait 45% · an encoder twice as fast would give about 1.7x"


def drawn(width, note=NOTE):
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    rich = progress.bar_with_note("tiles", console, auto_refresh=False)
    bar = progress._Bar(rich, rich.add_task("features", total=None, note="", rate="", left="", count=""))
    bar.total(2648, exact=False)
    bar.advance(1160, note)
    console.print(rich.get_renderable())
    return [line.rstrip() for line in out.getvalue().rstrip("\n").split("\n")]


@pytest.mark.parametrize("width", [70, 80, 100, 120, 200])
def test_neither_the_counts_nor_the_note_are_ever_cut(width):
    counts, *note = drawn(width)
    assert "1160/~2648 tiles" in counts
    assert "/s" in counts
    assert "left" in counts
    assert " ".join(note) == NOTE
    assert len(note) == (2 if width < len(NOTE) else 1)


def test_without_a_note_there_is_one_line():
    assert len(drawn(80, None)) == 1


def test_a_line_a_minute_calls_an_estimate_one(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    lines = Lines("features", "tiles")
    lines._began -= 10
    lines.total(464, exact=False)
    lines.advance(400)
    lines.total(426)
    lines.advance(26)
    first, second = capsys.readouterr().err.splitlines()
    assert "400 of about 464 tiles" in first
    assert "426 of 426 tiles" in second
    assert "about 1.6 s left" in first
    assert "min left" not in first
