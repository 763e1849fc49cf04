"""Feature extraction: held against its encoder alone, and against peers.    python benchmarks/encode.py [--quick]

CPU seconds per tile, each run in a fresh process, candidates take turns, one thread. `ours` is all that `slidemil
extract` does with a slide: hash, tissue, pictures, tiles, encoder, feature file. Rows:

* `resnet50_of_forward`, `vits_of_forward`: over the encoder alone on tiles that lie in memory, in the best precision of
  this processor (bf16 where it has it: all else weighs most there), on the about 2,700 tiles of a large slide.
* `resnet50_fp32_over_best`, `resnet50_over_best`: the same weights, end to end, over the best of TIAToolbox, LazySlide
  and slide2vec, in float32 and in our best precision, on the 300 to 400 tiles that each finds on a smaller slide.
* `loader_of_limit`: the stream of tiles alone before a consumer that costs next to nothing, on the large slide, over
  the bare JPEG decoder (each needed tile of the file once). `extract_of_limit`: all that extract does, over the same.
* `loader_over_best`: the stream of tiles and what an encoder does to them in front of its network, over the best of the
  three's own loaders up to the same point; slide open, tissue and tiles found before. `pixels_over_best`: the same, of
  bytes alone, without anybody's way to the network's input.
* `extract_over_best`: all that extract does before that consumer, over all that the best of the three does.
* `resnet50_openvino_fp32_over_torch` …: the same encoder by way of OpenVINO, tiles in memory, in turns in one process.

On CUDA devices the same encoders run on resident tiles; without one the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _encode_own import TILE, best_precision
from _slides import KEPT, large_slide
from _summary import line, summary
from _turns import ENVIRONMENTS, figure

GOALS = {
    "resnet50_of_forward": (">=", 0.95),
    "vits_of_forward": (">=", 0.95),
    "resnet50_fp32_over_best": (">=", 1.3),
    "resnet50_over_best": (">=", 2.5),
    "loader_of_limit": (">=", 0.85),
    "loader_over_best": (">=", 4.0),
}
PEERS = {"tiatoolbox": "stain", "lazyslide": "lazyslide", "slide2vec": "slide2vec"}  # and the environment of each
NETWORKS = {"resnet50": "resnet50", "vits": "vit_small_patch16_224"}
QUICK = {"resnet50": "test_resnet", "vits": "test_vit"}
LONGEST = 20 * 60


class Course:
    """All candidates of one row, turn after turn.

    Attributes:
        absent: peer → why it cannot take part.
        versions: of the peers that did.
    """

    def __init__(self) -> None:
        self.absent: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}

    def play(self, row: str, runs: dict[str, tuple[str, ...]], rounds: int) -> dict[str, list[float]]:
        """Return the CPU seconds of one tile, round by round, of each candidate that could take part."""
        dice, spent = random.Random(0), {name: [] for name in runs}
        for _ in range(rounds):
            for name in dice.sample(sorted(runs), len(runs)):
                found = self._peer(name, runs[name]) if name in PEERS else house(runs[name])
                if found is not None:
                    spent[name].append(found["cpu"] / found["tiles"])
                    line(row=row, who=name, tiles=found["tiles"], ms_per_tile=1000 * spent[name][-1])
        return {name: seconds for name, seconds in spent.items() if seconds}

    def _peer(self, who: str, arguments: tuple[str, ...]) -> dict[str, Any] | None:
        python = ENVIRONMENTS / PEERS[who] / "bin" / "python"
        if who in self.absent or not python.exists():
            self.absent.setdefault(who, "no environment: make bench-env")
            return None
        script = str(Path(__file__).resolve().with_name("_encode_peer.py"))
        done = started([str(python.absolute()), "-W", "ignore", script, who, *arguments], tempfile.gettempdir())
        if done.returncode:
            self.absent[who] = done.stderr.strip().splitlines()[-1][:200]
            return None
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.versions[who] = found["versions"]
        return found


def house(arguments: tuple[str, ...]) -> dict[str, Any]:
    script = str(Path(__file__).resolve().with_name("_encode_own.py"))
    done = started([sys.executable, script, *arguments])
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def started(command: list[str], folder: str | None = None) -> subprocess.CompletedProcess[str]:
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **alone}, timeout=LONGEST, cwd=folder
    )


def of(spent: dict[str, list[float]], above: str, below: str, name: str) -> dict[str, float]:
    """Return the ratio of two candidates, taken inside the rounds; nothing where one did not run."""
    pairs = list(zip(spent.get(above, []), spent.get(below, []), strict=False))
    return {name: figure(name, [a / b for a, b in pairs])} if pairs else {}


def best_of(spent: dict[str, list[float]]) -> str:
    """Return the quickest peer."""
    return min((who for who in PEERS if who in spent), key=lambda who: median(spent[who]), default="")


def on_cuda(networks: dict[str, str]) -> dict[str, float]:
    """Return tiles per second of encoders on resident tiles; says so where there is no device."""
    import torch

    if not torch.cuda.is_available():
        line(table="cuda", found="not measured: no CUDA device here")
        return {}
    import mil

    rates = {}
    for name, network in {**networks, "vitl": "vit_large_patch16_224"}.items():
        encoder = mil.create_encoder(network, weights="random", device="cuda", batch_size=256, precision="bf16")
        pixels = np.random.default_rng(0).integers(0, 256, (1024, TILE, TILE, 3), dtype=np.uint8)
        resident = encoder.prepare(pixels[:256])
        with torch.inference_mode():
            alone = cuda_seconds(partial(encoder.module, resident)) / 256
            whole = cuda_seconds(partial(encoder, pixels)) / 1024
        rates[f"cuda_{name}_of_forward"] = alone / whole
        rates[f"cuda_{name}_tiles_per_s"] = 1 / whole
    return rates


def cuda_seconds(work: Callable[[], Any], turns: int = 8) -> float:
    """Return the seconds of one turn."""
    import torch

    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(turns):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small slide, small networks, no peers, one round")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="only these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def weights_in(folder: Path) -> str:
    """Save the weights that everybody gets."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50", pretrained=False, num_classes=0).state_dict(), folder / "resnet50.pt")
    return str(folder / "resnet50.pt")


class Rows:
    """The rows of the table, each a method that returns figures; `--rows` names those that run.

    Attributes:
        fastest: row → who was the best of the three.
    """

    def __init__(self, course: Course, folder: Path, rounds: int, *, quick: bool) -> None:
        self.course, self.rounds, self.quick, self.precision = course, rounds, quick, best_precision()
        kept = folder if quick else KEPT
        sides = {"large": (40_000, 30_000), "middle": (20_000, 15_000), "small": (13_500, 10_000)}
        sides = dict.fromkeys(sides, (3000, 2250)) if quick else sides
        self.slides = {name: str(large_slide(*side, folder=kept).absolute()) for name, side in sides.items()}
        self.networks = QUICK if quick else NETWORKS
        self.weights = "" if quick else weights_in(folder)
        self.fastest: dict[str, str] = {}

    def forward(self) -> dict[str, float]:
        """An extraction, over the encoder alone."""
        figures: dict[str, float] = {}
        for name, network in self.networks.items():
            runs = {who: (who, network, self.precision, self.slides["large"], "random") for who in ("ours", "forward")}
            spent = self.course.play(f"{name} {self.precision}", runs, self.rounds)
            figures |= of(spent, "forward", "ours", f"{name}_of_forward")
        return figures

    def limit(self) -> dict[str, float]:
        """The stream, and an extraction, over the bare decoder."""
        whos = ("ours", "loader", "limit")
        runs = {who: (who, "fast", self.precision, self.slides["large"], "") for who in whos}
        spent = self.course.play("limit", runs, self.rounds + (not self.quick))
        figures = of(spent, "limit", "loader", "loader_of_limit")
        return figures | of(spent, "limit", "ours", "extract_of_limit")

    def loader(self) -> dict[str, float]:
        """The stream, over the others' loaders: up to the network's input, and bytes alone."""
        return {
            **self._over_best("loader_over_best", "input", "middle", {"loader": ("loader", "input")}),
            **self._over_best("pixels_over_best", "pixels", "middle", {"loader": ("loader", "fast")}),
        }

    def extract(self) -> dict[str, float]:
        """An extraction before a consumer that costs nothing, over the others'."""
        return self._over_best("extract_over_best", "fast", "large", {"ours": ("ours", "fast")})

    def _over_best(self, key: str, theirs: str, slide: str, mine: dict[str, tuple[str, str]]) -> dict[str, float]:
        path = self.slides[slide]
        runs = {who: (*what, self.precision, path, "") for who, what in mine.items()}
        peers = {} if self.quick else dict.fromkeys(PEERS, (theirs, path, self.weights))
        spent = self.course.play(key, {**runs, **peers}, self.rounds + (not self.quick))
        self.fastest[key] = best_of(spent)
        return of(spent, self.fastest[key], next(iter(mine)), key)

    def resnet50(self) -> dict[str, float]:
        """The same weights, over the others, end to end."""
        if self.quick:
            return {}
        small = self.slides["small"]
        own = {one: ("ours", "resnet50", one, small, self.weights) for one in ("fp32", self.precision)}
        peers = dict.fromkeys(PEERS, ("resnet50", small, self.weights))
        spent = self.course.play("resnet50, peers", {**own, **peers}, self.rounds)
        self.fastest["resnet50"] = best_of(spent)
        figures = of(spent, best_of(spent), "fp32", "resnet50_fp32_over_best")
        return figures | of(spent, best_of(spent), self.precision, "resnet50_over_best")

    def openvino(self) -> dict[str, float]:
        """OpenVINO over torch."""
        figures: dict[str, float] = {}
        raced = list(self.networks.items())[: 1 if self.quick else None] if find_spec("openvino") else []
        for name, network in raced:
            spent = house(("openvino", network, str(self.rounds + 2), "", ""))
            for who, seconds in spent.items():
                line(row=f"{name}, openvino", who=who, ms_per_tile=1000 * median(seconds))
            for precision in dict.fromkeys(("fp32", self.precision)):
                key = f"{name}_openvino_{precision}_over_torch"
                figures |= of(spent, f"cpu {precision}", f"openvino {precision}", key)
        return figures

    def cuda(self) -> dict[str, float]:
        """The encoders on a CUDA device."""
        return on_cuda(self.networks)


ROWS = {
    "forward": ("resnet50_of_forward", "vits_of_forward"),
    "limit": ("loader_of_limit",),
    "loader": ("loader_over_best",),
    "extract": (),
    "resnet50": ("resnet50_fp32_over_best", "resnet50_over_best"),
    "openvino": (),
    "cuda": (),
}
"""Row → the figures of it that have a goal."""


def measure(args: argparse.Namespace, folder: Path) -> None:
    course = Course()
    rows = Rows(course, folder, 1 if args.quick else args.rounds, quick=args.quick)
    figures: dict[str, float] = {}
    for row in args.rows:
        figures |= getattr(rows, row)()
    goals = {key: GOALS[key] for row in args.rows for key in ROWS[row]}
    absent = course.absent or ({"all": "not asked for by --quick"} if args.quick else {})
    lacking = {key for key in goals if key.endswith("_over_best")} if absent else set()
    how = {"rounds": rows.rounds, "precision": rows.precision, "fastest": rows.fastest, "rows": args.rows}
    how |= {"versions": course.versions, "absent": absent}
    cuda = "measured" if "cuda_vitl_of_forward" in figures else "not measured"
    summary("encode", figures, goals, {**how, "cuda": cuda}, lacking)


if __name__ == "__main__":
    main()
