"""Every benchmark runs (a tiny round of it) and ends with the summary that scripts rely on."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("[a-z]*.py"))
REFERENCES = sorted(path.name for path in BENCHMARKS.glob("references/[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_round_ends_with_the_summary(script):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    summary = lines[-1]
    assert summary["bench"] == Path(script).stem
    assert set(summary) == {"bench", "figures", "goals", "short", "how"}
    assert set(summary["short"]) <= set(summary["goals"])
    assert all(sign in (">=", "<=") for sign, _ in summary["goals"].values())
    if script == "stress_kills.py":
        assert summary["figures"]["kills"] >= 3
    if script.startswith("stress_"):
        assert summary["short"] == [], summary
    if script == "read_tiles.py":
        asked = {"half224", "half256", "half512", "native224", "native256"}
        assert {f"{case}_of_limit" for case in asked} <= set(summary["figures"])
        assert "half224_over_best" in summary["short"], "there is no best without pyvips, cucim and hs2p"


@pytest.mark.slow
@pytest.mark.parametrize("script", REFERENCES)
def test_a_quick_round_of_a_reference_ends_with_the_summary(script, monkeypatch, capsys):
    """In this process, which has loaded what they need."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "references"))
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    runpy.run_path(str(BENCHMARKS / "references" / script), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summary = lines[-1]
    assert set(summary) == {"bench", "figures", "goals", "short", "how"}
    assert summary["bench"] == Path(script).stem
    assert summary["figures"]
    assert set(summary["short"]) <= set(summary["goals"])
    if script == "torchmil_agreement.py":
        assert summary["short"] == []


def test_make_bench_runs_the_references_too(benchmark_module):
    scripts = benchmark_module("_run_all").scripts
    assert {path.name for path in scripts(stress=False)} >= {*REFERENCES, "mil_speed.py"}
    assert {path.stem.startswith("stress_") for path in scripts(stress=True)} == {True}


def test_a_goal_without_the_peers_it_names_is_short(benchmark_module, capsys):
    benchmark_module("_summary").summary("x", {"a": 2.0, "b": 2.0}, {"a": (">=", 1), "b": (">=", 1)}, {}, {"b"})
    assert json.loads(capsys.readouterr().out)["short"] == ["b"]


def test_a_figure_that_was_not_measured_has_its_row_on_the_page(benchmark_module):
    summary = {"bench": "x", "figures": {"a": 1.5}, "goals": {"b": [">=", 2]}, "short": ["b"], "how": {"v": {"n": "1"}}}
    page = benchmark_module("_run_all").section(summary)
    assert "| `b` | not measured | >= 2 | short |" in page
    assert "| `a` | 1.5 |" in page
    assert "v: (n 1)" in page


def test_a_benchmark_that_hangs_does_not_take_the_page_with_it(benchmark_module, monkeypatch, tmp_path):
    run_all = benchmark_module("_run_all")
    monkeypatch.setattr(run_all, "LONGEST", 0.2)
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(30)")
    assert run_all.run(script, [])[1].startswith("did not end")


def test_the_limit_decodes_just_the_tiles_that_are_touched(benchmark_module):
    """The oracle paints what is read, and looks which tiles of the file got color."""
    needed = benchmark_module("_own").needed_tiles
    case = {"xy": [(0, 0), (448, 0), (1344, 896)], "read_size": (448, 448), "downsample": 1.0}
    painted = np.zeros((2048, 2048), bool)
    for x, y in case["xy"]:
        painted[y : y + 448, x : x + 448] = True
    touched = np.flatnonzero(painted.reshape(8, 256, 8, 256).any((1, 3)))
    assert needed(case, 8, (256, 256)) == touched.tolist()


def test_a_ratio_is_taken_inside_a_round(benchmark_module):
    """A machine that is four times slower in one round changes no ratio."""
    seconds = benchmark_module("_turns").Seconds()
    for load in (1, 4, 1):
        seconds.add("ours", {"cpu": 0.5 * load, "wall": 9})
        seconds.add("peer", {"cpu": 1.5 * load, "wall": 9})
    assert seconds.ratios("peer", "ours") == [3, 3, 3]
    assert seconds.best(["peer", "not there"]) == "peer"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
