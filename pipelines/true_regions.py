"""True regions of slides, drawn by people: `SLIDE.geojson`, or `SLIDE.geojson.gz`, as QuPath and others write them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import UsageError

SUFFIXES = (".geojson", ".geojson.gz")


def check_folder(folder: Path | None) -> None:
    """Refuse a folder of true regions that is not there; None is none asked for."""
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--truth {folder}: no such folder. It holds one SLIDE.geojson for each slide drawn by hand.")


def true_regions(folder: Path, slide_ids: Iterable[str]) -> dict[str, list[Any]]:
    """Return slide → its true regions, shapely geometries in level-0 pixels; only slides that have a file.

    Raises:
        UsageError: a file is no GeoJSON.
    """
    files = {name: [folder / f"{name}{suffix}" for suffix in SUFFIXES] for name in slide_ids}
    there = {name: next((path for path in paths if path.is_file()), None) for name, paths in files.items()}
    return {name: regions_in(path) for name, path in there.items() if path is not None}


def regions_in(path: Path) -> list[Any]:
    """Return the geometries of a FeatureCollection, a list of Features, one Feature, or a bare geometry.

    Raises:
        UsageError: it is none of these.
    """
    import shapely

    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        shapes = [shapely.geometry.shape(one) for one in _geometries(json.loads(data.decode("utf-8-sig")))]
        return [one if one.is_valid else shapely.make_valid(one) for one in shapes]
    except (OSError, EOFError, zlib.error, ValueError, *_ODD, shapely.errors.ShapelyError) as error:
        raise UsageError(
            f"{path}: no GeoJSON of regions ({error}). Export it anew: in QuPath, File > Export objects as GeoJSON."
        ) from error


_ODD = (TypeError, LookupError, AttributeError, RecursionError)
"""What coordinates that are no numbers, or nested otherwise, make of the code that reads them."""


def _geometries(tree: Any) -> Iterator[Any]:
    if isinstance(tree, list):
        for item in tree:
            yield from _geometries(item)
    elif isinstance(tree, dict) and "features" in tree:
        yield from _geometries(tree["features"])
    else:
        geometry = tree.get("geometry") if isinstance(tree, dict) and tree.get("type") == "Feature" else tree
        if not isinstance(geometry, dict):
            raise ValueError("a region without geometry")
        yield geometry
