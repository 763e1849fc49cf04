"""Bytes of a file behind an address: pieces of it, several at once, with patience and with limits.

Everything goes through fsspec; a web address is asked for its pieces directly over fsspec's own session, for only then
is it seen whether the server gives pieces at all. What fsspec and its backends raise names the whole address, secrets
included: nothing of it leaves this file but the kind of what went wrong.
"""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from wsi.address import Address

TRIES = 4
"""How often a piece is asked for, with pauses between."""
SECONDS = 20.0
"""The most that one try may take; all tries together stay below the limit of a read in `wsi.stream`."""
PAUSE = 0.5
"""Seconds before the second try, at most; doubled before each further one."""
_AT_ONCE = 16
"""Pieces that are asked for together."""
_EXTRA = "Install what reads from the network: pip install 'slidemil[remote]'."
_MORE = {
    **dict.fromkeys(("gs", "gcs"), " For gs:// also: pip install gcsfs."),
    **dict.fromkeys(("az", "abfs", "abfss"), " For az:// also: pip install adlfs."),
}
_AGAIN = "Run the same command again: what is finished is kept."

Value = TypeVar("Value")


class RemoteError(OSError):
    """Why bytes cannot be had, in words that tell no secret.

    Attributes:
        mend: what helps.
    """

    def __init__(self, number: int, what: str, address: Address | str, mend: str) -> None:
        super().__init__(number, what, str(address))
        self.mend = mend

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_error, (type(self), self.errno, self.strerror, self.filename, self.mend)


class NoRangesError(RemoteError):
    """The server gives whole files only."""


def _same_error(kind: type[RemoteError], number: int, what: str, address: str, mend: str) -> RemoteError:
    return kind(number, what, address, mend)


@dataclass(frozen=True)
class RemoteState:
    """What tells one content of an address from another.

    Attributes:
        size: in bytes.
        tag: what the server says of the content: ETag, else when it was changed; "" where it says nothing.
    """

    size: int
    tag: str

    @property
    def stamp(self) -> str | None:
        """A hash that stands for the content without reading it; None where the server gives no tag."""
        return hashlib.sha256(f"{self.size}\0{self.tag}".encode()).hexdigest() if self.tag else None


class RemoteFile:
    """One file behind an address."""

    def __init__(self, address: Address, system: Any, place: str) -> None:
        self.address, self._system, self._place = address, system, place
        self._web = address.url.lower().startswith(("http://", "https://"))
        self._seen: RemoteState | None = None

    @classmethod
    def of(cls, address: Address) -> RemoteFile:
        """Find what reads an address.

        Raises:
            RemoteError: the package that reads it is not installed.
        """
        system, place = file_system(address)
        return cls(address, system, place)

    def state(self) -> RemoteState:
        """Ask what lies there now.

        Raises:
            RemoteError: nothing does, access is refused, or there is no answer.
        """
        state = self._tried(self._web_state if self._web else self._told_state)
        self._seen = self._seen or state
        return state

    def pieces(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes from each start up to each end.

        Raises:
            NoRangesError: the server gives whole files only.
            RemoteError: they cannot be had, or the file was changed meanwhile.
        """
        got: list[bytes] = []
        for first in range(0, len(places), _AT_ONCE):
            got += self._some(places[first : first + _AT_ONCE])
        return got

    def _some(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        have: dict[int, bytes] = {}

        def ask() -> list[bytes]:
            lacking = [number for number in range(len(places)) if number not in have]
            answers = self._together([places[number] for number in lacking])
            sizes = (places[number][1] - places[number][0] for number in lacking)
            asked = list(zip(lacking, sizes, answers, strict=True))
            have.update((n, got) for n, size, got in asked if isinstance(got, bytes) and len(got) == size)
            for number, _, got in asked:
                if isinstance(got, BaseException):
                    raise got
                if number not in have:
                    raise ShortAnswerError
            return [have[number] for number in range(len(places))]

        return self._tried(ask)

    def whole(self) -> Iterator[bytes]:
        """Yield the file from its start to its end, in one go: for servers that give no pieces.

        Raises:
            RemoteError: it cannot be had.
        """
        if not self._web:
            state = self.state()
            step = 8 * 2**20
            for start in range(0, state.size, step):
                yield self.pieces([(start, min(start + step, state.size))])[0]
            return
        answer = self._tried(lambda: self._run(self._web_open(None)))
        try:
            while data := self._once(lambda: bytes(self._run(answer.content.read(2**20)))):
                yield data
        finally:
            self._run(_closed(answer))

    def asked(self, ask: Callable[[], Value]) -> Value:
        """Return what something else answers that asks the same server; with the same patience.

        Raises:
            RemoteError: it does not.
        """
        return self._tried(ask)

    # ------------------------------------------------------------------ one try

    def _together(self, places: Sequence[tuple[int, int]]) -> list[bytes | BaseException]:
        if self._web:
            return self._gathered([partial(self._web_piece, a, b) for a, b in places])
        if getattr(self._system, "async_impl", False):
            return self._gathered([partial(self._system._cat_file, self._place, start=a, end=b) for a, b in places])
        return [self._system.cat_file(self._place, start=a, end=b) for a, b in places]

    def _gathered(self, asked: Sequence[Callable[[], Awaitable[bytes]]]) -> list[bytes | BaseException]:
        from asyncio import gather

        async def all_of_them() -> list[bytes | BaseException]:
            return list(await gather(*(_in_time(one()) for one in asked), return_exceptions=True))

        return self._run(all_of_them())  # type: ignore[no-any-return]

    def _run(self, waiting: Any) -> Any:
        from fsspec.asyn import sync

        async def one() -> Any:
            return await waiting

        return sync(self._system.loop, one, timeout=SECONDS + 1)

    async def _web_open(self, piece: tuple[int, int] | None) -> Any:
        session = await self._system.set_session()
        headers = {**self._system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if piece is not None:
            headers["Range"] = f"bytes={piece[0]}-{piece[1] - 1}"
        more = {key: value for key, value in self._system.kwargs.items() if key != "headers"}
        answer = await session.get(self._system.encode_url(self.address.url), headers=headers, **more)
        if answer.status >= 400:
            answer.close()
            raise StatusError(answer.status)
        return answer

    async def _web_piece(self, start: int, end: int) -> bytes:
        answer = await self._web_open((start, end))
        try:
            if answer.status != 206:
                raise NoPiecesError
            tag = _web_tag(answer.headers)
            if self._seen is not None and self._seen.tag and tag and tag != self._seen.tag:
                raise ChangedError
            return await _at_most(answer, end - start)
        finally:
            answer.close()

    def _web_state(self) -> RemoteState:
        return self._run(_in_time(self._asked_web_state()))  # type: ignore[no-any-return]

    async def _asked_web_state(self) -> RemoteState:
        """Ask for the first byte: its answer tells size and tag, also where a signed link allows no other request."""
        answer = await self._web_open((0, 1))
        try:
            if answer.status == 206:
                await _at_most(answer, 1)
            told = answer.headers.get("Content-Range", "").rpartition("/")[2] if answer.status == 206 else ""
            told = told or (answer.headers.get("Content-Length", "") if answer.status == 200 else "")
            if not told.isdigit():
                raise NoSizeError
            return RemoteState(int(told), _web_tag(answer.headers))
        finally:
            answer.close()

    def _told_state(self) -> RemoteState:
        if getattr(self._system, "async_impl", False):
            told = self._run(_in_time(self._system._info(self._place, refresh=True)))
        else:
            told = self._system.info(self._place)
        if told.get("type") == "directory":
            raise FileNotFoundError
        return state_of(told)

    # ------------------------------------------------------------------ patience

    def _tried(self, ask: Callable[[], Value]) -> Value:
        for number in range(TRIES):
            last = number == TRIES - 1
            try:
                return self._once(ask)
            except RemoteError as error:
                if last or error.errno != errno.EIO or isinstance(error, NoRangesError):
                    raise
            time.sleep(PAUSE * 2**number * random.uniform(0.5, 1))  # noqa: S311 - so that readers do not all come back at once
        raise AssertionError

    def _once(self, ask: Callable[[], Value]) -> Value:
        """Ask once; what goes wrong becomes an error of ours that tells no secret."""
        try:
            return ask()
        except RemoteError:
            raise
        except Exception as error:  # the border: each backend has error types of its own
            raise self._told(error) from None

    def _told(self, error: Exception) -> RemoteError:
        """Return what went wrong in words of ours: those of the libraries hold the whole address."""
        status = getattr(error, "status", None) or _status_of(error)
        if isinstance(error, NoPiecesError):
            return NoRangesError(errno.EIO, "the server gives no parts of files", self.address, _AGAIN)
        if isinstance(error, ChangedError):
            return RemoteError(
                errno.ESTALE, "the file was changed while it was read", self.address, "Run this slide again."
            )
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            return RemoteError(errno.ENOENT, "there is nothing at this address", self.address, "Check the address.")
        if isinstance(error, PermissionError) or status in (401, 403):
            mend = (
                "Check your credentials (for s3://: AWS_PROFILE or AWS_ACCESS_KEY_ID); a signed link may have run out."
            )
            return RemoteError(errno.EACCES, "access is refused", self.address, mend)
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            mend = "For s3:// set AWS_PROFILE or AWS_ACCESS_KEY_ID; for a public bucket FSSPEC_S3_ANON=true."
            return RemoteError(errno.EACCES, "there are no credentials for this address", self.address, mend)
        if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
            return RemoteError(
                errno.EINVAL, f"the server refuses to answer (status {status})", self.address, "Check the address."
            )
        what = f"the server does not give its bytes ({_kind_of(error, status)}), asked {TRIES} times"
        return RemoteError(errno.EIO, what, self.address, f"Check the network. {_AGAIN}")


class StatusError(Exception):
    """The server answered with an error."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class NoPiecesError(Exception):
    """The server answered with more than was asked for."""


class ShortAnswerError(Exception):
    """The server answered with less than was asked for."""


class NoSizeError(Exception):
    """The server does not say how large the file is."""


class ChangedError(Exception):
    """The server has another content now."""


def _kind_of(error: Exception, status: int | None) -> str:
    if status is not None:
        return f"status {status}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no answer within {SECONDS:g} s"
    if isinstance(error, ShortAnswerError) or "Payload" in type(error).__name__:
        return "the answer was cut short"
    if isinstance(error, NoSizeError):
        return "it does not say how large the file is"
    if "Connector" in type(error).__name__ or "EndpointConnection" in type(error).__name__:
        return "it cannot be reached"
    return type(error).__name__


def _status_of(error: Exception) -> int | None:
    """Return the status in an answer of S3, None where there is none."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    told = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return told if isinstance(told, int) else None


async def _in_time(waiting: Awaitable[Any]) -> Any:
    """Return what is waited for, if it comes within the time of one try."""
    from asyncio import wait_for  # slow to load, and a slide on this disk does without

    return await wait_for(waiting, SECONDS)


async def _closed(answer: Any) -> None:
    answer.close()


async def _at_most(answer: Any, size: int) -> bytes:
    """Return the bytes of an answer, no more than were asked for; the connection is used again where it ends there."""
    if answer.content_length is not None and answer.content_length <= size:
        return bytes(await answer.read())
    parts, have = [], 0
    while have < size and (data := await answer.content.read(size - have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def _web_tag(headers: Any) -> str:
    tag = str(headers.get("ETag", ""))
    return tag.removeprefix("W/") if tag else str(headers.get("Last-Modified", ""))


def state_of(told: dict[str, Any]) -> RemoteState:
    """Return the state that a file system of fsspec tells."""
    keys = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "updated", "created")
    tag = next((str(told[key]) for key in keys if told.get(key)), "")
    return RemoteState(int(told["size"]), tag)


_lock = threading.Lock()


def file_system(address: Address) -> tuple[Any, str]:
    """Return what reads an address, and what it calls it there.

    Raises:
        RemoteError: the package that reads it is not installed.
    """
    try:
        import fsspec

        with _lock:
            system, place = fsspec.core.url_to_fs(address.url)
        return system, str(place)
    except (ImportError, ValueError) as error:
        scheme = address.url.partition("://")[0].lower()
        what, mend = f"what reads {scheme}:// is not installed", _EXTRA + _MORE.get(scheme, "")
        raise RemoteError(errno.ENOSYS, what, address, mend) from (error if isinstance(error, ImportError) else None)
