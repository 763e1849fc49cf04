"""Where the head looked: its own tile weights. Not evidence for the prediction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head
from mil.predict import infer


@torch.inference_mode()
def attention(head: Head, bag: Bag, target: int) -> NDArray[np.float32]:
    """Weight of each tile, shape (T,), summing to 1 in every bag.

    A head with one branch per class gives the branch of `target`; else all classes share the mean of the branches.

    Raises:
        MilError: the head weighs all tiles alike.

    Source: Ilse, Tomczak, Welling, ICML 2018, §2.4.
    """
    if not head.contract.attention:
        raise MilError(
            f"the head {head.name} weighs all tiles alike: it has no attention to show. Train one that has, "
            "e.g. with --head gated-abmil."
        )
    # One bag at a time, as `predict` does: the picture shows the very numbers of the prediction.
    weights = torch.cat([infer(head, one).weights for one in bag.split()]).float()
    shared = not head.contract.class_weights
    values: NDArray[np.float32] = (weights.mean(dim=1) if shared else weights[:, target]).cpu().numpy()
    return values
