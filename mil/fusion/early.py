"""Clinical variables beside the features of every tile."""

from __future__ import annotations

from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.fusing import Fusion


class Early(Fusion):
    """Each tile's features are followed by the variables of its slide, 0 (the mean) where one is missing.

    W [x; c] = W x + W_c c: computed as a shift after the head's first layer, which needs no wider copy of the tiles.
    What is missing looks like what is average: of the four kinds this one knows least of missing values.
    """

    kind = "early"
    joins = False

    def build(self, hidden: int, embedding: int, classes: int) -> None:
        """W_c."""
        del embedding, classes
        self.hide = 0.0
        self.columns = nn.Linear(sum(self.sizes), hidden, bias=False)

    def shift(self, bag: Bag) -> Tensor:
        """W_c c, (B, hidden)."""
        shift: Tensor = self.columns(self.rows(bag)[0])
        return shift
