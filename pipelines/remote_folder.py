"""The slides below an address: in a bucket, or on pages that list the files of a folder."""

from __future__ import annotations

import errno
from typing import Any

from wsi.opening import NOT_ALONE, SUFFIXES
from wsi.ranges import RemoteError, RemoteFile, file_system
from wsi.remote_path import RemotePath


def slides_below(address: RemotePath) -> tuple[list[RemotePath], int]:
    """Return the slides below an address, and how many other files there are.

    Raises:
        RemoteError: it cannot be listed, or nothing lies there.
    """
    system, place = file_system(address)
    names = RemoteFile(address, system, place).asked(lambda: _find(system, place))
    if not names:
        what = "nothing lies below this address, or its server does not list it"
        raise RemoteError(errno.ENOENT, what, address, "Name slides, or a CSV with a column `path`.")
    found = [_address(address, name) for name in names]
    slides = [one for one in found if one.suffix.lower() in SUFFIXES - NOT_ALONE and not one.name.startswith(".")]
    return sorted(slides, key=str), len(names) - len(slides)


def _find(system: Any, place: str) -> list[str]:
    place = place if place.endswith("/") or not place.startswith("http") else f"{place}/"
    names = [name for name in system.find(place) if not name.endswith("/")]
    if not names:
        system.ls(place)  # a search passes over what goes wrong; this says it
    return names


def _address(folder: RemotePath, name: str) -> RemotePath:
    """Return the whole address of a file that was listed."""
    if "://" in name:
        return RemotePath(name)
    scheme = folder.url.partition("://")[0]
    return RemotePath(f"{scheme}://{name.lstrip('/')}")
