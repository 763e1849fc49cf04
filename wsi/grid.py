"""Slide size + tissue + TileSpec → where the tiles lie. Pure arithmetic, needs no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi import geometry
from wsi.errors import GridError, ImplausibleMppError, MissingMppError, TooCoarseError
from wsi.mpp import Mpp
from wsi.slide import Slide

if TYPE_CHECKING:
    from wsi.tissue import Tissue

_MPP_MEND = "Give it with --slide-mpp (e.g. --slide-mpp 0.25 for a 40x scan) or in the column mpp of a manifest."


@dataclass(frozen=True)
class TileSpec:
    """What a tile is: a physical size, never a pyramid level or a magnification.

    Attributes:
        size: side in px at `mpp`.
        mpp: µm per px.
        overlap: px at `mpp` that neighbours share.

    Raises:
        ValueError: a size below 1, a µm/px not above 0, or an overlap that leaves no step.
    """

    size: int = 224
    mpp: float = 0.5
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or not (0 < self.mpp < float("inf")) or not 0 <= self.overlap < self.size:
            raise ValueError(
                f"a tile of {self.size} px at {self.mpp} µm/px with {self.overlap} px overlap cannot be cut"
            )


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles of one slide, row by row.

    Attributes:
        xy: (N, 2) int64, top-left corners, level-0 px.
        footprint_xy: width and height of a tile on level 0, px.
        stride_xy: steps between neighbours on level 0, px.
        spec: what was asked.
        mpp: µm per level-0 px of the slide.
        level: the level to read from.
        read_size: width and height of a tile on that level, px.
        slide_size: width and height of level 0, px.
        tissue_share: (N,) float32, the share of each tile that is tissue; 1 where no tissue mask was given.
        reason: why there is no tile, None where there are some.
    """

    xy: NDArray[np.int64]
    footprint_xy: tuple[int, int]
    stride_xy: tuple[int, int]
    spec: TileSpec
    mpp: Mpp
    level: int
    read_size: tuple[int, int]
    slide_size: tuple[int, int]
    tissue_share: NDArray[np.float32]
    reason: str | None = None

    @property
    def footprint(self) -> int:
        """The width of a tile on level 0, px."""
        return self.footprint_xy[0]

    def __len__(self) -> int:
        return len(self.xy)

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """`xy` as Python integers: quick to index, one tile at a time."""
        return [(x, y) for x, y in self.xy.tolist()]


def tile_grid(
    slide: Slide,
    tissue: Tissue | None,
    spec: TileSpec | None = None,
    *,
    min_tissue: float = 0.25,
    allow_upsampling: bool = False,
) -> TileGrid:
    """Lay a grid of tiles over a slide and keep those on tissue.

    Tiles lie wholly inside the canvas and start at its top-left corner. Each is `size * mpp` µm wide to within 1 %,
    in x and in y; without overlap, no pixel belongs to two tiles.

    Args:
        slide: the slide; only its sizes and its µm/px are used.
        tissue: where the tissue is; None keeps every tile.
        spec: what a tile is; 224 px at 0.5 µm/px by default.
        min_tissue: the least share of a tile that is tissue, 0 to 1.
        allow_upsampling: whether a slide coarser than `spec.mpp` may be enlarged.

    Raises:
        MissingMppError: the slide's µm/px is not known.
        ImplausibleMppError: the file states one that cannot be true.
        TooCoarseError: the slide is coarser than asked, and enlarging was not allowed.
        GridError: whole pixels do not meet the asked width within 1 %.
    """
    spec = spec or TileSpec()
    mpp = _mpp_of(slide)
    _check_fine_enough(slide, mpp, spec, allow_upsampling)
    footprint = _footprint(slide, mpp, spec)
    stride = tuple(_stride(side, spec, m) for side, m in zip(footprint, (mpp.x, mpp.y), strict=True))
    level, read_size = _read_level(slide, mpp, spec, footprint)
    xy = _corners(slide.size, footprint, (stride[0], stride[1]))
    share = np.ones(len(xy), np.float32) if tissue is None else tissue_shares(tissue, xy, footprint)
    kept = np.ones(len(xy), bool) if tissue is None else share >= min_tissue
    return TileGrid(
        xy=xy[kept],
        footprint_xy=footprint,
        stride_xy=(stride[0], stride[1]),
        spec=spec,
        mpp=mpp,
        level=level,
        read_size=read_size,
        slide_size=slide.size,
        tissue_share=share[kept],
        reason=_why_empty(slide, tissue, footprint, share, kept, min_tissue),
    )


def tissue_shares(tissue: Tissue, xy: NDArray[np.int64], footprint: tuple[int, int]) -> NDArray[np.float32]:
    """Return the exact share of each tile's area that the mask calls tissue, (N,) float32."""
    return mask_shares(tissue.mask, tissue.scale, xy, footprint)


def mask_shares(
    mask: NDArray[np.bool_], scale: tuple[float, float], xy: NDArray[np.int64], footprint: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the exact share of each tile's area under a mask, (N,) float32.

    Each mask pixel stands for a rectangle of the slide; the summed mask is bilinear inside it, so four looks into it
    give the area under any rectangle.
    """
    summed = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    summed[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
    (sx, sy), (width, height) = scale, footprint
    x0, x1 = xy[:, 0] / sx, (xy[:, 0] + width) / sx
    y0, y1 = xy[:, 1] / sy, (xy[:, 1] + height) / sy
    inside = _at(summed, x1, y1) - _at(summed, x0, y1) - _at(summed, x1, y0) + _at(summed, x0, y0)
    return np.asarray(inside * sx * sy / (width * height), np.float32)


def _at(summed: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = summed.shape
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    i, j = np.minimum(y.astype(int), rows - 2), np.minimum(x.astype(int), columns - 2)
    v, u = y - i, x - j
    top = summed[i, j] * (1 - u) + summed[i, j + 1] * u
    bottom = summed[i + 1, j] * (1 - u) + summed[i + 1, j + 1] * u
    return np.asarray(top * (1 - v) + bottom * v)


def _mpp_of(slide: Slide) -> Mpp:
    if slide.mpp is not None:
        return slide.mpp
    problem = slide.mpp_problem or "the file does not state its pixel size"
    kind = MissingMppError if "does not state" in problem else ImplausibleMppError
    raise kind(slide.name, problem, _MPP_MEND)


def _check_fine_enough(slide: Slide, mpp: Mpp, spec: TileSpec, allow_upsampling: bool) -> None:
    coarse = max(mpp.x, mpp.y)
    if coarse > spec.mpp * (1 + geometry.TOLERANCE) and not allow_upsampling:
        raise TooCoarseError(
            slide.name,
            f"the slide has {coarse:.4g} µm/px, coarser than the asked {spec.mpp:g}",
            f"Ask for --mpp {coarse:.3g} or more, or enlarge it with --allow-upsampling.",
        )


def _footprint(slide: Slide, mpp: Mpp, spec: TileSpec) -> tuple[int, int]:
    sides = []
    for axis, m in (("x", mpp.x), ("y", mpp.y)):
        side = max(1, geometry.footprint(spec.size, spec.mpp, m))
        error = geometry.width_error(side, m, spec.size, spec.mpp)
        if error > geometry.TOLERANCE:
            raise GridError(
                slide.name,
                f"a tile of {spec.size} px at {spec.mpp:g} µm/px is {spec.size * spec.mpp / m:.2f} px of the slide in "
                f"{axis}; {side} whole px are {error:.1%} off",
                "Ask for larger tiles (--tile).",
            )
        sides.append(side)
    return sides[0], sides[1]


def _stride(footprint: int, spec: TileSpec, slide_mpp: float) -> int:
    """Return the step in whole level-0 px, the same everywhere, so that no two tiles share a pixel by rounding."""
    return max(1, footprint - geometry.footprint(spec.overlap, spec.mpp, slide_mpp))


def _read_level(slide: Slide, mpp: Mpp, spec: TileSpec, footprint: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return the coarsest level that serves, and the size of a tile there.

    A level where whole pixels would miss the tile's width by over 1 % does not serve (small tiles only).
    """
    levels = list(enumerate(slide.levels))
    while levels:
        best = geometry.best_level([one.downsample for _, one in levels], (spec.mpp / mpp.x, spec.mpp / mpp.y))
        number, level = levels.pop(best)
        size = (round(footprint[0] / level.downsample[0]), round(footprint[1] / level.downsample[1]))
        off = [
            geometry.width_error(size[i] * level.downsample[i], m, spec.size, spec.mpp)
            for i, m in enumerate((mpp.x, mpp.y))
        ]
        if max(off) <= geometry.TOLERANCE:
            return number, size
    return 0, footprint


def _corners(size: tuple[int, int], footprint: tuple[int, int], stride: tuple[int, int]) -> NDArray[np.int64]:
    """Return the corners of all tiles wholly inside the canvas, row by row, (N, 2)."""
    xs = np.arange(0, size[0] - footprint[0] + 1, stride[0], dtype=np.int64)
    ys = np.arange(0, size[1] - footprint[1] + 1, stride[1], dtype=np.int64)
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)


def _why_empty(
    slide: Slide,
    tissue: Tissue | None,
    footprint: tuple[int, int],
    share: NDArray[np.float32],
    kept: NDArray[np.bool_],
    min_tissue: float,
) -> str | None:
    if kept.any():
        return None
    if not len(share):
        sizes = f"({slide.size[0]} x {slide.size[1]} px) is smaller than one tile ({footprint[0]} x {footprint[1]} px)"
        return f"no tiles: the slide {sizes}"
    if tissue is not None and tissue.reason:
        return tissue.reason
    return f"no tiles: no tile is tissue to at least {min_tissue:.0%} (the most is {share.max():.0%})"
