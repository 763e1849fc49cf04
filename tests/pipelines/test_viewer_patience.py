"""Clients that ask slowly, never, or for more than they read: none of them takes the viewer from the others."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time

import pytest
import uvicorn

from pipelines.viewer import patience

LARGE = 40 << 20
"""Bytes of an answer that no socket's buffer holds."""


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while scope["method"] == "POST" and (await receive()).get("more_body"):
        pass
    body = bytes(LARGE) if scope["path"] == "/large" else b"here"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(patience, "ASK_SECONDS", 0.6)
    monkeypatch.setattr(patience, "TAKE_SECONDS", 0.4)
    monkeypatch.setattr(patience, "MOST", 8)
    config = uvicorn.Config(app, http=patience.Patient, lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(port, path="/"):
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(line):
        line.request("GET", path)
        return line.getresponse().read()


def ended_after(client, trickle=b""):
    """Seconds until the server hangs up on a client that sends now and then."""
    begin = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - begin < 10:
        try:
            if trickle:
                client.sendall(trickle)
            if not client.recv(100):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("begins", "trickle"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: a", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"A: b\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n", b"x"),
    ],
    ids=["silent", "half", "slow", "slow body"],
)
def test_a_request_that_never_ends_is_ended(port, begins, trickle):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(begins)
        assert 0.4 < ended_after(client, trickle) < 3


def test_headers_have_a_largest_size(port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        with contextlib.suppress(OSError):  # it hangs up in between
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * (1 << 20))
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(port) == b"here"


def test_those_that_never_ask_do_not_lock_others_out(port):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        assert [ask(port) for _ in range(5)] == [b"here"] * 5
        assert ended_after(silent[0]) < 0.4, "the oldest goes at once"


def test_an_answer_that_nobody_takes_is_thrown_away_and_a_slow_one_is_not(port):
    asks = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
    with contextlib.closing(socket.socket()) as lazy, contextlib.closing(socket.socket()) as slow:
        for client in (lazy, slow):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.connect(("127.0.0.1", port))
            client.sendall(asks)
        got = 0
        for _ in range(8):  # twice as long as it takes to give up on who takes nothing
            time.sleep(0.1)
            got += len(slow.recv(1 << 22))
        slow.settimeout(10)
        while got < LARGE:
            part = slow.recv(1 << 20)
            assert part, f"hung up after {got} bytes"
            got += len(part)
        time.sleep(1)  # looked at three times
        lazy.settimeout(10)
        came = 0
        with contextlib.suppress(ConnectionResetError):
            while part := lazy.recv(1 << 20):
                came += len(part)
        assert came < LARGE
