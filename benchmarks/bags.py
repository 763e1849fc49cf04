"""Reading a bag of 5,000 x 1024 features for training, by layout of its file.    python benchmarks/bags.py [--quick]

From the file on disk (page cache) to a tensor in memory, CPU seconds, candidates take turns. `ours` is what training
does: `FeatureSet.bag`, features mapped and coordinates read; each page of the mapped features is touched once. The
others are read as their tools read them: TRIDENT's layout has chunks of one row, CLAM's of 32; `.pt` is what CLAM
trains on. Peers store float32, ours float16: `ours_f32` and `same_dtype_…` are the figures without that.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from _summary import line, summary
from _turns import figure

GOALS = {"bag_over_one_row_chunks": (">=", 25.0)}
BAGS, ROWS, DIM = 6, 5000, 1024
PAGE = 4096


def write(folder: Path, bags: int, rows: int) -> dict[str, list[Path]]:
    """Write the same features in every layout."""
    import wsi
    from pipelines.features import coords_attributes, feature_bytes

    rng = np.random.default_rng(0)
    canvas = wsi.MemorySlide([np.zeros((64, 64, 3), np.uint8)], mpp=0.25)
    attributes = coords_attributes("s", wsi.tile_grid(canvas, None, wsi.TileSpec(size=224, mpp=0.5)))
    files: dict[str, list[Path]] = {}
    for number in range(bags):
        features = rng.standard_normal((rows, DIM)).astype(np.float32)
        xy = rng.integers(0, 90_000, (rows, 2))
        for name in ("ours", "ours_f32"):
            data = features.astype(np.float16) if name == "ours" else features
            put(files, name, folder / f"{name}-{number}.h5").write_bytes(
                feature_bytes(attributes, xy, data, (), {"id": "random"}, {})
            )
        for name, chunk in {"one_row_chunks": 1, "chunks_of_32": 32, "gzip": 1024}.items():
            with h5py.File(put(files, name, folder / f"{name}-{number}.h5"), "w") as file:
                packed = {"compression": "gzip"} if name == "gzip" else {}
                file.create_dataset("features", data=features, chunks=(chunk, DIM), maxshape=(None, DIM), **packed)
                file.create_dataset("coords", data=xy, chunks=(chunk, 2), maxshape=(None, 2))
        torch.save(torch.from_numpy(features), put(files, "pt", folder / f"pt-{number}.pt"))
    return files


def put(files: dict[str, list[Path]], name: str, path: Path) -> Path:
    files.setdefault(name, []).append(path)
    return path


def ours(path: Path) -> torch.Tensor:
    from pipelines.feature_sets import bag_in

    features = bag_in(path, "s").features
    features.view(torch.uint8).flatten()[::PAGE].sum()  # every page comes into memory, as at the first use
    return features


def plain(path: Path) -> torch.Tensor:
    with h5py.File(path, "r") as file:
        features, _ = file["features"][:], file["coords"][:]
    return torch.from_numpy(features)


def saved(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)


def readers() -> dict[str, Callable[[Path], torch.Tensor]]:
    same = dict.fromkeys(("one_row_chunks", "chunks_of_32", "gzip"), plain)
    return {"ours": ours, "ours_f32": ours, "pt": saved, **same}


def play(files: dict[str, list[Path]], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each round, after one that warms up."""
    dice, spent = random.Random(0), {name: [] for name in files}
    for turn in range(rounds + 1):
        for name in dice.sample(sorted(files), len(files)):
            read = readers()[name]
            began = time.process_time()
            for path in files[name]:
                assert read(path).shape[1] == DIM
            if turn:
                spent[name].append(time.process_time() - began)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="two small bags, one round")
    args = parser.parse_args()
    rounds, bags, rows = args.rounds or (1 if args.quick else 7), 2 if args.quick else BAGS, 200 if args.quick else ROWS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spent = play(write(Path(folder), bags, rows), rounds)
    for name, seconds in spent.items():
        line(layout=name, million_rows_per_cpu_s=round(bags * rows / 1e6 / float(np.median(seconds)), 3))
    figures = {f"bag_over_{name}": ratio(name, spent) for name in spent if name != "ours"}
    figures["same_dtype_over_one_row_chunks"] = figure(
        "same_dtype_over_one_row_chunks",
        [a / b for a, b in zip(spent["one_row_chunks"], spent["ours_f32"], strict=True)],
    )
    summary("bags", figures, GOALS, how(rounds, bags, rows))


def ratio(name: str, spent: dict[str, list[float]]) -> float:
    return figure(f"bag_over_{name}", [a / b for a, b in zip(spent[name], spent["ours"], strict=True)])


def how(rounds: int, bags: int, rows: int) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("h5py", "numpy", "torch")
    return {
        "rounds": rounds,
        "bags": f"{bags} of {rows} x {DIM}",
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
