"""AnnData (`.h5ad`), written by its published layout: one row per tile (formats.md §7; AnnData file format 0.1.0)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.files import h5_bytes, write_bytes

from .slide_features import SlideFeatures

NAME = "anndata"
_TEXT = h5py.string_dtype()


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write one slide: X features, obs tile_id, slide_id and case_id, obsm spatial tile centers, uns the passport."""
    rows = len(slide.xy)
    tiles = [f"{slide.slide_id}_{x}_{y}" for x, y in slide.xy.tolist()]
    centers = slide.xy + np.array(slide.footprint) / 2

    def fill(file: h5py.File) -> None:
        _mark(file, "anndata", "0.1.0")
        _array(file, "X", slide.features.astype(np.float32))
        obs = _frame(file, "obs", tiles, ["tile_id", "slide_id", "case_id"])
        _array(obs, "tile_id", np.arange(rows, dtype=np.int64))
        for name in ("slide_id", "case_id"):
            _texts(obs, name, [slide.slide_id] * rows)
        _frame(file, "var", [f"f{i}" for i in range(slide.features.shape[1])], [])
        obsm = _dict(file, "obsm")
        _array(obsm, "spatial", centers.astype(np.float64))
        for name in ("layers", "obsp", "varm", "varp"):
            _dict(file, name)
        uns = _dict(file, "uns")
        _text(uns, "encoder_passport", json.dumps(slide.passport, sort_keys=True))
        library = _dict(_dict(uns, "spatial"), slide.slide_id)
        factors = _dict(library, "scalefactors")
        _number(factors, "spot_diameter_fullres", float(slide.footprint[0]))
        _number(factors, "tissue_hires_scalef", 1.0)
        _dict(library, "images")

    path = folder / f"{slide.slide_id}.h5ad"
    write_bytes(path, h5_bytes(fill))
    return path


def _mark(item: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version


def _dict(parent: h5py.Group, name: str) -> h5py.Group:
    group = parent.create_group(name)
    _mark(group, "dict", "0.1.0")
    return group


def _array(parent: h5py.Group, name: str, values: NDArray[np.generic]) -> None:
    _mark(parent.create_dataset(name, data=values, track_times=False), "array", "0.2.0")


def _texts(parent: h5py.Group, name: str, values: Sequence[str]) -> None:
    data = np.array(values, dtype=object)
    _mark(parent.create_dataset(name, data=data, dtype=_TEXT, track_times=False), "string-array", "0.2.0")


def _text(parent: h5py.Group, name: str, value: str) -> None:
    _mark(parent.create_dataset(name, data=value, dtype=_TEXT, track_times=False), "string", "0.2.0")


def _number(parent: h5py.Group, name: str, value: float) -> None:
    _mark(parent.create_dataset(name, data=value, track_times=False), "numeric-scalar", "0.2.0")


def _frame(parent: h5py.Group, name: str, index: Sequence[str], columns: Sequence[str]) -> h5py.Group:
    group = parent.create_group(name)
    _mark(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", np.array(columns, dtype=object), dtype=_TEXT)
    _texts(group, "_index", index)
    return group
