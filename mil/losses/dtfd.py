"""DTFD-MIL: the slide and each of its pseudo-bags have to tell the class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mil.bag import Bag
from mil.heads import MILOutput


def dtfd(out: MILOutput, bag: Bag, target: Tensor | None, slide_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Loss of the second tier + mean loss of the pseudo-bags: (B,).

    Source: Zhang et al., CVPR 2022, eq. 4 and 8.
    """
    del bag, target
    assert out.branch_logits is not None
    first = torch.stack([slide_loss(logits) for logits in out.branch_logits.unbind(dim=1)])
    return slide_loss(out.logits) + first.mean(dim=0)
