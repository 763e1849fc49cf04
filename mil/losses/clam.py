"""CLAM: tiles of high and of low attention are told apart by the instance classifiers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mil.bag import Bag
from mil.heads import MILOutput

K, BAG_SHARE = 8, 0.7


def clam(out: MILOutput, bag: Bag, target: Tensor | None, slide_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """0.7 of the slide's loss + 0.3 of `instance_loss`: (B,).

    Source: Lu et al., Nature Biomedical Engineering 2021, doi:10.1038/s41551-020-00682-w.
    """
    assert out.instance_logits is not None
    if target is None:  # no classes that exclude one another: no tile is evidence for one and against the others
        return slide_loss(out.logits) + 0 * out.instance_logits.sum()
    pairs = zip(bag.per_bag(out.scores), bag.per_bag(out.instance_logits), target.tolist(), strict=True)
    instances = torch.stack([instance_loss(scores, logits, label) for scores, logits, label in pairs])
    return BAG_SHARE * slide_loss(out.logits) + (1 - BAG_SHARE) * instances


def instance_loss(scores: Tensor, logits: Tensor, label: int, *, k: int = K) -> Tensor:
    """Loss of the pseudo-labels that attention gives to the tiles of one slide, mean over the classes.

    In the class of the slide the k tiles of highest attention are evidence, the k of lowest are not; in the other
    classes, which exclude it, those of highest attention are not. A slide with fewer than 2 k tiles gives half its
    tiles to each side, so that no tile is both; with one tile there is nothing to tell apart.

    Args:
        scores: attention (N, 1), or (N, C) with a branch per class.
        logits: evidence of each tile for each class, (N, C).
        label: class of the slide.
    """
    k, classes = min(k, scores.shape[0] // 2), logits.shape[1]
    if k == 0:
        return logits.sum() * 0
    losses = []
    for c in range(classes):
        order = scores[:, c if scores.shape[1] == classes else 0].argsort(descending=True, stable=True)
        high, low = logits[order[:k], c], logits[order[-k:], c]
        losses.append(torch.cat([smooth_hinge(high), smooth_hinge(-low)]) if c == label else smooth_hinge(-high))
    return torch.stack([loss.mean() for loss in losses]).mean()


def smooth_hinge(margin: Tensor, *, tau: float = 1.0) -> Tensor:
    """τ log(1 + exp((1 - margin) / τ)): the smooth top-1 SVM with two classes; the hinge loss as τ → 0.

    Source: Berrada, Zisserman, Kumar, "Smooth Loss Functions for Deep Top-k Classification", ICLR 2018, eq. 7.
    """
    return tau * softplus((1 - margin) / tau)
