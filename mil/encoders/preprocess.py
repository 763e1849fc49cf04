"""uint8 tiles → the network's input, on the device of the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a tile before the network sees it.

    Attributes:
        size: side of the network's input in pixels.
        interpolation: "bilinear" or "bicubic".
        antialias: low-pass before shrinking, as Pillow does.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """

    size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    antialias: bool = True
    resize: int | None = None

    @property
    def whole(self) -> int:
        """Side of a tile that is not resized."""
        return self.resize or self.size

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read what timm's `resolve_model_data_config` gives. Kernels that torch lacks become bicubic."""
        known = ("bilinear", "bicubic")
        wanted = str(config["interpolation"])
        return cls(
            size=int(config["input_size"][-1]),
            interpolation=wanted if wanted in known else "bicubic",
            mean=_three(config["mean"]),
            std=_three(config["std"]),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """RGB (B, S, S, 3) uint8 → (B, 3, size, size) float32; bicubic overshoot is cut to [0, 1]."""
        if self.whole == self.size == pixels.shape[1] == pixels.shape[2] and pixels.is_contiguous():
            return self._by_lines(pixels)
        x = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        if x.shape[-2:] != (self.whole, self.whole):
            x = functional.interpolate(
                x, (self.whole, self.whole), mode=self.interpolation, align_corners=False, antialias=self.antialias
            ).clamp(0, 1)
        if self.whole != self.size:
            edge = (self.whole - self.size) // 2
            x = x[..., edge : edge + self.size, edge : edge + self.size]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def _by_lines(self, pixels: Tensor) -> Tensor:
        """Do the same to tiles that are not resized, a line of pixels at a time instead of the three values of one."""
        count, side = pixels.shape[:2]
        x = pixels.view(count, side, side * 3).to(torch.float32, copy=True).div_(255)
        mean, std = (x.new_tensor(values).repeat(side) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std).view(count, side, side, 3).permute(0, 3, 1, 2)

    def levels(self) -> Tensor:
        """Return what each byte of R, G, B becomes where nothing is resized: (3, 256) float32."""
        x = torch.arange(256, dtype=torch.float32) / 255
        mean, std = (x.new_tensor(values)[:, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the passport."""
        return {
            "input_size": self.size,
            "resize": self.whole,
            "interpolation": self.interpolation,
            "antialias": self.antialias,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _three(values: Any) -> tuple[float, float, float]:
    """Three floats."""
    red, green, blue = (float(v) for v in values)
    return red, green, blue
