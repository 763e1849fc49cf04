"""A path that asks a server: `https://…`, `s3://…`. What of it needs no network is `wsi.address`."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

from wsi.address import Address, is_url


def path_of(text: str) -> Path:
    """Return what a user named: an address, or a path on this disk."""
    return RemotePath(text) if is_url(text) else Path(text)


class RemotePath(Address):
    """An address. Whatever touches a disk is refused, but for `stat` and `exists`, which ask the server."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002 - as that of Path
        """Ask the server how large it is; the other fields say nothing.

        Raises:
            wsi.ranges.RemoteError: there is no such thing, access is refused, or no answer.
        """
        from wsi.ranges import RemoteFile

        size = RemoteFile.of(self).state().size
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def open(self, mode: str = "r", buffering: int = -1, **text: Any) -> Any:  # type: ignore[override]
        """Open it for reading; pieces are fetched as they are read, or it is copied where its server gives none.

        Raises:
            wsi.ranges.RemoteError: it cannot be had, or there is no room for the copy.
        """
        from wsi.staging import opened

        if set(mode) - set("rbt"):
            raise io.UnsupportedOperation(f"{self}: an address can only be read")
        file = io.BufferedReader(opened(self), 2**16 if buffering < 1 else buffering)
        return file if "b" in mode else io.TextIOWrapper(file, **text)

    def exists(self, **_: Any) -> bool:
        """Say whether the server has it; False also where it does not answer."""
        try:
            self.stat()
        except OSError:
            return False
        return True

    is_file = exists
