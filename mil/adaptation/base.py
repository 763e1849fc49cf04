"""What keeps a confounder (site, scanner, stain batch) out of the embeddings of the slides, in training."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class Adaptation(nn.Module, abc.ABC):
    """Embeddings of all training slides → a penalty for what they say of the confounders.

    A batch is too small for a covariance: the trainer hands in what the head last said of all training slides, those of
    the batch with their live values, as with the risk sets of `mil.tasks.Cox`. What the class alone gives away is no
    fault: embeddings are taken from the mean of their class.

    Args:
        codes: number of the level of each confounder, (n, K), -1 where it is not known.
        strata: class of each slide, (n,); one number for all where there are no classes.
        width: of the embeddings.
    """

    kind: ClassVar[str]

    def __init__(self, codes: Tensor, strata: Tensor, width: int) -> None:
        super().__init__()
        self.codes, self.strata = codes, strata
        self.progress = 0.0  # of the training, 0 to 1
        self.build(width)

    @property
    def levels(self) -> list[int]:
        """Number of levels of each confounder."""
        return [int(column.max()) + 1 for column in self.codes.T]

    def build(self, width: int) -> None:
        """Make what is learned, where there is any."""
        del width

    @abc.abstractmethod
    def penalty(self, z: Tensor) -> Tensor:
        """What training adds to the loss, from embeddings (n, E); a scalar."""

    def amount(self, z: Tensor) -> float:
        """What is left in finished embeddings, 0 or more: it has a say in which epoch is kept."""
        with torch.no_grad():
            return float(self.penalty(z))

    def residual(self, z: Tensor) -> Tensor:
        """Embeddings of unit spread, from the mean of their class: to shrink them all gains nothing."""
        z = (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-6).sqrt()
        return z - class_means(z, self.strata)


def class_means(z: Tensor, strata: Tensor) -> Tensor:
    """Of each row the mean of its class, (n, E)."""
    count = int(strata.max()) + 1
    sums = z.new_zeros(count, z.shape[1]).index_add(0, strata, z)
    sizes = torch.bincount(strata, minlength=count).clamp(min=1).to(z.dtype)
    return (sums / sizes[:, None])[strata]


def coded(rows: Sequence[Sequence[str]]) -> tuple[Tensor, list[list[str]]]:
    """Cells of the confounders, one row per slide → codes (n, K), -1 for an empty cell, and the levels' names."""
    levels = [sorted({cell for cell in column if cell}) for column in zip(*rows, strict=True)]
    numbers = [[names.index(c) if c else -1 for c, names in zip(row, levels, strict=True)] for row in rows]
    return torch.tensor(numbers, dtype=torch.int64), levels
