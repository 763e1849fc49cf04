"""Feature extraction: held against its encoder alone, and against peers.    python benchmarks/encode.py [--quick]

CPU seconds per tile, each run in a fresh process, candidates take turns, one thread. `ours` is all that `slidemil
extract` does with a slide: hash, tissue, pictures, tiles, encoder, feature file. Rows:

* `resnet50_of_forward`, `vits_of_forward`: over the encoder alone on tiles that lie in memory, in the best precision of
  this processor (bf16 where it has it: all else weighs most there), on the about 2,700 tiles of a large slide.
* `resnet50_fp32_over_best`, `resnet50_over_best`: the same weights, end to end, over the best of TIAToolbox, LazySlide
  and slide2vec, in float32 and in our best precision, on the 300 to 400 tiles that each finds on a smaller slide.
* `loader_of_limit`: the stream of tiles alone before a consumer that costs next to nothing, on the large slide, over
  the bare JPEG decoder (each needed tile of the file once). `extract_of_limit`: all that extract does, over the same.
* `loader_over_best`: all that extract does before that consumer, over the same of the best of the three.

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

import end_to_end
import numpy as np
from _slides import KEPT, large_slide
from _summary import cpu_seconds, line, summary
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
BATCH, TILE = 64, 224
LONGEST = 20 * 60


def best_precision() -> str:
    from mil.encoders import precision

    return "bf16" if precision._has("bf16", "cpu") else "fp32"


def encoder_of(network: str, precision: str, weights: str) -> Any:
    import mil

    if network == "fast":
        return end_to_end.MeanColor()
    return mil.create_encoder(network, weights=weights, device="cpu", precision=precision)


def ours(network: str, precision: str, slide: Path, weights: str) -> Callable[[], int]:
    """Return the verb `extract`, its encoder and its libraries loaded."""
    import mil
    from pipelines import pictures, stages  # noqa: F401
    from pipelines.config import ExtractSettings, Settings

    made = encoder_of(network, precision, weights)
    mil.create_encoder = lambda *_, **__: made
    settings = Settings(ExtractSettings(tile=TILE, batch_size=BATCH, workers=1))

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            outcome = stages.extract([slide], Path(folder) / "job", settings, quiet=True)
            assert outcome.status == "done", outcome
            return int(outcome.rates["read"]["tiles"])

    return run


def loader(network: str, precision: str, slide: Path, _: str) -> Callable[[], int]:
    """Return the stream of tiles alone with a very fast consumer: slide and grid are at hand, one thread reads."""
    import wsi

    consumer = encoder_of(network, precision, "")
    opened = wsi.open_slide(slide)
    grid = wsi.tile_grid(opened, wsi.find_tissue(opened), wsi.TileSpec(TILE, 0.5))

    def run() -> int:
        with wsi.stream([(opened, grid)], batch_size=BATCH, workers=1) as batches:
            for batch in batches:
                consumer(batch.pixels)
        return len(grid)

    return run


def forward(network: str, precision: str, slide: Path, weights: str) -> Callable[[], int]:
    """Return the encoder alone, on as many tiles as the slide has, in memory."""
    encoder = encoder_of(network, precision, weights)
    turns = max(1, round(len(end_to_end.case_of(str(slide), TILE, 2)["xy"]) / BATCH))
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, encoder.input_size, encoder.input_size, 3), np.uint8)

    def run() -> int:
        for _ in range(turns):
            encoder(pixels)
        return turns * BATCH

    return run


def limit(_: str, __: str, slide: Path, ___: str) -> Callable[[], int]:
    return end_to_end.limit(slide)


def by_openvino(network: str, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of one tile, round by round, of torch and OpenVINO in each precision both have."""
    import mil
    from mil.encoders import openvino_graph

    kinds = [("cpu", p) for p in ("fp32", best_precision())] + [("openvino", p) for p in ("fp32", best_precision())]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind[0] == "cpu" or openvino_graph.can(kind[1])]
    encoders = {
        f"{device} {precision}": mil.create_encoder(network, weights="random", device=device, precision=precision)
        for device, precision in kinds
    }
    side = next(iter(encoders.values())).input_size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    dice, spent = random.Random(0), {name: [] for name in encoders}
    for turn in range(rounds + 1):  # the first warms up
        for name in dice.sample(sorted(encoders), len(encoders)):
            began = cpu_seconds()
            encoders[name](pixels)
            spent[name] += [(cpu_seconds() - began) / BATCH] if turn else []
    return spent


def child(who: str, network: str, precision: str, slide: str, weights: str) -> None:
    if who == "openvino":
        print(json.dumps(by_openvino(network, int(precision))))
        return
    run = {"ours": ours, "loader": loader, "forward": forward, "limit": limit}[who](
        network, precision, Path(slide), weights
    )
    began = cpu_seconds()
    tiles = run()
    print(json.dumps({"cpu": cpu_seconds() - began, "tiles": tiles}))


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
    done = started([sys.executable, __file__, "--child", *arguments])
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
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if args.quick else KEPT
        large = large_slide(*((3000, 2250) if args.quick else (40_000, 30_000)), folder=kept).absolute()
        small = large if args.quick else large_slide(13_500, 10_000, folder=kept).absolute()
        measure(args, str(large), str(small), "" if args.quick else weights_in(Path(folder)))


def weights_in(folder: Path) -> str:
    """Save the weights that everybody gets."""
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50", pretrained=False, num_classes=0).state_dict(), folder / "resnet50.pt")
    return str(folder / "resnet50.pt")


def measure(args: argparse.Namespace, large: str, small: str, weights: str) -> None:
    course, best = Course(), best_precision()
    rounds = 1 if args.quick else args.rounds
    figures: dict[str, float] = {}
    networks = QUICK if args.quick else NETWORKS
    for name, network in networks.items():
        runs = {who: (who, network, best, large, "random") for who in ("ours", "forward")}
        figures |= of(course.play(f"{name} {best}", runs, rounds), "forward", "ours", f"{name}_of_forward")
    runs = {who: (who, "fast", best, large, "") for who in ("ours", "loader", "limit")}
    turns = 1 if args.quick else rounds + 1
    spent = course.play("loader", runs, turns)
    figures |= of(spent, "limit", "loader", "loader_of_limit")
    figures |= of(spent, "limit", "ours", "extract_of_limit")
    peers = dict.fromkeys(PEERS, ("fast", large, weights))
    all_of_it = {"ours": ("ours", "fast", best, large, ""), **peers}
    spent = course.play("loader, peers", {} if args.quick else all_of_it, turns)
    figures |= of(spent, best_of(spent), "ours", "loader_over_best")
    fastest = {"loader": best_of(spent)}
    if not args.quick:
        peers = dict.fromkeys(PEERS, ("resnet50", small, weights))
        own = {"fp32": ("ours", "resnet50", "fp32", small, weights), best: ("ours", "resnet50", best, small, weights)}
        spent = course.play("resnet50, peers", {**own, **peers}, rounds)
        fastest["resnet50"] = best_of(spent)
        figures |= of(spent, best_of(spent), "fp32", "resnet50_fp32_over_best")
        figures |= of(spent, best_of(spent), best, "resnet50_over_best")
    raced = list(networks.items())[: 1 if args.quick else None] if find_spec("openvino") else []
    for name, network in raced:
        spent = house(("openvino", network, str(rounds + 2), "", ""))
        for who, seconds in spent.items():
            line(row=f"{name}, openvino", who=who, ms_per_tile=1000 * median(seconds))
        for precision in dict.fromkeys(("fp32", best)):
            key = f"{name}_openvino_{precision}_over_torch"
            figures |= of(spent, f"cpu {precision}", f"openvino {precision}", key)
    figures |= on_cuda(networks)
    absent = course.absent or ({"all": "not asked for by --quick"} if args.quick else {})
    lacking = {key for key in GOALS if key.endswith("_over_best")} if absent else set()
    told = {"rounds": rounds, "precision": best, "fastest": fastest, "versions": course.versions, "absent": absent}
    summary(
        "encode",
        figures,
        GOALS,
        {**told, "cuda": "measured" if "cuda_vitl_of_forward" in figures else "not measured"},
        lacking,
    )


if __name__ == "__main__":
    main()
