"""What every head gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MILOutput:
    """What a head gives for B bags of T tiles together; always these fields, whatever the head.

    Attributes:
        logits: shape (B, C).
        embedding: shape (B, E), what the classifier sees.
        scores: shape (T, K), raw: for attention heads the value before the softmax.
        weights: shape (T, K), float32 or wider; each column sums to 1 in every bag that has tiles.
        instance_logits: shape (T, C), or None where the head has no such thing.
        branch_logits: shape (B, K, C), what branches, pseudo-bags or streams say by themselves: for the head's own
            loss (`mil.losses`); None where there are none.
        parts: shape (B, 2, C), what the slide and its clinical variables say by themselves (late fusion, `mil.fusion`);
            `logits` is then what they say together.
    """

    logits: Tensor
    embedding: Tensor
    scores: Tensor
    weights: Tensor
    instance_logits: Tensor | None = None
    branch_logits: Tensor | None = None
    parts: Tensor | None = None


def single_precision(out: MILOutput) -> MILOutput:
    """The output with logits in float32: losses are not for half precision."""
    branches = None if out.branch_logits is None else _wide(out.branch_logits)
    instances = None if out.instance_logits is None else _wide(out.instance_logits)
    parts = None if out.parts is None else _wide(out.parts)
    wide = replace(out, logits=_wide(out.logits), scores=_wide(out.scores), parts=parts)
    return replace(wide, branch_logits=branches, instance_logits=instances)


def _wide(values: Tensor) -> Tensor:
    """Half precision as float32."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def columns(out: MILOutput, start: int, end: int) -> MILOutput:
    """The output for the logits of one task."""
    branches = None if out.branch_logits is None else out.branch_logits[..., start:end]
    instances = None if out.instance_logits is None else out.instance_logits[:, start:end]
    parts = None if out.parts is None else out.parts[..., start:end]
    mine = replace(out, logits=out.logits[:, start:end], parts=parts)
    return replace(mine, branch_logits=branches, instance_logits=instances)
