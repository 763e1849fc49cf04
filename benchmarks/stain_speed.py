"""Stain normalization per CPU second, ours beside TIAToolbox and torchstain.    python benchmarks/stain_speed.py

Everybody gets the same 256-px crops of real H&E, one thread, and an environment of its own (`make bench-env`);
they take turns in shuffled order, each of a tenth of a second at least, and a ratio is taken inside a round. Ours is
fitted once, as for a slide, and writes to memory that is kept; the others fit each tile, for they know no other way.

"fused" is stain and ImageNet normalization in one pass, uint8 to planar float32, over torch's ToTensor + Normalize
without any stain, whose tensors are kept until the batch of 64 is whole (`_in_cache`: thrown away at once).
"nine_lookups" is ours without the test for clamped amounts (wrong there): what these tables could give at best. "copy"
copies the bytes.
`max_error` is against the formula in float64, on crops and on random colors.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _summary import line, summary
from _turns import HOUSE, AbsentError, Seconds, Worker, figure
from PIL import Image

import stain
from stain import macenko

SHARED = Path(os.environ.get("SLIDEMIL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SIDE, TILES = 256, 64
SOURCES = ("histoqc_template1", "histoqc_template2", "histoqc_template3", "torchstain_source")
"""Four labs, in place of four slides."""

GROUP = "stain"
PEERS = ("tiatoolbox_reinhard", "tiatoolbox_macenko", "torchstain_numpy", "torchstain_torch")
MACENKOS = PEERS[1:]
OWN = ("ours", "ours_fused", "nine_lookups", "copy", "totensor", "totensor_in_cache")
COUNTS = {"tiatoolbox_reinhard": 16, **dict.fromkeys(MACENKOS, 6)}
"""Tiles that a slow peer normalizes in a round."""
REASON = (
    "torchstain takes 240 for white everywhere and drops pale eosin from the fit; it keeps negative amounts, caps no "
    "ratio, and throws away what two stains do not explain, which ours keeps"
)
GOALS = {
    "over_reinhard": (">=", 12.0),
    "over_macenko": (">=", 70.0),
    "fused_over_totensor": (">=", 3.7),
    "max_error": ("<=", 1.0),
}


def images() -> dict[str, np.ndarray]:
    """Return the shared H&E images by name."""
    paths = sorted((SHARED / "data" / "tiles" / "stain").glob("*.*"))
    return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths if path.suffix in (".png", ".tif")}


def crops(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """Return 64 crops of 256 px, a fifth of tissue at least: 16 of each of four images, one after another."""
    dice, found = np.random.default_rng(0), []
    for name in SOURCES:
        image, count = pictures[name], 0
        while count < TILES // len(SOURCES):
            y, x = (int(dice.integers(0, side - SIDE + 1)) for side in image.shape[:2])
            crop = image[y : y + SIDE, x : x + SIDE]
            if (crop.min(axis=-1) < 200).mean() > 0.2:
                found.append(crop)
                count += 1
    return np.stack(found)


def worst_error(tiles: np.ndarray, target: np.ndarray) -> float:
    """Return the largest difference from the formula in float64, in grey levels, for one slide's tiles."""
    params = stain.fit("macenko", tiles, reference=target)
    assert isinstance(params.source, stain.StainMatrix)
    assert isinstance(params.target, stain.StainMatrix)
    random_colors = np.random.default_rng(1).integers(0, 256, (500_000, 3), dtype=np.uint8)
    worst = 0.0
    for pixels in (random_colors, tiles[::4].reshape(-1, 3)):
        values = pixels.astype(np.float64)
        density = np.maximum(np.log(np.array(params.white) / np.maximum(values, 1)), 0)
        vectors = np.array(params.source.vectors)
        amounts = np.maximum(np.linalg.lstsq(vectors.T, density.T, rcond=None)[0].T, 0)
        ratio = np.divide(params.target.max_concentrations, params.source.max_concentrations)
        ratio = np.clip(ratio, 1 / macenko.MAX_RATIO, macenko.MAX_RATIO)
        exact = values * np.exp(amounts @ vectors - (amounts * ratio) @ np.array(params.target.vectors))
        exact = np.clip(np.rint(exact), 0, 255)
        worst = max(worst, float(np.abs(params.apply(pixels) - exact).max()))
    return worst


def agreement(worker: Worker, pictures: dict[str, np.ndarray], target: np.ndarray, folder: Path) -> None:
    """Say how far ours and torchstain lie apart, image by image, and why."""
    np.save(folder / "one_target.npy", target)
    for name, image in pictures.items():
        np.save(folder / f"{name}.npy", image[None])
        files = {"tiles": str(folder / f"{name}.npy"), "target": str(folder / "one_target.npy")}
        try:
            theirs = np.array(worker.ask(do="vectors", **files)["vectors"][0])
            worker.ask(do="look", who="torchstain_numpy", into=str(folder / "out.npy"), **files)
        except AbsentError as why:
            line(agreement=name, absent=str(why))
            continue
        params = stain.fit("macenko", image, reference=target)
        if not isinstance(params.source, stain.StainMatrix):
            line(agreement=name, status=params.status)
            continue
        cosines = (np.array(params.source.vectors) * theirs).sum(axis=1)
        peer = np.load(folder / "out.npy")[0]
        apart = np.abs(params.apply(image) - peer)
        before, after = np.abs(image - peer).mean(), apart.mean()
        degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1))).round(1).tolist()
        line(
            agreement=name,
            degrees_h_e=degrees,
            levels_apart=round(float(after), 1),
            before=round(float(before), 1),
            reason=REASON,
        )


def play(workers: dict[str, Worker], files: dict[str, str], seconds: Seconds, args: argparse.Namespace) -> int:
    """Let all take turns; return the number of rounds."""
    dice, began, rounds = random.Random(0), time.monotonic(), 0
    for who, worker in workers.items():
        worker.ask(
            do="run", who=who, count=COUNTS.get(who, TILES), **files
        )  # what is loaded and compiled first is not counted
    while rounds < args.rounds and (rounds < 3 or time.monotonic() - began < 20 * 60):
        rounds += 1
        order = list(workers)
        dice.shuffle(order)
        for who in order:
            seconds.add(who, workers[who].ask(do="run", who=who, count=COUNTS.get(who, TILES), **files))
    return rounds


def figures_of(seconds: Seconds) -> tuple[dict[str, float], str | None]:
    """Return the ratios, and who was the best Macenko of the others."""
    for who in seconds.of:
        line(who=who, mpx_per_s=round(1 / seconds.median(who), 1))
    best = seconds.best(MACENKOS)
    pairs = {
        "over_reinhard": ("tiatoolbox_reinhard", "ours"),
        "over_macenko": (best, "ours"),
        "fused_over_totensor": ("totensor", "ours_fused"),
        "fused_over_totensor_in_cache": ("totensor_in_cache", "ours_fused"),
        "fused_over_ours": ("ours", "ours_fused"),
        "lookups_over_ours": ("ours", "nine_lookups"),
        "lookups_over_macenko": (best, "nine_lookups"),
        "copy_over_ours": ("ours", "copy"),
    }
    there = {key: pair for key, pair in pairs.items() if pair[0] in seconds.of and pair[1] in seconds.of}
    return {key: figure(key, seconds.ratios(*pair), other=pair[0]) for key, pair in there.items()}, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="two rounds, without the others")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 15)
    pictures = images()
    tiles = crops(pictures)
    target = np.asarray(Image.open(SHARED / "data" / "tiles" / "stain" / "tia_target_1000.png").convert("RGB"))
    absent: dict[str, str] = dict.fromkeys(PEERS, "left out by --quick") if args.quick else {}
    versions: dict[str, str] = {}
    began, seconds = time.monotonic(), Seconds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"tiles": str(folder / "tiles.npy"), "target": str(folder / "target.npy")}
        np.save(files["tiles"], tiles)
        np.save(files["target"], target)
        workers, started = start(absent, versions, files)
        if not args.quick and "torchstain_numpy" in workers:
            agreement(workers["torchstain_numpy"], pictures, target, folder)
        rounds = play(workers, files, seconds, args)
        for worker in started:
            worker.close()
    figures, best = figures_of(seconds)
    figures["max_error"] = max(worst_error(some, target) for some in np.split(tiles, len(SOURCES)))
    how: dict[str, Any] = {
        "tiles": f"{TILES} crops of {SIDE} px",
        "rounds": rounds,
        "seconds": round(time.monotonic() - began),
        "python": sys.version.split()[0],
        "versions": versions,
        "best_macenko": best or "none",
        "absent": absent,
    }
    lacking = {"over_reinhard"} if "tiatoolbox_reinhard" in absent else set()
    lacking |= {"over_macenko"} if any(who in absent for who in MACENKOS) else set()
    summary("stain_speed", figures, GOALS, how, lacking)


def start(
    absent: dict[str, str], versions: dict[str, str], files: dict[str, str]
) -> tuple[dict[str, Worker], list[Worker]]:
    """Start both environments' processes; who cannot take part is noted in `absent`."""
    workers, started = {}, []
    for group, names, packages in (
        (HOUSE, OWN, ("numpy", "numba", "torch", "torchvision")),
        (GROUP, PEERS, ("tiatoolbox", "torchstain", "torch", "numpy")),
    ):
        names = tuple(who for who in names if who not in absent)
        if not names:
            continue
        try:
            worker = Worker(group, "_stain_worker.py")
            told = worker.ask(do="versions", of=packages)
        except AbsentError as why:
            absent |= dict.fromkeys(names, str(why))
            continue
        started.append(worker)
        versions |= {package if group == HOUSE else f"{group}/{package}": one for package, one in told.items()}
        for who in names:
            try:
                worker.ask(do="run", who=who, count=1, **files)
                workers[who] = worker
            except AbsentError as why:
                absent[who] = str(why)
    return workers, started


if __name__ == "__main__":
    main()
