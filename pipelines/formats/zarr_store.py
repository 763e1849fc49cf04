"""A cohort in one zarr v3 store: sharded, consolidated, local or behind any fsspec URL, read by zarr and dask alone.

<store>/                    attributes: format, encoder_passport, slides
  <slide>/features (N, D)   chunks of 1,024 rows in shards; attributes as on `coords` of our HDF5 files
  <slide>/coords   (N, 2)   int64, level-0 pixels
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckFailedError, EnvironmentFault
from pipelines.features import same_passport

from .slide_features import SlideFeatures
from .trident import attributes_of

if TYPE_CHECKING:
    import zarr

FORMAT, VERSION = "slidemil-cohort", 1
CHUNK = 1024
"""Rows of a chunk: what is read at least."""
SHARD = 64
"""Chunks of a shard, at most: one object of the store."""


def is_store(url: str) -> bool:
    """Tell whether a path or URL looks like a store; a folder may have any name."""
    return url.rstrip("/").endswith(".zarr") or ("://" not in url and (Path(url) / "zarr.json").is_file())


def open_store(url: str, mode: str) -> zarr.Group:
    """Open a store: a folder, or an fsspec URL (`s3://…`, `gs://…`, `memory://…`).

    Raises:
        EnvironmentFault: zarr, or what speaks the URL's protocol, is not installed.
        CheckFailedError: there is no store.
    """
    try:
        import zarr
        from zarr.storage import FsspecStore, LocalStore
    except ImportError as error:
        raise EnvironmentFault("zarr stores need zarr: pip install 'slidemil[zarr]'.") from error
    read_only = mode == "r"
    try:
        if "://" in url:
            store: Any = FsspecStore.from_url(url, read_only=read_only)
        else:
            store = LocalStore(Path(url), read_only=read_only)
        return zarr.open_group(store, mode=mode, use_consolidated=None if read_only else False)  # type: ignore[arg-type]
    except ImportError as error:
        raise EnvironmentFault(f"{url}: {error}. Install what it names.") from error
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise CheckFailedError(f"{url}: no zarr store that can be opened ({str(error)[:120]}).") from error


def add(root: zarr.Group, slide: SlideFeatures, *, digest: str = "") -> None:
    """Write one slide into a store, in place of what it held of it.

    Raises:
        CheckFailedError: the store's features were made differently; names the fields.
    """
    known = root.attrs.get("encoder_passport")
    if isinstance(known, dict):
        same_passport(known, slide.passport, what=f"{slide.slide_id}, beside what the store holds")
    else:
        root.attrs.update({"format": FORMAT, "version": VERSION, "encoder_passport": slide.passport})
    group = root.create_group(slide.slide_id, overwrite=True)
    _put(group, "coords", slide.xy)
    _put(group, "features", slide.features)
    group.attrs.update({**attributes_of(slide), "sha256": digest})  # last: a slide without them is not whole


def _put(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    rows, width = values.shape
    chunk = min(CHUNK, max(1, rows))
    chunks = min(SHARD, -(-max(1, rows) // chunk))
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=(chunk, max(1, width)),
        shards=(chunk * chunks, max(1, width)), compressors=None, fill_value=0,
    )  # fmt: skip
    if values.size:
        array[...] = values


def close(root: zarr.Group) -> None:
    """Write the metadata of all slides into one object, so that a reader asks once."""
    import zarr

    whole = sorted(name for name, group in root.groups() if "patch_size" in group.attrs)
    root.attrs.update({"slides": whole})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is widely read, but no part of the v3 text so far
        zarr.consolidate_metadata(root.store)


def digests(root: zarr.Group) -> dict[str, str]:
    """Return slide → hash of the file it was taken from, of the slides that are whole."""
    return {name: str(group.attrs.get("sha256", "")) for name, group in root.groups() if "patch_size" in group.attrs}


def write(url: str, slides: Iterable[tuple[str, str, Callable[[], SlideFeatures]]]) -> tuple[int, int]:
    """Bring a store up to date.

    Args:
        url: folder or fsspec URL.
        slides: name, hash of the source, and what reads it; a slide that is there with that hash is left alone.

    Returns:
        How many were written, and how many were there.
    """
    root = open_store(url, "a")
    there, written, kept = digests(root), 0, 0
    for name, digest, load in slides:
        if digest and there.get(name) == digest:
            kept += 1
            continue
        add(root, load(), digest=digest)
        written += 1
    close(root)
    return written, kept


def read(url: str) -> Iterator[SlideFeatures]:
    """Yield the slides of a store, one after the other.

    Raises:
        CheckFailedError: it is no store of ours.
    """
    root = open_store(url, "r")
    if root.attrs.get("format") != FORMAT:
        raise CheckFailedError(f"{url}: no cohort store of slidemil.")
    passport: Any = root.attrs["encoder_passport"]
    names: Any = root.attrs.get("slides") or sorted(root.group_keys())
    for name in names:
        yield _slide(root, name, dict(passport))


def _slide(root: zarr.Group, name: str, passport: dict[str, Any]) -> SlideFeatures:
    group: Any = root[name]
    a = dict(group.attrs)
    return SlideFeatures(
        name,
        np.asarray(group["features"][...]),
        np.asarray(group["coords"][...], np.int64),
        (int(a["footprint_x"]), int(a["footprint_y"])),
        int(a["patch_size"]),
        (float(a["mpp_x"]), float(a["mpp_y"])),
        passport,
        int(a["overlap"]),
        (int(a["level0_width"]), int(a["level0_height"])),
    )
