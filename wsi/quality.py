"""Slide + tissue → what of the tissue is no good to look at: blurred, under ink, folded, under a bubble or an edge.

The layer flags; it takes nothing away unless asked (`Quality.without`). Classical methods throughout, each named where
it stands; nothing is learned, so nothing has to be downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi import artifacts
from wsi.focus import Focus, measure_focus
from wsi.grid import mask_shares
from wsi.slide import Slide
from wsi.tissue import Tissue, TissueSettings, glass_of, ink_on, mask_mpp, mixture, optical_density

ARTIFACTS = ("blur", "pen", "folds", "bubbles", "edges")
"""What is told apart; where two meet, the later one's label is kept in `Quality.labels`."""

CLEAN = 1
"""The label of tissue with nothing wrong; 0 is what is no tissue, artifacts follow from 2 in the order above."""


@dataclass(frozen=True)
class QualitySettings:
    """How the layer is made.

    Attributes:
        patches: at most so many patches of 128 µm are read to tell how sharp the tissue is.
        bridge_um: µm; ink between tissue that is nearer together than this lies on tissue.
    """

    patches: int = 192
    bridge_um: float = 1500.0


@dataclass(frozen=True, eq=False)
class Quality:
    """What is wrong with a slide's tissue, and where.

    Attributes:
        slide: the slide's name.
        masks: artifact → (h, w) bool at the resolution of the tissue's mask; only where there is tissue, or ink on it.
            Without `blur` where the slide is too coarse to tell.
        area: (h, w) bool, the tissue and the ink that lies on it: of this the shares are.
        scale: level-0 px per px of the masks, (x, y).
        mpp: µm per px of the masks, None where the slide does not say.
        focus: the patches that were looked at, None where the slide is too coarse to tell.
    """

    slide: str
    masks: dict[str, NDArray[np.bool_]]
    area: NDArray[np.bool_]
    scale: tuple[float, float]
    mpp: float | None
    focus: Focus | None

    @cached_property
    def shares(self) -> dict[str, float]:
        """Artifact → share of the tissue's area, 0 to 1; `blur` is left out where it could not be measured."""
        total = max(int(self.area.sum()), 1)
        return {name: float(mask.sum() / total) for name, mask in self.masks.items()}

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(h, w) uint8: 0 no tissue, `CLEAN`, then 2 + place in `ARTIFACTS`."""
        out = np.where(self.area, CLEAN, 0).astype(np.uint8)
        for place, name in enumerate(ARTIFACTS):
            if name in self.masks:
                out[self.masks[name]] = 2 + place
        return out

    def tile_shares(self, xy: NDArray[np.int64], footprint: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        """Return artifact → share of each tile's area that is flagged, (N,) float32.

        Args:
            xy: (N, 2), top-left corners, level-0 px.
            footprint: width and height of a tile, level-0 px.
        """
        return {name: mask_shares(mask, self.scale, xy, footprint) for name, mask in self.masks.items()}

    def without(self, tissue: Tissue, names: Iterable[str]) -> Tissue:
        """Return the tissue without what is wrong in the ways named.

        Args:
            tissue: the one this was made of.
            names: of `ARTIFACTS`.
        """
        bad = np.zeros(tissue.mask.shape, bool)
        for name in names:
            bad |= self.masks.get(name, False)
        mask = tissue.mask & ~bad
        gone = tissue.mask.any() and not mask.any()
        return replace(
            tissue, mask=mask, reason="no tissue: all of it is flagged and excluded" if gone else tissue.reason
        )


def check_quality(slide: Slide, tissue: Tissue, *, settings: QualitySettings | None = None) -> Quality:
    """Tell what is wrong with a slide's tissue.

    Folds, bubbles and edges are sought on the tissue's own thumbnail (about 8 µm/px); ink is what kept it out of the
    tissue; how sharp it is takes at most `settings.patches` small reads, each standing for the tissue nearest to it.

    Args:
        slide: the slide; read at about 1 µm/px.
        tissue: from `find_tissue`.
        settings: how much is read.
    """
    settings = settings or QualitySettings()
    mpp = mask_mpp(slide, tissue.scale)
    per_px = mpp or TissueSettings().mpp
    area, pen = _with_ink(tissue, settings.bridge_um / per_px)
    if tissue.drawn:
        pen |= ink_on(tissue.thumbnail, per_px) & tissue.mask
    density = optical_density(tissue.thumbnail, glass_of(tissue.thumbnail))
    bubbles, edges = artifacts.bubbles_and_edges(density, per_px)
    avoid = tissue.pen | pen | edges | bubbles
    soft = mixture(density, per_px)
    del density
    focus = measure_focus(slide, tissue, settings.patches, avoid) if tissue.mask.any() else None
    masks = {
        "pen": pen,
        "folds": artifacts.folds(soft, tissue.mask & ~edges & ~bubbles, per_px),
        "bubbles": bubbles & area,
        "edges": edges & area,
    }
    if focus is not None and len(focus.xy):
        masks = {"blur": _blurred(focus, tissue), **masks}
    return Quality(slide.name, masks, area, tissue.scale, mpp, focus)


def _with_ink(tissue: Tissue, bridge: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the tissue with the ink that lies on it, and that ink: what tissue is on both sides of."""
    if not tissue.pen.any() or not tissue.mask.any():
        return tissue.mask, np.zeros_like(tissue.mask)
    half = bridge / 2
    pad = math.ceil(half) + 1
    wide = ndimage.distance_transform_edt(~np.pad(tissue.mask, pad)) <= half
    closed = ndimage.distance_transform_edt(wide)[pad:-pad, pad:-pad] > half
    pen = tissue.pen & closed
    return tissue.mask | pen, pen


def _blurred(focus: Focus, tissue: Tissue) -> NDArray[np.bool_]:
    """Return the tissue whose nearest patch is blurred; patches that tell nothing have no say."""
    told = ~np.isnan(focus.defocus)
    seeds = np.zeros(tissue.mask.shape, np.int8)
    columns, rows = (focus.xy[told] / np.array(tissue.scale)).astype(int).T
    seeds[rows, columns] = np.where(focus.defocus[told] > 0, 2, 1)
    if not (seeds == 2).any():
        return np.zeros_like(tissue.mask)
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    return np.asarray(tissue.mask & (seeds[tuple(nearest)] == 2))
