"""Training bags that are changed a little each time they are seen."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .bag import Bag
from .bag_set import join


def draw_share(alpha: float) -> float:
    """Share of a bag that stays: the larger of a draw from Beta(alpha, alpha) and its rest."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return max(share, 1 - share)


def mix(bag: Bag, other: Bag, share: float) -> Bag:
    """A bag of round(share N) random tiles of one bag and round((1 - share) M) of another; in either the order stays.

    Their labels and their clinical numbers count `share` and `1 - share`; a number that one lacks is missing.

    Source: Zhang et al., "mixup", ICLR 2018, with whole tiles for pixels, as in Liu et al., "Pseudo-Bag Mixup", 2024,
    doi:10.1109/TMI.2023.3348651.
    """
    mixed = join([_some(bag, share), _some(other, 1 - share)], bag.ids[0])
    if bag.clinical is None or other.clinical is None:
        return mixed
    return replace(mixed, clinical=share * bag.clinical + (1 - share) * other.clinical)


def _some(bag: Bag, share: float) -> Bag:
    """Random tiles of a bag."""
    count = round(share * bag.n_tiles)
    rows = torch.randperm(bag.n_tiles)[:count].sort().values.to(bag.features.device)
    xy = None if bag.xy is None else bag.xy[rows]
    return Bag(bag.features[rows], torch.tensor([0, count]), xy, bag.ids)


def drop_features(bag: Bag, share: float) -> Tensor:
    """Features with a share of the columns switched off in each bag, the rest scaled up: (T, D)."""
    kept = (torch.rand(len(bag), bag.dim, device=bag.features.device) >= share).to(bag.features.dtype) / (1 - share)
    return bag.features * torch.repeat_interleave(kept, bag.sizes.to(kept.device), dim=0)
