"""No direction of the embeddings goes along with a confounder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .base import Adaptation, class_means


class Covariance(Adaptation):
    """Mean over the levels of the confounders of ‖corr(z, level)‖² summed over the embedding, both within the classes.

    It is the penalty of least effect that still takes the linear trace away: 0 exactly where no linear probe has
    anything to go by.
    """

    kind = "covariance"

    def penalty(self, z: Tensor) -> Tensor:
        """Squared correlations."""
        z = self.residual(z)
        found = []
        for column, count in zip(self.codes.T, self.levels, strict=True):
            known = column >= 0
            mine = z[known] - class_means(z[known], self.strata[known])
            levels = one_hot(column[known], count).to(z.dtype)
            levels = levels - class_means(levels, self.strata[known])
            spread = levels.square().mean(dim=0)  # 0 for a level that fills its classes: nothing to tell it from
            both = (mine.T @ levels / max(len(mine), 1)).square().sum(dim=0)
            found.append(torch.where(spread > 1e-6, both / spread.clamp(min=1e-6), torch.zeros_like(both)))
        return torch.cat(found).mean()
