"""Scaled dot-product attention with several heads, one bag at a time: what the transformer-type heads are made of."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from mil.errors import MilError


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V for H heads, then a linear layer. Memory grows with the rows, not with their square.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, §3.2; in the arithmetic of Dao et al. 2022,
    arXiv 2205.14135 (torch's own kernel).
    """

    def __init__(self, dim: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise MilError(f"hidden={dim} cannot be shared among heads={heads}. Make it a multiple of {heads}.")
        self.heads, self.drop = heads, drop
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attend from rows (m, E) to rows (n, E): (m, E). Where there is nothing to attend to, zeros are seen."""
        if not keys.shape[0] or not queries.shape[0]:
            return self.join(queries.new_zeros(self.heads, queries.shape[0], queries.shape[1] // self.heads))
        q, k, v = self.parts(self.query(queries)), self.parts(self.key(keys)), self.parts(self.value(keys))
        return self.join(attend(q, k, v))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """What one row (1, E) gives to rows (n, E) before the softmax: (n, H)."""
        q, k = self.parts(self.query(query)), self.parts(self.key(keys))
        return (k @ q.mT)[..., 0].T / math.sqrt(q.shape[-1])

    def parts(self, rows: Tensor) -> Tensor:
        """(n, E) → (H, n, E / H)."""
        return rows.view(rows.shape[0], self.heads, rows.shape[1] // self.heads).transpose(0, 1)

    def join(self, parts: Tensor) -> Tensor:
        """(H, n, E / H) → (n, E), through the last layer."""
        joined: Tensor = self.out(parts.transpose(0, 1).flatten(1))
        return dropout(joined, self.drop, self.training)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v for each head: (H, m, d), (H, n, d), (H, n, d) → (H, m, d)."""
    return scaled_dot_product_attention(q[None], k[None], v[None])[0]
