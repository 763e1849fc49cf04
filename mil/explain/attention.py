"""Where the head looked: its own tile weights. Not evidence for the prediction."""

from __future__ import annotations

import torch

from mil.bag import Bag
from mil.heads import Head
from mil.predict import infer

from .result import Explanation, Reach, as_values, bag_by_bag


@bag_by_bag  # one bag at a time, as `predict` does: the picture shows the very numbers of the prediction
@torch.inference_mode()
def attention(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Weight of each tile, summing to 1 in every bag.

    A head with one branch per class gives the branch of `target`; else all classes share the mean of the branches.

    Source: Ilse, Tomczak, Welling, ICML 2018, §2.4.
    """
    weights = infer(head, bag).weights.float()
    return Explanation(as_values(weights[:, target] if head.contract.class_weights else weights.mean(dim=1)))


@bag_by_bag
@torch.inference_mode()
def raw_attention(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Score of each tile before the softmax: does not flatten when the bag grows; unit and zero are the head's own."""
    scores = infer(head, bag).scores.float()
    return Explanation(as_values(scores[:, target] if head.contract.class_weights else scores.mean(dim=1)))
