"""Attention pooling in few passes over the tiles, for training: what torch does op by op costs as much as its products.

With h = ReLU(W x + b), v = tanh(V h), u = σ(U h), g = v ⊙ u, s = g w, a = softmax(s), z = Σ a h, the derivatives of g
by the arguments of tanh and σ are u - g v and g - g u. They are made while v and u are at hand, scaled by the gradient
of s later, and go with a itself through one product: [∂s (u - g v), ∂s (g - g u), a] [w V; w U; ∂z] is the whole
gradient of h. Without a gate u = 1. Dropout costs no multiplication: it is drawn in steps of 1/128, the remaining
features are scaled in W, and what was dropped is zero in h, where ReLU's derivative is zero, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .bag import Bag

_WIDTH = 32  # columns of a tile register (AMX, AVX-512): a product is padded to them
_STEPS = 128  # of dropout


def attend(
    bag: Bag, first: torch.nn.Linear, v: torch.nn.Linear, u: torch.nn.Linear | None, w: Tensor, *, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Pool packed bags by (gated) attention; gradients for the layers, none for the features.

    Args:
        bag: B bags of T tiles; its features' dtype is that of the products, sums are float32 or wider.
        first: D → E, followed by ReLU.
        v: E → A, followed by tanh.
        u: E → A, followed by the logistic function; None for attention without a gate.
        w: shape (A,), what the gated features are weighed by.
        dropout: share of h that is switched off, rounded to 1/128.

    Returns:
        z (B, E) and the scores (T, 1).

    Source: Ilse, Tomczak, Welling, ICML 2018, eq. 7 to 9.
    """
    gate = (None, None) if u is None else (u.weight, u.bias)
    inputs = (bag, round(_STEPS * dropout), first.weight, first.bias, v.weight, v.bias, *gate, w)
    z, scores = _Attend.apply(*inputs)
    return z, scores


class _Attend(torch.autograd.Function):
    """Forward and backward as the head of the file has it."""

    @staticmethod
    def forward(
        ctx: Any,
        bag: Bag,
        drop: int,
        first_w: Tensor,
        first_b: Tensor,
        v_w: Tensor,
        v_b: Tensor,
        u_w: Tensor | None,
        u_b: Tensor | None,
        w: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = bag.features
        dtype, left = x.dtype, _STEPS / (_STEPS - drop)
        h = _layer(x, first_w * left, first_b * left, "relu")
        if drop:
            h.masked_fill_(_random_steps(h) < drop, 0)
        v, width = _layer(h, v_w, v_b, "tanh"), v_w.shape[0]
        gated = width if u_w is None else 2 * width
        slopes = torch.empty(len(x), -(-(gated + len(bag)) // _WIDTH) * _WIDTH, dtype=dtype, device=x.device)
        if u_w is None or u_b is None:
            g = v
            torch.addcmul(v.new_ones(()), v, v, value=-1, out=slopes[:, :width])
        else:
            u = _layer(h, u_w, u_b, "sigmoid")
            g = v * u
            torch.addcmul(u, g, v, value=-1, out=slopes[:, :width])
            torch.addcmul(g, g, u, value=-1, out=slopes[:, width:gated])
        scores = (g @ w.to(dtype)).to(w.dtype)  # (T,)
        a = torch.cat([torch.softmax(s, dim=0) for s in bag.per_bag(scores)])
        z = torch.stack([p.to(dtype) @ rows for p, rows in zip(bag.per_bag(a), bag.per_bag(h), strict=True)])
        z = z.to(w.dtype)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, h, g, slopes, a, z, v_w, u_w, w)
            ctx.bag, ctx.left = bag, left
        return z, scores[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, dscores: Tensor) -> tuple[Tensor | None, ...]:
        x, h, g, slopes, a, z, v_w, u_w, w = ctx.saved_tensors
        bag, dtype = ctx.bag, x.dtype
        ds = dscores[:, 0] + torch.cat(
            [
                p * ((rows @ d.to(dtype)).to(p.dtype) - total @ d)
                for p, rows, d, total in zip(bag.per_bag(a), bag.per_bag(h), dz, z, strict=True)
            ]
        )
        # Attention's gradients are tiny beside those of z: they are brought to the same size, so that none is lost.
        size = ds.abs().max().clamp(min=1e-30) if len(ds) else ds.new_ones(())
        ds = (ds / size).to(dtype)
        dw = (ds @ g).to(w.dtype) * size
        layers = [v_w] if u_w is None else [v_w, u_w]
        gated = sum(len(layer) for layer in layers)
        back = torch.zeros(slopes.shape[1], h.shape[1], dtype=w.dtype, device=w.device)
        back[:gated] = torch.cat([layer * (w * size)[:, None] for layer in layers])
        back[gated : gated + len(bag)] = dz
        slopes[:, :gated].mul_(ds[:, None])
        slopes[:, gated:] = 0
        for b, (rows, p) in enumerate(zip(bag.per_bag(slopes), bag.per_bag(a), strict=True)):
            rows[:, gated + b] = p.to(dtype)
        dh = slopes @ back.to(dtype)
        second = (slopes.T @ h)[:gated].to(w.dtype)
        torch.ops.aten.threshold_backward(dh, h, 0, grad_input=dh)
        ones = x.new_ones(len(x))
        first_w, first_b = (dh.T @ x).to(w.dtype) * ctx.left, (ones @ dh).to(w.dtype) * ctx.left
        scale = torch.cat([w * size] * len(layers))
        second, bias = second * scale[:, None], (ones @ slopes)[:gated].to(w.dtype) * scale
        parts = [(second[i : i + len(w)], bias[i : i + len(w)]) for i in range(0, gated, len(w))]
        (v_grad, vb_grad), (u_grad, ub_grad) = parts[0], parts[1] if u_w is not None else (None, None)
        return None, None, first_w, first_b, v_grad, vb_grad, u_grad, ub_grad, dw


def _layer(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """activation(x Wᵀ + b) in the dtype of x; on a CPU with bfloat16 the activation is part of the product."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and len(x):
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
        return fused
    y = torch.addmm(bias, x, weight.T)
    return {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}[activation](y)


def _random_steps(like: Tensor) -> Tensor:
    """Independent numbers from 0 to 127, uint8, shape of `like`: eight from each 63 random bits."""
    drawn = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device).random_().view(torch.uint8)
    return drawn.bitwise_and_(127)[: like.numel()].view(like.shape)
