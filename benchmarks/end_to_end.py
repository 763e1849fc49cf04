"""The whole extraction against a plain loop and against what limits it.    python benchmarks/end_to_end.py [--quick]

Ours is all that `slidemil extract` does with a slide: its hash, tissue, pictures, tiles, encoder, feature file. "plain"
is what most scripts do: openslide `read_region`, RGB, Pillow resize, ToTensor, Normalize, the same network; where its
tiles lie is given to it. Two consumers: `fast` (the mean color of some pixels, to see the loader) and `resnet50`
(random weights, float32, one thread). Limits: the bare JPEG decoder for `fast`, and for resnet50 the network alone on
tiles that lie in memory. CPU seconds per tile, reading processes and their start included; candidates take turns, each
in a fresh process, libraries loaded before.
Plain loop and network cost the same for each tile, so they take some whole lines of tiles from all over the slide.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _own import Limit, case_of
from _slides import KEPT, large_slide
from _summary import cpu_seconds, line, summary
from _turns import figure

GOALS = {
    "fast_over_plain": (">=", 8.0),
    "fast_of_limit": (">=", 0.85),
    "resnet50_over_plain": (">=", 1.05),
    "forward_share": (">=", 0.95),
}
TURNS = {"fast": ("ours", "plain", "limit"), "resnet50": ("ours", "plain", "forward")}
QUICK_NETWORK = "test_resnet"  # in place of resnet50: the smoke run is to see that all of it runs
BATCH, TILE = 64, 224
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENOUGH = 20 * 60  # seconds after which no further round of resnet50 begins


class MeanColor:
    """A consumer that costs next to nothing: the mean color of every 16th pixel."""

    id, dim, input_size, device = "mean_color", 3, TILE, "cpu"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return (B, 3)."""
        return pixels[:, ::16, ::16].mean((1, 2), dtype=np.float32)

    def passport(self) -> dict[str, Any]:
        """Say what it is."""
        return {"id": self.id, "kind": "benchmark", "dim": self.dim}


def encoder_of(network: str) -> Any:
    import mil

    return MeanColor() if network == "fast" else mil.create_encoder(network, weights="random", batch_size=BATCH)


def ours(slide: Path, network: str, _: int) -> Callable[[], int]:
    """Return the verb `extract` with the encoder of that name."""
    return extracting(slide, encoder_of(network))


def extracting(slide: Path, encoder: Any) -> Callable[[], int]:
    """Return the verb `extract`, its encoder and its libraries loaded."""
    import mil
    from pipelines import pictures, stages  # noqa: F401
    from pipelines.config import ExtractSettings, Settings

    mil.create_encoder = lambda *_, **__: encoder
    settings = Settings(ExtractSettings(tile=TILE, batch_size=BATCH, workers=1))

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            outcome = stages.extract([slide], Path(folder) / "job", settings, quiet=True)
            assert outcome.status == "done", outcome
            return int(outcome.rates["read"]["tiles"])

    return run


def plain(slide: Path, network: str, tiles: int) -> Callable[[], int]:
    """Return the usual loop over some of the tiles."""
    import h5py
    import openslide
    import torch
    from PIL import Image
    from torchvision import transforms

    case = case_of(str(slide), TILE, 2)
    places = some_lines(case["xy"], tiles)
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, SD)])
    if network == "fast":
        model: Any = lambda batch: batch[:, :, ::16, ::16].mean((2, 3))  # noqa: E731
    else:
        model = encoder_of(network).model

    @torch.inference_mode()
    def run() -> int:
        features = []
        with openslide.OpenSlide(slide) as opened:
            for batch in batches(places):
                images = (opened.read_region(one, case["level"], case["read_size"]).convert("RGB") for one in batch)
                resized = (image.resize((TILE, TILE), Image.Resampling.BICUBIC) for image in images)
                features.append(model(torch.stack([to_input(image) for image in resized])).numpy())
        with h5py.File(io.BytesIO(), "w") as file:
            file["features"], file["coords"] = np.concatenate(features), np.array(places)
        return len(places)

    return run


def forward(_: Path, network: str, tiles: int) -> Callable[[], int]:
    """Return the network alone, full batches of tiles that lie in memory."""
    encoder = encoder_of(network)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, TILE, TILE, 3), dtype=np.uint8)

    def run() -> int:
        turns = max(1, round(tiles / BATCH))
        for _ in range(turns):
            encoder(pixels)
        return turns * BATCH

    return run


def limit(slide: Path, *_: Any) -> Callable[[], int]:
    """Return the decoder alone: each needed tile of the file once."""
    case = case_of(str(slide), TILE, 2)
    decode = Limit(case)

    def run() -> int:
        decode(1)
        return len(case["xy"])

    return run


def some_lines(xy: list[tuple[int, int]], tiles: int) -> list[tuple[int, int]]:
    """Return whole lines of tiles from all over the slide, about as many tiles as wanted."""
    lines = [list(group) for _, group in itertools.groupby(xy, key=lambda one: one[1])]
    step = max(1, int(len(xy) / tiles))
    return [one for group in lines[step // 2 :: step] for one in group]


def batches(places: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(places), BATCH):
        yield places[start : start + BATCH]


def child(who: str, network: str, slide: Path, tiles: int) -> None:
    run = {"ours": ours, "plain": plain, "forward": forward, "limit": limit}[who](slide, network, tiles)
    cpu, wall = cpu_seconds(), time.perf_counter()
    done = run()
    facts = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "tiles": done}
    print(json.dumps(facts))


def seconds_per_tile(who: str, network: str, slide: Path, tiles: int) -> float:
    """Return the CPU seconds of one tile, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", who, network, str(slide), str(tiles)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    line(consumer=network, who=who, tiles=facts["tiles"], ms_per_tile=1000 * facts["cpu"] / facts["tiles"])
    return float(facts["cpu"] / facts["tiles"])


def play(consumer: str, network: str, slide: Path, tiles: int, rounds: int) -> dict[str, list[float]]:
    dice, began = random.Random(0), time.monotonic()
    spent: dict[str, list[float]] = {who: [] for who in TURNS[consumer]}
    for turn in range(rounds):
        if turn and time.monotonic() - began > ENOUGH:
            break
        for who in dice.sample(TURNS[consumer], len(TURNS[consumer])):
            spent[who].append(seconds_per_tile(who, network, slide, tiles))
    return spent


def figures_of(consumer: str, spent: dict[str, list[float]]) -> dict[str, float]:
    names = {
        "fast": {"plain": "fast_over_plain", "limit": "fast_of_limit"},
        "resnet50": {"plain": "resnet50_over_plain", "forward": "forward_share"},
    }[consumer]
    rates = {f"{consumer}_tiles_per_cpu_s": 1 / median(spent["ours"])}
    ratios = {who: [a / b for a, b in zip(spent[who], spent["ours"], strict=True)] for who in names}
    return rates | {name: figure(name, ratios[who]) for who, name in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="of resnet50; the fast consumer has three more")
    parser.add_argument("--quick", action="store_true", help="a small slide, one round, one batch")
    parser.add_argument("--child", nargs=4, metavar=("WHO", "CONSUMER", "SLIDE", "TILES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], Path(args.child[2]), int(args.child[3]))
        return
    rounds = args.rounds or (1 if args.quick else 2)
    size = (3000, 2250) if args.quick else (40_000, 30_000)
    figures: dict[str, float] = {}
    turns: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        slide = large_slide(*size, folder=Path(folder) if args.quick else KEPT)
        for consumer, more in {"fast": 0 if args.quick else 3, "resnet50": 0}.items():
            network = QUICK_NETWORK if args.quick and consumer == "resnet50" else consumer
            spent = play(consumer, network, slide, BATCH if args.quick else 5 * BATCH, rounds + more)
            turns[consumer] = len(spent["ours"])
            figures |= figures_of(consumer, spent)
    summary("end_to_end", figures, GOALS, how(slide, turns))


def how(slide: Path, turns: dict[str, int]) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "openslide-python", "openslide-bin", "pillow", "simplejpeg")
    return {"slide": slide.name, "rounds": turns, "versions": {name: version(name) for name in packages}}


if __name__ == "__main__":
    main()
