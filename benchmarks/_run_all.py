"""Run every benchmark, or every stress test, and render figures beside goals.    make bench, make stress"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LONGEST = 35 * 60  # seconds for one benchmark


def main() -> int:
    quick = ["--quick"] if "--quick" in sys.argv else []
    stress = "--stress" in sys.argv
    title, command, page = (
        ("Stress", "make stress", "STRESS.md") if stress else ("Benchmarks", "make bench", "RESULTS.md")
    )
    sections, code = [f"# {title}: figures beside goals\n", f"Made by `{command}`.\n"], 0
    for script in scripts(stress):
        print(f"{script.name} …", file=sys.stderr, flush=True)
        output, trouble = run(script, quick)
        sys.stdout.write(output)
        if trouble:
            code = 1
            sections.append(f"## {script.stem}\n\n{trouble}\n")
        else:
            sections.append(section(json.loads(output.splitlines()[-1])))
    if not quick:
        (HERE / page).write_text("\n".join(sections), encoding="utf-8")
    return code


def scripts(stress: bool) -> list[Path]:
    """The stress tests, or everything else and then the reference results."""
    mine = [one for one in sorted(HERE.glob("[a-z]*.py")) if one.stem.startswith("stress_") == stress]
    return mine if stress else mine + sorted(HERE.glob("references/[a-z]*.py"))


def run(script: Path, more: list[str]) -> tuple[str, str]:
    """Return what a benchmark printed, and what went wrong."""
    command = [sys.executable, str(script), *more]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LONGEST, cwd=HERE.parent)
    except subprocess.TimeoutExpired:
        return "", f"did not end within {LONGEST // 60} minutes"
    return done.stdout, f"ended with a bug (exit {done.returncode})" if done.returncode else ""


def section(summary: dict[str, Any]) -> str:
    """Return one benchmark's part of the page: each goal has a row, and each figure without one."""
    rows = ["| figure | measured | goal | |", "|---|---|---|---|"]
    for key in dict.fromkeys([*summary["goals"], *summary["figures"]]):
        measured = f"{summary['figures'][key]:.4g}" if key in summary["figures"] else "not measured"
        sign, goal = summary["goals"].get(key, ("", ""))
        verdict = "" if not sign else ("short" if key in summary["short"] else "met")
        rows.append(f"| `{key}` | {measured} | {sign} {goal} | {verdict} |")
    how = ", ".join(f"{name}: {said(value)}" for name, value in summary["how"].items())
    return f"## {summary['bench']}\n\n" + "\n".join(rows) + f"\n\n{how}\n"


def said(value: Any) -> str:
    """Return a value of `how` in words; what is nested, in brackets."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {said(one)}" for name, one in value.items()) + ")" if value else "none"
    return " ".join(str(value).split())


if __name__ == "__main__":
    raise SystemExit(main())
