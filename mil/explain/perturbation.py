"""Single-instance perturbation: what the head says of each tile alone."""

from __future__ import annotations

import torch

from mil.bag import Bag
from mil.heads import Head

from .result import Explanation, Reach, as_values, bag_by_bag

_TOGETHER = 4096


@bag_by_bag
@torch.inference_mode()
def perturbation(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Logit of `target` for a bag that holds only this tile.

    It asks the model itself and follows no gradient, but a tile alone has no company: where the answer depends on how
    tiles occur together, it cannot show it.

    Source: Early, Evers, Ramchurn, "Model Agnostic Interpretability for Multiple Instance Learning", ICLR 2022
    ("single"); Hense et al., "xMIL", NeurIPS 2024.
    """
    head.eval()
    rows = []
    for start in range(0, bag.n_tiles, _TOGETHER):
        features = bag.features[start : start + _TOGETHER]
        xy = None if bag.xy is None else bag.xy[start : start + _TOGETHER]
        known = None if bag.clinical is None else bag.clinical.expand(len(features), -1)
        alone = Bag(features, torch.arange(len(features) + 1), xy, clinical=known)
        rows.append(head(alone).logits[:, target])
    values = torch.cat(rows) if rows else bag.features.new_zeros(0)
    return Explanation(as_values(values), {"logit": float(head(bag).logits[0, target])})
