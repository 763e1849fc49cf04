"""Do memory and rate stay the same on larger slides?    python benchmarks/growth.py [--quick]

Slides of 1, 4 and 16 times the area, each read in a fresh process: what it takes above what it had once all libraries
were loaded, and its tiles per CPU second. Sizes take turns, round after round. Two lines: opening and the stream, where
the tiles lie being known; and the whole extraction with the light encoder, tissue included, and the largest of its
reading processes from its start on.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _slides import KEPT, large_slide
from _summary import cpu_seconds, line, summary
from _turns import figure

SIDES = {1: (10_000, 7_500), 4: (20_000, 15_000), 16: (40_000, 30_000)}
GOALS = {
    "memory_16_over_4": ("<=", 1.1),
    "rate_16_over_4": (">=", 0.95),
    "extract_memory_16_over_4": ("<=", 1.1),
    "extract_rate_16_over_4": (">=", 0.95),
}
MODES = {"stream": "", "extract": "extract_"}


def stream(slide: Path) -> int:
    """Read all tiles on tissue, 224 px at half scale, and let them go."""
    import wsi

    grid = pickle.loads(grid_file(slide).read_bytes())
    tiles = 0
    with wsi.open_slide(slide) as opened, wsi.stream([(opened, grid)], workers=1) as batches:
        for batch in batches:
            tiles += int(batch.ok.sum())
    return tiles


def grid_file(slide: Path) -> Path:
    return Path(os.environ["GROWTH_GRIDS"]) / f"{slide.stem}.grid"


def keep_grid(slide: Path) -> None:
    """Find the tiles in this process, so that finding them costs the others nothing."""
    import wsi

    with wsi.open_slide(slide) as opened:
        grid = wsi.tile_grid(opened, wsi.find_tissue(opened), wsi.TileSpec(224, 0.5))
    grid_file(slide).write_bytes(pickle.dumps(grid))


def extract(slide: Path) -> int:
    """Run the whole extraction with the descriptors; return the tiles in the feature file."""
    from pipelines import stages
    from pipelines.config import Settings
    from pipelines.features import read_features

    with tempfile.TemporaryDirectory() as folder:
        outcome = stages.extract([slide], Path(folder) / "job", Settings(), quiet=True)
        (output,) = (Path(folder) / "job" / one for one in outcome.outputs)
        return len(read_features(output).xy)


def load_everything(mode: str, small: Path) -> None:
    """Import what the work needs, so that it does not count as the slide's."""
    import wsi

    wsi.open_slide(small).close()
    _ = wsi.stream, wsi.tile_grid, wsi.find_tissue  # loaded on first use
    if mode == "extract":
        import mil
        from pipelines import pictures, stages  # noqa: F401

        mil.create_encoder("descriptors")


def child(mode: str, slide: Path, small: Path) -> None:
    """Measure this process and its reading processes: bytes above the start, CPU seconds, tiles."""
    load_everything(mode, small)
    work: Callable[[Path], int] = {"stream": stream, "extract": extract}[mode]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, began = resident("VmRSS"), cpu_seconds()
    tiles = work(slide)
    seconds, reader = cpu_seconds() - began, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    above = resident("VmHWM") - start + reader
    print(json.dumps({"tiles": tiles, "cpu": seconds, "above": above, "start": start, "reader": reader}))


def resident(field: str) -> int:
    """Return VmRSS or VmHWM (its peak), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (one.split()[1] for one in lines if one.startswith(f"{field}:"))
    return 1024 * int(value)


def measured(mode: str, slide: Path, small: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, slide, small]
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def play(slides: dict[int, Path], mode: str, rounds: int) -> dict[int, list[dict[str, Any]]]:
    dice = random.Random(0)
    found: dict[int, list[dict[str, Any]]] = {area: [] for area in slides}
    for _ in range(rounds):
        for area in dice.sample(list(slides), len(slides)):
            found[area].append(measured(mode, slides[area], slides[1]))
    for area, turns in found.items():
        rate = median(one["tiles"] / one["cpu"] for one in turns)
        above = median(one["above"] for one in turns)
        line(mode=mode, area=area, tiles=turns[0]["tiles"], mb_above_start=round(above / 1e6, 1), tiles_per_cpu_s=rate)
    return found


def figures_of(mode: str, found: dict[int, list[dict[str, Any]]]) -> dict[str, float]:
    pairs = list(zip(found[16], found[4], strict=True))
    memory = [a["above"] / b["above"] for a, b in pairs]
    rate = [a["tiles"] / a["cpu"] * b["cpu"] / b["tiles"] for a, b in pairs]
    prefix = MODES[mode]
    return {
        f"{prefix}memory_16_over_4": figure(f"{prefix}memory_16_over_4", memory),
        f"{prefix}rate_16_over_4": figure(f"{prefix}rate_16_over_4", rate),
        f"{prefix}mb_above_start_16": median(one["above"] for one in found[16]) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="slides of a 64th of the area, one round")
    parser.add_argument("--child", nargs=3, metavar=("MODE", "SLIDE", "SMALL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], *map(Path, args.child[1:]))
        return
    rounds = args.rounds or (1 if args.quick else 7)
    shrink = 8 if args.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if args.quick else KEPT
        slides = {area: large_slide(w // shrink, h // shrink, folder=kept) for area, (w, h) in SIDES.items()}
        os.environ["GROWTH_GRIDS"] = folder
        for slide in slides.values():
            keep_grid(slide)
        figures: dict[str, float] = {}
        for mode, turns in {"stream": rounds, "extract": min(3, rounds)}.items():
            figures |= figures_of(mode, play(slides, mode, turns))
    sizes = {str(area): path.name for area, path in slides.items()}
    summary("growth", figures, GOALS, {"slides": sizes, "rounds": rounds, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
