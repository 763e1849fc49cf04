"""A network with its pooling: one vector per tile, and the map or tokens it is made of. Differentiable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mil.errors import MilError

from .precision import arithmetic, convert

POOLINGS = ("timm", "token", "token+mean", "avg")


class Network(nn.Module):
    """timm's backbone, and how one vector is made of what it sees.

    Attributes:
        backbone: the headless network.
        pooling: "timm" (as the network itself does), "token" (class token), "token+mean" (class token, then the mean
            of the patch tokens), or "avg" (mean of map or patch tokens).
        prefix_tokens: class token and registers in front of the patch tokens; 0 for a CNN.
        precision: "fp32", "bf16" or "fp16": each pass switches it on by itself.

    What else is asked of it, the backbone answers: `blocks`, `patch_embed`, `layer4` …
    """

    def __init__(self, backbone: nn.Module, pooling: str = "timm") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise MilError(f"pooling {pooling!r}: one of {', '.join(POOLINGS)}.")
        self.backbone, self.pooling = backbone, pooling
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        self.precision = "fp32"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "backbone":  # not there yet, or no more
                raise
            return getattr(self.backbone, name)

    def set_precision(self, precision: str) -> None:
        """Compute in that precision from now on."""
        convert(self, precision)
        self.precision = precision

    def forward(self, x: Tensor) -> Tensor:
        """Prepared tiles (B, 3, S, S) → features (B, D)."""
        with arithmetic(self.precision, x.device.type):
            if self.pooling == "timm":
                pooled: Tensor = self.backbone(x)
                return pooled
            return self.pool(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Prepared tiles → what is pooled: tokens (B, T, C) with the prefix in front, or a map (B, C, h, w)."""
        with arithmetic(self.precision, x.device.type):
            found: Tensor = self.backbone.forward_features(x)  # type: ignore[operator]
            return found

    def forward_head(self, features: Tensor) -> Tensor:
        """What is pooled → features (B, D)."""
        if self.pooling != "timm":
            return self.pool(features)
        with arithmetic(self.precision, features.device.type):
            pooled: Tensor = self.backbone.forward_head(features)  # type: ignore[operator]
            return pooled

    def pool(self, features: Tensor) -> Tensor:
        """Tokens (B, T, C) or a map → one vector per tile, by the rule of the pooling."""
        if features.ndim != 3:
            return _channels_last(features, self.backbone).mean((1, 2))
        patches = features[:, self.prefix_tokens :]
        if self.pooling == "avg":
            return patches.mean(1)
        token = features[:, 0]
        return torch.cat([token, patches.mean(1)], dim=-1) if self.pooling == "token+mean" else token

    def dense(self, x: Tensor) -> Tensor:
        """Prepared tiles → one vector per place of the map: (B, h, w, C); class token and registers are left out."""
        return self.map_of(self.forward_features(x))

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared tiles → features (B, D), as `forward` gives them, and the map (B, h, w, C), in one pass."""
        with arithmetic(self.precision, x.device.type):
            found = self.forward_features(x)
            return self.forward_head(found), self.map_of(found)

    def map_of(self, found: Tensor) -> Tensor:
        """What is pooled → one vector per place: (B, h, w, C)."""
        if found.ndim != 3:
            return _channels_last(found, self.backbone)
        patches = found[:, self.prefix_tokens :]
        count = int(patches.shape[1])  # while a graph is traced, shapes are tensors
        side = math.isqrt(count)
        if side * side != count:
            raise MilError(f"{count} patch tokens are no square map.")
        return patches.reshape(len(patches), side, side, -1)

    @property
    def feature_layer(self) -> nn.Module:
        """The last layer whose output still has places and reaches the features: where Grad-CAM hooks in.

        Of a transformer the first norm of its last block, (B, T, C): past that, only the class token gets a gradient.
        Of a CNN its last stage, (B, C, h, w).
        """
        blocks = getattr(self.backbone, "blocks", None)
        if self.prefix_tokens and blocks is not None:
            layer: nn.Module = blocks[-1].norm1
            return layer
        stages: Any = getattr(self.backbone, "feature_info", None) or []
        for stage in reversed(stages):
            found = self.backbone.get_submodule(stage["module"])
            if not isinstance(found, nn.Identity):
                return found
        raise MilError(f"{type(self.backbone).__name__} names no feature layer.")


def _channels_last(found: Tensor, backbone: nn.Module) -> Tensor:
    """Return a map as (B, h, w, C)."""
    return found if str(getattr(backbone, "output_fmt", "NCHW")) == "NHWC" else found.permute(0, 2, 3, 1)
