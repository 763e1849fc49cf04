"""How long the server waits for a client, and for how many at once: those that ask slowly or never read take no room.

Anybody on a shared machine can open connections, without the token. So a request has to be there in some seconds, an
answer has to be taken, and where there are too many connections the oldest that asks for nothing is closed.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import termios

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ASK_SECONDS = 20.0
"""In which a request has to be there whole, however slowly it comes."""
TAKE_SECONDS = 60.0
"""In which some of an answer has to be taken."""
MOST = 256
"""Connections at once; a browser opens six."""


class Patient(H11Protocol):
    """A connection that ends where the client does not go on."""

    _asks: asyncio.TimerHandle | None = None
    _takes: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; where there are too many, close another that asks for nothing."""
        self._since = self.loop.time()
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MOST:
            waiting = [one for one in self.connections if isinstance(one, Patient) and one._waits]
            min(waiting, key=lambda one: one._since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that began has to end."""
        super().data_received(data)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for timer in (self._asks, self._takes):
            if timer is not None:
                timer.cancel()
        self._asks = self._takes = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client takes its answer more slowly than it comes."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Note that it has taken nearly all."""
        super().resume_writing()
        if self._takes is not None:
            self._takes.cancel()
            self._takes = None

    @property
    def _waits(self) -> bool:
        """Whether it is the client's turn."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _await_request(self) -> None:
        """Let the time of a request run from its beginning, until it is there."""
        if not self._waits:
            if self._asks is not None:
                self._asks.cancel()
            self._asks = None
        elif self._asks is None:
            self._asks = self.loop.call_later(ASK_SECONDS, self._end)

    def _watch_taking(self, before: float = float("inf")) -> None:
        left = self.transport.get_write_buffer_size() + _under_way(self.transport)
        if left >= before:
            self._end()
        else:
            self._takes = self.loop.call_later(TAKE_SECONDS, self._watch_taking, left)

    def _end(self) -> None:
        self.transport.abort()


def _under_way(transport: asyncio.Transport) -> int:
    """Bytes that the system holds and the client has not taken: a slow line moves these long before ours."""
    held = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
    return held[0]
