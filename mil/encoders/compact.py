"""A small network of our own: fixed filters of classical histology first, a few learned stages behind them.

What a tile is told by is one map (B, D, h, w), of which features are the mean: so Grad-CAM and dense features show
just what the features are made of.

* fixed, from the pixels: amounts of haematoxylin, eosin and a third stain (Ruifrok and Johnston, Anal Quant Cytol
  Histol 2001); strength of gradient, dark and bright blobs, and elongation by derivatives of a Gaussian at three
  scales (Lindeberg, IJCV 1998, doi:10.1023/A:1008045108935), blind to orientation;
* learned: four stages of 3 x 3 convolutions that see these maps, at 1/2, 1/4, 1/8 and 1/16 of the tile's side.

All of it can be differentiated down to the pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from skimage.color import hed_from_rgb
from torch import Tensor, nn
from torch.nn import functional

from .precision import in_float32

ARCHITECTURE: Final = "slidemil_compact"
WIDTHS: Final = (32, 64, 128, 224)
"""Channels of the learned stages."""

SCALES: Final = 3
STAINS: Final = 3
INVARIANTS: Final = 4 * STAINS
STRIDE: Final = 16
_LEAST_LIGHT: Final = 1 / 255
_ROUND_OFF: Final = 1e-6


class Compact(nn.Module):
    """Prepared tiles (B, 3, S, S), which are 2 · RGB - 1 → features (B, D).

    Attributes:
        num_features: D.
        feature_info: the layer whose output is averaged, as timm names it.
        pretrained_cfg: what it is, as timm keeps it.
    """

    output_fmt = "NCHW"

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        first, *others = widths
        self.filters = Filters()
        self.stages = nn.ModuleList([Stage(STAINS + INVARIANTS, first)])
        for n, (before, after) in enumerate(pairwise((first, *others))):
            self.stages.append(Down(before, after, more=STAINS + INVARIANTS if n < SCALES - 1 else 0))
        self.num_features = sum(widths)
        self.norm = nn.BatchNorm2d(self.num_features, affine=False)
        self.feature_info = [{"num_chs": self.num_features, "reduction": STRIDE, "module": "norm"}]
        self.pretrained_cfg: dict[str, Any] = {"architecture": ARCHITECTURE, "license": "apache-2.0"}

    def maps(self, x: Tensor) -> Tensor:
        """Prepared tiles → what the stages give, (B, D, S / 16, S / 16), as it comes."""
        amounts, invariants = self.filters(x)
        seen: list[Tensor] = []
        for n, stage in enumerate(self.stages):
            beside = torch.cat([amounts[n], invariants[n]], 1) if n < SCALES else None
            seen.append(stage(beside) if n == 0 else stage(seen[-1], beside))
        return torch.cat([_shrunk(one, x) for one in seen], 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Prepared tiles → the map (B, D, h, w), each channel of about mean 0 and spread 1 over tissue."""
        found: Tensor = self.norm(self.maps(x))
        return found

    def forward_head(self, features: Tensor) -> Tensor:
        """The map → its mean (B, D)."""
        return features.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Prepared tiles → features (B, D)."""
        return self.forward_head(self.forward_features(x))


class Filters(nn.Module):
    """The fixed part: amounts of stain, and what derivatives of a Gaussian say of them at three scales."""

    unmix: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unmix", torch.tensor(hed_from_rgb.T[..., None, None].copy()).float(), persistent=False)
        self.register_buffer("bank", torch.tensor(gaussian_derivatives()), persistent=False)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Prepared tiles → amounts and invariants at 1/2, 1/4 and 1/8 of the side."""
        with in_float32(x.device.type):  # differences of amounts are lost in half precision
            density = -torch.log(((x.float() + 1) / 2).clamp(min=_LEAST_LIGHT))
            plane = functional.conv2d(density, self.unmix)
            amounts, invariants = [], []
            for _ in range(SCALES):
                invariants.append(self.invariants(plane))
                plane = functional.avg_pool2d(plane, 2)
                amounts.append(plane)
            return amounts, invariants

    def invariants(self, plane: Tensor) -> Tensor:
        """Amounts (B, 3, h, w) → gradient, dark blobs, bright blobs, elongation of each: (B, 12, h / 2, w / 2)."""
        count, _, height, width = plane.shape
        single = plane.reshape(-1, 1, height, width)
        across, along, xx, yy, xy = functional.conv2d(single, self.bank, stride=2, padding=3).unbind(1)
        gradient = (across.square() + along.square() + _ROUND_OFF).sqrt()
        laplacian = xx + yy
        elongation = ((xx - yy).square() + 4 * xy.square() + _ROUND_OFF).sqrt()
        found = torch.stack([gradient, functional.relu(-laplacian), functional.relu(laplacian), elongation], 1)
        return found.reshape(count, -1, *found.shape[2:])


class Stage(nn.Module):
    """A convolution 3 x 3 at one scale."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Map → map, not negative."""
        return functional.relu(self.norm(self.conv(x)))


class Down(nn.Module):
    """To half the side: a convolution of stride 2, then one that also sees the fixed maps of the new scale."""

    def __init__(self, before: int, after: int, *, more: int) -> None:
        super().__init__()
        self.down = Stage(before, after, stride=2)
        self.mix = Stage(after + more, after)

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """Map (B, C, h, w), and fixed maps at half the side → map at half the side."""
        x = self.down(x)
        mixed: Tensor = self.mix(x if beside is None else torch.cat([x, beside], 1))
        return x + mixed


def gaussian_derivatives(sigma: float = 1.0, radius: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return first and second derivatives of a Gaussian in x, y, xx, yy, xy: (5, 1, 7, 7) float32.

    Constants give 0 in all, and the slopes of a ramp and of a parabola are met exactly.
    """
    t = np.arange(-radius, radius + 1.0)
    smooth = np.exp(-0.5 * (t / sigma) ** 2)
    smooth /= smooth.sum()
    first = t * smooth
    first /= (first * t).sum()
    second = (t**2 - (t**2 * smooth).sum()) * smooth
    second /= 0.5 * (second * t**2).sum()
    pairs = ((smooth, first), (first, smooth), (smooth, second), (second, smooth), (first, first))
    return np.stack([np.outer(rows, columns) for rows, columns in pairs])[:, None].astype(np.float32)


def _shrunk(found: Tensor, tiles: Tensor) -> Tensor:
    """Return means of a map over squares of 16 px of the tile."""
    return functional.avg_pool2d(found, STRIDE * found.shape[-1] // tiles.shape[-1])
