"""Thumbnail → where the tissue is: H&E and IHC, without glass and pen.

All thresholds are absolute, in optical density against the slide's own glass: a crop that is all tissue has no glass
to be told from, and a slide that is all glass has no tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi import channels
from wsi.errors import NotBrightfieldError
from wsi.slide import Slide
from wsi.strips import by_strips, reach_of
from wsi.thumbnail import scanned_thumbnail


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is told from the rest.

    Attributes:
        mpp: µm per px the mask should have; the mask is made finer where the picture would get under `min_side`.
        max_side: px, the longer side of the mask at most.
        min_side: px, the longer side of the mask at least, where the slide has as many.
        density: optical density (natural log, mean of the channels) above the glass from which on a pixel is stained.
        chroma: difference between the channels' optical densities from which on a pixel has a stain's colour.
        smooth_um: µm, gaps between cells up to this width belong to the tissue.
        min_area_um2: µm², smaller pieces of tissue are dropped.
        min_area_share: share of the picture, pieces below it are dropped where µm/px are not known.
        min_hole_um2: µm², smaller holes in the tissue are filled.
    """

    mpp: float = 8.0
    max_side: int = 2048
    min_side: int = 512
    density: float = 0.10
    chroma: float = 0.07
    smooth_um: float = 24.0
    min_area_um2: float = 20_000.0
    min_area_share: float = 2e-4
    min_hole_um2: float = 10_000.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where a slide's tissue is.

    Attributes:
        slide: the slide's name.
        mask: (h, w) bool, True on tissue.
        pen: (h, w) bool, True on ink; never True where `mask` is.
        scale: level-0 px per mask px, (x, y).
        thumbnail: (h, w, 3) uint8, the picture the mask was made from.
        reason: why there is no tissue, None where there is some.
        drawn: whether the mask was drawn by hand, and not found; ink may then lie in it.
        unread: share of the slide that cannot be read; it counts as tissue, so that its tiles are tried and recorded.
    """

    slide: str
    mask: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    scale: tuple[float, float]
    thumbnail: NDArray[np.uint8]
    reason: str | None = None
    drawn: bool = False
    unread: float = 0.0

    @cached_property
    def share(self) -> float:
        """The share of the slide that is tissue."""
        return float(self.mask.mean())

    def pieces_at(self, xy: NDArray[np.int64], footprint: tuple[int, int]) -> NDArray[np.int32]:
        """Return which piece of tissue each tile lies on, (N,) int32: the place of its outline in `polygons`.

        Where a tile touches several, it is the one it has most of; -1 where it has none.

        Args:
            xy: (N, 2), top-left corners, level-0 px.
            footprint: width and height of a tile, level-0 px.
        """
        from wsi.outlines import largest_piece, pieces_of

        return largest_piece(pieces_of(self.mask), self.scale, xy, footprint)

    def polygons(self) -> list[Any]:
        """Return the outlines as shapely Polygons with holes, level-0 px, largest first."""
        return list(self._polygons)

    @cached_property
    def _polygons(self) -> list[Any]:
        from wsi.outlines import polygons_of

        return polygons_of(self.mask, self.scale)

    def to_geojson(self) -> dict[str, Any]:
        """Return the outlines as TRIDENT writes them: whole level-0 px, one Polygon per region, `tissue_id`."""
        from wsi.outlines import feature_collection

        return feature_collection(self.polygons(), drawn=self.drawn)


def find_tissue(slide: Slide, *, settings: TissueSettings | None = None) -> Tissue:
    """Find a slide's tissue on a low level.

    Args:
        slide: the slide.
        settings: how tissue is told from the rest.

    Returns:
        The mask with the picture it was made from. A slide without tissue is a result with a `reason`, no error.

    Raises:
        NotBrightfieldError: bright signal on a dark ground, a label mask, or colours that are not RGB.
        TileReadError: most of the slide cannot be read.
    """
    settings = settings or TissueSettings()
    picture, scale, (left, top, right, bottom), unread = scanned_thumbnail(slide, settings)
    scanned = picture[top:bottom, left:right]
    found = tissue_of(scanned, scale, slide.name, mask_mpp(slide, scale), settings)
    if scanned.shape == picture.shape and not unread.any():
        return found
    mask, pen = (np.zeros(picture.shape[:2], bool) for _ in range(2))
    mask[top:bottom, left:right], pen[top:bottom, left:right] = found.mask, found.pen
    mask, pen = mask | unread, pen & ~unread  # nobody knows what lies there
    reason = None if mask.any() else found.reason
    return Tissue(slide.name, mask, pen, scale, picture, reason, unread=float(unread.mean()))


def mask_mpp(slide: Slide, scale: tuple[float, float]) -> float | None:
    """Return µm per px of a mask of `scale`, the mean of both axes; None where the slide does not say."""
    return math.sqrt(slide.mpp.x * slide.mpp.y * scale[0] * scale[1]) if slide.mpp else None


def tissue_of(
    picture: NDArray[np.uint8],
    scale: tuple[float, float] = (1.0, 1.0),
    name: str = "picture",
    mpp: float | None = None,
    settings: TissueSettings | None = None,
) -> Tissue:
    """Find the tissue on a picture of a whole slide.

    Args:
        picture: RGB (h, w, 3), uint8.
        scale: level-0 px per pixel of the picture, (x, y).
        name: the slide's name, for errors.
        mpp: µm per px of the picture, None where unknown.
        settings: how tissue is told from the rest.

    Raises:
        NotBrightfieldError: as `find_tissue`.
    """
    settings = settings or TissueSettings()
    check_brightfield(picture, name)
    per_px = mpp or settings.mpp
    signs = _signs_of(picture, per_px, settings)
    pen = ink_of(signs.ink, _stroke(per_px))
    stained = _spread(signs.strong, signs.strong | signs.pale, 16) & ~pen
    stained |= _grey_within(signs.dense, stained, pen)
    clear = _clear_glass(signs.bare, per_px, settings)
    del signs
    mask = _tidy(stained, pen, clear, per_px, settings, None if mpp is None else 0.0)
    return Tissue(name, mask, pen & ~mask, scale, picture, None if mask.any() else _why_none(picture, pen, stained))


class _Signs(NamedTuple):
    """What single pixels and their nearest neighbours say, each (h, w) bool.

    Attributes:
        strong: a stain's colour.
        pale: beside it: what is paler, or grey and rough.
        dense: darker than glass, whatever the colour.
        bare: nothing but glass, hardly blurred.
        ink: see `InkSigns`.
    """

    strong: NDArray[np.bool_]
    pale: NDArray[np.bool_]
    dense: NDArray[np.bool_]
    bare: NDArray[np.bool_]
    ink: InkSigns


def _signs_of(picture: NDArray[np.uint8], mpp: float, settings: TissueSettings) -> _Signs:
    """Work out the signs strip by strip: in between, a pixel takes twenty times its bytes."""
    glass, blur = glass_of(picture), max(1.0, settings.mpp / mpp)
    half = settings.mpp / mpp / 2

    def work(part: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], ...]:
        density = optical_density(part, glass)
        total = channels.total(density)
        bare = (ndimage.gaussian_filter(total, half) if half > 0.5 else total) < _BARE * settings.density
        rough = _roughness(total, blur)
        soft = mixture(density, mpp)
        strong, pale, dense = _stain_signs(soft, rough, settings)
        return strong, pale, dense, bare, *ink_signs(soft)

    strong, pale, dense, bare, *ink = by_strips(work, picture, reach=reach_of(2 * blur))
    return _Signs(strong, pale, dense, bare, InkSigns(*ink))


def mixture(density: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
    """Return the density (h, w, 3) blurred over 8 µm: tissue is told by its mixture, not by its cells."""
    out = np.empty_like(density)
    for c in range(3):
        ndimage.gaussian_filter(density[..., c], mixture_blur(mpp), output=out[..., c])
    return out


def mixture_blur(mpp: float) -> float:
    """Return the sigma of that blur, px."""
    return max(1.0, TissueSettings.mpp / mpp)


def ink_on(picture: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Return where there is pen on a picture (h, w, 3) of `mpp` µm/px, (h, w) bool."""
    glass = glass_of(picture)
    signs = by_strips(
        lambda part: ink_signs(mixture(optical_density(part, glass), mpp)), picture, reach=reach_of(mixture_blur(mpp))
    )
    return ink_of(InkSigns(*signs), _stroke(mpp))


def _stroke(mpp: float) -> int:
    return max(2, round(2 * TissueSettings.mpp / mpp))


_PLAIN_GLASS = np.array([243.0, 243.0, 243.0])
_DARKEST = 3.0
"""Grey level below which optical density is not told apart: decoders and scanners do not agree there."""


def glass_of(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colour of the slide's glass, (3,), 0 to 255; a usual one where the picture shows none."""
    low, high = channels.lowest(picture), channels.highest(picture)
    glassy = (low > 190) & (high - low < 25)
    if glassy.mean() < 0.02:
        return _PLAIN_GLASS
    return np.array([_median(picture[..., c][glassy]) for c in range(3)])


def _median(levels: NDArray[np.uint8]) -> float:
    """Return the median of bytes, by counting them: there are only 256, and sorting millions takes long."""
    counts = np.bincount(levels, minlength=256).cumsum()
    return float(np.searchsorted(counts, [(len(levels) - 1) // 2, len(levels) // 2], side="right").mean())


def optical_density(picture: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return -ln(pixel / glass), (h, w, 3) float32, never below 0."""
    levels = np.arange(256)[:, None]
    table = -np.log(np.clip(levels, _DARKEST, None) / glass)
    table = np.clip(table, 0, None).astype(np.float32)
    out = np.empty(picture.shape, np.float32)
    for c in range(3):
        out[..., c] = table[:, c][picture[..., c]]
    return out


class InkSigns(NamedTuple):
    """Where pixels look like pen, each (h, w) bool: strong cores of a colour, and the paler pixels they spread to."""

    cool: NDArray[np.bool_]
    pale_cool: NDArray[np.bool_]
    red: NDArray[np.bool_]
    pale_red: NDArray[np.bool_]
    black: NDArray[np.bool_]
    pale_black: NDArray[np.bool_]
    dense: NDArray[np.bool_]


def ink_signs(density: NDArray[np.float32]) -> InkSigns:
    """Return which pixels look like pen: green, blue, red or black.

    Stains of tissue take more green than red light (eosin, most haematoxylin) or more blue (DAB). Green ink takes
    least green, blue ink hardly any blue, red ink takes green and blue alike and hardly any red; black is darker than
    thin tissue can be. A blue counterstain comes near blue ink, but never in a wide stroke at this resolution.

    Args:
        density: optical density (h, w, 3), blurred so that single cells do not stand out.
    """
    r, g, b = (density[..., c] for c in range(3))
    total = r + g + b
    cool = r - g
    green = (cool > np.maximum(0.12, 0.15 * total)) & (b > 0.85 * g)
    blue = (cool > np.maximum(0.12, 0.20 * total)) & ((b < 0.42 * g) | (total > 1.8))
    blue |= (cool > 0.06 * total) & (b < 0.14 * total) & (total > 1.8)  # laid over pink tissue
    pale_cool = (cool > np.maximum(0.03, 0.10 * total)) & ((b > 0.85 * g) | (b < 0.42 * g) | (total > 1.8))
    pale_cool |= (cool > 0) & (b < 0.17 * total) & (total > 1.2)
    red = (total > 2.2) & (r < 0.12 * total) & (b > 0.72 * g)
    pale_red = (total > 0.5) & (r < 0.11 * total) & (b > 0.68 * g)
    over_tissue = (total > 3.0) & (r < 0.15 * total) & (b > 0.55 * g)
    red, pale_red = red | over_tissue, pale_red | (total > 2.0) & (r < 0.16 * total) & (b > 0.55 * g)
    black = (total > 6.0) & (b - r < 0.15 * total) | (total > 8.0)
    pale_black = (total > 3.6) & (b - r < 0.12 * total)
    return InkSigns(green | blue, pale_cool, red, pale_red, black, pale_black, total > 0.12)


def ink_of(signs: InkSigns, radius: int) -> NDArray[np.bool_]:
    """Return where there is pen, (h, w) bool: strong cores in wide strokes, and the paler pixels beside them.

    Args:
        signs: from `ink_signs`.
        radius: px; strokes are wider than twice this.
    """
    found = np.zeros(signs.dense.shape, bool)
    for core, pale, width in (
        (signs.cool, signs.pale_cool, radius),
        (signs.red, signs.pale_red, radius),
        (signs.black, signs.pale_black, radius - 1),
    ):
        found |= _spread(_open(core, width), core | pale, 24 * radius)
    return np.asarray(ndimage.binary_dilation(found, iterations=radius) & signs.dense | found)


def _spread(core: NDArray[np.bool_], pale: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return `core` and what of `pale` hangs together with it within `reach` px."""
    if not core.any():
        return core
    return np.asarray(ndimage.binary_dilation(core, iterations=reach, mask=pale | core))


def _open(mask: NDArray[np.bool_], iterations: int) -> NDArray[np.bool_]:
    """Drop what is thinner than the opening, keep the rest in its full outline."""
    seeds = ndimage.binary_erosion(mask, iterations=iterations, border_value=1)
    return np.asarray(ndimage.binary_propagation(seeds, mask=mask))


def _stain_signs(
    density: NDArray[np.float32], rough: NDArray[np.bool_], settings: TissueSettings
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what has a stain's colour, what may lie beside it (paler, or grey and rough), and what is dense at all.

    Grey alone is dirt, a shadow or an edge of glass; but where brown and blue cells mix, their mean is grey too.

    Args:
        density: optical density (h, w, 3), blurred.
        rough: (h, w), True where the density differs from pixel to pixel.
        settings: the thresholds.
    """
    total = channels.total(density)
    chroma = channels.highest(density) - channels.lowest(density)
    coloured = chroma > 0.06 * total
    dense = total > 3 * settings.density
    strong = coloured & (chroma > settings.chroma) & dense
    pale = coloured & (chroma > settings.chroma / 2) & (total > 1.5 * settings.density)
    return strong, pale | (rough & dense), dense


def _grey_within(dense: NDArray[np.bool_], stained: NDArray[np.bool_], pen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what is dense and grey and lies in the stained tissue: mixed stains, for dirt and shadows lie on glass.

    It lies in the tissue where more of its rim touches what is stained than what is glass or ink.
    """
    labels, count = ndimage.label(dense & ~stained & ~pen)
    beside = ndimage.grey_dilation(labels, size=(3, 3)) * (labels == 0)
    tissue = np.bincount(beside[stained], minlength=count + 1)
    rest = np.bincount(beside[~stained], minlength=count + 1)
    within = tissue > rest
    within[0] = False
    return np.asarray(within[labels])


def _roughness(total: NDArray[np.float32], blur: float) -> NDArray[np.bool_]:
    """Return where the density (h, w) of neighbouring pixels differs as it does between cells, (h, w)."""
    mean = ndimage.gaussian_filter(total, 2 * blur)
    variance = ndimage.gaussian_filter(total * total, 2 * blur) - mean**2
    return np.asarray(variance > (0.25 * mean) ** 2)


_BARE = 0.8
"""Density over that of pale tissue, below which there is nothing but glass."""
_NARROW_UM = 32.0
"""Glass up to twice as wide lies between cells, or in them (fat), and belongs to the tissue."""


def _clear_glass(bare: NDArray[np.bool_], mpp: float, settings: TissueSettings) -> NDArray[np.bool_]:
    """Return where the glass is bare on more than a gap between cells: cavities, lumina, and around the tissue.

    Colours are told from a blurred picture, which lets tissue grow into the glass beside it; here hardly any blur.

    Args:
        bare: where there is nothing but glass, (h, w).
        mpp: µm per px.
        settings: the thresholds.
    """
    radius = max(1.0, _NARROW_UM / mpp)
    pad = math.ceil(radius) + 1
    # Strips with fewer rows around them than the radius would take their own ends for the picture's.
    (core,) = by_strips(lambda part: (_deeper(part, radius),), np.pad(bare, pad, mode="edge"), reach=pad)
    if not core.any():
        return np.zeros_like(bare)
    (wide,) = by_strips(lambda part: (_within(part, radius),), core, reach=pad)
    return _drop_small(wide[pad:-pad, pad:-pad], settings.min_hole_um2 / mpp**2)


def _deeper(bare: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Return what lies farther than `radius` px from what is False."""
    return bare if bare.all() else np.asarray(ndimage.distance_transform_edt(bare) > radius)


def _within(core: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Return what lies no farther than `radius` px from what is True."""
    if not core.any():
        return np.zeros_like(core)
    return np.asarray(ndimage.distance_transform_edt(~core) <= radius)


def _tidy(
    stained: NDArray[np.bool_],
    pen: NDArray[np.bool_],
    clear: NDArray[np.bool_],
    mpp: float,
    settings: TissueSettings,
    least_share: float | None = None,
) -> NDArray[np.bool_]:
    """Close the gaps between cells, fill small holes, drop specks and what is left of pen strokes.

    Where µm/px are known, what is a speck is known without the picture: a core of a tissue microarray is a small
    share of it, and a piece must not vanish because another lies far away.
    """
    gap = max(1, round(settings.smooth_um / 2 / mpp))
    padded = np.pad(stained, gap, mode="edge")
    closed = ndimage.binary_closing(padded, iterations=gap)[gap:-gap, gap:-gap] | stained
    share = settings.min_area_share if least_share is None else least_share
    least = max(4.0, settings.min_area_um2 / mpp**2, share * stained.size)
    least = min(least, 0.05 * stained.size)  # a small crop is not all specks
    mask = _drop_small(closed & ~pen & ~clear, least)
    return _drop_rims(mask | _small_holes(mask, pen, settings.min_hole_um2 / mpp**2), pen, gap)


def _small_holes(mask: NDArray[np.bool_], pen: NDArray[np.bool_], most: float) -> NDArray[np.bool_]:
    """Return the gaps of up to `most` px that lie in tissue; glass inside a ring of pen is no hole of the tissue."""
    labels, count = ndimage.label(~mask & ~pen)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    beside = ndimage.grey_dilation(labels, size=(3, 3)) * (labels == 0)
    tissue = np.bincount(beside[mask], minlength=count + 1)
    ink = np.bincount(beside[pen], minlength=count + 1)
    small = (areas <= most) & (tissue > ink)
    small[0] = False
    return np.asarray(small[labels])


def _drop_small(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return np.asarray((areas >= least)[labels])


def _drop_rims(mask: NDArray[np.bool_], pen: NDArray[np.bool_], gap: int) -> NDArray[np.bool_]:
    """Drop pieces that are hardly more than the blurred edge of a pen stroke."""
    if not pen.any():
        return mask
    beside = ndimage.binary_dilation(pen, iterations=2 * gap + 2)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    total = np.bincount(labels.ravel(), minlength=count + 1)
    touching = np.bincount(labels.ravel(), weights=(beside & mask).ravel(), minlength=count + 1)
    keep = touching < 0.6 * total
    keep[0] = False
    return np.asarray(keep[labels])


_MEND = "Leave it out: only stained slides scanned under white light can be used."


def check_brightfield(picture: NDArray[np.uint8], name: str) -> None:
    """Refuse a picture that is not stained tissue under white light.

    Raises:
        NotBrightfieldError: as `find_tissue`.
    """
    if _looks_ycbcr(picture):
        raise NotBrightfieldError(
            name,
            "its colours are YCbCr under a tag that says RGB (the glass is light red)",
            "Write the slide anew with the right photometric tag.",
        )
    low, high = channels.lowest(picture), channels.highest(picture)
    spread = int(np.percentile(high, 99.9)) - int(np.percentile(high, 0.1))
    if spread > 24 and (np.median(high) < 40 or (high < 40).mean() > 0.5) and (low > 190).mean() < 0.02:
        raise NotBrightfieldError(name, "bright signal on a dark ground: a fluorescence picture or a mask", _MEND)
    if spread > 24 and (high == low).mean() > 0.999:
        raise NotBrightfieldError(name, "a grey picture without any stain's colour: a mask or fluorescence", _MEND)


def _looks_ycbcr(picture: NDArray[np.uint8]) -> bool:
    """Glass, bright and without colour, is (Y, 128, 128) in YCbCr."""
    r, g, b = (picture[..., c] for c in range(3))
    return bool(((r > 180) & (g >= 120) & (g <= 136) & (b >= 120) & (b <= 136)).mean() > 0.1)


_A_SPECK = 1e-3
"""Share of stained pixels from which on a slide is not called all glass."""


def _why_none(picture: NDArray[np.uint8], pen: NDArray[np.bool_], stained: NDArray[np.bool_]) -> str:
    high = float(np.percentile(channels.highest(picture), 99))
    if high < 40:
        return "no tissue: the picture is black"
    if stained.mean() > _A_SPECK:
        return "no tissue: what is stained lies in pieces too small to be tissue (is the µm/px right?)"
    ground = "all glass" if float(np.median(channels.lowest(picture))) > 190 else "nothing has a stain's colour"
    return f"no tissue: {ground}" + (", and pen" if pen.mean() > 0.001 else "")
