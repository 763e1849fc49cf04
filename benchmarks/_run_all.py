"""Run every benchmark and render RESULTS.md, figure beside goal.    make bench"""

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
    sections, code = ["# Benchmarks: figures beside goals\n", "Made by `make bench`.\n"], 0
    for script in sorted(HERE.glob("[a-z]*.py")):
        print(f"{script.name} …", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, str(script), *quick], stdout=subprocess.PIPE, text=True, timeout=LONGEST, cwd=HERE.parent
        )
        sys.stdout.write(done.stdout)
        if done.returncode:
            code = 1
            sections.append(f"## {script.stem}\n\nended with a bug (exit {done.returncode})\n")
        else:
            sections.append(section(json.loads(done.stdout.splitlines()[-1])))
    if not quick:
        (HERE / "RESULTS.md").write_text("\n".join(sections), encoding="utf-8")
    return code


def section(summary: dict[str, Any]) -> str:
    rows = ["| figure | measured | goal | |", "|---|---|---|---|"]
    for key, figure in summary["figures"].items():
        sign, goal = summary["goals"].get(key, ("", ""))
        verdict = "" if not sign else ("short" if key in summary["short"] else "met")
        rows.append(f"| `{key}` | {figure:.4g} | {sign} {goal} | {verdict} |")
    how = ", ".join(f"{name}: {value}" for name, value in summary["how"].items())
    return f"## {summary['bench']}\n\n" + "\n".join(rows) + f"\n\n{how}\n"


if __name__ == "__main__":
    raise SystemExit(main())
