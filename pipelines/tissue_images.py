"""Folders of images and slides → images of tissue in memory, for training and judging changes of stain."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

import wsi

from .errors import NothingMatchedError, UsageError
from .manifest import SlideEntry, Sources, find_slides, one_line
from .progress import Progress, Quiet
from .stain_target import IMAGES, read_image

Pixels = NDArray[np.uint8]

_NAMED = 5
_GLASS = 200
_LEAST_TISSUE = 0.2

_TILE_SIDE = 4096
"""Pixels up to which a TIFF without µm/px is a tile."""


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        images: plain images, in the order of their names.
        slides: slides.
        names: of the images, under their folder: files of one name in two folders are two.
    """

    images: tuple[Path, ...]
    slides: tuple[SlideEntry, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TissueImage:
    """An image, or a tile of a slide.

    Attributes:
        name: of the slide, or the path of the image under its folder.
        pixels: (H, W, 3) uint8.
        place: (x, y) of a tile, level-0 pixels.
        size: bytes of the file; with the name it tells whether two runs saw the same file.
    """

    name: str
    pixels: Pixels
    place: tuple[int, int] | None
    size: int


@dataclass(frozen=True)
class Sampling:
    """How tiles are taken from slides.

    Attributes:
        tile: side in pixels at `mpp`.
        mpp: µm per pixel.
        slide_mpp: of slides that do not state it.
        each: at most so many tiles of a slide, evenly spread.
    """

    tile: int = 512
    mpp: float = 0.5
    slide_mpp: float | None = None
    each: int = 32


def find_images(
    sources: Sequence[Path] | Sources, *, among: str = "the sources", slide_mpp: float | None = None
) -> Found:
    """Find images and slides in folders, among files, or in a manifest.

    A small TIFF that states no µm/px is a tile that somebody cut, hence an image.

    Args:
        sources: the SLIDES argument.
        among: what it is called in the message where nothing is found.
        slide_mpp: µm/px of slides that state none, where that is known: then each TIFF is a slide.

    Raises:
        NothingMatchedError: there is neither.
    """
    given = Sources.of(sources)
    named = [(path, _name(path, source)) for source in given.given for path in _images(source)]
    rest = tuple(source for source in given.given if source.suffix.lower() not in IMAGES)
    slides: tuple[SlideEntry, ...] = ()
    try:
        slides = find_slides(replace(given, given=rest)).entries if rest else ()
    except NothingMatchedError:
        if not named:
            raise
    tiles = {entry.path for entry in slides if slide_mpp is None and _is_tile(entry)}
    roots = [source for source in given.given if source.is_dir()]
    named += [
        (path, _name(path, next((one for one in roots if path.is_relative_to(one)), path))) for path in sorted(tiles)
    ]
    slides = tuple(entry for entry in slides if entry.path not in tiles)
    images = tuple(path for path, _ in named)
    often = Counter(name for _, name in named)
    names = tuple(name if often[name] == 1 else path.as_posix() for path, name in named)
    if not images and not slides:
        raise NothingMatchedError(f"{among}: neither images ({', '.join(IMAGES)}) nor slides.")
    return Found(images, tuple(slides), names)


def read_tissue_images(
    found: Found,
    sampling: Sampling,
    *,
    limit: int | None = None,
    bar: Progress | None = None,
    left_out: dict[str, str] | None = None,
) -> list[TissueImage]:
    """Read whole images, and tiles of slides.

    Args:
        found: see `find_images`.
        sampling: of slides.
        limit: only the first so many files.
        bar: told of each file.
        left_out: takes name and cause of what cannot be read; where it is not given, the first such file raises.

    Raises:
        UsageError: an image cannot be read.
        wsi.SlideError: a slide cannot be read, or has no tissue.
    """
    bar = bar or Quiet()
    read: list[TissueImage] = []
    for path, name in list(zip(found.images, found.names, strict=True))[:limit]:
        with _told(name, left_out):
            read.append(TissueImage(name, read_image(path), None, path.stat().st_size))
        bar.advance(1)
    for entry in found.slides[:limit]:
        with (
            _told(entry.slide_id, left_out),
            wsi.open_slide(entry.path, slide_mpp=sampling.slide_mpp, manifest_mpp=entry.mpp) as slide,
        ):
            read += _tiles(entry, slide, sampling)
        bar.advance(1)
    return read


@contextmanager
def _told(
    name: str, left_out: dict[str, str] | None, errors: tuple[type[Exception], ...] = (UsageError, wsi.SlideError)
) -> Iterator[None]:
    """Keep why something cannot be read instead of raising it, where that is wanted."""
    try:
        yield
    except errors as error:
        if left_out is None:
            raise
        cause = f"{error.what}. {error.mend}" if isinstance(error, wsi.SlideError) else str(error)
        left_out[name] = cause.removeprefix(f"{PurePath(name).name}: ")


def read_pairs(
    first: Found,
    second: Found,
    sampling: Sampling,
    *,
    limit: int | None = None,
    bar: Progress | None = None,
    left_out: dict[str, str] | None = None,
) -> tuple[list[TissueImage], list[TissueImage]]:
    """Read registered pairs: files of the same name (without extension) at the same place, pixel on pixel.

    Args:
        first: files in the first stain.
        second: in the second.
        sampling: of slides.
        limit: only the first so many pairs.
        bar: told of each pair.
        left_out: takes name and cause of a pair of which one cannot be read; not given, the first such pair raises.

    Raises:
        UsageError: a file has no partner, or the two are not of one size.
        wsi.SlideError: a slide cannot be read, or has no tissue.
    """
    bar = bar or Quiet()
    partners, mine = dict(_called(second)), _called(first)
    alone = [name for name, one in mine if not isinstance(partners.get(name), type(one))]
    if alone:
        raise UsageError(
            f"--paired: {alone[0]} has no partner of the same name ({len(alone)} of {len(mine)} have none). Pairs are "
            "files of the same name in the two folders, and in the same folder inside them."
        )
    pairs: tuple[list[TissueImage], list[TissueImage]] = ([], [])
    for name, one in mine[:limit]:
        other = partners[name]
        read: list[list[TissueImage]] = [[], []]
        if isinstance(one, Path) and isinstance(other, Path):
            with _told(name, left_out):
                read = [[TissueImage(path.name, read_image(path), None, path.stat().st_size)] for path in (one, other)]
        else:
            assert isinstance(one, SlideEntry)
            assert isinstance(other, SlideEntry)
            with _told(name, left_out, (wsi.SlideError,)):  # slides that are no pair are a mistake, and end all
                read = _paired_tiles(one, other, sampling)
        if [image.pixels.shape for image in read[0]] != [image.pixels.shape for image in read[1]]:
            raise UsageError(f"--paired: {name} is not of the same size in both stains. Register and cut them first.")
        for into, images in zip(pairs, read, strict=True):
            into.extend(images)
        bar.advance(1)
    return pairs


def check_enough(what: str, files: int, left_out: Mapping[str, str]) -> None:
    """Refuse to go on with the rest where more than half of the files could not be read.

    Raises:
        UsageError: too few could.
    """
    if 2 * len(left_out) > files:
        name, cause = next(iter(left_out.items()))
        raise UsageError(
            f"{what}: {len(left_out)} of {files} files cannot be read, e.g. {name}: {cause} "
            "What is left says too little: mend them, or take them out."
        )


def left_out_lines(left_out: Sequence[Mapping[str, str]], more: str) -> list[str]:
    """Return what is printed of files that could not be read; `more` tells where the rest of many stands."""
    lines = [one_line(f"  left out      {one['file']}: {one['cause']}") for one in left_out[:_NAMED]]
    return lines + ([f"  left out      {len(left_out) - _NAMED} more, see {more}"] if len(left_out) > _NAMED else [])


def crops_of(images: Sequence[TissueImage], side: int, each: int) -> tuple[Pixels, list[str]]:
    """Cut images into crops side by side and keep those with tissue.

    Args:
        images: from `read_tissue_images`.
        side: of a crop in pixels.
        each: at most so many of an image, evenly spread.

    Returns:
        (N, side, side, 3) uint8, and the name of the image or slide of each.

    Raises:
        UsageError: no crop holds tissue.
    """
    crops: list[Pixels] = []
    names: list[str] = []
    for image in images:
        height, width = image.pixels.shape[:2]
        places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
        cut = [image.pixels[y : y + side, x : x + side] for y, x in places]
        tissue = [crop for crop in cut if (crop.min(axis=-1) < _GLASS).mean() >= _LEAST_TISSUE]
        chosen = [tissue[row] for row in _evenly(len(tissue), each)]
        crops += chosen
        names += [image.name] * len(chosen)
    if not crops:
        raise UsageError(f"no crop of {side} px holds tissue. Give larger images, or smaller tiles (--tile).")
    return np.stack(crops), names


def _tiles(entry: SlideEntry, slide: wsi.Slide, sampling: Sampling) -> list[TissueImage]:
    spec = wsi.TileSpec(size=sampling.tile, mpp=sampling.mpp)
    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), spec)
    if not len(grid.xy):
        raise wsi.SlideError(entry.slide_id, f"there is no tile of tissue ({grid.reason})", "Take smaller tiles.")
    size = _bytes_of(entry)
    return [
        TissueImage(entry.slide_id, wsi.read_tile(slide, grid, row), grid.places[row], size)
        for row in _evenly(len(grid.xy), sampling.each)
    ]


def _paired_tiles(one: SlideEntry, other: SlideEntry, sampling: Sampling) -> list[list[TissueImage]]:
    """Read the same places of two registered slides; those of the first's tissue."""
    spec = wsi.TileSpec(size=sampling.tile, mpp=sampling.mpp)
    with (
        wsi.open_slide(one.path, slide_mpp=sampling.slide_mpp, manifest_mpp=one.mpp) as first,
        wsi.open_slide(other.path, slide_mpp=sampling.slide_mpp, manifest_mpp=other.mpp) as second,
    ):
        if first.size != second.size:
            raise UsageError(
                f"--paired: {one.slide_id} is {first.size} px in one stain and {second.size} px in the other. "
                "Register the slides to one canvas first."
            )
        mine = _tiles(one, first, sampling)
        grid = wsi.tile_grid(second, None, spec)
        row_of = {place: row for row, place in enumerate(grid.places)}
        lost = [image.place for image in mine if image.place not in row_of]
        if lost:
            raise UsageError(
                f"--paired: {one.slide_id} has another µm/px in the two stains. Register the slides first."
            )
        size = _bytes_of(other)
        partners = [
            TissueImage(other.slide_id, wsi.read_tile(second, grid, row_of[image.place]), image.place, size)
            for image in mine
            if image.place is not None
        ]
    return [mine, partners]


def _evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the rows 0 … count - 1, evenly spread."""
    return sorted({int(row) for row in np.linspace(0, max(count - 1, 0), min(count, most))}) if count else []


def _bytes_of(entry: SlideEntry) -> int:
    return sum(os.path.getsize(path) for path in entry.files)  # noqa: PTH202 - one call, no object


def _called(found: Found) -> list[tuple[str, Path | SlideEntry]]:
    """Return what each is called, without ending, by which partners find each other."""
    images = zip(found.names, found.images, strict=True)
    return [
        *((PurePath(name).with_suffix("").as_posix(), path) for name, path in images),
        *((entry.slide_id, entry) for entry in found.slides),
    ]


def _name(path: Path, source: Path) -> str:
    """Return what an image is called: its path under the folder that was given."""
    return path.name if path == source else path.relative_to(source).as_posix()


def _is_tile(entry: SlideEntry) -> bool:
    """Tell whether a TIFF is a tile that was cut from a slide: one small picture without µm/px."""
    from PIL import Image

    if entry.mpp is not None or entry.path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(entry.path) as image:
            if getattr(image, "n_frames", 1) > 1 or max(image.size) > _TILE_SIDE:
                return False
        with wsi.open_slide(entry.path) as slide:
            return slide.mpp is None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, wsi.SlideError):
        return False


def _images(source: Path) -> Iterator[Path]:
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    return (path for path in paths if path.suffix.lower() in IMAGES and not path.name.startswith("."))
