"""MUSK1, ELEPHANT and FOX by every head: accuracy and AUC of held-out bags, with intervals.

python benchmarks/references/classic_heads.py [--full] [--quick]

One repeat of 10 folds (`--full`: 5). The settings are the same for all heads and data sets; scaling and dropout were
chosen by the validation loss of gated attention on MUSK1 (see `musk1_honesty.py`), the others not at all. Epoch and
threshold come from a fifth of the training folds: no cell is chosen on a test fold. Conformations and regions have no
places: heads that ask for some find them along a line, in the order of the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _folds import held_out, rates
from _house import Figures, reference, say
from _sets import animal, musk1

import mil

SETTINGS: dict[str, Any] = {
    "epochs": 40,
    "patience": 10,
    "lr": 1.5e-3,
    "batch_size": 8,
    "decorrelate": 0.0,
    "dropout": 0.5,
}


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    heads = ["mean", "gated_abmil"] if quick else list(mil.HEADS)
    k, repeats = (2, 1) if quick else (10, 5 if full else 1)
    settings = SETTINGS | ({"epochs": 1} if quick else {})
    sets = {"musk1": musk1()} if quick else {"musk1": musk1(), "elephant": animal("elephant"), "fox": animal("fox")}
    figures: Figures = {}
    for name, bags in sets.items():
        found = {}
        for head in heads:
            found[head] = rates(held_out(bags, mil.TrainSettings(head=head, **settings), k=k, repeats=repeats))
            say(data=name, head=head, **found[head])
            figures[f"{name}_{head}_accuracy"] = found[head]["accuracy"]
        figures[f"{name}_median_accuracy"] = float(np.median([one["accuracy"] for one in found.values()]))
    return figures, {"folds": k, "repeats": repeats, "heads": len(heads), "settings": settings}


if __name__ == "__main__":
    reference("classic_heads", measure, {}, __doc__)
