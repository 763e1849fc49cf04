"""Features on one scale and less correlated, while a head is trained; afterwards part of the head's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bag import Bag
from .heads import Head
from .heads.base import CHUNK, Standardize

WIDEST = 512  # the covariance costs D² per tile: past this width only the scale is mended


@dataclass(frozen=True, eq=False)
class InputTransform:
    """x → standardized(x) @ matrix.

    Gradient descent finds a direction the faster, the more the features vary along it. Descriptors vary most along
    what all tiles share (how much tissue, how dark), and least along what tells rare tiles apart; whitening evens
    that out. Fully whitened, directions of pure noise would count as much as any, hence the shrinkage.

    Attributes:
        scale: mean and spread of the training tiles.
        matrix: (D, D), symmetric, ((1 - share) I + share C)^(-1/2) with C the correlations; None to leave it out.

    Source: Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4 (shrinkage to the identity), with a fixed share.
    """

    scale: Standardize
    matrix: Tensor | None

    @classmethod
    def fit(cls, bags: Sequence[Bag], share: float, *, common: bool = False) -> InputTransform:
        """Fix scale and correlations from training tiles; `share` in 0 (scale only) to 1 (fully whitened).

        The tiles are taken in chunks, in order: no copy of them all is made, and the result is always the same.
        """
        parts, dim = [bag.features for bag in bags], bags[0].dim
        scale = Standardize(dim)
        scale.fit(*parts, common=common)
        if share <= 0 or dim > WIDEST:
            return cls(scale, None)
        products = torch.zeros(dim, dim, dtype=torch.float64)
        for rows in (rows for part in parts for rows in torch.split(part, CHUNK)):
            z = scale(rows).double()
            products += z.T @ z
        correlations = products / sum(part.shape[0] for part in parts)
        values, vectors = torch.linalg.eigh((1 - share) * torch.eye(dim).double() + share * correlations)
        # share = 1 and a feature that never varies: the direction has no spread to be divided by
        root = torch.where(values > 1e-9, values.clamp(min=1e-9).rsqrt(), torch.zeros_like(values))
        return cls(scale, ((vectors * root) @ vectors.T).float())

    def __call__(self, bag: Bag) -> Bag:
        """Return the bag with transformed features, float32."""
        z = self.scale(bag.features)
        return replace(bag, features=z if self.matrix is None else z @ self.matrix)

    @torch.no_grad()
    def fold_into(self, head: Head) -> None:
        """Make a head that was trained on transformed features take the original ones."""
        head.input.load_state_dict(self.scale.state_dict())
        if self.matrix is not None:
            weight = head.first_linear.weight
            weight.copy_(weight.double() @ self.matrix.double().T)
