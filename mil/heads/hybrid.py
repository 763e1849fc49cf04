"""A hybrid: convolution over the tile grid for the neighborhood, then attention over the slide."""

from __future__ import annotations

from torch import Tensor, nn

from mil.bag import Bag
from mil.cells import Cells

from .attending import AttendingHead, GatedAttention, Tiles
from .base import Contract, MILOutput, tile_embedding
from .grid_convolution import DepthwiseConvolution


class Hybrid(AttendingHead):
    """Residual 3 x 3 convolutions (depthwise, then 1 x 1) over the grid of tile embeddings, then gated attention.

    Only cells with tiles exist, so glass costs nothing; tiles in the same cell share its value.

    Source: Tellez et al., "Neural Image Compression for Gigapixel Histopathology Image Analysis", TPAMI 2021,
    doi:10.1109/TPAMI.2019.2936841 (a CNN over the grid of tile features); Ilse et al., ICML 2018, eq. 9 (attention).
    """

    name = "hybrid"
    contract = Contract(needs_coords=True, contributions=True)

    def __init__(
        self,
        in_dim: int,
        classes: int,
        *,
        hidden: int = 64,
        attention: int = 32,
        layers: int = 2,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, layers=layers, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.spread = nn.ModuleList(DepthwiseConvolution(hidden, 3) for _ in range(layers))
        self.blend = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.Dropout(dropout)) for _ in range(layers)
        )
        self.attention = GatedAttention(hidden, attention)
        self.classifier = nn.Linear(hidden, classes)

    def tiles(self, bag: Bag) -> Tiles:
        """Embed, look at the neighbors, score."""
        cells = Cells.of(bag)
        h = cells.gather(self.embedded(bag))  # (M, E)
        for spread, blend in zip(self.spread, self.blend, strict=True):
            h = h + blend(spread(h, cells))
        h = h[cells.of_tile]  # (T, E)
        return Tiles(h, self.attention(h))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify."""
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights)
