"""Explanations: one method per file, all (head, bag, target) → one number per tile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.bag import Bag
from mil.errors import MilError, did_you_mean
from mil.heads import Head

from .attention import attention, raw_attention
from .backbone import NotDifferentiableError
from .gradcam import gradcam
from .gradient_input import gradient_input
from .integrated_gradients import integrated_gradients
from .lrp import lrp
from .perturbation import perturbation
from .result import Explanation, Reach, Run
from .rollout import head_rollout
from .smoothgrad import smoothgrad

__all__ = [
    "METHODS",
    "Explanation",
    "Method",
    "NotDifferentiableError",
    "Reach",
    "explain",
    "explanation",
    "methods_of",
]


@dataclass(frozen=True)
class Method:
    """One way to say how much each tile mattered.

    Attributes:
        run: the method.
        unit: of its numbers.
        signed: negative values speak against the class; else there is only more and less.
        pixels: it needs the tiles, and an encoder that can be differentiated.
    """

    run: Run
    unit: str
    signed: bool = False
    pixels: bool = False


METHODS: dict[str, Method] = {
    "attention": Method(attention, "attention weight, sums to 1"),
    "attention_raw": Method(raw_attention, "attention before the softmax"),
    "rollout": Method(head_rollout, "share of the class token"),
    "lrp": Method(lrp, "contribution to the logit", signed=True),
    "gradient_input": Method(gradient_input, "d logit × (tile − average tile)", signed=True),
    "smoothgrad": Method(smoothgrad, "smoothed d logit × (tile − average tile)", signed=True),
    "integrated_gradients": Method(integrated_gradients, "share of the logit's difference to white", signed=True),
    "perturbation": Method(perturbation, "logit of the tile alone", signed=True),
    "gradcam": Method(gradcam, "mean Grad-CAM of the tile", signed=True, pixels=True),
}


def methods_of(head: Head) -> tuple[str, ...]:
    """Name the methods that a head declares, in the order of `METHODS`."""
    lacks = {
        "attention": not head.contract.attention,
        "attention_raw": not head.contract.attention,
        "rollout": not head.contract.rollout,
        "lrp": not head.sums_up,
    }
    return tuple(name for name in METHODS if not lacks.get(name, False))


def explanation(
    method: str,
    head: Head,
    bag: Bag,
    target: int,
    *,
    encoder: Any = None,
    tiles: Iterable[NDArray[np.uint8]] | None = None,
    **options: Any,
) -> Explanation:
    """Say how much each tile mattered, and what the method found out about itself.

    Args:
        method: a key of `METHODS`.
        head: the trained head.
        bag: one or several bags.
        target: class number that is explained.
        encoder: that made the features: for methods that reach pixels, and for the features of white.
        tiles: re-iterable in bag order, RGB (S, S, 3) or batches (b, S, S, 3) uint8, for methods that reach pixels.
        options: of the method, see its file.

    Raises:
        MilError: no such method or class, or the head does not declare the method.
        NotDifferentiableError: the method reaches pixels and the encoder is no network.
    """
    if method not in METHODS:
        raise MilError(
            f"no explanation is called {method!r}.{did_you_mean(method, METHODS)} There are: {', '.join(METHODS)}."
        )
    if not 0 <= target < head.classes:
        raise MilError(f"class {target} does not exist; the head has classes 0 to {head.classes - 1}.")
    _check_head(method, head)
    return METHODS[method].run(head.eval(), bag, target, Reach(encoder, tiles, options))


def explain(
    method: str,
    head: Head,
    bag: Bag,
    target: int,
    *,
    encoder: Any = None,
    tiles: Iterable[NDArray[np.uint8]] | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """Return the values of `explanation` alone, shape (T,), float32; their meaning and unit are the method's."""
    return explanation(method, head, bag, target, encoder=encoder, tiles=tiles, **options).values


def _check_head(method: str, head: Head) -> None:
    """Raise unless the head declares the method."""
    declared = methods_of(head)
    if method in declared:
        return
    if method.startswith("attention"):
        raise MilError(
            f"the head {head.name} weighs all tiles alike: it has no attention to show. Train one that has, "
            "e.g. with --head gated-abmil."
        )
    raise MilError(f"the head {head.name} does not support {method}. It supports: {', '.join(declared)}.")
