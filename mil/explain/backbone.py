"""The network inside an encoder, for methods that reach pixels: feature maps on one side, features on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.errors import MilError

MOST_TILES = 32


class NotDifferentiableError(MilError):
    """The encoder is no network: no derivative leads from its features to pixels."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network of an encoder, with the preparation of its input.

    Attributes:
        module: the network, tiles (B, 3, S, S) → features (B, D).
        layer: the last of its layers whose output still has places, and reaches the features.
        prefix_tokens: tokens before those of the patches, where the layer gives tokens.
        prepare: RGB (B, S, S, 3) uint8 → the network's input.
        batch_size: tiles in one pass; the last one is filled up, as the encoder does.
    """

    module: nn.Module
    layer: nn.Module
    prefix_tokens: int
    prepare: Callable[[NDArray[np.uint8]], Tensor]
    batch_size: int = MOST_TILES

    @classmethod
    def of(cls, encoder: Any) -> Backbone:
        """Take the network out of an encoder.

        Raises:
            NotDifferentiableError: there is none.
        """
        module = getattr(encoder, "module", None)
        if not isinstance(module, nn.Module):
            name = getattr(encoder, "id", "none was given")
            raise NotDifferentiableError(
                f"the encoder ({name}) is no network that can be differentiated: no method that reaches pixels works "
                "with it. Extract with a network, e.g. --encoder slidemil-compact, or take a method that stays "
                "with the features: lrp, perturbation, integrated_gradients."
            )
        tiles = min(int(getattr(encoder, "batch_size", 0)) or MOST_TILES, MOST_TILES)
        return cls(module, encoder.feature_layer, int(encoder.prefix_tokens), encoder.prepare, tiles)

    @property
    def is_vit(self) -> bool:
        """Whether the network works on tokens, and its blocks have attention."""
        return all(hasattr(block, "attn") for block in getattr(self.module, "blocks", [None]))

    def split_at_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer gives, a leaf of the graph, and the features (B, D) made of it.

        What comes before the layer is computed without a graph. The hook is gone when this returns, or fails.
        """
        kept: list[Tensor] = []

        def cut(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            kept.append(out.detach().requires_grad_())
            return kept[0]

        hook = self.layer.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                features = self.module(x)
        finally:
            hook.remove()
        return kept[0], features

    def as_maps(self, values: Tensor) -> Tensor:
        """Values in the layout of the leaf → (B, C, h, w), without prefix tokens."""
        if values.ndim == 3:
            tokens = values[:, self.prefix_tokens :]
            return tokens.transpose(1, 2).reshape(len(values), -1, *self.token_grid(tokens.shape[1]))
        if str(getattr(self.module, "output_fmt", "NCHW")) == "NHWC":
            return values.permute(0, 3, 1, 2)
        return values

    def token_grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of so many patch tokens.

        Raises:
            MilError: they are no rectangle that is known.
        """
        grid = getattr(getattr(self.module, "patch_embed", None), "grid_size", None)
        rows, columns = (int(n) for n in grid) if grid else (round(tokens**0.5),) * 2
        if rows * columns != tokens:
            raise MilError(f"{tokens} patch tokens are no map of {rows} x {columns}.")
        return rows, columns
