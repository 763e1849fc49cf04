"""One slide on its way from file to feature file: prepared, filled batch by batch, finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi
from wsi.ranges import RemoteError
from wsi.sources import fetch_error

from . import tissue_kept, tissue_of_slide
from .augmenting import stains_after
from .config import ExtractSettings
from .features import coords_attributes, coords_bytes, feature_bytes
from .files import write_bytes
from .jobfolder import JobFolder, Tiling
from .manifest import SlideEntry
from .provenance import FileState
from .records import finish
from .stain_target import Reference, reference_of

_STAIN_PIXELS = 20_000
_STAIN_TILES = 24


@dataclass
class SlideWork:
    """One slide in the making.

    Attributes:
        entry: the slide of the manifest.
        slide: its open file.
        grid: its tiles.
        tissue: what is tissue on it.
        quality: what is wrong with the tissue, None where that is not asked.
        stains: what its tiles are stained with when their colors are changed by chance, None where they are not.
        stain: parameters of this slide, None where pixels are left alone.
        parts: everything that determines the feature file, for its record.
        state: size, time and inode of its files when it was opened.
        features: (N, D), filled row by row; None until the first batch.
        done: (N,) rows that are encoded.
        missing: row → cause, of tiles that could not be read.
        unfetched: why the network did not give some of them: they may be whole.
        only: rows that the stream reads, None for all of the grid.
    """

    entry: SlideEntry
    slide: wsi.Slide
    grid: wsi.TileGrid
    tissue: wsi.Tissue
    quality: wsi.Quality | None
    stains: stain.StainParams | None
    stain: stain.StainParams | None
    parts: Mapping[str, Any]
    state: tuple[FileState, ...]
    features: NDArray[Any] | None = None
    done: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    missing: dict[int, str] = field(default_factory=dict)
    unfetched: wsi.FetchError | None = None
    only: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Start with no row encoded."""
        self.done = np.zeros(len(self.grid.xy), bool)
        self._wanted = len(self.done)

    @property
    def complete(self) -> bool:
        """Tell whether every tile that is wanted is encoded or known to be missing."""
        return self._settled == self._wanted

    @property
    def _settled(self) -> int:
        return int(self.done.sum()) + len(self.missing)

    def read_only(self, rows: NDArray[np.int64]) -> None:
        """Have the stream read some rows alone; with them, and those that are there, the work is complete."""
        self.only = rows
        self._wanted = self._settled + len(rows)

    @property
    def to_read(self) -> wsi.TileGrid:
        """The tiles that the stream reads."""
        if self.only is None:
            return self.grid
        return replace(self.grid, xy=self.grid.xy[self.only], tissue_share=self.grid.tissue_share[self.only])

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the grid that tiles of `to_read` are."""
        return index if self.only is None else self.only[index]

    def put(self, rows: NDArray[np.int64], values: NDArray[Any], dtype: str) -> None:
        """Keep the features (B, D) of some rows."""
        if self.features is None:
            self.features = np.zeros((len(self.done), values.shape[1]), dtype)
        with np.errstate(over="ignore"):  # an overflow becomes inf, which finishing the slide refuses
            self.features[rows] = values
        self.done[rows] = True


def prepare(
    entry: SlideEntry, job: JobFolder, tiling: Tiling, settings: ExtractSettings, parts: Mapping[str, Any]
) -> SlideWork:
    """Open a slide, find its tissue, lay the grid, fit its stain, and write the pictures of it.

    Raises:
        wsi.SlideError: the slide cannot be used; says why and what helps.
    """
    from . import pictures

    state = _look(entry)
    slide = open_entry(entry, settings)
    try:
        spec = wsi.TileSpec(size=settings.tile, mpp=settings.mpp, overlap=settings.overlap)
        # A slide without usable µm/px is refused before any pixel is read: that alone can take minutes.
        wsi.tile_grid(slide, None, spec, allow_upsampling=settings.allow_upsampling)
        find = partial(tissue_of_slide.find, slide, entry, settings)
        tissue, quality = tissue_kept.kept_or(job, entry.slide_id, parts, find)
        write_bytes(job.thumbnail(entry.slide_id), pictures.thumbnail_jpeg(tissue))
        write_bytes(job.contour(entry.slide_id), pictures.contour_jpeg(tissue))
        outline = json.dumps(tissue.to_geojson(), separators=(",", ":"))
        write_bytes(job.contour_geojson(entry.slide_id), outline.encode())
        if quality is not None:
            write_bytes(job.quality(entry.slide_id), pictures.quality_jpeg(tissue, quality))
        grid = wsi.tile_grid(
            slide,
            tissue,
            spec,
            min_tissue=settings.min_tissue,
            allow_upsampling=settings.allow_upsampling,
        )
        write_bytes(tiling.picture(entry.slide_id), pictures.grid_jpeg(tissue, grid))
        alone = settings.stain == "none"
        params = None if alone else fit_stain(slide, grid, settings.stain, reference_of(settings))
        stains = None
        if settings.augment != "none":
            stains = fit_stain(slide, grid, "macenko") if params is None else stains_after(params)
    except BaseException:
        slide.close()
        raise
    parts = {**parts, "mpp": effective_mpp(parts["mpp"], grid)}
    return SlideWork(entry, slide, grid, tissue, quality, stains, params, parts, state)


def open_entry(entry: SlideEntry, settings: ExtractSettings) -> wsi.Slide:
    """Open a slide as the settings ask.

    Raises:
        wsi.SlideError: the slide cannot be opened.
    """
    low_band = settings.jpeg2000 == "low-band"
    return wsi.open_slide(
        entry.path, slide_mpp=settings.slide_mpp, manifest_mpp=entry.mpp, icc=settings.icc, low_band=low_band
    )


def effective_mpp(asked: Mapping[str, Any], grid: wsi.TileGrid) -> dict[str, Any]:
    """Return what of the asked µm/px had a say: an option that other slides needed determines nothing here."""
    upsampled = max(grid.mpp.x, grid.mpp.y) > grid.spec.mpp
    return {
        "manifest": asked["manifest"],
        "slide_mpp": asked["slide_mpp"] if grid.mpp.source == "--slide-mpp" else None,
        "allow_upsampling": bool(asked["allow_upsampling"]) and upsampled,
    }


def fit_stain(
    slide: wsi.Slide, grid: wsi.TileGrid, method: str, reference: Reference | None = None
) -> stain.StainParams:
    """Fit a normalizer on pixels pooled from tiles all over the slide."""
    return stain.fit(method, pooled_pixels(slide, grid), reference=reference)


def pooled_pixels(slide: wsi.Slide, grid: wsi.TileGrid) -> NDArray[np.uint8]:
    """Return at most 20,000 pixels from tiles all over the slide: (N, 3)."""
    rows = np.unique(np.linspace(0, max(len(grid.xy) - 1, 0), _STAIN_TILES).astype(int))
    each = max(1, _STAIN_PIXELS // max(len(rows), 1))
    rng = np.random.default_rng(0)
    pooled = []
    for row in rows[: len(grid.xy)]:
        try:
            pixels = wsi.read_tile(slide, grid, int(row)).reshape(-1, 3)
        except wsi.TileReadError:
            continue  # the stream meets this tile again, and records it as missing
        pooled.append(pixels[rng.choice(len(pixels), min(each, len(pixels)), replace=False)])
    return np.concatenate(pooled) if pooled else np.zeros((0, 3), np.uint8)


def finish_slide(
    work: SlideWork,
    job: JobFolder,
    tiling: Tiling,
    settings: ExtractSettings,
    passport: Mapping[str, Any],
    dim: int,
) -> dict[str, Any]:
    """Check a complete slide, write its coordinates and features, and return its facts.

    Raises:
        wsi.SlideError: too many tiles are missing, a feature is no number, or the file changed meanwhile.
    """
    name = work.entry.slide_id
    check_read(work)
    _check_missing(work, settings)
    kept = np.flatnonzero(work.done)
    values = np.zeros((0, dim), settings.dtype) if work.features is None else work.features[kept]
    _check_finite(name, values, work.grid.xy[kept])
    attributes = coords_attributes(name, work.grid, work.slide.bounds)
    facts = slide_facts(work)
    layers = tissue_of_slide.layers(work.tissue, work.quality, work.grid)
    finish(job, tiling.patches(name), coords_bytes(attributes, work.grid.xy, layers), _without_encoder(work.parts))
    xy = work.grid.xy.tolist()
    missing = [(xy[row][0], xy[row][1], cause) for row, cause in sorted(work.missing.items())]
    data = feature_bytes(attributes, work.grid.xy[kept], values, missing, passport, _more(work))
    companions = _companions(job, tiling, name, quality=work.quality is not None)
    finish(job, tiling.features(passport_name(passport), name), data, work.parts, facts, companions)
    return facts


def check_read(work: SlideWork) -> None:
    """Refuse what was read of a slide where it is not what lies there.

    Raises:
        wsi.SlideError: the network did not give all of it, or the file changed meanwhile.
    """
    if work.unfetched is not None:
        raise work.unfetched  # it must not stay without tiles that are there
    if _look(work.entry) != work.state:
        what = "the file changed while it was read"
        raise wsi.SlideError(work.entry.slide_id, what, "Run again when it has been copied whole.")


def _companions(job: JobFolder, tiling: Tiling, name: str, *, quality: bool) -> tuple[Path, ...]:
    return (
        *((job.quality(name),) if quality else ()),
        job.thumbnail(name),
        job.contour(name),
        job.contour_geojson(name),
        tiling.picture(name),
        tiling.patches(name),
    )


def passport_name(passport: Mapping[str, Any]) -> str:
    """Return the encoder's name as it stands in folder names: no slash, no colon."""
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in str(passport["id"]))


def slide_facts(work: SlideWork) -> dict[str, Any]:
    """Return what `slides.csv` says of a slide."""
    warnings = [text for text in (work.tissue.reason, work.grid.reason) if text]
    warnings += tissue_of_slide.unread_told(work.tissue)
    shares = tissue_of_slide.shares_told(work.quality)
    warnings += tissue_of_slide.warnings_told({} if work.quality is None else work.quality.shares)
    if work.stain is not None and work.stain.status != "ok":
        warnings.append(f"stain: {work.stain.status}")
    if work.slide.profile is not None and work.slide.profile.problem is not None:
        warnings.append(f"its color profile is damaged ({work.slide.profile.problem})")
    return {
        "reader": reader_of(work.slide),
        "width": work.grid.slide_size[0],
        "height": work.grid.slide_size[1],
        "mpp_x": work.grid.mpp.x,
        "mpp_y": work.grid.mpp.y,
        "mpp_source": work.grid.mpp.source,
        "tissue_share": round(float(work.tissue.share), 6),
        **shares,
        "n_tiles": int(work.done.sum()),
        "n_missing": len(work.missing),
        "warning": "; ".join(dict.fromkeys(warnings)),
    }


def reader_of(slide: wsi.Slide) -> str:
    """Return what read the tiles: the slide's library, and `direct` where compressed tiles are taken from the file."""
    return f"{slide.reader} + direct" if getattr(slide, "native", None) is not None else slide.reader


def _more(work: SlideWork) -> dict[str, Any]:
    more: dict[str, Any] = {"slide_sha256": work.parts["slide"], "reader": reader_of(work.slide)}
    profile = work.slide.profile
    if profile is not None:
        more["icc_profile"] = profile.description or profile.problem or "unnamed"
        more["icc_sha256"] = hashlib.sha256(profile.data).hexdigest()
    if work.stain is not None:
        more["stain_params"] = work.stain.to_json()
    if work.stains is not None:
        more["augment_stains"] = work.stains.to_json()
    reason = work.grid.reason or work.tissue.reason
    return {**more, "reason": reason} if reason else more


def _look(entry: SlideEntry) -> tuple[FileState, ...]:
    try:
        return tuple(FileState.of(path) for path in entry.files)
    except RemoteError as error:
        raise fetch_error(error) from None
    except OSError as error:
        raise wsi.UnreadableSlideError(
            entry.path.name, f"cannot be read ({error.strerror})", "Check the path and its rights."
        ) from error


def _without_encoder(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name != "encoder"}


def _check_missing(work: SlideWork, settings: ExtractSettings) -> None:
    bad, total = len(work.missing), len(work.done)
    if bad > settings.max_bad_tiles * total:
        cause = next(iter(work.missing.values()))
        raise wsi.SlideError(
            work.entry.slide_id,
            f"{bad} of {total} tiles could not be read, e.g. {cause}",
            f"Copy the slide anew, or accept it with --max-bad-tiles {min(1.0, bad / total + 0.005):.2f}.",
        )


def _check_finite(name: str, values: NDArray[Any], xy: NDArray[np.int64]) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        x, y = xy[bad[0]]
        raise wsi.SlideError(
            name,
            f"the encoder gave values that are no finite {values.dtype} for {len(bad)} tiles, the first at ({x}, {y})",
            "Try --set dtype=float32; if it stays, the weights are damaged: check them.",
        )
