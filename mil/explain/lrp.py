"""Layer-wise relevance with attention held constant: terms that sum, with the bias, to the logit."""

from __future__ import annotations

import torch

from mil.bag import Bag
from mil.heads import Head

from .result import Explanation, Reach, as_values, bag_by_bag


@bag_by_bag
@torch.inference_mode()
def lrp(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Attention × what the tile's embedding says for the class: Σ values + bias = logit.

    The relevance stops at the embedding of each tile: down to the tile it is all its own. In heads whose tiles heard
    from their neighbors first, the value of a tile includes what it heard.

    Source: Hense et al., "xMIL: Insightful Explanations for Multiple Instance Learning in Histopathology", NeurIPS
    2024 (attention as a constant: the AH rule); Ali et al., "XAI for Transformers", ICML 2022.
    """
    values, bias = head.eval().contributions(bag, target)
    if head.fusion is not None and head.fusion.additive:
        bias = bias + head.fusion.offset(bag)[0, target]
    facts = {"bias": float(bias), "logit": float(values.sum(dtype=torch.float64)) + float(bias)}
    return Explanation(as_values(values), facts)
