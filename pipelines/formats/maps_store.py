"""Feature maps of the tiles of one slide: a zarr v3 group, written tile by tile, under its name when it is whole.

<slide>.zarr/               attributes as on `coords` of our HDF5 files, and `encoder_passport`
  maps    (N, h, w, C)      one tile is a chunk; row i belongs to row i of the slide's feature file
  coords  (N, 2)            int64, level-0 pixels
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import EnvironmentFault
from pipelines.files import explain, replace_tree, sync_folder, temporary_name

from .sharded import Shards, rows_of_shard

FORMAT, VERSION = "slidemil-maps", 1


def check_zarr() -> None:
    """Raise where zarr is not installed.

    Raises:
        EnvironmentFault: says what to install.
    """
    try:
        import zarr
    except ImportError as error:
        raise EnvironmentFault("feature maps are zarr stores: pip install 'slidemil[zarr]'.") from error
    assert zarr


class MapWriter:
    """Writes the maps of one slide to a folder that gets its name when it is whole.

    Args:
        folder: its final name.
        rows: of the slide's grid; some may be missing in the end.
        shape: (h, w, C) of one map.
        dtype: `float16` or `float32`.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, ...], dtype: str) -> None:
        self._folder, self._temporary = folder, temporary_name(folder)
        kind = np.dtype(dtype).newbyteorder("<")
        row = int(np.prod(shape)) * kind.itemsize
        self._shards = Shards(self._temporary / "maps", shape, kind, rows_of_shard(row, rows))
        self._bad: int | None = None

    def put(self, rows: NDArray[np.int64], maps: NDArray[np.floating[Any]]) -> None:
        """Write the maps (B, h, w, C) of some rows of the grid.

        Raises:
            EnvironmentFault: they cannot be written.
        """
        with np.errstate(over="ignore"):  # an overflow becomes inf, which closing refuses
            values = maps.astype(self._shards.dtype)
        if self._bad is None and not np.isfinite(values).all():
            self._bad = int(rows[~np.isfinite(values.reshape(len(values), -1)).all(1)][0])
        try:
            self._shards.put(rows, values)
        except OSError as error:
            raise EnvironmentFault(explain(error, self._folder, values.nbytes)) from error

    @property
    def bad(self) -> int | None:
        """The first row that holds what is no number; None where there is none."""
        return self._bad

    def close(
        self, kept: NDArray[np.int64], xy: NDArray[np.int64], attributes: Mapping[str, Any], passport: Mapping[str, Any]
    ) -> list[Path]:
        """Finish the store, and give it its name.

        Args:
            kept: rows of the grid that were written, in order.
            xy: (N, 2) of these.
            attributes: from `coords_attributes`.
            passport: of the encoder.

        Returns:
            The files of the store; the first is `zarr.json`.

        Raises:
            EnvironmentFault: they cannot be written.
        """
        try:
            self._shards.move_up(kept)
            self._shards.close(len(kept))
            self._describe(xy, {**_plain(attributes), "encoder_passport": dict(passport)})
            _sync(self._temporary)
            replace_tree(self._temporary, self._folder)
        except OSError as error:
            raise EnvironmentFault(explain(error, self._folder, 0)) from error
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return sorted(files, key=lambda path: path != self._folder / "zarr.json")

    def drop(self) -> None:
        """Give up: nothing stays."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _describe(self, xy: NDArray[np.int64], attributes: Mapping[str, Any]) -> None:
        """Have zarr write its metadata and the coordinates; the shards lie there already."""
        import zarr
        from zarr.storage import LocalStore

        made = zarr.create_group(LocalStore(self._temporary))
        made.attrs.update({"format": FORMAT, "version": VERSION, **attributes})
        rows, shape = len(xy), self._shards.shape
        made.create_array(
            "maps",
            shape=(rows, *shape),
            dtype=self._shards.dtype,
            chunks=(1, *shape),
            shards=(self._shards.each, *shape),
            compressors=None,
            fill_value=np.nan,
        )
        coords = made.create_array("coords", shape=xy.shape, dtype=xy.dtype, chunks=(max(1, rows), 2), compressors=None)
        coords[...] = xy
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata is widely read, but no part of the v3 text so far
            zarr.consolidate_metadata(made.store)


def _sync(root: Path) -> None:
    """Have a folder, and all that lies in it, on the disk."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON holds them."""
    found: dict[str, Any] = json.loads(json.dumps(dict(attributes), default=lambda value: value.item()))
    return found
