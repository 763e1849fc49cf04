"""Real tissue as bags of tiles: colorectal images with or without epithelium, breast images benign or malignant.

python benchmarks/references/tissue_images.py [--full] [--quick]

`crc_nuclei`: 65 images of 500 px, 25 tiles of 100 px, positive where a nucleus is epithelial; grouped by image, for the
data do not say who the patient is (an image of the same patient may be on the other side: too kind, if anything).
`ucsb_breast`: 36 images of 896 x 768 px, 42 tiles of 128 px; grouped by block of the tissue microarray, one block is
tested at a time. Tiles go through the `descriptors` encoder. Both are parts of published sets, so published figures are
not directly comparable. Some heads; `--full`: all, and 5 repeats of the folds.
"""

from __future__ import annotations

from typing import Any

from _folds import held_out, rates
from _house import Figures, reference, say
from _sets import tissue

import mil

SOME = ("mean", "max", "instance_max", "abmil", "gated_abmil", "dsmil", "transmil", "hybrid")
SETTINGS: dict[str, Any] = {"epochs": 40, "patience": 10, "lr": 1.5e-3, "batch_size": 8}
SETS = {"crc_nuclei": (100, "image", 5), "ucsb_breast": (128, "tma_block", 6)}


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    heads = ["gated_abmil"] if quick else list(mil.HEADS if full else SOME)
    repeats, settings = 5 if full else 1, SETTINGS | ({"epochs": 1} if quick else {})
    figures: Figures = {}
    for folder, (side, group, k) in SETS.items():
        bags = tissue(folder, side, group, at_most={"image": 4, "tma_block": 1}[group] if quick else None)
        for head in heads:
            chosen = mil.TrainSettings(head=head, **settings)
            found = rates(held_out(bags, chosen, k=2 if quick else k, repeats=repeats))
            say(data=folder, images=len(bags), groups=len(set(bags.patients)), head=head, **found)
            figures |= {f"{folder}_{head}_auc": found["auc"], f"{folder}_{head}_accuracy": found["accuracy"]}
    return figures, {"encoder": "descriptors", "repeats": repeats, "settings": settings}


if __name__ == "__main__":
    reference("tissue_images", measure, {}, __doc__)
