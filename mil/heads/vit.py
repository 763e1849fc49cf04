"""A vision transformer over tiles: full attention, a class token, and positions in two dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.cells import grid_positions
from mil.errors import MilError
from mil.pooling import segment_softmax

from .base import Contract, Head, MILOutput, RowThrough, tile_embedding
from .transformer import Attention


class ViT(Head):
    """Tile embeddings + sine and cosine of column and row, then pre-norm transformer layers; the class token decides.

    Attention is exact: memory is linear in the tiles (torch's kernel never holds the square), time is quadratic: about
    20,000 tiles are comfortable on a CPU. Positions count in steps of the tile grid from the bag's left and top tile:
    where a slide lies on its canvas does not matter. Of the last layer only the class token is read.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, and its use on tiles: Wagner et al.,
    "Transformer-based biomarker prediction from colorectal cancer histology", Cancer Cell 2023,
    doi:10.1016/j.ccell.2023.08.002 (without positions there).
    """

    name = "vit"
    contract = Contract(duplicate_invariant=False, needs_coords=True, linear=False, rollout=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, heads: int = 4, layers: int = 2, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, heads=heads, layers=layers, dropout=dropout)
        if hidden % 4:
            raise MilError(f"hidden={hidden}: positions need a multiple of 4.")
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.token = nn.Parameter(torch.randn(1, hidden) * 0.02)
        self.layers = nn.ModuleList(Layer(hidden, heads, dropout) for _ in range(layers - 1))
        self.last = Layer(hidden, heads, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Bag by bag: the layers, then the class token."""
        h = self._placed(bag)  # (T, E)
        tokens, scores = [], []
        for rows in bag.per_bag(h):
            x = torch.cat([self.token, rows])
            for layer in self.layers:
                x = layer(x, x)
            tokens.append(self.last(x[:1], x))
            scores.append(self.last.scores(x[:1], x[1:]))
        z, raw = self.norm(torch.cat(tokens)), torch.cat(scores)
        return MILOutput(self.classifier(z), z, raw, segment_softmax(raw, bag))

    def rollout(self, bag: Bag, through: RowThrough) -> Tensor:
        """The token's row of the last layer, multiplied back through the layers before; only rows are held."""
        x = torch.cat([self.token, self._placed(bag)])
        before = []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            before.append(layer.queries_and_keys(x))
            x = layer(x, x)
        row = torch.softmax(self.last.scores(x[:1], x), dim=0).mean(dim=1)
        own = torch.zeros_like(row)
        own[0] = 1.0
        row = (row + own) / 2
        for queries, keys in reversed(before):
            row = (through(row, queries, keys) + row) / 2
        return row

    def _placed(self, bag: Bag) -> Tensor:
        """Tile embeddings that know where they lie, (T, E)."""
        h = self.embedded(bag)
        return h + sine_positions(grid_positions(bag), h.shape[1]).to(h.dtype)


class Layer(nn.Module):
    """Attention and a small network, each behind a layer norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Rows (m, E) look at rows (n, E): (m, E)."""
        x = x + self.attention(self.norm1(x), self.norm1(context))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows that look at one another: (n, E) → twice (H, n, d)."""
        y, attention = self.norm1(x), self.attention
        return attention.parts(attention.query(y)), attention.parts(attention.key(y))

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Raw attention of one row (1, E) to rows (n, E): (n, H)."""
        return self.attention.scores(self.norm1(query), self.norm1(rows))


def sine_positions(grid: Tensor, dim: int) -> Tensor:
    """Sine and cosine of columns and rows (T, 2), wave lengths from 2π to 2,000π cells: (T, dim)."""
    waves = 1000.0 ** -torch.linspace(0, 1, dim // 4, dtype=grid.dtype, device=grid.device)
    angles = (grid[:, :, None] * waves).flatten(1)  # (T, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
