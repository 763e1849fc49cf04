"""slide2vec's embeddings with hs2p's coordinates (formats.md §6; hs2p 4.4, slide2vec 5.7)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import CheckFailedError
from pipelines.files import json_bytes, write_bytes

from .slide_features import Given, SlideFeatures, foreign_passport, places, square, two_dimensional
from .torch_files import read_tensor, tensor_bytes

NAME = "slide2vec"


def looks(path: Path) -> bool:
    """Tell whether a file is one of slide2vec's: it lies in `tile_embeddings`, with its record beside it."""
    return path.parent.name == "tile_embeddings" and path.suffix in (".pt", ".npz")


def read(path: Path, given: Given) -> SlideFeatures:
    """Read one slide: `tile_embeddings/<id>.pt` or `.npz`, and `tiles/<id>.coordinates.npz`.

    Raises:
        CheckFailedError: a part is missing, or would have to be unpickled.
    """
    name = path.name.removesuffix(path.suffix)
    told = _json(path.with_name(f"{name}.meta.json"))
    coordinates = path.parent.parent / "tiles" / f"{name}.coordinates.npz"
    more = _json(coordinates.with_name(f"{name}.coordinates.meta.json"))
    tiling, slide = dict(more.get("tiling", {})), dict(more.get("slide", {}))
    features = read_tensor(path) if path.suffix == ".pt" else _array(path)
    features = two_dimensional(features, name)
    with _npz(coordinates) as tiles:
        xy = places(np.stack([tiles["x"], tiles["y"]], axis=1), name)
    side = int(told.get("tile_size_lv0") or tiling.get("tile_size_lv0") or given.footprint or 0)
    if not side:
        raise CheckFailedError(f"{path}: nobody says how large its tiles are. Give it: --footprint 512.")
    tile = int(told.get("encoder_input_size_px") or given.tile or 224)
    spacing = told.get("requested_spacing_um") or tiling.get("requested_spacing_um")
    own = slide.get("spacing_at_level_0") or slide.get("mpp")
    mpp = given.mpp or (float(own) if own else None)
    encoder = given.encoder or str(told.get("encoder_name") or "unknown")
    scale = {"size": tile, "mpp": float(spacing) if spacing else None, "overlap": 0}
    passport = foreign_passport("slide2vec", encoder, features.shape[1], str(features.dtype), tile=scale)
    return SlideFeatures(name, features, xy, square(side), tile, None if mpp is None else (mpp, mpp), passport)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise CheckFailedError(f"{path}: no JSON ({error}).") from error
    return found if isinstance(found, dict) else {}


def _npz(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckFailedError(f"{path}: no readable arrays ({str(error)[:120]}).") from error


def _array(path: Path) -> Any:
    with _npz(path) as file:
        try:
            return file["features"] if "features" in file.files else file[file.files[0]]
        except (ValueError, IndexError) as error:
            raise CheckFailedError(f"{path}: refused, for it holds more than arrays of numbers.") from error


def write(slide: SlideFeatures, folder: Path) -> Path:
    """Write embeddings and coordinates of one slide, each with its record; returns the `.pt`."""
    name, side = slide.slide_id, slide.footprint[0]
    mpp = None if slide.mpp is None else slide.mpp[0]
    order = np.lexsort((slide.xy[:, 1], slide.xy[:, 0]))  # by x, then y, as hs2p has it
    xy, features = slide.xy[order], slide.features[order].astype(np.float32)
    arrays = io.BytesIO()
    np.savez(
        arrays,
        tile_index=np.arange(len(xy), dtype=np.int64),
        x=xy[:, 0],
        y=xy[:, 1],
        tissue_fractions=np.ones(len(xy), np.float32),
    )
    write_bytes(folder / "tiles" / f"{name}.coordinates.npz", arrays.getvalue())
    tiling = {"tile_size_lv0": side, "requested_tile_size_px": slide.tile, "requested_spacing_um": slide.tile_mpp}
    sections = {"provenance": {"tool": "slidemil"}, "slide": {"sample_id": name, "spacing_at_level_0": mpp}}
    sections |= {"tiling": tiling, "segmentation": {}, "filtering": {}, "artifact": {}}
    write_bytes(folder / "tiles" / f"{name}.coordinates.meta.json", json_bytes(sections))
    told = {
        "encoder_name": slide.encoder,
        "feature_dim": features.shape[1],
        "feature_dtype": "float32",
        "tile_size_lv0": side,
        "requested_spacing_um": slide.tile_mpp,
        "encoder_input_size_px": slide.tile,
        "image_path": "",
    }
    write_bytes(folder / "tile_embeddings" / f"{name}.meta.json", json_bytes(told))
    path = folder / "tile_embeddings" / f"{name}.pt"
    write_bytes(path, tensor_bytes(features))
    return path
