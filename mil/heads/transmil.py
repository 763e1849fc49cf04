"""TransMIL: the tiles of a slide attend to one another, and know where they lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.cells import Cells, spatial_order
from mil.pooling import segment_softmax

from .base import Contract, Head, MILOutput, tile_embedding
from .grid_convolution import DepthwiseConvolution, convolve
from .transformer import Attention, attend


class TransMIL(Head):
    """Class token and tiles through Nyström attention, position encoding by convolution (PPEG), and attention again.

    What differs from the paper, and why:
    * PPEG (depthwise 7 x 7, 5 x 5, 3 x 3) runs over the cells of the real tile grid. The paper folds the list of tiles
      into a square, where neighbors are not neighbors on the slide, and fills it by repeating tiles.
    * The first layer is Nyström attention, for exact attention of 100,000 tiles costs 10¹⁰ products per head. Landmarks
      are means over runs of tiles along a curve through the grid, so the order of the list does not matter. Bags of at
      most `landmarks` tiles get exact attention, which is what Nyström's becomes then.
    * Of the last layer only the class token is read: its attention is exact at no cost, and gives the weights.
    * No 33-tap convolution along the list of tiles (it has no meaning on coordinates).

    Memory grows with tiles x hidden and never holds tiles x tiles.

    Source: Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image
    Classification", NeurIPS 2021; Xiong et al., "Nyströmformer", AAAI 2021, eq. 13.
    """

    name = "transmil"
    contract = Contract(duplicate_invariant=False, needs_coords=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, heads: int = 4, landmarks: int = 64, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, heads=heads, landmarks=landmarks, dropout=dropout)
        self.landmarks = landmarks
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.token = nn.Parameter(torch.randn(1, hidden) * 0.02)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.mix, self.read = Attention(hidden, heads, dropout), Attention(hidden, heads, dropout)
        self.position = nn.ModuleList(DepthwiseConvolution(hidden, size) for size in (7, 5, 3))
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Mix, place, read off the class token."""
        h = self.embedded(bag)  # (T, E)
        mixed = [self._mix(rows, one) for rows, one in zip(bag.per_bag(h), bag.split(), strict=True)]
        tokens, h = torch.cat([x[:1] for x in mixed]), torch.cat([x[1:] for x in mixed])  # (B, E), (T, E)
        cells = Cells.of(bag)
        placed = cells.gather(h)
        h = h + convolve(placed, cells, *self._kernel())[cells.of_tile]
        read = [self._read(tokens[b : b + 1], rows) for b, rows in enumerate(bag.per_bag(h))]
        z, scores = self.norm3(torch.cat([token for token, _ in read])), torch.cat([raw for _, raw in read])
        return MILOutput(self.classifier(z), z, scores, segment_softmax(scores, bag))

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """The three convolutions as one, for their sum is one: weights (7, 7, E) and bias (E,)."""
        layers = [layer for layer in self.position if isinstance(layer, DepthwiseConvolution)]
        weights = torch.stack([layer.padded_weight(7) for layer in layers])
        return weights.sum(dim=0), torch.stack([layer.bias for layer in layers]).sum(dim=0)

    def _mix(self, h: Tensor, bag: Bag) -> Tensor:
        """First layer on one bag: (N, E) → (1 + N, E), the class token first."""
        x = torch.cat([self.token, h])
        y = self.norm1(x)
        if len(h) <= self.landmarks:
            mixed: Tensor = self.mix(y, y)
            return x + mixed
        run = torch.empty(len(h), dtype=torch.int64, device=h.device)
        run[spatial_order(bag)] = torch.arange(len(h), device=h.device) * self.landmarks // len(h)
        return x + nystrom(self.mix, y, torch.cat([run.new_zeros(1), run + 1]))

    def _read(self, token: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Second layer for the class token of one bag: (1, E), and its raw attention to the tiles (N, H)."""
        y = self.norm2(torch.cat([token, h]))
        return token + self.read(y[:1], y), self.read.scores(y[:1], y[1:])


def nystrom(layer: Attention, rows: Tensor, run: Tensor) -> Tensor:
    """Attention of rows (n, E) among themselves over landmarks, the means of runs; `run` (n,) numbers them from 0.

    softmax(Q K̃ᵀ) · softmax(Q̃ K̃ᵀ)⁺ · (softmax(Q̃ Kᵀ) V): no matrix larger than n x landmarks is ever complete.
    """
    q, k, v = (layer.parts(part(rows)) for part in (layer.query, layer.key, layer.value))
    count = torch.bincount(run).to(rows.dtype)
    q_mean, k_mean = (_means(part, run, count) for part in (q, k))
    middle = torch.softmax(q_mean @ k_mean.mT / math.sqrt(q.shape[-1]), dim=-1)
    return layer.join(attend(q, k_mean, pseudo_inverse(middle) @ attend(q_mean, k, v)))


def _means(parts: Tensor, run: Tensor, count: Tensor) -> Tensor:
    """Means of the runs: (H, n, d) → (H, m, d)."""
    sums = parts.new_zeros(parts.shape[0], len(count), parts.shape[2]).index_add(1, run, parts)
    return sums / count[:, None]


def pseudo_inverse(a: Tensor, rounds: int = 6) -> Tensor:
    """Iterated Moore-Penrose inverse of matrices (H, m, m) whose rows sum to 1.

    Six rounds, as in the paper, leave the smallest singular values out: the inverse stays smooth.

    Source: Razavi et al. 2014, in the form of Nyströmformer, eq. 11.
    """
    z = a.mT / a.sum(dim=-2).amax(dim=-1)[:, None, None]  # ‖A‖∞ = 1
    unit = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(rounds):
        az = a @ z
        z = 0.25 * z @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az)))
    return z
