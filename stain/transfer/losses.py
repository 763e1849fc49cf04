"""What the networks are trained to make small, and the pool that discriminators learn from.

Sources: Mao et al., least squares GAN, ICCV 2017, arXiv:1611.04076; Zhu et al., CycleGAN, ICCV 2017, arXiv:1703.10593;
Isola et al., pix2pix, CVPR 2017, arXiv:1611.07004 (paired); Shrivastava et al., CVPR 2017, arXiv:1612.07828 (pool).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def looks_real(judged: Tensor) -> Tensor:
    """Return how far a discriminator is from taking patches for real: mean of (1 - D)²."""
    return (1.0 - judged).square().mean()


def told_apart(real: Tensor, made: Tensor) -> Tensor:
    """Return how badly a discriminator tells real from made: mean of (1 - D(real))² / 2 + D(made)² / 2."""
    return 0.5 * ((1.0 - real).square().mean() + made.square().mean())


class ImagePool:
    """Earlier images: each new one is shown, or, half of the time, swapped for one of these.

    What it does with an image depends on the seed and the step alone, so that a resumed run does the same.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.images: list[Tensor] = []

    def swap(self, made: Tensor, step: int) -> Tensor:
        """Return as many images as came, (B, 3, H, W), some of them from the pool."""
        if not self.size:
            return made.detach()
        dice = np.random.default_rng([self.seed, step])
        shown = []
        for image in made.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
                shown.append(image)
            elif dice.random() < 0.5:
                place = int(dice.integers(self.size))
                shown.append(self.images[place])
                self.images[place] = image.clone()
            else:
                shown.append(image)
        return torch.stack(shown)
