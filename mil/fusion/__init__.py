"""How clinical variables join a slide: one kind per file. A head carries one as `head.fusion`, or none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head
from mil.heads.fusing import Fusion

from .cross_attention import CrossAttention
from .early import Early
from .late import Late
from .middle import Middle

__all__ = ["FUSIONS", "Fusion", "Late", "attach"]

FUSIONS: dict[str, type[Fusion]] = {kind.kind: kind for kind in (Early, Middle, Late, CrossAttention)}


def attach(head: Head, kind: str, sizes: Sequence[int], *, hide: float = 0.0) -> Head:
    """Give a head its clinical variables, with fresh weights; returns the head.

    Args:
        head: of the registry.
        kind: a key of `FUSIONS`.
        sizes: how many numbers stand for each variable, from `Variables.sizes`.
        hide: share of the variables, and of the slides' whole rows, that training does not show.

    Raises:
        MilError: no such kind, or no variable.
    """
    if kind not in FUSIONS:
        raise MilError(f"no fusion is called {kind!r}. There are: {', '.join(FUSIONS)}.")
    if not sizes:
        raise MilError("a fusion needs at least one clinical variable.")
    head.fusion = FUSIONS[kind](
        tuple(int(n) for n in sizes), head.first_linear.out_features, _width(head), head.classes, hide=hide
    ).to(head.first_linear.weight.device)
    return head


@torch.no_grad()
def _width(head: Head) -> int:
    """Width of the head's embedding: what it gives for the smallest bag says it."""
    training, n = head.training, max(head.contract.min_instances, 1)
    like = head.first_linear.weight
    xy = torch.arange(n, device=like.device)[:, None].expand(n, 2).contiguous()
    out = head.eval()(Bag(like.new_zeros(n, head.in_dim), torch.tensor([0, n]), xy))
    head.train(training)
    return int(out.embedding.shape[1])
