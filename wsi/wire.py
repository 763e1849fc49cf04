"""Messages between two processes over a socket: their length, then their bytes."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")
_AT_ONCE = 1 << 16


class Wire:
    """One end; the other is in another process, or was.

    Only `send` is given more than JSON, by the process that trusts itself: one that decodes the bytes of strangers is
    listened to, and never unpickled.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._limit: float | None = None
        self._come = bytearray()
        end.settimeout(None)

    def send(self, data: bytes, seconds: float | None = None) -> None:
        """Send a message.

        Raises:
            EOFError: the other process is gone.
            TimeoutError: it does not listen.
        """
        self._wait_at_most(seconds)
        try:
            self._end.sendall(_LENGTH.pack(len(data)) + data)
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError from error

    def receive(self, seconds: float | None = None) -> bytes:
        """Return the next message; errors as those of `send`."""
        self._wait_at_most(seconds)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._exactly(length)

    def tell(self, message: dict[str, Any], seconds: float | None = None) -> None:
        """Send plain values."""
        self.send(json.dumps(message).encode(), seconds)

    def hear(self, seconds: float | None = None) -> dict[str, Any]:
        """Return the next message of plain values; EOFError also where the other process talks nonsense."""
        try:
            message: dict[str, Any] = json.loads(self.receive(seconds))
        except ValueError as error:
            raise EOFError from error
        return message

    def close(self) -> None:
        """Hang up."""
        self._end.close()

    def _wait_at_most(self, seconds: float | None) -> None:
        if seconds != self._limit:  # each change is a call of the system
            self._end.settimeout(seconds)
            self._limit = seconds

    def _exactly(self, size: int) -> bytes:
        """Return so many bytes; what came beyond them is kept."""
        come = self._come
        while len(come) < size:
            try:
                more = self._end.recv(max(_AT_ONCE, size - len(come)))
            except TimeoutError:
                raise
            except OSError as error:
                raise EOFError from error
            if not more:
                raise EOFError
            come += more
        data = bytes(come[:size])
        del come[:size]
        return data
