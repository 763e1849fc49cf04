"""One of our own candidates of `encode.py`, in a process of its own.

    python _encode_own.py WHO NETWORK PRECISION SLIDE WEIGHTS → one JSON line: CPU seconds, tiles

What is needed is loaded and built before the clock runs. WHO: `ours` (all of `slidemil extract`), `loader` (the stream
alone), `forward` (the encoder alone), `limit` (the bare decoder), `openvino` (its PRECISION is the number of rounds).
NETWORK: one of timm's, `fast` (the mean color of some pixels), or for `loader` also `input` (tiles are made the
network's input before their mean color is taken).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import end_to_end
import numpy as np
from _summary import cpu_seconds

BATCH, TILE = end_to_end.BATCH, end_to_end.TILE


def best_precision() -> str:
    from mil.encoders import precision

    return "bf16" if precision._has("bf16", "cpu") else "fp32"


def encoder_of(network: str, precision: str, weights: str) -> Any:
    import mil

    if network == "fast":
        return end_to_end.MeanColor()
    return mil.create_encoder(network, weights=weights, device="cpu", precision=precision)


def ours(network: str, precision: str, slide: Path, weights: str) -> Callable[[], int]:
    """Return the verb `extract`."""
    return end_to_end.extracting(slide, encoder_of(network, precision, weights))


def loader(network: str, precision: str, slide: Path, _: str) -> Callable[[], int]:
    """Return the stream of tiles alone with a very fast consumer: slide and grid are at hand, one thread reads."""
    import wsi

    consumer = to_input() if network == "input" else encoder_of("fast", precision, "")
    opened = wsi.open_slide(slide)
    grid = wsi.tile_grid(opened, wsi.find_tissue(opened), wsi.TileSpec(TILE, 0.5))

    def run() -> int:
        with wsi.stream([(opened, grid)], batch_size=BATCH, workers=1) as batches:
            for batch in batches:
                consumer(batch.pixels)
        return len(grid)

    return run


def to_input() -> Callable[[np.ndarray], Any]:
    """Return what an encoder does to tiles in front of its network, with next to nothing behind it."""
    import torch

    from mil.encoders.lanes import CPU_PART
    from mil.encoders.preprocess import Preprocessing

    prepare = Preprocessing(TILE, "bicubic", end_to_end.MEAN, end_to_end.SD)

    def consume(pixels: np.ndarray) -> None:
        for part in torch.from_numpy(pixels).split(CPU_PART):  # so many at once, as the encoder takes them
            prepare(part)[:, :, ::16, ::16].mean((2, 3))

    return consume


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


def main() -> None:
    who, network, precision, slide, weights = sys.argv[1:]
    if who == "openvino":
        print(json.dumps(by_openvino(network, int(precision))))
        return
    makers = {"ours": ours, "loader": loader, "forward": forward, "limit": limit}
    run = makers[who](network, precision, Path(slide), weights)
    began = cpu_seconds()
    tiles = run()
    print(json.dumps({"cpu": cpu_seconds() - began, "tiles": tiles}))


if __name__ == "__main__":
    main()
