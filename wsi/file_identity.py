"""What tells whether a file is still the one that was opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileIdentity:
    """What tells whether the file at a path is still the one that was opened."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path | int) -> FileIdentity:
        """Look at the file now, at a path or behind a descriptor."""
        stat = os.stat(path)  # noqa: PTH116
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
