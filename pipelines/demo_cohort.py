"""Compose the demo's cohort: small real-looking slides whose label hangs on one small region.

Every slide is stroma with pale glands, a few brown flecks smaller than a tile and its own stain; a positive
slide has, besides, one nest of brown glands that covers about 2 to 5 of its 30 to 45 tiles. Stain strength,
a brown haze and the weight of the nest vary from slide to slide, so the mean color does not tell the label.

All pixels come from one real image (see `demo_tissue`), so figures made on this cohort show that the
machinery works, and nothing about how it generalizes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .demo_tissue import MPP, Source, gland_window, load_source, smooth_field, stroma_canvas, weaken

if TYPE_CHECKING:
    from shapely import Polygon

LEVEL0_MPP = 0.25
"""Micrometers per level-0 pixel, that of a 40x scan."""
CLASSES = ("negative", "positive")

_SCALE = int(MPP / LEVEL0_MPP)
_STEP = 8  # working pixels per cell of the coarse fields (outline, haze, pen)
_GLASS = np.array([243, 242, 244], np.float32)
_PENS = ((22, 78, 186), (24, 118, 84), (8, 8, 10))
_VEIL = np.array([0.55, 0.80, 0.25], np.float32)  # pale violet, as a counterstain leaves it
_DAB = np.array([0.27, 0.57, 0.78], np.float32)  # Ruifrok & Johnston 2001

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DemoSlide:
    """One composed slide and the truth about it."""

    slide_id: str
    case_id: str
    label: str
    """`"negative"` or `"positive"`."""
    split: str
    """`"train"`, `"val"` or `"test"`; the same for all slides of a case."""
    path: Path
    region: list[Polygon]
    """The planted region in level-0 pixels; empty on a negative slide."""


@dataclass(frozen=True)
class Cohort:
    """All slides of the demo, ordered by case and slide."""

    slides: tuple[DemoSlide, ...]
    note: str = (
        "All slides are composed from one source image (scikit-image's immunohistochemistry picture), so "
        "these figures show that the machinery works; they say nothing about generalization to patients."
    )


@dataclass(frozen=True)
class _Plan:
    """What is decided about a slide before a pixel of it exists."""

    number: int
    slide_id: str
    case_id: str
    label: str
    split: str


def compose_cohort(
    folder: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    patients: int = 24,
    slides_per_patient: int = 2,
    size: tuple[int, int] = (4032, 3024),
    on_slide: Callable[[DemoSlide], None] | None = None,
) -> Cohort:
    """Write the slides of the cohort into `folder` and tell the truth about them.

    The same arguments give the same bytes, whatever `workers` is.

    Args:
        folder: Where the `.svs` files go; made when missing.
        seed: Decides everything random.
        workers: Threads that compose slides side by side.
        patients: Number of cases; a third of them is held out as `"test"`, a sixth is `"val"`.
        slides_per_patient: Slides of one case; their labels alternate, starting at random.
        size: Width and height of level 0 in pixels, at least 1,600 each.
        on_slide: Called with each slide that is done, in cohort order, from the calling thread.

    Raises:
        ValueError: `size` leaves no room for the region, or there is no patient.
    """
    if min(size) < 1600 or patients < 1 or slides_per_patient < 1:
        raise ValueError(f"a cohort needs patients and slides of 1600 px a side or more, not {size}")
    folder.mkdir(parents=True, exist_ok=True)
    source = load_source()
    side = max(size) // _SCALE * 9 // 8
    canvas = stroma_canvas(source, side, np.random.default_rng((seed, 1)))

    def make(plan: _Plan) -> DemoSlide:
        return _make_slide(plan, folder, size, source, canvas, seed)

    slides = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for slide in pool.map(make, _plans(patients, slides_per_patient, seed)):
            slides.append(slide)
            if on_slide is not None:
                on_slide(slide)
    return Cohort(tuple(slides))


def region_share(xy: NDArray[np.int64], footprint: tuple[int, int], region: list[Polygon]) -> Floats:
    """Return for each tile the share of its area that lies in the region, (N,) float32, 0 to 1.

    Args:
        xy: Top-left corners, (N, 2), level-0 pixels.
        footprint: Width and height of a tile in level-0 pixels.
        region: Polygons in level-0 pixels, without overlap.
    """
    import shapely

    x, y = np.asarray(xy, np.float64).reshape(-1, 2).T
    tiles = shapely.box(x, y, x + footprint[0], y + footprint[1])
    covered = np.zeros(len(tiles))
    for polygon in region:
        covered += shapely.area(shapely.intersection(tiles, polygon))
    share: Floats = (covered / (footprint[0] * footprint[1])).astype(np.float32)
    return share


def _plans(patients: int, per_patient: int, seed: int) -> list[_Plan]:
    """Give each slide its names, label and split; a case never straddles two splits."""
    rng = np.random.default_rng((seed, 2))
    test = max(1, patients // 3) if patients > 1 else 0
    validation = max(1, patients // 6) if patients > 2 else 0
    order = rng.permutation(patients)
    split = dict.fromkeys(order.tolist(), "train")
    split |= dict.fromkeys(order[:test].tolist(), "test")
    split |= dict.fromkeys(order[test : test + validation].tolist(), "val")
    plans: list[_Plan] = []
    for patient in range(patients):
        first = int(rng.integers(2))
        for k in range(per_patient):
            case = f"DEMO-{patient + 1:02d}"
            label = CLASSES[(first + k) % 2]
            plans.append(_Plan(len(plans), f"{case}-{chr(65 + k)}", case, label, split[patient]))
    return plans


def _make_slide(
    plan: _Plan, folder: Path, size: tuple[int, int], source: Source, canvas: Pixels, seed: int
) -> DemoSlide:
    """Compose one slide, write it and return its record."""
    from .demo_svs import write_svs

    rng = np.random.default_rng((seed, 3, plan.number))
    half = (size[0] // _SCALE, size[1] // _SCALE)
    pixels, region = _compose(half, plan.label == "positive", source, canvas, rng)
    path = folder / f"{plan.slide_id}.svs"
    write_svs(path, _enlarge(pixels, size), mpp=LEVEL0_MPP)
    return DemoSlide(plan.slide_id, plan.case_id, plan.label, plan.split, path, region)


def _compose(
    size: tuple[int, int], positive: bool, source: Source, canvas: Pixels, rng: np.random.Generator
) -> tuple[Pixels, list[Polygon]]:
    """Return the picture at `MPP`, (height, width, 3), and the region in level-0 pixels."""
    width, height = size
    field = _outline_field(size, rng)
    tissue = _stroma(canvas, size, rng)
    # Both kinds of slide draw the same numbers from `rng`, so nothing but the nest depends on the label.
    nest = _nest(field, rng)
    nest_rng = np.random.default_rng(int(rng.integers(2**62)))
    weakened = weaken(source, float(rng.uniform(0.7, 1.0)))
    _paste_pale_glands(tissue, field, nest, source, rng)
    _paste_flecks(tissue, field, nest, weakened, source, rng)
    if positive:
        _paste_nest(tissue, nest, weakened, source, nest_rng)
    shape = _with_cracks(field, nest, rng)
    picture = _stained(tissue, rng)
    picture = _on_glass(picture, shape, _haze(field.shape, rng), (width, height), rng)
    if rng.random() < 0.3:
        _draw_pen(picture, field, nest, rng)
    picture += _noise(picture.shape, rng)
    region = _polygons(_scaled(nest.polygon)) if positive else []
    return np.clip(picture, 0, 255).astype(np.uint8), region


# --- the outline of the tissue -------------------------------------------------------------------------


def _outline_field(size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return a coarse field, above 0 on tissue, that falls by 1 from a section's middle to its rim."""
    columns, rows = (-(-side // _STEP) for side in size)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    x, y = (x + 0.5) / columns - 0.5, (y + 0.5) / rows - 0.5
    pieces = 2 if rng.random() < 0.3 else 1
    field = np.full((rows, columns), -9, np.float32)
    tilt = float(rng.uniform(-0.5, 0.5))
    for k in range(pieces):
        center = (k - (pieces - 1) / 2) * 0.46 + rng.uniform(-0.03, 0.03)
        across = (0.23 if pieces == 2 else 0.41) * rng.uniform(0.93, 1.04)
        along = 0.41 * rng.uniform(0.92, 1.04)
        u, v = x - center + tilt * 0.15 * y, y - tilt * 0.2 * (x - center)
        field = np.maximum(field, 1 - np.sqrt((u / across) ** 2 + (v / along) ** 2))
    unit = columns / 280
    field += 0.09 * _noise_field(field.shape, 18 * unit, rng) + 0.03 * _noise_field(field.shape, 5 * unit, rng)
    return field + 0.012 * _noise_field(field.shape, 1.2, rng)


def _noise_field(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Floats:
    """Return smooth noise of unit variance of this shape, both sides at most the longer one."""
    return smooth_field(max(shape), sigma, rng)[: shape[0], : shape[1]]


def _with_cracks(field: Floats, nest: _Nest, rng: np.random.Generator) -> Floats:
    """Tear the tissue along thin curved lines, as cutting does; never through the nest."""
    lines = np.abs(_noise_field(field.shape, 9, rng))
    where = _noise_field(field.shape, 14, rng) > 1.35
    torn = (lines < 0.045) & where & ~nest.coarse
    return np.where(torn, np.minimum(field, -0.02), field)


# --- what lies in the tissue ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nest:
    """The place of the region: overlapping lobes, each filled from one window of the source."""

    lobes: tuple[Any, ...]
    polygon: Any
    coarse: NDArray[np.bool_]
    """Cells of the coarse fields within 40 px of the nest."""


def _nest(field: Floats, rng: np.random.Generator) -> _Nest:
    """Choose a place well inside the tissue for a nest of three lobes around a common middle."""
    import shapely

    deepest = float(_depth(field).max())
    radius = min(float(rng.uniform(105, 145)), deepest / 2)
    y, x = _place(field, radius * 2, rng)
    turn = float(rng.uniform(0, 2 * np.pi))
    lobes = []
    for k in range(3):
        angle = turn + k * 2.1 + float(rng.normal(0, 0.25))
        reach = radius * float(rng.uniform(0.6, 0.95))
        lobes.append(_blob((x + reach * np.cos(angle), y + reach * np.sin(angle)), radius, rng))
    polygon = shapely.union_all(lobes)
    return _Nest(tuple(lobes), polygon, _raster_coarse(polygon.buffer(40), field.shape))


def _place(field: Floats, clearance: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return a random (y, x) at least `clearance` px inside the tissue, or its deepest point."""
    depth = _depth(field)
    rows, columns = np.nonzero(depth >= min(clearance, depth.max()))
    i = int(rng.integers(len(rows)))
    return (rows[i] + 0.5) * _STEP, (columns[i] + 0.5) * _STEP


def _depth(field: Floats) -> Floats:
    """Return how far inside the tissue each coarse cell lies, in pixels."""
    from scipy.ndimage import distance_transform_edt

    depth: Floats = distance_transform_edt(np.pad(field > 0.02, 1))[1:-1, 1:-1].astype(np.float32) * _STEP
    return depth


def _blob(center: tuple[float, float], radius: float, rng: np.random.Generator) -> Polygon:
    """Return a rounded, irregular outline around `center` (x, y)."""
    import shapely

    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    r = np.ones_like(angle)
    for k in range(2, 9):
        r += rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    points = np.stack([center[0] + radius * r * np.cos(angle), center[1] + radius * r * np.sin(angle)], axis=1)
    return shapely.make_valid(shapely.Polygon(points)).buffer(0)


def _raster_coarse(polygon: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which coarse cells have their middle in the polygon (pixels at `MPP`)."""
    import shapely

    y, x = (np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5) * _STEP
    inside: NDArray[np.bool_] = shapely.contains_xy(polygon, x.ravel(), y.ravel()).reshape(shape)
    return inside


def _paste_nest(tissue: Pixels, nest: _Nest, stained: Pixels, source: Source, rng: np.random.Generator) -> None:
    """Lay brown glands into every lobe of the nest, in place."""
    for lobe in nest.lobes:
        _paste_glands(tissue, lobe, stained, source, rng)


def _paste_pale_glands(tissue: Pixels, field: Floats, nest: _Nest, source: Source, rng: np.random.Generator) -> None:
    """Lay glands without brown dye into the tissue of every slide, away from the nest, in place."""
    free = np.where(nest.coarse, np.float32(-1), field)
    for _ in range(int(rng.integers(3, 9))):
        radius = float(rng.uniform(80, 170))
        y, x = _place(free, radius, rng)
        _paste_glands(tissue, _blob((x, y), radius, rng).difference(nest.polygon), source.pale, source, rng)


def _paste_flecks(
    tissue: Pixels, field: Floats, nest: _Nest, stained: Pixels, source: Source, rng: np.random.Generator
) -> None:
    """Strew isolated brown flecks, far smaller than a tile, over every slide, in place."""
    free = np.where(nest.coarse, np.float32(-1), field)
    for _ in range(int(rng.integers(3, 13))):
        radius = float(rng.uniform(8, 26))
        y, x = _place(free, 60, rng)
        _paste_glands(tissue, _blob((x, y), radius, rng), stained, source, rng, feather=2)


def _paste_glands(
    tissue: Pixels, outline: Any, image: Pixels, source: Source, rng: np.random.Generator, feather: float = 7
) -> None:
    """Fade a randomly turned window of `image` into `tissue` inside `outline`, in place."""
    if outline.is_empty:
        return
    left, top, right, bottom = (int(v) for v in outline.buffer(feather).bounds)
    side = min(max(right - left, bottom - top) + 2, image.shape[0])
    y, x = gland_window(source, side, rng)
    window = np.rot90(image[y : y + side, x : x + side], int(rng.integers(4)))
    if rng.integers(2):
        window = window[:, ::-1]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, tissue.shape[0]), min(left + side, tissue.shape[1])
    if y1 <= y0 or x1 <= x0:
        return
    weight = _soft_mask(outline, (left, top), side, feather)
    cut = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    below = tissue[y0:y1, x0:x1].astype(np.float32)
    mixed = below + (window[cut] - below) * weight[cut][..., None]
    tissue[y0:y1, x0:x1] = mixed.astype(np.uint8)


def _soft_mask(outline: Any, origin: tuple[int, int], side: int, feather: float) -> Floats:
    """Return the outline as a mask of `side` px from `origin` (x, y), its edge `feather` px soft."""
    import shapely
    from PIL import Image, ImageDraw, ImageFilter

    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for part in shapely.get_parts(outline):
        if part.geom_type == "Polygon":
            draw.polygon([(px - origin[0], py - origin[1]) for px, py in part.exterior.coords], fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(feather / 2)), np.float32) / np.float32(255)


# --- how it is stained and scanned ---------------------------------------------------------------------


def _stroma(canvas: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Cut a randomly turned piece of the stroma field, (height, width, 3), a copy."""
    turned = canvas if rng.integers(2) else canvas.swapaxes(0, 1)
    y = int(rng.integers(turned.shape[0] - size[1] + 1))
    x = int(rng.integers(turned.shape[1] - size[0] + 1))
    piece = turned[y : y + size[1], x : x + size[0]]
    if rng.integers(2):
        piece = piece[::-1]
    if rng.integers(2):
        piece = piece[:, ::-1]
    return piece.copy()


def _stained(tissue: Pixels, rng: np.random.Generator) -> Floats:
    """Vary strength and hue of the stain: optical density times a gain for each channel."""
    gain = rng.uniform(1.05, 1.5) * rng.normal((1.0, 1.05, 1.0), 0.035)
    density = np.log(np.maximum(np.arange(256), 1) / 252.0)
    picture = np.empty(tissue.shape, np.float32)
    for channel in range(3):
        table = np.minimum(_GLASS[channel] * np.exp(density * gain[channel]), 250).astype(np.float32)
        np.take(table, tissue[..., channel], out=picture[..., channel])
    return picture


def _haze(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the transmission of unspecific dye, (rows, columns, 3): a blue veil, brown on some slides."""
    strength = min(float(rng.exponential(0.07)), 0.2)
    uneven = 1 + 0.35 * _noise_field(shape, 30, rng)
    brown = strength * np.clip(uneven, 0, 2)[..., None] * _DAB
    thickness = 0.06 * _noise_field(shape, 22, rng)[..., None]
    counterstain = rng.uniform(0.1, 0.2) * _VEIL
    transmission: Floats = np.exp(-brown - counterstain - np.clip(thickness, -0.08, 0.2)).astype(np.float32)
    return transmission


def _on_glass(tissue: Floats, shape: Floats, haze: Floats, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Lay the tissue on bright glass: `shape` says where it is, `haze` what tints it."""
    opacity = np.clip(_enlarged(shape, size) * 40 + 0.5, 0, 1)
    lamp = 1 - 0.012 * _noise_field(shape.shape, 60, rng)
    for channel in range(3):
        glass = _GLASS[channel] * _enlarged(lamp, size)
        layer = tissue[..., channel]
        layer *= _enlarged(haze[..., channel], size)
        layer -= glass
        layer *= opacity
        layer += glass
    return tissue


def _enlarged(field: Floats, size: tuple[int, int]) -> Floats:
    """Return a coarse field at working resolution, (height, width), linear in between."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    box = (0, 0, size[0] / _STEP, size[1] / _STEP)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


def _draw_pen(picture: Floats, field: Floats, nest: _Nest, rng: np.random.Generator) -> None:
    """Draw a marker stroke beside the tissue, on the side away from the nest, in place."""
    from PIL import Image, ImageDraw, ImageFilter

    rows, columns = field.shape
    width = int(rng.integers(13, 18))
    stroke = Image.new("L", (columns, rows), 0)
    line = _beside(field, nest, width / 2 + 2, rng)
    ImageDraw.Draw(stroke).line(line, fill=255, width=width, joint="curve")
    ink = np.asarray(stroke.filter(ImageFilter.GaussianBlur(0.8)), np.float32) / np.float32(255)
    ink = ink * np.clip(0.95 + 0.02 * _noise_field(ink.shape, 3, rng), 0, 1)
    ink = ink * np.clip((0.10 - field) / 0.03, 0, 1)  # over the rim of the tissue at most
    color = [level / 255 for level in _PENS[int(rng.integers(len(_PENS)))]]
    size = (picture.shape[1], picture.shape[0])
    for channel in range(3):
        picture[..., channel] *= _enlarged(1 - ink * (1 - color[channel]), size)


def _beside(field: Floats, nest: _Nest, distance: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return points (x, y) of coarse cells along the tissue's rim, `distance` cells outside of it."""
    rows, columns = field.shape
    middle = nest.polygon.centroid
    away = np.arctan2(rows / 2 - middle.y / _STEP, columns / 2 - middle.x / _STEP) + rng.uniform(-0.5, 0.5)
    points = []
    for angle in away + np.linspace(-0.5, 0.5, 16) * rng.uniform(0.5, 1.0):
        steps = np.arange(np.hypot(rows, columns) / 2)
        x = np.clip(columns / 2 + steps * np.cos(angle), 0, columns - 1)
        y = np.clip(rows / 2 + steps * np.sin(angle), 0, rows - 1)
        on_tissue = np.flatnonzero(field[y.astype(int), x.astype(int)] > 0)
        rim = (on_tissue[-1] if len(on_tissue) else 0) + distance + rng.uniform(-1, 1)
        points.append((float(columns / 2 + rim * np.cos(angle)), float(rows / 2 + rim * np.sin(angle))))
    return points


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return the sensor's noise, (height, width, 1), repeated from a small table."""
    table = rng.normal(0, 1.3, size=(509, 521)).astype(np.float32)
    repeats = (-(-shape[0] // table.shape[0]), -(-shape[1] // table.shape[1]))
    return np.tile(table, repeats)[: shape[0], : shape[1], None]


def _enlarge(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the picture at level 0, twice as large, (height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _polygons(shape: Any) -> list[Polygon]:
    """Return the polygons of a shape."""
    import shapely

    return [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]


def _scaled(polygon: Polygon) -> Polygon:
    """Return a polygon of working pixels in whole level-0 pixels."""
    import shapely

    return shapely.set_precision(shapely.transform(polygon, lambda points: points * _SCALE), 1)
