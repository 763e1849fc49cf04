"""Where the head looked: its own tile weights. Not evidence for the prediction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bag import Bag
from mil.heads import Head


@torch.inference_mode()
def attention(head: Head, bag: Bag, target: int) -> NDArray[np.float32]:
    """Weight of each tile, shape (T,), summing to 1 in every bag.

    A head with one branch per class gives the branch of `target`, else all classes share one attention.

    Source: Ilse, Tomczak, Welling, ICML 2018, §2.4.
    """
    # One bag at a time, as `predict` does: the picture shows the very numbers of the prediction.
    weights = torch.cat([head.eval()(one).weights for one in bag.split()])
    column = target if weights.shape[1] == head.classes else 0
    values: NDArray[np.float32] = weights[:, column].float().cpu().numpy()
    return values
