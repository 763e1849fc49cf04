"""How fast is an epoch of gated attention, and how little memory does a large slide take?

python benchmarks/mil_speed.py [--rounds 9]

Bags of about 5,000 × 1,024, hidden 512, attention 256, AdamW after every bag, one core, CPU seconds; ways take turns in
processes of their own, ratios are taken inside a round. "gemm" is the five bfloat16 products of a bag alone.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
from pathlib import Path

import numpy as np
from _summary import line, summary
from _turns import HOUSE, AbsentError, Seconds, Worker, figure

GOALS = {
    "epoch_over_torchmil": (">=", 2.5),
    "epoch_over_plain": (">=", 1.9),
    "epoch_of_gemm": (">=", 0.85),
    "inference_mb": ("<=", 100),
    "packed_over_padded": (">=", 2),
}
GROUP = {"torchmil": "mil"}
EVEN, MIXED = [5100, 4700, 5400, 4800], [500, 15000, 900, 6000, 1500, 3000, 8000, 2500]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a tiny round, figures without meaning")
    options.add_argument("--rounds", type=int, default=9)
    chosen = options.parse_args()
    shrink, rounds, dim = (50, 1, 128) if chosen.quick else (1, chosen.rounds, 1024)
    even, mixed = ([n // shrink for n in sizes] for sizes in (EVEN, MIXED))
    absent: dict[str, str] = {"torchmil": "left out of the quick round"} if chosen.quick else {}
    peers = [] if chosen.quick else ["torchmil"]
    seconds, versions = take_turns(["ours", "plain", "gemm", "gemm_pieces", *peers], even, dim, rounds, absent)
    figures = {
        f"epoch_over_{way}": figure(f"epoch_over_{way}", seconds.ratios(way, "ours"))
        for way in ("torchmil", "plain")
        if way in seconds.of
    }
    for way, key in (("gemm", "epoch_of_gemm"), ("gemm_pieces", "epoch_of_gemm_pieces")):
        figures[key] = figure(key, seconds.ratios(way, "ours"))
    figures["tiles_per_core_second"] = sum(even) / seconds.median("ours")
    layouts, _ = take_turns(["packed", "padded"], mixed, dim, max(min(2, rounds), rounds // 2), absent)
    figures["packed_over_padded"] = figure("packed_over_padded", layouts.ratios("padded", "packed"))
    figures["inference_mb"] = inference(100_000 // shrink, 1536 // (4 if chosen.quick else 1), rounds=min(2, rounds))
    how = {
        "versions": versions,
        "machine": platform.processor() or platform.machine(),
        "rounds": rounds,
        "bags": even,
        "mixed": mixed,
        "absent": absent,
    }
    summary("mil_speed", figures, GOALS, how, {"epoch_over_torchmil"} & {f"epoch_over_{way}" for way in absent})


def take_turns(
    ways: list[str], sizes: list[int], dim: int, rounds: int, absent: dict[str, str]
) -> tuple[Seconds, dict[str, str]]:
    """Let the ways run an epoch each, round after round; the first warms up."""
    seconds, dice, versions = Seconds(), random.Random(0), {}
    workers: dict[str, Worker] = {}
    for way in ways:
        try:
            workers[way] = Worker(GROUP.get(way, HOUSE), "_mil_worker.py")
            versions |= workers[way].ask(do="versions", of=["torch", *([way] if way in GROUP else [])])
        except AbsentError as error:
            absent[way] = str(error)
            workers.pop(way, None)
    for number in range(rounds + 1):
        order = list(workers)
        dice.shuffle(order)
        for way in order:
            found = workers[way].ask(do="epoch", way=way, sizes=sizes, dim=dim)
            if number:
                seconds.add(way, found)
    for worker in workers.values():
        worker.close()
    for way in workers:
        line(way=way, cpu_seconds=round(seconds.median(way), 4), tiles_per_core_second=sum(sizes) / seconds.median(way))
    return seconds, versions


def inference(tiles: int, dim: int, rounds: int) -> float:
    """Memory of its own that the prediction of one large slide takes, in MB: the most of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.f16"
        rng = np.random.default_rng(0)
        with file.open("wb") as out:
            for start in range(0, tiles, 10_000):
                out.write(rng.normal(size=(min(10_000, tiles - start), dim)).astype(np.float16).tobytes())
        found = []
        for _ in range(rounds):
            worker = Worker(HOUSE, "_mil_worker.py")
            found.append(worker.ask(do="infer", file=str(file), tiles=tiles, dim=dim))
            worker.close()
    line(inference=found, tiles=tiles, dim=dim)
    return max(one["mb"] for one in found)


if __name__ == "__main__":
    main()
