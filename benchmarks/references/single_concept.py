"""Which heads keep the standard assumption? The single-concept unit test of Raff and Holt (NeurIPS 2023).

python benchmarks/references/single_concept.py [--full] [--quick]

A tile that is in every negative training bag is in every positive test bag (`_made.single_concept`). A head that can
learn "this tile makes a bag negative" ends below 1/2. 400 training, 200 validation and 400 test bags of 16 features;
two seeds (`--full`: 5). Validation bags are made as training bags are: nothing warns the head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _folds import CLASSES, answers
from _house import Figures, reference, say
from _made import single_concept

import mil

GOALS = {"standard_mil_auc": (">=", 0.5)}
SETTINGS: dict[str, Any] = {"epochs": 15, "patience": 15, "lr": 2e-3, "batch_size": 8, "decorrelate": 0.0}


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    heads = ["standard_mil", "gated_abmil"] if quick else list(mil.HEADS)
    n, seeds = (40, 1) if quick else (400, 5 if full else 2)
    figures: Figures = {}
    for head in heads:
        found = np.array([aucs(head, n, seed) for seed in range(seeds)])
        promised = mil.HEADS[head].contract.standard_mil
        like_training, test = found.mean(axis=0)
        say(head=head, auc_like_training=float(like_training), test_auc=float(test), each=found[:, 1].tolist(),
            keeps_assumption=promised)  # fmt: skip
        figures[f"{head}_auc"] = float(test)
    return figures, {"bags": n, "seeds": seeds, "heads": len(heads), "settings": SETTINGS}


def aucs(head: str, n: int, seed: int) -> tuple[float, float]:
    """AUC of new bags made like the training bags, and of test bags."""
    train, stop, alike = (single_concept(m, test=False, seed=3 * seed + i) for i, m in enumerate((n, n // 2, n)))
    test = single_concept(n, test=True, seed=1000 + seed)
    model = mil.train(train, stop, CLASSES, mil.TrainSettings(head=head, seed=seed, **SETTINGS))
    alike_auc, test_auc = (mil.auc(bags.labels, answers(model, bags.bags)[0]) for bags in (alike, test))
    return alike_auc, test_auc


if __name__ == "__main__":
    reference("single_concept", measure, GOALS, __doc__)
