"""Arithmetic of a network: fp32, bf16 or fp16; which of them a device can do, and how it is switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mil.errors import MilError

from . import openvino_graph

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(wanted: str, device: str, *, usual: str = "fp16") -> str:
    """Return the precision to compute in.

    Args:
        wanted: "auto" takes fp32 on a CPU, where results are the same bytes, and the encoder's usual one on CUDA.
        device: "cpu", "cuda", "openvino" …
        usual: what the encoder's authors or other tools use on a GPU.

    Raises:
        MilError: no such precision, or this processor would only emulate it.
    """
    if wanted not in PRECISIONS:
        raise MilError(f"precision {wanted!r}: one of {', '.join(PRECISIONS)}.")
    if wanted == "auto":
        if not device.startswith("cuda"):
            return "fp32"
        return "bf16" if usual == "fp16" and not _has("fp16", device) else usual
    if not _has(wanted, device):
        raise MilError(f"precision {wanted}: this processor has no such arithmetic. Use --precision fp32.")
    return wanted


def _has(precision: str, device: str) -> bool:
    """Tell whether a device computes in a precision by itself."""
    if precision == "fp32":
        return True
    if device == openvino_graph.DEVICE:
        return openvino_graph.can(precision)
    if device.startswith("cuda"):
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    name = f"_is_mkldnn_{precision}_supported"
    return bool(getattr(torch.ops.mkldnn, name)())


def convert(module: nn.Module, precision: str) -> None:
    """Store the weights of matrix products and convolutions in the precision; all else stays float32.

    That is what autocast computes with anyway, but it would convert them anew in every pass.
    """
    if precision == "fp32":
        return
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(DTYPES[precision])


@contextlib.contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Compute in that precision; on CUDA with full float32 products in fp32, and fixed kernels."""
    with contextlib.ExitStack() as stack:
        kind = device.partition(":")[0]
        if kind == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
        if precision != "fp32":
            stack.enter_context(torch.autocast(kind, dtype=DTYPES[precision]))
        yield


@contextlib.contextmanager
def in_float32(device: str) -> Iterator[None]:
    """Compute in float32 whatever is switched on around it."""
    kind = device.partition(":")[0]
    if not torch.amp.is_autocast_available(kind):  # a device without memory, on which shapes are looked at
        yield
        return
    with torch.autocast(kind, enabled=False):
        yield
