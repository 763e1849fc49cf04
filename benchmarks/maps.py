"""Feature maps of tiles that come in any order, to a sharded store.    python benchmarks/maps.py [--quick]

Maps as of a resnet50 (7 x 7 x 2,048, float16), 64 tiles at a time. `ours` is what `extract --dense` does: rows are
written to their place as they come. `zarr` is the library itself, given the same maps in order, a shard at a time, as
somebody would have had to gather them. CPU seconds, in turns, without waiting for the disk. The peak of memory
is that of a process of its own, with its libraries: for a slide, and for one of four times as many tiles.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _summary import line, summary
from _turns import figure

GOALS = {"maps_over_zarr": (">=", 1.0), "memory_of_four_times_the_tiles": ("<=", 1.1)}
SHAPE, BATCH, ROWS = (7, 7, 2048), 64, 600


def ours(folder: Path, rows: int) -> None:
    from pipelines.formats.maps_store import MapWriter

    maps = np.random.default_rng(0).standard_normal((BATCH, *SHAPE)).astype(np.float32)
    order = np.random.default_rng(1).permutation(rows)
    writer = MapWriter(folder, rows, SHAPE, "float16")
    for start in range(0, rows, BATCH):
        some = order[start : start + BATCH]
        writer.put(some, maps[: len(some)])
    writer.close(np.arange(rows), np.zeros((rows, 2), np.int64), {}, {})


def library(folder: Path, rows: int) -> None:
    import zarr

    from pipelines.formats.sharded import rows_of_shard

    each = rows_of_shard(2 * int(np.prod(SHAPE)), rows)
    maps = np.random.default_rng(0).standard_normal((BATCH, *SHAPE)).astype(np.float32)
    root = zarr.create_group(folder)
    array = root.create_array("maps", shape=(rows, *SHAPE), dtype="float16", chunks=(1, *SHAPE),
                              shards=(each, *SHAPE), compressors=None)  # fmt: skip
    for start in range(0, rows, each):
        inside = min(each, rows - start)
        array[start : start + inside] = np.concatenate([maps.astype(np.float16)] * -(-inside // BATCH))[:inside]


def play(rows: int, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each round, after one that warms up."""
    makers, dice = {"ours": ours, "zarr": library}, random.Random(0)
    spent: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds + 1):
        for name in dice.sample(sorted(makers), len(makers)):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                makers[name](Path(folder) / "a.zarr", rows)
                if turn:
                    spent[name].append(time.process_time() - began)
    return spent


def peak(rows: int) -> float:
    """Return the MB that writing so many maps takes at its peak, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(rows)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def own_peak(rows: int) -> float:
    from pipelines.machine import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        ours(Path(folder) / "a.zarr", rows)
    return peak_memory() / 1e6


def how(rounds: int, rows: int) -> dict[str, Any]:
    from importlib.metadata import version

    maps = f"{rows} of {' x '.join(map(str, SHAPE))}, float16"
    return {"rounds": rounds, "maps": maps, "versions": {name: version(name) for name in ("numpy", "zarr")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="few tiles, one round")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(own_peak(args.peak))
        return
    rounds, rows = args.rounds or (1 if args.quick else 5), 2 * BATCH if args.quick else ROWS
    spent = play(rows, rounds)
    for name, seconds in spent.items():
        line(writer=name, tiles_per_cpu_s=round(rows / float(np.median(seconds)), 1))
    few, many = peak(rows), peak(4 * rows)
    line(peak_mb={rows: few, 4 * rows: many})
    over = [a / b for a, b in zip(spent["zarr"], spent["ours"], strict=True)]
    figures = {"maps_over_zarr": figure("maps_over_zarr", over), "memory_of_four_times_the_tiles": many / few}
    summary("maps", figures, GOALS, how(rounds, rows))


if __name__ == "__main__":
    main()
