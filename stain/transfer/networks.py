"""The two networks: a generator that repaints what it sees, and a discriminator that judges patches.

Sources: Zhu et al., CycleGAN, ICCV 2017, arXiv:1703.10593 (residual generator, PatchGAN); Karras et al., ICLR 2018,
arXiv:1710.10196 (normalization of each pixel over its channels); He et al., arXiv:1603.05027 (residual blocks).

Where we differ: the generator has no instance normalization. Its statistics are those of a tile, so the same nucleus
would get another color in another tile, and every border of tiles would show. Each pixel is normalized over its own
channels instead. So an output pixel depends on nothing but the pixels within `Generator.margin`, and an image cut into
pieces gives what the whole would.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

STRIDE: Final = 4
"""Pieces of an image must begin at multiples of this, for the generator works at a quarter of the resolution."""

_SLOPE: Final = 0.2


class PixelNorm(nn.Module):
    """Each pixel's channels are scaled to mean square 1, then by a learned factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        scaled: Tensor = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
        return scaled * self.gain[:, None, None]


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a way straight through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            PixelNorm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            PixelNorm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        changed: Tensor = self.body(x)
        return x + changed


class Twice(nn.Module):
    """Each pixel four times: (B, C, H, W) → (B, C, 2 H, 2 W). Its gradient is a plain sum, the same on every run."""

    def forward(self, x: Tensor) -> Tensor:
        """Repeat rows and columns."""
        batch, channels, height, width = x.shape
        wide = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        return wide.reshape(batch, channels, 2 * height, 2 * width)


class Generator(nn.Module):
    """Tiles in one stain → the same tiles in the other; begins as the identity.

    Args:
        width: channels at full resolution.
        blocks: residual blocks at a quarter of the resolution.
    """

    def __init__(self, width: int = 32, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = blocks
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, padding=3), PixelNorm(width), nn.ReLU()]
        for inner in (width, 2 * width):
            layers += [nn.Conv2d(inner, 2 * inner, 3, stride=2, padding=1), PixelNorm(2 * inner), nn.ReLU()]
        layers += [Residual(4 * width) for _ in range(blocks)]
        for inner in (4 * width, 2 * width):
            layers += [Twice(), nn.Conv2d(inner, inner // 2, 3, padding=1), PixelNorm(inner // 2), nn.ReLU()]
        last = nn.Conv2d(width, 3, 7, padding=3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.body = nn.Sequential(*layers, last)

    @property
    def margin(self) -> int:
        """How far from an output pixel an input pixel may lie and still matter, at most; a multiple of `STRIDE`.

        Added up layer by layer, in input pixels: 3 (7 x 7), 1 + 2 (down), 2 x 4 a block, 4 + 2 (up), 3 (7 x 7), and 3
        for the place within a coarse pixel.
        """
        reach = 3 + 1 + 2 + 8 * self.blocks + 4 + 2 + 3 + 3
        return -(-reach // STRIDE) * STRIDE

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in -1 to 1, sides multiples of 4 → the same; may overshoot, bytes are clipped."""
        change: Tensor = self.body(x)
        return x + change


class Discriminator(nn.Module):
    """Says of each patch of 70 px whether it looks real: (B, C, H, W) → (B, 1, H', W').

    The paper's instance normalization is left out here, too: it takes from each image the mean of every channel, and so
    hides what is to be judged, the color of the whole.

    Args:
        channels: 3; 6 where it also sees what the image was made from (paired).
        width: channels of its first layer.
    """

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for inner, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [
                nn.Conv2d(inner, 2 * inner, 4, stride=stride, padding=1),
                PixelNorm(2 * inner),
                nn.LeakyReLU(_SLOPE),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Judge patches."""
        judged: Tensor = self.body(x)
        return judged


def to_floats(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in -1 to 1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def to_pixels(values: Tensor) -> Tensor:
    """(B, 3, H, W) in -1 to 1 → (B, H, W, 3) uint8, rounded and clipped."""
    return ((values + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
