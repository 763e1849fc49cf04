"""Convolution over the occupied cells of the tile grid: what a dense one gives there with zeros elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mil.cells import Cells


class DepthwiseConvolution(nn.Module):
    """Every channel is convolved by itself with an odd, square kernel; empty cells are zero.

    One look-up per place of the kernel, so the cost is cells x channels x size² wherever the cells lie. The weights
    start as those of torch's convolutions do.
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        assert size % 2
        self.weight = nn.Parameter(torch.empty(size, size, dim).uniform_(-1 / size, 1 / size))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-1 / size, 1 / size))

    def forward(self, values: Tensor, cells: Cells) -> Tensor:
        """Values of the cells (M, E) → (M, E)."""
        return convolve(values, cells, self.weight, self.bias)

    def padded_weight(self, size: int) -> Tensor:
        """The weights in a larger kernel, (size, size, E), zero around: the same layer."""
        edge = (size - self.weight.shape[0]) // 2
        return pad(self.weight, (0, 0, edge, edge, edge, edge))


def convolve(values: Tensor, cells: Cells, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution of the cells (M, E) with a kernel (size, size, E) and a bias (E,): (M, E)."""
    reach = weight.shape[0] // 2
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])  # row M: an empty cell
    out = bias.expand_as(values)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            out = out + padded[cells.neighbor(i, j)] * weight[i + reach, j + reach]
    return out
