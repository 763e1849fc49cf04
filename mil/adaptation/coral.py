"""The embeddings of all sites have the same covariance and the same mean."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from .base import Adaptation


class Coral(Adaptation):
    """Mean over the pairs of sites of ‖C_s - C_t‖² / (4 E²) + ‖m_s - m_t‖² / E, with shrunk covariances.

    The paper compares covariances only, and leaves the means to a normalization of each domain; a slide that comes
    alone cannot be normalized with its domain, so the means are in the loss. A site of few slides has a covariance of
    low rank: it is shrunk to a multiple of the identity, as far as Ledoit and Wolf say.

    Source: Sun and Saenko, "Deep CORAL", ECCV 2016 workshops, eq. 1 to 3; Ledoit and Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4.
    """

    kind = "coral"

    def penalty(self, z: Tensor) -> Tensor:
        """Over all confounders."""
        z = self.residual(z)
        pairs = [
            distance(z[column == a], z[column == b])
            for column in self.codes.T
            for a, b in combinations(range(int(column.max()) + 1), 2)
            if min(int((column == a).sum()), int((column == b).sum())) >= 2
        ]
        return torch.stack(pairs).mean() if pairs else 0 * z.sum()


def distance(source: Tensor, target: Tensor) -> Tensor:
    """How far apart two sets of embeddings (n, E) and (m, E) are."""
    width = source.shape[1]
    covariances = (covariance(source) - covariance(target)).square().sum() / (4 * width**2)
    return covariances + (source.mean(dim=0) - target.mean(dim=0)).square().sum() / width


def covariance(x: Tensor) -> Tensor:
    """Shrunk covariance (E, E) of rows (n, E): (1 - a) S + a tr(S)/E I, with S over n - 1."""
    n, width = x.shape
    centered = x - x.mean(dim=0)
    s = centered.T @ centered / max(n - 1, 1)
    share = shrinkage(x.detach())
    return (1 - share) * s + share * torch.diagonal(s).mean() * torch.eye(width, dtype=x.dtype, device=x.device)


def shrinkage(x: Tensor) -> float:
    """Ledoit and Wolf's share of the identity, 0 to 1, from rows (n, E)."""
    x = x.double() - x.double().mean(dim=0)
    n, width = x.shape
    s = x.T @ x / n
    mean = torch.diagonal(s).mean()
    spread = s.square().sum() / width - mean**2  # ‖S - mI‖² / E
    noise = (x.square().sum(dim=1).square().sum() / n - s.square().sum()) / (n * width)
    return float((noise / spread).clamp(0, 1)) if float(spread) > 1e-30 else 1.0
