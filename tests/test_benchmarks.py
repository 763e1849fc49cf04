"""Every benchmark runs (a tiny round of it) and ends with the summary that scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_round_ends_with_the_summary(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick"],
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
    if script == "kill_resume.py":
        assert summary["figures"]["kills"] >= 3
        assert summary["short"] == [], summary
