"""Gradient × input: how the logit would change at first order if a tile became the average training tile."""

from __future__ import annotations

from mil.bag import Bag
from mil.heads import Head

from .gradients import feature_gradient, from_average
from .result import Explanation, Reach, as_values, bag_by_bag


@bag_by_bag
def gradient_input(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Σ over the features of d logit / d z · z, with z the standardized input: 0 is the average training tile.

    On raw features the zero would be an accident of the encoder, and the offset of a feature would count as evidence.

    Source: Shrikumar et al., "Not Just a Black Box", arXiv 1605.01713; Ancona et al., ICLR 2018.
    """
    gradient, logit = feature_gradient(head, bag, target)
    values = (gradient * from_average(head, bag.features)).sum(dim=1)
    return Explanation(as_values(values), {"baseline": "the average training tile", "logit": logit})
