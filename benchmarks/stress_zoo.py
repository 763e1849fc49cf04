"""Does every bad slide end as it should?    python benchmarks/stress_zoo.py [--quick]

The 157 odd and damaged slides of the shared generator go through `slidemil extract`: all in one batch; the good ones
of these alone, for their bytes must not change; and each by itself in a process with a time and a memory limit, where
its pixels are then read again, the way tiles are read, and held against the true colors that the generator tells. Of
the one slide of 60,000 pixels a side only the tissue is looked for: its 70,000 tiles would take the time of all others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from _bad_slides import Case, write_zoo
from _summary import line, summary
from _tree import Watch

GOALS = {
    "not_as_manifest": ("<=", 0),
    "crashes": ("<=", 0),
    "hangs": ("<=", 0),
    "silent_wrong": ("<=", 0),
    "messages_unfit": ("<=", 0),
    "unlisted": ("<=", 0),
    "good_changed": ("<=", 0),
    "worst_mb": ("<=", 1500),
}
HUGE = "good/huge_one_level.tiff"
FORBIDDEN = "file/forbidden.svs"
SECONDS, SECONDS_HUGE = 20, 60
MEMORY = 1_500_000_000
LONGEST = 300
OPTIONS = ("--slide-mpp", "0.5", "--json", "-q")
REFUSED = (2, 3, 4)
"""Wrong usage, failed, nothing matched: how one bad slide may end."""


# ------------------------------------------------------------------ the batch


def batch(slides: Path, job: Path) -> tuple[int, dict[str, Any], float, int]:
    """Run the command over a folder; return its exit code, what it said, seconds and the largest process, bytes."""
    command = [sys.executable, "-m", "pipelines.cli", "extract", str(slides), "-o", str(job), *OPTIONS]
    began = time.monotonic()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        Watch(process.pid) as watch,
    ):
        said, more = process.communicate()
    if process.returncode not in (0, 3):
        line(stopped=process.returncode, said=more[-2000:])
    told = json.loads(said) if process.returncode in (0, 3) else {"failed": [], "slides": {}}
    return process.returncode, told, time.monotonic() - began, max(watch.peaks.values(), default=0)


def statuses(job: Path) -> dict[str, tuple[Path, str]]:
    """Return slide → its file, and what became of it."""
    tables = []
    for name in ("manifest.csv", "slides.csv"):
        with (job / name).open(newline="", encoding="utf-8") as file:
            tables.append({row["slide_id"]: row for row in csv.DictReader(file)})
    manifest, slides = tables
    return {name: (job / manifest[name]["path"], row["status"]) for name, row in slides.items()}


def outputs(job: Path, slide_id: str) -> dict[str, str]:
    """Return relative path → SHA-256 of all that was made of a slide."""
    files = {}
    for path in sorted(job.rglob("*")):
        relative = path.relative_to(job)
        stem = path.name.removesuffix(path.suffix).removesuffix("_patches")
        if path.is_file() and stem == slide_id and relative.parts[0] not in ("runs", "logs", ".state", ".done"):
            files[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def unfit(text: str) -> bool:
    """Say whether a message is not one printable line of bearable length."""
    return len(text) > LONGEST or not text.isprintable() or "Traceback" in text


# ------------------------------------------------------------------ one by one


def alone(path: Path, case: Case, room: Path) -> dict[str, Any]:
    """Run the command on one file in a child of this process, which has all libraries loaded; then hold its pixels.

    Returns:
        `code` (None: it ran out of time; negative: the signal that ended it), `said`, `pixels`, `mb`, `seconds`.
    """
    answer = room / "answer.json"
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            answer.write_text(json.dumps(in_child(path, case, room)))
            code = 0
        finally:
            os._exit(code)
    began, limit = time.monotonic(), SECONDS_HUGE if case["file"] == HUGE else SECONDS
    ended = status = 0
    while not ended and time.monotonic() - began < limit:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if not ended:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return {"code": None, "said": "", "pixels": "", "mb": 0.0, "seconds": seconds}
    if status or not answer.exists():
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return {"code": code or 70, "said": "", "pixels": "", "mb": used.ru_maxrss / 1e3, "seconds": seconds}
    return {**json.loads(answer.read_text()), "seconds": seconds}


def in_child(path: Path, case: Case, room: Path) -> dict[str, Any]:
    from typer.testing import CliRunner

    from pipelines.cli import app

    if case["file"] == HUGE:
        return {"code": 0, "said": "", "pixels": tissue_found(path), "mb": most_mb()}
    done = CliRunner().invoke(app, ["extract", str(path), "-o", str(room / "job"), *OPTIONS])
    folder = path.is_dir() and done.exit_code == 3  # a search that ended; its slides are cases of their own
    pixels = "refused" if folder else held(path, case)
    said = done.output if done.exit_code in REFUSED else ""
    if done.exit_code == 3:
        failure = json.loads(done.stdout)["failed"][0]
        said = f"{failure['cause']}. {failure['mend']}"
    return {"code": done.exit_code, "said": said.strip(), "pixels": pixels, "mb": most_mb()}


def most_mb() -> float:
    """Return the most memory that this process or one it started has had."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e3


def tissue_found(path: Path) -> str:
    """Look for the tissue of a slide, which takes all its pixels where it has but one level."""
    import wsi

    with wsi.open_slide(path, slide_mpp=0.5) as slide:
        tissue = wsi.find_tissue(slide)
    return "right" if tissue.thumbnail.size else "nothing"


def held(path: Path, case: Case) -> str:
    """Read a slide where the generator knows its colors; return `right`, `refused`, `unknown`, or what is wrong."""
    import wsi

    try:
        with wsi.open_slide(path, slide_mpp=0.5) as slide:
            if slide.mpp is None:
                return "refused"
            wrong = list(wrong_probes(slide, case)) + list(silent_damage(slide, case))
    except wsi.SlideError:
        return "refused"
    if not case.get("probes") and not case.get("spoiled"):
        return "unknown"
    return "; ".join(wrong) or "right"


def streamed(slide: Any, places: list[tuple[int, int]], side: int) -> dict[int, Any]:
    """Read squares of level 0 the way tiles are read: place → pixels, None for those that failed."""
    import wsi

    if not places:
        return {}
    xy = np.array(places, np.int64).reshape(-1, 2)
    mpp = slide.mpp.x
    spec = wsi.TileSpec(side, mpp)
    grid = wsi.TileGrid(
        xy, (side, side), (side, side), spec, wsi.Mpp(mpp, mpp, "test"), 0, (side, side), slide.size, np.ones(len(xy))
    )
    found: dict[int, Any] = dict.fromkeys(range(len(xy)))
    with wsi.stream([(slide, grid)], workers=1) as batches:
        for one in batches:
            for place, pixels, ok in zip(one.index, one.pixels, one.ok, strict=True):
                found[int(place)] = pixels.copy() if ok else None
    return found


def wrong_probes(slide: Any, case: Case) -> Iterator[str]:
    probes = case.get("probes") or []
    if not probes:
        return
    side = probes[0]["side"]
    tiles = streamed(slide, [(probe["x"], probe["y"]) for probe in probes], side)
    for number, probe in enumerate(probes):
        if tiles[number] is None:
            yield f"({probe['x']}, {probe['y']}) cannot be read"
            continue
        whole = slide.read(probe["x"], probe["y"], side, side)
        for pixels in (tiles[number], whole):
            off = float(abs(pixels.reshape(-1, 3).mean(0) - probe["rgb"]).max())
            if off > (case.get("tolerance") or 0) + 0.5:
                yield f"({probe['x']}, {probe['y']}) is {off:.1f} off"


def silent_damage(slide: Any, case: Case) -> Iterator[str]:
    """Read what is known to be damaged: it must fail, but what a scanner left out, which is glass."""
    if "cannot be seen" in (case.get("note") or ""):
        return
    left_out = case["expect"] == "opens"
    for x, y, width, height in case.get("spoiled") or []:
        side = min(width, height, 64)
        places = [(x + dx, y + dy) for dx in (0, width - side) for dy in (0, height - side)]
        for pixels in streamed(slide, places, side).values():
            if left_out and (pixels is None or pixels.min() < 230):
                yield f"what was left out at ({x}, {y}) is no glass"
            elif not left_out and pixels is not None:
                yield f"damage at ({x}, {y}) was read in silence"


def verdict(case: Case, found: dict[str, Any]) -> dict[str, int]:
    """Hold what became of one slide against its row of the manifest; return what is wrong, by key of the summary."""
    code, pixels = found["code"], found["pixels"]
    if code is None:
        return {"hangs": 1}
    if code not in (0, *REFUSED):
        return {"crashes": 1}
    wrong = {}
    forbidden = case["file"] == FORBIDDEN and os.geteuid() == 0  # nothing is forbidden to the administrator
    expected = "" if forbidden else case["expect"]
    if (expected == "opens" and code != 0) or (expected == "clear error" and code == 0):
        wrong["not_as_manifest"] = 1
    if code != 0 and (unfit(found["said"]) or not found["said"]):
        wrong["messages_unfit"] = 1
    refused = ("refused", "cannot be read", "was read in silence")  # one bad tile of twelve fails the slide
    if pixels not in ("right", "unknown") and not (code != 0 and pixels.endswith(refused) and "off" not in pixels):
        wrong["silent_wrong"] = 1
    return wrong


# ------------------------------------------------------------------ all of it


def compared(root: Path, zoo: Path, rows: dict[str, tuple[Path, str]]) -> int:
    """Run the slides that are done alone; return how many have other outputs than in the batch."""
    good = root / "good"
    for path, status in rows.values():
        if status == "done":
            copy = good / path.resolve().relative_to(zoo.resolve())
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path.resolve(), copy)
    batch(good, root / "job-good")
    names = [name for name, (_, status) in statuses(root / "job-good").items() if status == "done"]
    changed = [name for name in names if outputs(root / "job-good", name) != outputs(root / "job", name)]
    line(good=len(names), changed=changed)
    return len(changed)


def few_cases(zoo: Path) -> list[Case]:
    """Write every thirteenth case, and beside them a slide of a name with a blank."""
    numbers, beside = itertools.count(), "name/two words.svs"
    cases = write_zoo(zoo, lambda case: next(numbers) % 13 == 4 or case["file"] == beside)
    return [case for case in cases if case["file"] != beside]


def run(root: Path, quick: bool) -> tuple[dict[str, float], int]:
    zoo = root / "zoo"
    cases = few_cases(zoo) if quick else write_zoo(zoo)
    figures: dict[str, float] = dict.fromkeys(GOALS, 0)
    began = time.monotonic()
    aside = zoo.with_name("huge.tiff")
    if (zoo / HUGE).exists():
        (zoo / HUGE).rename(aside)
    code, said, seconds, most = batch(zoo, root / "job")
    counts, rows = said["slides"], statuses(root / "job")
    line(batch=counts, code=code, seconds=round(seconds, 1), worst_mb=round(most / 1e6))
    figures["unlisted"] += abs(counts["found"] - counts["done"] - counts["failed"] - counts["skipped"])
    figures["unlisted"] += abs(counts["found"] - len(rows))
    figures["crashes"] += code != 3
    texts = [f"{one['cause']}. {one['mend']}" for one in said["failed"]]
    figures["messages_unfit"] += sum(unfit(text) for text in texts)
    figures["worst_mb"] = most / 1e6
    figures["good_changed"] = compared(root, zoo, rows)
    if aside.exists():
        aside.rename(zoo / HUGE)
    for case in cases:
        room = root / "alone" / str(len(list((root / "alone").glob("*"))) if (root / "alone").exists() else 0)
        room.mkdir(parents=True)
        found = alone(zoo / case["file"], case, room)
        wrong = verdict(case, found)
        for key in wrong:
            figures[key] += 1
        figures["worst_mb"] = max(figures["worst_mb"], found["mb"])
        line(
            case=case["file"],
            expect=case["expect"],
            code=found["code"],
            pixels=found["pixels"],
            mb=round(found["mb"]),
            seconds=round(found["seconds"], 2),
            said=found["said"],
            wrong=list(wrong),
        )
    figures["seconds"] = time.monotonic() - began
    return figures, len(cases)


def load_everything() -> None:
    """Import what the command needs, so that each child has it already."""
    import mil
    import wsi
    from pipelines import pictures, stages  # noqa: F401
    from pipelines.cli import app  # noqa: F401

    _ = wsi.stream, wsi.tile_grid, wsi.find_tissue
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        mil.create_encoder("descriptors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every thirteenth case")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    load_everything()
    with tempfile.TemporaryDirectory() as folder:
        figures, cases = run(Path(folder), args.quick)
    summary("stress_zoo", figures, GOALS, {"cases": cases, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
