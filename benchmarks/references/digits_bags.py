"""Bags of handwritten digits: is there a nine, and which one is it, learned from 50, 100 and 200 bags?

python benchmarks/references/digits_bags.py [--full] [--quick]

scikit-learn's 8 x 8 digits: training bags of 1,000 images, 100 validation bags of 200 others, 400 test bags of the
remaining 597. Attention, five seeds (images, bags and weights); `--full` also the other pooling heads. "tile AUC": of
the attention inside positive test bags, nines against others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _folds import CLASSES
from _house import Figures, reference, say
from _made import digit_bags
from numpy.typing import NDArray

import mil

GOALS = {"attention_50_auc": (">=", 0.94), "attention_100_auc": (">=", 0.965), "attention_200_auc": (">=", 0.98)}
NAMES = {"abmil": "attention", "gated_abmil": "gated", "max": "max", "mean": "mean", "instance_max": "instance_max"}
SETTINGS: dict[str, Any] = {
    "epochs": 60,
    "patience": 20,
    "lr": 1e-3,
    "scaling": "common",
    "decorrelate": 0.0,
    "head_options": {"hidden": 128, "attention": 64},
}


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    heads = list(NAMES) if full else ["abmil"]
    seeds, settings = (1, SETTINGS | {"epochs": 1}) if quick else (5, SETTINGS)
    figures: Figures = {}
    for head in heads:
        for n in (50,) if quick else (50, 100, 200):
            found = np.array([aucs(head, n, seed, settings, 40 if quick else 400) for seed in range(seeds)])
            bags, tiles = found.mean(axis=0)
            spread = found.std(axis=0, ddof=1) if seeds > 1 else [0.0, 0.0]
            key = f"{NAMES[head]}_{n}"
            say(head=head, bags=n, auc=float(bags), sd=float(spread[0]), tile_auc=float(tiles),
                tile_sd=float(spread[1]), each=found[:, 0].tolist())  # fmt: skip
            figures |= {f"{key}_auc": float(bags), f"{key}_tile_auc": float(tiles)}
    return figures, {"seeds": seeds, "settings": settings}


def parts(seed: int) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Images and labels for training, validation and test: no image is in two of them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    rows = np.split(order, [1000, 1200])
    return [(digits.data[mine], digits.target[mine]) for mine in rows]


def aucs(head: str, n: int, seed: int, settings: dict[str, Any], tested: int) -> tuple[float, float]:
    """AUC of the test bags, and of the tiles inside the positive ones (mean of the bags)."""
    fit, stop, test = parts(seed)
    train, validation = digit_bags(*fit, n, 3 * seed)[0], digit_bags(*stop, 100, 3 * seed + 1)[0]
    bags, truth = digit_bags(*test, tested, 3 * seed + 2)
    heads_own = {} if head in ("abmil", "gated_abmil") else {"head_options": {"hidden": 128}}
    model = mil.train(train, validation, CLASSES, mil.TrainSettings(head=head, seed=seed, **settings | heads_own))
    found = [mil.predict(model, one)[0] for one in bags.bags]
    inside = [
        mil.auc(nine, one.attention) for nine, one in zip(truth, found, strict=True) if 0 < nine.sum() < len(nine)
    ]
    return mil.auc(bags.labels, [one.probabilities[1] for one in found]), float(np.mean(inside))


if __name__ == "__main__":
    reference("digits_bags", measure, GOALS, __doc__)
