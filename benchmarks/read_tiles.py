"""Tiles per CPU second, ours beside every other reader and the decoder's limit.    python benchmarks/read_tiles.py

Every reader runs in a process and an environment of its own (`make bench-env`), in the setting that is best for it,
and its resize counts. They take turns in shuffled order, round after round, and open the slide anew in each; a ratio is
taken inside a round. CPU seconds, because the machine may be shared. Readers that are several times slower read some
whole lines of tiles from all over the slide; the others read all of it.

"limit" is libjpeg-turbo alone: each needed tile of the file decoded once, as small as asked, from bytes in memory.
"best" is the best of the others in the same run; without pyvips, cucim and hs2p it counts as short.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from _own import case_of
from _slides import KEPT, large_slide
from _summary import line, summary
from _turns import GROUPS, HOUSE, AbsentError, Candidate, Field, Seconds, figure, shuffled

MUST_RUN = ("pyvips", "cucim", "hs2p")
SLOW = {"openslide": 250e6, "openslide_cv2": 50e6, "tiffslide": 50e6, "slideio": 50e6}
"""About how many px of the slide a slow reader reads; more where a goal names it."""
OURS, LIMIT = Candidate("ours"), Candidate("limit")
OURS2, LIMIT2 = Candidate("ours", threads=2), Candidate("limit", threads=2)
OTHERS = tuple(Candidate(name) for name in GROUPS if name not in ("ours", "limit"))
TWO_WORKERS = tuple(
    one for name in MUST_RUN for one in (Candidate(name, threads=2), Candidate(name, processes=2))
)  # the others are slower with two workers than these with one
SLOW_JPEG2000 = 20e6
ENOUGH = 25 * 60  # seconds after which no further round begins

GOALS = {
    "half224_over_openslide": (">=", 7.0),
    "half224_over_best": (">=", 1.55),
    "half224_of_limit": (">=", 0.93),
    "half256_over_openslide": (">=", 10.0),
    "half256_over_best": (">=", 1.42),
    "half256_of_limit": (">=", 0.94),
    "half512_over_openslide": (">=", 9.5),
    "half512_over_best": (">=", 1.35),
    "half512_of_limit": (">=", 0.94),
    "native224_over_best": (">=", 2.0),
    "native224_of_limit": (">=", 0.90),
    "native256_over_best": (">=", 0.97),
    "native256_of_limit": (">=", 0.93),
    "jp2k_over_best": (">=", 1.35),
    "threads2_of_decoder": (">=", 0.95),
    "two224_over_best": (">=", 1.5),
    "two256_over_best": (">=", 1.4),
}


@dataclass
class Case:
    """One size and scale on one slide.

    Attributes:
        name: as in the keys.
        size: of a tile, px.
        factor: µm/px over the slide's.
        candidates: who reads.
        least_psnr: dB against full decode and area mean; less is another picture. The low band of JPEG 2000 is no area
            mean and comes to 26 to 34.
        jpeg2000: whether the slide's tiles are.
        options: how we open the slide.
        file: the case as `_worker` wants it; `facts` the same.
        absent: who takes no part, and why.
        seconds: what each took.
        best: the best other reader, by key.
    """

    name: str
    size: int
    factor: int
    candidates: tuple[Candidate, ...]
    least_psnr: float = 34.0
    jpeg2000: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    file: Path = Path()
    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    best: dict[str, str] = field(default_factory=dict)


def cases() -> list[Case]:
    alone = (OURS, LIMIT, *OTHERS)
    two = (OURS, OURS2, LIMIT, LIMIT2, *TWO_WORKERS)
    return [
        Case("half224", 224, 2, alone),
        Case("half256", 256, 2, alone),
        Case("half512", 512, 2, alone),
        Case("native224", 224, 1, alone),
        Case("native256", 256, 1, alone),
        Case("two224", 224, 2, two),
        Case("two256", 256, 2, two),
        Case("jp2k", 256, 2, (OURS, *OTHERS), least_psnr=24.0, jpeg2000=True, options={"low_band": True}),
    ]


def lay_out(case: Case, slide: Path, folder: Path) -> None:
    case.facts = {**case_of(str(slide), case.size, case.factor), "options": case.options}
    case.file = folder / f"{case.name}.json"
    case.file.write_text(json.dumps(case.facts))


def rows_of(case: Case, candidate: Candidate) -> list[tuple[int, int]]:
    """Return all tiles, or, for a slow reader, some whole lines of them from all over the slide."""
    tiles = len(case.facts["xy"])
    pixels = SLOW_JPEG2000 if case.jpeg2000 else SLOW.get(candidate.reader)
    if pixels is None or candidate.reader == "ours":
        return [(0, tiles)]
    starts = [0, *(i for i in range(1, tiles) if case.facts["xy"][i][1] != case.facts["xy"][i - 1][1]), tiles]
    lines = list(itertools.pairwise(starts))
    step = max(1, int(tiles * (case.size * case.factor) ** 2 / pixels))
    return lines[step // 2 :: step]


def check_pixels(case: Case, field_: Field, folder: Path) -> None:
    """Keep out whoever cannot read, or shows another picture than a full decode with an area mean."""
    rows = sorted({int(row) for row in np.linspace(0, len(case.facts["xy"]) - 1, 6)})
    wanted = reference(case, rows)
    for reader in dict.fromkeys(one.reader for one in case.candidates if one.reader != "limit"):
        into = folder / "pixels.npy"
        try:
            (worker,) = field_.workers(Candidate(reader))
            pairs = [(row, row + 1) for row in rows]
            worker.ask(do="look", reader=reader, case=str(case.file), rows=pairs, into=str(into))
            psnr = [decibel(a, b) for a, b in zip(np.load(into), wanted, strict=True)]
            line(case=case.name, reader=reader, psnr=round(float(np.mean(psnr)), 1), worst=round(min(psnr), 1))
            if min(psnr) < case.least_psnr:
                raise AbsentError(f"shows another picture ({min(psnr):.1f} dB)")
        except AbsentError as why:
            case.absent[reader] = str(why)
            line(case=case.name, reader=reader, absent=str(why))


def reference(case: Case, rows: list[int]) -> np.ndarray:
    """Return tiles by full decode and exact area mean, through OpenSlide."""
    tiles, factor = [], case.facts["read_size"][0] // case.size
    with openslide.OpenSlide(case.facts["path"]) as slide:
        for row in rows:
            region = slide.read_region(case.facts["xy"][row], case.facts["level"], case.facts["read_size"])
            pixels = np.asarray(region.convert("RGB"), np.float64)
            tiles.append(pixels.reshape(case.size, factor, case.size, factor, 3).mean((1, 3)))
    return np.stack(tiles)


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.square(one.astype(np.float64) - other).mean())
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def warm_up(case: Case, field_: Field) -> None:
    """Let every process load what it needs before the first round."""
    for candidate in case.candidates:
        if candidate.reader not in case.absent and candidate.reader not in ("ours", "limit"):
            field_.read(candidate, case.file, [(0, min(8, len(case.facts["xy"])))])


def play_round(case: Case, field_: Field, dice: random.Random) -> None:
    for candidate in shuffled(case.candidates, dice):
        if candidate.reader in case.absent:
            continue
        try:
            found = field_.read(candidate, case.file, rows_of(case, candidate))
        except AbsentError as why:
            case.absent[candidate.reader] = str(why)
            for one in case.candidates:
                if one.reader == candidate.reader:
                    case.seconds.of.pop(one.name, None)
        else:
            case.seconds.add(candidate.name, found)


def figures_of(case: Case) -> dict[str, float]:
    if "ours" not in case.seconds.of:
        return {}
    for name, turns in case.seconds.of.items():
        rate = {clock: round(1 / case.seconds.median(name, clock), 1) for clock in ("cpu", "wall")}
        line(case=case.name, reader=name, tiles_per_s=rate, tiles=turns[0]["tiles"], mean=round(turns[0]["mean"], 2))
    return of_two(case) if case.name.startswith("two") else of_one(case)


def of_one(case: Case) -> dict[str, float]:
    seconds, figures = case.seconds, {}
    best = seconds.best([one.name for one in OTHERS])
    case.best = {f"{case.name}_over_best": best} if best else {}
    pairs = {"over_openslide": "openslide", "over_best": best, "of_limit": "limit"}
    for key, other in pairs.items():
        name = f"{case.name}_{key}"
        wanted = name in GOALS or key == "over_openslide"
        if wanted and other in seconds.of:
            figures[name] = figure(name, seconds.ratios(other, "ours"), other=other)
    return figures


def of_two(case: Case) -> dict[str, float]:
    """Return two threads over the best other, and what the second thread brings, as a share of what it can."""
    seconds, figures = case.seconds, {}
    for clock, ending in (("cpu", ""), ("wall", "_wall")):
        best = seconds.best([one.name for one in TWO_WORKERS], clock)
        if best:
            name = f"{case.name}_over_best{ending}"
            figures[name] = figure(name, seconds.ratios(best, OURS2.name, clock), other=best)
            case.best[name] = best
    name = "threads2_of_decoder" + ("" if case.name == "two224" else f"_{case.size}")
    gains = [seconds.ratios(one.name, two.name, "wall") for one, two in ((OURS, OURS2), (LIMIT, LIMIT2))]
    shares = [a / b for a, b in zip(*gains, strict=True)]
    figures[name] = figure(name, shares, ours=float(np.median(gains[0])), decoder=float(np.median(gains[1])))
    return figures


def lacking(all_cases: list[Case]) -> set[str]:
    """Return the keys that count as short because a peer was missing that reads such slides."""
    return {
        f"{case.name}_over_best" + ending
        for case in all_cases
        for ending in ("", "_wall")
        if any(peer in case.absent for peer in MUST_RUN) and not case.jpeg2000
    }


def run(args: argparse.Namespace, field_: Field, folder: Path) -> tuple[list[Case], int]:
    chosen = [case for case in cases() if not args.cases or case.name in args.cases.split(",")]
    size, size2000 = ((4000, 3000), (3000, 2250)) if args.quick else ((40_000, 30_000), (12_000, 9_000))
    slides = folder if args.quick else KEPT
    for case in chosen:
        if args.quick:
            case.candidates = tuple(one for one in case.candidates if GROUPS[one.reader][0] == HOUSE)
            case.absent = dict.fromkeys(MUST_RUN, "left out by --quick")
        slide = (
            large_slide(*size2000, "jpeg2000", slides)
            if case.jpeg2000
            else args.slide or large_slide(*size, folder=slides)
        )
        lay_out(case, slide, folder)
        check_pixels(case, field_, folder)
        warm_up(case, field_)
    dice, began, rounds = random.Random(0), time.monotonic(), 0
    while rounds < args.rounds and (rounds < 3 or time.monotonic() - began < ENOUGH):
        rounds += 1
        for case in chosen:
            play_round(case, field_, dice)
        print(f"round {rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return chosen, rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, help="a slide of 256-px JPEG tiles; none: one is made")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--cases", help="some of them, e.g. half224,two224")
    parser.add_argument("--quick", action="store_true", help="a small slide and two rounds")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Field() as field_:
        chosen, rounds = run(args, field_, Path(folder))
        figures = {key: value for case in chosen for key, value in figures_of(case).items()}
        absent = {f"{case.name} {reader}": why for case in chosen for reader, why in case.absent.items()}
        how = {
            "slide": args.slide.name if args.slide else Path(chosen[0].facts["path"]).name,
            "rounds": rounds,
            "seconds": round(time.monotonic() - began),
            "python": sys.version.split()[0],
            "versions": dict(sorted(field_.versions.items())),
            "best": {key: best for case in chosen for key, best in case.best.items()},
            "absent": absent,
        }
    summary("read_tiles", figures, GOALS, how, lacking(chosen))


if __name__ == "__main__":
    main()
