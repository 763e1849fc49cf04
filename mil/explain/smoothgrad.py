"""SmoothGrad: the gradient averaged over noisy copies of the bag, times the input."""

from __future__ import annotations

import torch

from mil.bag import Bag
from mil.heads import Head
from mil.pooling import accumulation_dtype

from .gradients import feature_gradient, from_average
from .result import Explanation, Reach, as_values, bag_by_bag

SAMPLES, NOISE = 25, 0.15


@bag_by_bag
def smoothgrad(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Mean gradient at `samples` copies with normal noise, times the input as in `gradient_input`.

    `noise` is in standard deviations of each feature over the training tiles; 0 gives `gradient_input` itself.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv 1706.03825.
    """
    samples, noise = int(reach.options.get("samples", SAMPLES)), float(reach.options.get("noise", NOISE))
    random = torch.Generator().manual_seed(int(reach.options.get("seed", 0)))
    factor = head.input.factor
    spread = torch.where(factor > 0, noise / factor.clamp(min=torch.finfo(factor.dtype).tiny), 0.0)
    features = bag.features.to(accumulation_dtype(bag.features))
    total = torch.zeros_like(features)
    for _ in range(samples if noise > 0 else 1):
        shift = torch.randn(features.shape, generator=random, dtype=features.dtype).to(features.device)
        total += feature_gradient(head, bag, target, features + shift * spread)[0]
    mean = total / (samples if noise > 0 else 1)
    values = (mean * from_average(head, bag.features)).sum(dim=1)
    return Explanation(as_values(values), {"baseline": "the average training tile", "samples": samples, "noise": noise})
