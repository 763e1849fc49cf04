"""What all references share: their options, the summary of the other benchmarks, and where the data lie."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent
SHARED = Path(os.environ.get("SLIDEMIL_SHARED", BENCHMARKS.parents[1] / "shared"))
sys.path.append(str(BENCHMARKS))  # at the end: nothing here is to be hidden

Figures = dict[str, float]
Goals = dict[str, tuple[str, float]]


def options(doc: str | None) -> argparse.Namespace:
    """Read `--quick` and `--full`; one core from here on."""
    torch.set_num_threads(1)
    chosen = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen.add_argument("--quick", action="store_true", help="a tiny round, figures without meaning")
    chosen.add_argument("--full", action="store_true", help="all repeats and all heads")
    return chosen.parse_known_args()[0]


def reference(name: str, measure: Callable[..., tuple[Figures, dict[str, Any]]], goals: Goals, doc: str | None) -> None:
    """Run a reference and end with its summary: `measure(quick=, full=)` returns figures and how they were made."""
    from _summary import summary

    chosen, start = options(doc), time.process_time()
    figures, how = measure(quick=chosen.quick, full=chosen.full and not chosen.quick)
    lacking = how.pop("lacking", ())
    how["versions"] = {name: version(name) for name in ("torch", "numpy")} | how.get("versions", {})
    how["machine"] = platform.processor() or platform.machine()
    how["cpu_seconds"] = round(time.process_time() - start)
    summary(name, figures, goals, how, lacking)


def say(**facts: Any) -> None:
    """Print one finding; numbers to four digits."""
    from _summary import line

    line(**{key: short(value) for key, value in facts.items()})


def short(value: Any) -> Any:
    """Four digits are enough for people."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    return [short(one) for one in value] if isinstance(value, (list, tuple)) else value
