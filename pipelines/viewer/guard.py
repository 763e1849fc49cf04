"""Who may ask: the right first part of the path, and a host name that is ours. Around the whole application.

The token stands in the path, so that relative links carry it, also below a proxy; the browser shows it to no
other site. A page of another site that makes its own name point to this machine is told by the name it asks for.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_EMPTY = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""Hash of no text: an empty style in the page, which keeps OpenSeadragon from writing one of its own."""
_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' '{_EMPTY}'; img-src 'self' data: blob:; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_LOCAL = ("localhost",)
_LONGEST = 2048


class Guard:
    """Lets through what carries the token and asks for a known host.

    Args:
        app: what is guarded; it sees paths without the token.
        token: first part of every path.
        hosts: names that this machine goes by, beside localhost; addresses in numbers are always taken.
    """

    def __init__(self, app: App, token: str, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = {*_LOCAL, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket is closed by refusing it
            await send({"type": "websocket.close", "code": 1008})
            return
        problem = self._problem(scope)
        if problem is not None:
            await _refuse(send, *problem)
            return
        rest = scope["path"].split("/", 2)[2]
        await self._app({**scope, "path": f"/{rest}", "root_path": ""}, receive, _with_headers(send))

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and words of a refusal, None for who may come in."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = _name_of(headers.get("host", ""))
        if not self._known(host):
            return 421, f"This viewer does not go by the name {host!r}. Where it should: serve --allow-host {host}"
        parts = scope["path"].split("/", 2)
        if len(parts) < 3 or not secrets.compare_digest(parts[1].encode(), self._token):
            return 403, "Open the whole address that `slidemil serve` printed: it ends with a token."
        if len(scope["path"]) > _LONGEST:
            return 414, "The address is too long."
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if headers.get("sec-fetch-site", "same-origin") != "same-origin":
                return 403, "Another site may not change anything here."
            if origin is not None and not self._known(urlsplit(origin).hostname or ""):
                return 403, "Another site may not change anything here."
        return None

    def _known(self, host: str) -> bool:
        if host.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True  # no foreign name was looked up to get here


def _name_of(header: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, words: str) -> None:
    printable = "".join(sign if sign.isprintable() else "?" for sign in words).encode()
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    headers += [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(printable)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": printable})


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            if b"cache-control" not in there:
                more.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
