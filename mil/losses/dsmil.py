"""DSMIL: both streams have to tell the class."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mil.bag import Bag
from mil.heads import MILOutput


def dsmil(out: MILOutput, bag: Bag, target: Tensor | None, slide_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Half the loss of the critical tiles, half that of the attended bag: (B,).

    Source: Li, Li, Eliceiri, CVPR 2021, §3.2 and the authors' settings.
    """
    del bag, target
    assert out.branch_logits is not None
    return 0.5 * slide_loss(out.branch_logits[:, 0]) + 0.5 * slide_loss(out.branch_logits[:, 1])
