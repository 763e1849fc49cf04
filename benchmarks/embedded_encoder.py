"""Is the embedded network worth its place?    python benchmarks/embedded_encoder.py [--quick]

A linear probe over real labelled tiles (`_probe.py`): the network as it is shipped, beside the classical descriptors,
the same network with random weights (three seeds, the best one counts), and a ResNet-18 with random weights. The
network was trained on other images (`_ssl_tiles.py`), without a label. `…_over_…` are differences of the area under
the ROC curve, `…_low` the lower ends of their 95 % intervals over images: above 0 the difference is no chance.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from _probe import Probe, area, breast, gain, probabilities, probes, with_interval
from _summary import line, summary

import mil

OURS, CLASSICAL, OTHER = "slidemil-compact", "descriptors", "resnet18 random:0"
GOALS = {
    f"{task}_over_{other}{low}": (">=", 0.0)
    for task in ("breast", "crc_epithelium", "crc_cells")
    for other in ("descriptors", "random")
    for low in ("", "_low")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one task, five images of each class, two tiles of each")
    parser.add_argument("--weights", help="another file of the network, e.g. one just trained")
    args = parser.parse_args()
    torch.set_num_threads(1)
    randoms = [f"{OURS} random:{seed}" for seed in range(1 if args.quick else 3)]
    names = [OURS, CLASSICAL, *randoms, *([] if args.quick else [OTHER])]
    resamples = 100 if args.quick else 2000
    encoders = {name: encoder_of(name, args.weights) for name in names}
    spent = dict.fromkeys(names, 0.0)
    figures: dict[str, float] = {}
    tasks = [few(breast(5))] if args.quick else probes()
    for probe in tasks:
        scores = {name: probabilities(probe, timed(encoders[name], probe.tiles, name, spent)) for name in names}
        for name in names:
            told = with_interval(probe, scores[name], resamples=resamples)
            line(task=probe.name, encoder=name, auc=told["value"], interval=told["interval"])
            figures[f"{probe.name}_{name.replace(' ', '_')}"] = told["value"]
        best = max(randoms, key=lambda name: area(probe.labels, scores[name]))
        for short, other in {"descriptors": CLASSICAL, "random": best}.items():
            both = np.stack([scores[OURS], scores[other]], 1)
            told = with_interval(probe, both, gain, resamples=resamples)
            line(task=probe.name, ours_over=other, gain=told["value"], interval=told["interval"])
            figures[f"{probe.name}_over_{short}"] = told["value"]
            figures[f"{probe.name}_over_{short}_low"] = told["interval"][0]
    figures["cost_of_descriptors"] = spent[OURS] / spent[CLASSICAL]
    summary("embedded_encoder", figures, GOALS, how(tasks, encoders[OURS]))


def encoder_of(name: str, weights: str | None) -> Any:
    encoder, _, seed = name.partition(" ")
    return mil.create_encoder(encoder, weights=seed or (weights if encoder == OURS else None), device="cpu")


def timed(encoder: Any, tiles: np.ndarray, name: str, spent: dict[str, float]) -> np.ndarray:
    began = time.process_time()
    features = encoder(tiles)
    spent[name] += time.process_time() - began
    return features


def few(probe: Probe) -> Probe:
    """Two tiles of each image; each image by itself in the folds."""
    kept = np.concatenate([np.flatnonzero(probe.images == image)[:2] for image in np.unique(probe.images)])
    return Probe(probe.name, probe.tiles[kept], probe.labels[kept], probe.images[kept], probe.images[kept])


def how(tasks: list[Probe], ours: Any) -> dict[str, Any]:
    return {
        "tiles": {one.name: len(one.labels) for one in tasks},
        "images": {one.name: len(set(one.images)) for one in tasks},
        "weights_sha256": ours.passport()["weights_sha256"],
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "torch")},
    }


if __name__ == "__main__":
    main()
