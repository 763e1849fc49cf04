"""Derivative of one logit to every feature of every tile: what several methods are made of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head
from mil.pooling import accumulation_dtype


def class_logit(logits: Tensor, target: int) -> Tensor:
    """Logit of a class summed over the rows: (B, C) → (); of a map (B, C, …) its mean over the places.

    Rows do not touch each other, so the gradient of the sum is that of each row.
    """
    chosen = logits[:, target]
    return chosen.flatten(1).mean(dim=1).sum() if chosen.ndim > 1 else chosen.sum()


def feature_gradient(head: Head, bag: Bag, target: int, features: Tensor | None = None) -> tuple[Tensor, float]:
    """Return d logit / d feature, shape (T, D), and the logit (summed over the bags).

    Nothing is left behind: the graph goes with this call, and no parameter gets a gradient.

    Args:
        head: taken in evaluation.
        bag: one or several bags.
        target: class number.
        features: (T, D) in the place of the bag's own.
    """
    rows = bag.features if features is None else features
    leaf = rows.detach().to(accumulation_dtype(rows)).requires_grad_()
    with torch.enable_grad():
        logit = class_logit(head.eval()(replace(bag, features=leaf)).logits, target)
        if not logit.requires_grad:  # a class that no tile can speak for: its logit is fixed
            return torch.zeros_like(leaf), float(logit)
        (gradient,) = torch.autograd.grad(logit, leaf, allow_unused=True, materialize_grads=True)
    if not bool(torch.isfinite(gradient).all()):
        raise MilError("the head's gradient is not finite on these features. Are they of the model's encoder?")
    return gradient, float(logit.detach())


def from_average(head: Head, features: Tensor) -> Tensor:
    """Features less those of the average training tile, the zero of the head's standardized input: (T, D)."""
    centered: Tensor = features.to(accumulation_dtype(features)) - head.input.mean
    return centered
