"""Where tiles lie to one another: the cells of the tile grid, recovered from coordinates, and who is next to whom.

Only occupied cells are kept: two islands of tissue far apart cost no more than two that touch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bag import Bag
from .errors import BagError

_MARGIN = 64  # empty cells around every bag; a reach beyond it is refused


@dataclass(frozen=True, eq=False)
class Cells:
    """The occupied cells of packed bags.

    Attributes:
        keys: shape (M,), int64, rising: bag, row and column in one number.
        width: keys between a cell and the one below it.
        of_tile: shape (T,), the cell of each tile.
    """

    keys: Tensor
    width: int
    of_tile: Tensor

    @classmethod
    def of(cls, bag: Bag) -> Cells:
        """Find the cells of bags with coordinates."""
        grid = grid_positions(bag).add(0.5).floor().to(torch.int64) + _MARGIN  # (T, 2) column, row
        height, width = (int(grid[:, axis].max()) + 1 + _MARGIN if len(grid) else 1 for axis in (1, 0))
        keys = (bag.segments.to(grid.device) * height + grid[:, 1]) * width + grid[:, 0]
        occupied, of_tile = torch.unique(keys, return_inverse=True)
        return cls(occupied, width, of_tile)

    def __len__(self) -> int:
        return self.keys.numel()

    def gather(self, values: Tensor) -> Tensor:
        """Mean of the tiles in each cell: (T, E) → (M, E)."""
        count = torch.bincount(self.of_tile, minlength=len(self)).to(values.dtype)
        return values.new_zeros(len(self), values.shape[1]).index_add(0, self.of_tile, values) / count[:, None]

    def neighbor(self, down: int, right: int) -> Tensor:
        """Number of the cell so many rows down and columns right, shape (M,); M where that cell is empty."""
        if max(abs(down), abs(right)) > _MARGIN:
            raise BagError(f"a neighbor {down} cells down and {right} right is out of reach ({_MARGIN}).")
        wanted = self.keys + down * self.width + right
        place = torch.searchsorted(self.keys, wanted).clamp(max=max(len(self) - 1, 0))
        return torch.where(self.keys[place] == wanted, place, len(self)) if len(self) else place


def grid_positions(bag: Bag) -> Tensor:
    """Column and row of each tile from the left and top tile of its bag, in steps of the grid: (T, 2), float64."""
    assert bag.xy is not None
    return torch.cat([_steps(xy) for xy in bag.per_bag(bag.xy)])


def _steps(xy: Tensor) -> Tensor:
    """Positions of one bag, (N, 2) float64. An axis on which no two tiles share a line has the step of the other."""
    if not xy.shape[0]:
        return xy.to(torch.float64)
    across, down = _step(xy[:, 0], xy[:, 1]), _step(xy[:, 1], xy[:, 0])
    step = torch.tensor([across or down or 1.0, down or across or 1.0], dtype=torch.float64, device=xy.device)
    return (xy - xy.amin(dim=0)).to(torch.float64) / step


def _step(along: Tensor, line: Tensor) -> float:
    """Smallest gap along one axis between tiles next to one another on a line, 0 where no line has two tiles.

    A step need not be a whole number of pixels, so gaps that agree to 2 % and a pixel are averaged; and one that fewer
    than a tenth of the gaps share is no step of a grid but an accident.
    """
    order = torch.argsort(along, stable=True)
    order = order[torch.argsort(line[order], stable=True)]
    gaps = along[order].diff()[line[order].diff() == 0]
    gaps = gaps[gaps > 0].to(torch.float64).sort().values
    ends = torch.searchsorted(gaps, 1.02 * gaps + 1, right=True)
    usual = (10 * (ends - torch.arange(len(gaps), device=gaps.device)) >= len(gaps)).nonzero()
    return float(gaps[usual[0, 0] : ends[usual[0, 0]]].mean()) if len(usual) else 0.0


def spatial_order(bag: Bag) -> Tensor:
    """Order of one bag's tiles along a Z-shaped curve, shape (N,): tiles close in it are close on the slide."""
    grid = grid_positions(bag).add(0.5).floor().to(torch.int64)
    key = torch.zeros(len(grid), dtype=torch.int64, device=grid.device)
    for bit in range(31):
        key |= ((grid[:, 0] >> bit & 1) << 2 * bit) | ((grid[:, 1] >> bit & 1) << 2 * bit + 1)
    return torch.argsort(key, stable=True)


def nearest(bag: Bag, k: int) -> Tensor:
    """The k nearest other tiles of the same bag: shape (T, k), numbers of packed rows, -1 where there are fewer.

    Among tiles equally far the upper, then the left one comes first, so that the order of the tiles does not matter.
    """
    assert bag.xy is not None
    found, start = [], 0
    for xy in bag.per_bag(bag.xy):
        found.append(_nearest(xy, k, start))
        start += xy.shape[0]
    return torch.cat(found).to(bag.features.device)


def _nearest(xy: Tensor, k: int, start: int) -> Tensor:
    """`nearest` for one bag whose first tile is row `start`."""
    from scipy.spatial import cKDTree

    n = xy.shape[0]
    if n < 2:
        return torch.full((n, k), -1)
    places = xy.cpu().numpy()
    # On a grid up to 16 tiles are equally far (for k up to 300): the whole ring of the k-th one has to be among these.
    candidates = torch.from_numpy(cKDTree(places).query(places, k=min(n, k + 17))[1]).to(torch.int64)
    away = torch.from_numpy(places)[candidates] - torch.from_numpy(places)[:, None]
    far = away.square().sum(dim=2)
    far[candidates == torch.arange(n)[:, None]] = torch.iinfo(torch.int64).max  # a tile is not its own neighbor
    order = torch.argsort((away[..., 1] << 31) + away[..., 0], dim=1)  # the upper, then the left one
    order = order.gather(1, torch.argsort(far.gather(1, order), dim=1, stable=True))
    chosen = candidates.gather(1, order)[:, : min(k, n - 1)] + start
    return torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)
