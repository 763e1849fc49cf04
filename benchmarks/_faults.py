"""The n-th operation on the files of a folder fails: an error, or death. Used inside a child process.

Production code knows nothing of this: what Python calls to reach the disk is replaced here, in a process made for it.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

DEATH = 99
"""Exit code of a process that died at an operation."""
_BY_PATH = ("open", "link", "unlink", "remove", "rename", "replace", "mkdir", "rmdir", "utime", "stat", "scandir")
_BY_HANDLE = ("write", "read", "fsync", "close", "fstat")


class Faults:
    """Counts operations below a folder; fails one of them, once.

    Args:
        root: the folder.
        number: which operation fails, from 0; none where it is negative.
        kind: `EIO`, `ENOSPC` or `death`.
    """

    def __init__(self, root: Path, number: int, kind: str) -> None:
        self._root, self._number, self._kind = os.fspath(root), number, kind
        self._handles: set[int] = set()
        self.count = 0
        self.failed = ""
        self._dying: Callable[[], Any] = lambda: None

    def install(self, dying: Callable[[], Any] = lambda: None) -> None:
        """Replace what reaches the disk; `dying` is called before a death."""
        self._dying = dying
        for name in _BY_PATH:
            self._replace(os, name, self._by_path)
        for name in _BY_HANDLE:
            self._replace(os, name, self._by_handle)
        opening = io.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            mine = self._mine(file)
            if mine:
                self._step(f"open {mode}", file)
            opened = opening(file, mode, *args, **kwargs)
            return _File(opened, self, file) if mine else opened

        io.open = builtins.open = open_  # type: ignore[assignment]
        whole = h5py.File.__init__

        def init(file: Any, name: Any, *args: Any, **kwargs: Any) -> None:
            if self._mine(name):
                self._step("h5py open", name)
            whole(file, name, *args, **kwargs)

        h5py.File.__init__ = init

    def _replace(self, module: Any, name: str, wrap: Callable[..., Any]) -> None:
        setattr(module, name, wrap(name, getattr(module, name)))

    def _by_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            mine = self._mine(path)
            if mine:
                self._step(name, path)
            result = function(path, *args, **kwargs)
            if mine and name == "open":
                self._handles.add(result)
            return result

        return call

    def _by_handle(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(handle: Any, *args: Any, **kwargs: Any) -> Any:
            if handle in self._handles:
                if name == "close":  # the handle is gone whether or not closing fails
                    self._handles.discard(handle)
                    function(handle)
                    self._step(name, f"handle of {self._root}")
                    return None
                self._step(name, f"handle of {self._root}")
            return function(handle, *args, **kwargs)

        return call

    def own(self, handle: int) -> None:
        """Count operations on a handle."""
        self._handles.add(handle)

    def disown(self, handle: int) -> None:
        """Count them no longer."""
        self._handles.discard(handle)

    def _mine(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._root)

    def _step(self, what: str, path: Any) -> None:
        number, self.count = self.count, self.count + 1
        if number != self._number:
            return
        self.failed = f"{what} {path}"
        if self._kind == "death":
            self._dying()
            os._exit(DEATH)
        code = getattr(errno, self._kind)
        raise OSError(code, os.strerror(code), os.fspath(path) if isinstance(path, str | os.PathLike) else None)


class _File:
    """A file whose operations count, too."""

    def __init__(self, file: Any, faults: Faults, path: Any) -> None:
        self._file, self._faults, self._path = file, faults, path
        faults.own(file.fileno())

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name not in ("read", "write", "flush", "readline", "readlines", "readinto"):
            return found

        def call(*args: Any) -> Any:
            self._faults._step(name, self._path)
            return found(*args)

        return call

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def close(self) -> None:
        if not self._file.closed:
            self._faults.disown(self._file.fileno())
            self._file.close()
            self._faults._step("close", self._path)
