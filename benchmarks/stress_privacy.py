"""Is anything told that must not be?    python benchmarks/stress_privacy.py [--quick]

The zoo's slides that name a (made-up) patient in text, label and macro, that quote a neighboring file, and that have
awkward names go through the real command: run, scan, info, plan, status, report. Then the zoo's damaged slides, all
called by a secret name, go through a run with made-up names: errors of all readers are about them. Every byte written
or printed is searched, also inside what is packed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _secrets import leaks, shows
from _summary import line, summary

SECRET = "ZZNAME"
LABEL = (255, 0, 255)
FORMULAS = tuple("=+-@\t\r")
GROUPS = ("damaged", "truncated", "structure", "format", "metadata", "bomb")


def write_zoo(folder: Path, wanted: Any) -> list[dict[str, Any]]:
    tool = Path(os.environ.get("SLIDEMIL_SHARED", "../shared")) / "tools" / "make_bad_slides.py"
    spec = importlib.util.spec_from_file_location("make_bad_slides", tool)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_bad_slides"] = module
    spec.loader.exec_module(module)
    cases = [case for case in module.CASES if wanted(case)]
    return [case for case in module.write(folder, cases=cases)["cases"] if case["made"]]


def slidemil(said: Path, *arguments: object) -> int:
    """Run the command, keep what it prints in a file."""
    told = [str(argument) for argument in arguments]
    done = subprocess.run([sys.executable, "-m", "pipelines.cli", *told], capture_output=True, timeout=600)
    with said.open("ab") as file:
        file.write(b"\n".join((done.stdout, done.stderr)))
    return done.returncode


def told_by_slides(root: Path, quick: bool) -> dict[str, float]:
    """Run slides that tell of people, and slides of awkward names."""
    names = ("privacy",) if quick else ("privacy", "name")
    cases = write_zoo(
        root / "zoo", lambda case: case["group"] in names or case["file"].startswith(("bomb/xml", "bomb/neigh"))
    )
    secrets = [word for case in cases for word in case.get("secrets", ())]
    job, said = root / "job", root / "job" / "printed.txt"
    job.mkdir()
    quality = "--quality" if quick else "--no-quality"
    codes = [
        slidemil(said, "run", root / "zoo", "-o", job, "--slide-mpp", "0.5", "--set", f"quality={quick}", "-v"),
        slidemil(said, "scan", root / "zoo", "-o", job / "i.csv", "--manifest", job / "m.csv", quality),
        slidemil(said, "info", root / "zoo", "--json"),
        slidemil(said, "plan", root / "zoo", "-o", job, "--probe", "2"),
        slidemil(said, "status", job),
        slidemil(said, "report", job),
    ]
    found = leaks(job, secrets)
    pictures = [path for path in job.rglob("*") if path.suffix in (".jpg", ".png")]
    colored = [path.name for path in pictures if shows(path, LABEL)]
    for text in (*found, *colored):
        line(leak=text)
    tables = [cell for path in job.rglob("*.csv") for row in csv.reader(path.open(newline="")) for cell in row]
    formulas = [cell for cell in tables if cell.startswith(FORMULAS) and not _is_number(cell)]
    control = {byte for byte in said.read_bytes() if byte < 32 and byte not in b"\n\t"}
    outside = [path.name for path in root.iterdir() if path.name not in ("zoo", "job", "hidden")]
    slides = [case for case in cases if case["expect"] == "opens" and "/.." not in case["file"]]
    features = list(job.glob("*/features_*/*.h5"))
    line(
        step="slides that tell",
        slides=len(slides),
        feature_files=len(features),
        pictures=len(pictures),
        exit_codes=codes,
    )
    return {
        "secrets_told": len(found),
        "label_pictures": len(colored),
        "formulas": len(formulas),
        "control_codes": len(control),
        "outside": len(outside),
        "longest_name": max(len(path.name.encode()) for path in job.rglob("*")),
        "slides_without_output": len(slides) - len(features),
        "bugs": codes.count(1),
    }


def told_by_errors(root: Path, quick: bool) -> dict[str, float]:
    """Run damaged slides of secret names under made-up ones."""
    groups = ("damaged",) if quick else GROUPS
    cases = write_zoo(root / "zoo", lambda case: case["group"] in groups)
    hidden = root / f"{SECRET} Erika"
    for number, case in enumerate(cases):
        path = root / "zoo" / case["file"]
        target = hidden / f"{SECRET}-{number % 7}" / f"{SECRET}_{number}_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    job, key, said = root / "job", root / "key.json", root / "job" / "printed.txt"
    job.mkdir()
    options = ("-o", job, "--pseudonymize", key, "--slide-mpp", "0.5", "--set", "quality=False", "-v")
    codes = [slidemil(said, "run", hidden, *options), slidemil(said, "status", job), slidemil(said, "report", job)]
    found = leaks(job, [SECRET, "Erika"])
    for text in found:
        line(leak=text)
    rows = list(csv.DictReader((job / "slides.csv").open(newline=""))) if (job / "slides.csv").exists() else []
    failed = sum(row["status"] == "failed" for row in rows)
    line(step="errors under made-up names", slides=len(cases), failed=failed, exit_codes=codes)
    return {"true_names_told": len(found), "errors_told": failed, "more_bugs": codes.count(1)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without the awkward names, and damaged tiles alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        figures = {**told_by_slides(Path(one), args.quick), **told_by_errors(Path(two), args.quick)}
    goals = {key: ("<=", 255 if key == "longest_name" else 0) for key in figures if key not in ("errors_told",)} | {
        "errors_told": (">=", 3)
    }
    summary("stress_privacy", figures, goals, {"quick": args.quick, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
