"""HDF5 files of others hold their own data, or are refused.

A link, a dataset or a virtual dataset may name another file: reading it would hand out that file's bytes as if they
were features, and HDF5 follows it without a word.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from .errors import CheckFailedError

_MOST_LINKS = 100_000
"""Names in a file: a file of ours has about five."""


def refuse_outside(file: h5py.File, path: Path) -> None:
    """Look at every name of an open file.

    Raises:
        CheckFailedError: one leads out of the file, or there are absurdly many.
    """
    seen = 0

    def look(name: str, link: object) -> str | None:
        nonlocal seen
        seen += 1
        if seen > _MOST_LINKS:
            return f"it holds more than {_MOST_LINKS:,} names"
        if isinstance(link, h5py.ExternalLink):
            return f"`{name}` is a link to another file"
        if isinstance(link, h5py.HardLink):
            return _leads_out(file, name)
        return None

    found = file.visititems_links(look)
    if found:
        raise CheckFailedError(f"{path}: {found}, which is refused. Make the file anew, with its data inside.")


def _leads_out(file: h5py.File, name: str) -> str | None:
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        return None
    if item.external:
        return f"the data of `{name}` lie in another file"
    return f"`{name}` is put together from other datasets" if item.is_virtual else None
