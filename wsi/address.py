"""A slide's address on the network, as a path: `https://…`, `s3://…`.

It has a name, a suffix and, when it is asked for it, a size; it has no place on this disk. What an address keeps secret
(the query of a signed link, a password) is in `url` alone: `str` shows it without, and so do all messages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PosixPath
from typing import Any, Self
from urllib.parse import quote, unquote

PROTOCOLS = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
_WEB = ("http", "https")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Say whether text is an address of a protocol that slides are read through."""
    found = _URL.match(text)
    return found is not None and found[1].lower() in PROTOCOLS


def shown(url: str) -> str:
    """Return an address without what may be secret: user, password, and the query of a web address."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() in _WEB:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    place, slash, key = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{key}"


def _place(url: str) -> str:
    """Return an address as the text of a path: its parts are those of the address, as people read them."""
    scheme, _, rest = shown(url).partition("://")
    return f"{scheme}:/{unquote(rest) if scheme.lower() in _WEB else rest}"


class Address(PosixPath):
    """An address as a name: what is there is asked by `wsi.remote_path.RemotePath`.

    Attributes:
        url: the whole address, secrets included.
    """

    url: str
    _called: str

    def __new__(cls, url: str, called: str = "") -> Self:
        """Take an address as the user wrote it; `called` is what it is to be called in all that is told of it."""
        self = super().__new__(cls, called or _place(url))
        self.url, self._called = url, called
        return self

    def __init__(self, url: str, called: str = "") -> None:
        if hasattr(PosixPath, "with_segments"):  # Python 3.12 and later make the path here
            super().__init__(called or _place(url))  # type: ignore[call-arg]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a process of our own, secrets included: it has to read."""
        return type(self), (self.url, self._called)

    def __str__(self) -> str:
        """Return the address without secrets."""
        return self._called or shown(self.url)

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def beside(self, text: str) -> Self:
        """Return what a path means as seen from here; what is secret goes along to nobody else."""
        scheme, _, rest = shown(self.url).partition("://")
        quoted = quote(text) if scheme.lower() in _WEB else text
        folder = rest.partition("/")[0] if text.startswith("/") else rest.rpartition("/")[0]
        return type(self)(f"{scheme}://{folder}/{quoted.lstrip('/')}")

    def is_below(self, other: Address) -> bool:
        """Say whether it lies in the folder of another address, or below that, as it is written."""
        mine, theirs = (posixpath.normpath(unquote(str(one)).replace("://", "/", 1)) for one in (self, other))
        return mine.startswith(posixpath.dirname(theirs) + "/")

    @property
    def parent(self) -> Path:  # type: ignore[override]
        """The folder, as text alone: no longer an address."""
        return PosixPath(_place(self.url)).parent

    def with_suffix(self, suffix: str) -> Path:  # type: ignore[override]
        """Return a neighbor, as text alone."""
        return PosixPath(_place(self.url)).with_suffix(suffix)

    def with_name(self, name: str) -> Path:  # type: ignore[override]
        """Return a neighbor, as text alone."""
        return PosixPath(_place(self.url)).with_name(name)

    def absolute(self) -> Self:
        """Return itself: an address is one from everywhere."""
        return self

    def is_symlink(self) -> bool:
        """Return False: what an address leads to is the server's affair."""
        return False

    def is_dir(self) -> bool:
        """Return False: see `wsi.listing`."""
        return False
