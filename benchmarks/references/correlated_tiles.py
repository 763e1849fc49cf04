"""Correlated tiles with a known ceiling: who uses the neighbors, and does anyone claim more than can be known?

python benchmarks/references/correlated_tiles.py [--full] [--quick]

In positive bags three neighbors are shifted (`_made.correlated`; 1 informative feature of 8, shift 2; `--full` also
shift 1 and 3, and 8 informative features). The likelihood ratio is known, so its AUC on the same test bags is the
ceiling: a head beyond it by more than sampling has seen the labels. "single" takes the strongest tile, told which
feature counts: the best that can be done tile by tile. The context-aware head that is judged is the one with the lowest
validation loss among those that look at neighbors. 800 training, 200 validation, 1,000 test bags; twice as many
with `--full`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _folds import CLASSES, answers
from _house import Figures, reference, say
from _made import bayes_score, correlated, evidence

import mil
from mil.delong import compare

GOALS = {"context_over_single": (">=", 0.0), "most_above_ceiling_se": ("<=", 3.0)}
CONTEXT = ("hybrid", "graph", "transmil", "vit")  # what a tile says depends on where the others lie
SETTINGS: dict[str, Any] = {"epochs": 15, "patience": 4, "lr": 2e-3, "batch_size": 8, "decorrelate": 0.0}
CASES = ((1, 2.0), (1, 1.0), (1, 3.0), (8, 1.0))


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    heads = ["max", "hybrid"] if quick else list(mil.HEADS)
    n = 60 if quick else 1600 if full else 800
    figures: Figures = {}
    for case, (informative, shift) in enumerate(CASES if full else CASES[:1]):
        end = f"_{informative}_{shift:g}" if case else ""
        judged = judge(heads, informative, shift, n, case, SETTINGS | ({"epochs": 2} if quick else {}))
        figures |= {f"{key}{end}": value for key, value in judged.items()}
    return figures, {"training_bags": n, "heads": len(heads), "settings": SETTINGS}


def judge(heads: list[str], informative: int, shift: float, n: int, case: int, settings: dict[str, Any]) -> Figures:
    """Train every head on one law and hold it against the ceiling and the single tile."""
    law = {"informative": informative, "shift": shift}
    train, stop, test = (correlated(m, seed=10 * case + i, **law) for i, m in enumerate((n, n // 4, n + n // 4)))
    tiles = [one.features.double().numpy() for one in test.bags]
    ceiling = np.array([bayes_score(x, **law) for x in tiles])
    single = mil.auc(test.labels, [evidence(x, **law).max() for x in tiles])
    figures = {"bayes_auc": mil.auc(test.labels, ceiling), "single_auc": single}
    figures["mean_auc_known_feature"] = mil.auc(test.labels, [evidence(x, **law).mean() for x in tiles])
    say(**law, **figures)
    above, loss = {}, {}
    for head in heads:
        model = mil.train(train, stop, CLASSES, mil.TrainSettings(head=head, **settings))
        chance = answers(model, test.bags)[0]
        gap = compare(test.labels == 1, chance, ceiling)
        above[head] = gap.z
        loss[head] = min(epoch["validation_loss"] for epoch in model.config["training"]["history"])
        figures[f"{head}_auc"] = mil.auc(test.labels, chance)
        say(**law, head=head, auc=figures[f"{head}_auc"], validation_loss=loss[head], se_above_ceiling=gap.z,
            looks_around=head in CONTEXT)  # fmt: skip
    best = min((head for head in heads if head in CONTEXT), key=lambda head: loss[head])
    say(**law, context_head=best)
    figures["context_over_single"] = figures[f"{best}_auc"] - single
    figures["most_above_ceiling_se"] = max(above.values())
    return figures


if __name__ == "__main__":
    reference("correlated_tiles", measure, GOALS, __doc__)
