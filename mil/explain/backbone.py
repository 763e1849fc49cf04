"""The network inside an encoder, for methods that reach pixels: feature maps on one side, features on the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.errors import MilError


class NotDifferentiableError(MilError):
    """The encoder is no network: no derivative leads from its features to pixels."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network of an encoder, with the preparation of its input.

    Attributes:
        module: the network, tiles (B, 3, S, S) → features (B, D).
        prepare: RGB (B, S, S, 3) uint8 tensor → the network's input.
        batch_size: tiles in one pass; the last one is filled up, as the encoder does, so that features are the same.
        device: where it computes.
    """

    module: nn.Module
    prepare: Any
    batch_size: int
    device: str

    @classmethod
    def of(cls, encoder: Any) -> Backbone:
        """Take the network out of an encoder.

        Raises:
            NotDifferentiableError: there is none.
        """
        module, prepare = getattr(encoder, "model", None), getattr(encoder, "preprocessing", None)
        if not isinstance(module, nn.Module) or prepare is None:
            name = getattr(encoder, "id", "none was given")
            raise NotDifferentiableError(
                f"the encoder ({name}) is no network that can be differentiated: no method that reaches pixels works "
                "with it. Extract with a network, e.g. --encoder resnet18 --weights FILE, or take a method that stays "
                "with the features: lrp, perturbation, integrated_gradients."
            )
        return cls(module, prepare, int(getattr(encoder, "batch_size", 32)), str(encoder.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Features of prepared tiles."""
        out: Tensor = self.module(x)
        return out

    def prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Prepare tiles (B, S, S, 3) uint8."""
        x: Tensor = self.prepare(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))
        return x

    @property
    def is_vit(self) -> bool:
        """Whether the network works on tokens."""
        return hasattr(self.module, "blocks") and hasattr(self.module, "num_prefix_tokens")

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens."""
        model: Any = self.module
        rows, columns = model.patch_embed.grid_size
        return int(rows), int(columns)

    def split_at_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature maps (B, C, h, w), a leaf of the graph, and the features (B, D) made of them.

        Of a CNN the maps are those before pooling; of a vision transformer the patch tokens where the last block
        begins, for behind it the class token has taken what it takes, and nothing depends on the patches any more.
        """
        return self._split_tokens(x) if self.is_vit else self._split_cnn(x)

    def _split_cnn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.module
        with torch.no_grad():
            found = model.forward_features(x)
        leaf = found.detach().requires_grad_()
        with torch.enable_grad():
            features = model.forward_head(leaf)
        return leaf, features

    def _split_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.module
        kept: list[Tensor] = []

        def cut(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            kept.append(out.detach().requires_grad_())
            return kept[0]

        hook = model.blocks[-1].norm1.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                features = model(x)
        finally:
            hook.remove()
        return kept[0], features

    def as_maps(self, values: Tensor) -> Tensor:
        """Values in the layout of the leaf → (B, C, h, w), without prefix tokens."""
        if self.is_vit:
            model: Any = self.module
            tokens = values[:, int(model.num_prefix_tokens) :]
            return tokens.transpose(1, 2).reshape(len(values), -1, *self.token_grid)
        if getattr(self.module, "output_fmt", "NCHW") == "NHWC":
            return values.permute(0, 3, 1, 2)
        return values
