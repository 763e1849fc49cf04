"""A web server and a bucket on the loopback, with faults: files from memory, in parts or whole."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Shelf:
    """What the server has, what it does wrong, and what it was asked.

    Attributes:
        files: path without the leading slash → bytes.
        ranges: whether it gives parts of files.
        tags: whether it says what tells contents apart.
        secret: what the query of an address must be, for signed links.
        fault: asked with the number of the request; returns `500`, `reset`, `short`, `slow` or "".
        asked: (method, path, first byte, last byte or -1) of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    secret: str = ""
    fault: object = None
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> int:
        return sum(end - start + 1 for method, _, start, end in self.asked if method == "GET" and end >= 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path.lstrip("/"))
        shelf, query = self.shelf, parse_qs(parts.query)
        number = len(shelf.asked)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        shelf.asked.append((self.command, path, int(span[1]) if span else 0, int(span[2]) if span else -1))
        fault = shelf.fault(number) if callable(shelf.fault) and body else ""
        if fault == "reset":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "500":
            return self.give(500, b"oh", body)
        if shelf.secret and parts.query != shelf.secret:
            return self.give(403, b"no", body)
        if "list-type" in query:
            return self.give(200, self.listed(path.rstrip("/"), query.get("prefix", [""])[0]), body, "application/xml")
        if path not in shelf.files:
            return self.folder(path, body)
        data = shelf.files[path]
        more = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": formatdate(0, usegmt=True)}
        more = more if shelf.tags else {}
        if span and shelf.ranges:
            start, end = int(span[1]), min(int(span[2]), len(data) - 1)
            more["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self.give(206, data[start : end + 1], body, more=more, fault=fault)
        return self.give(200, data, body, more=more, fault=fault)

    def folder(self, path: str, body: bool) -> None:
        base = path.rstrip("/") + "/" if path else ""
        names = {
            rest.partition("/")[0] + ("/" if "/" in rest else "")
            for name in self.shelf.files
            if name.startswith(base) and (rest := name[len(base) :])
        }
        if not names:
            return self.give(404, b"none", body)
        links = "".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in sorted(names))
        return self.give(200, f"<html>{links}</html>".encode(), body, "text/html")

    def listed(self, bucket: str, prefix: str) -> bytes:
        rows = "".join(
            f"<Contents><Key>{escape(name[len(bucket) + 1 :])}</Key><Size>{len(data)}</Size>"
            f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            "<LastModified>1970-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, data in sorted(self.shelf.files.items())
            if name.startswith(f"{bucket}/{prefix}")
        )
        return (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>'.encode()
        )

    def give(self, status, data, body, kind="application/octet-stream", more=None, fault="") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        try:
            if fault == "short":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif fault == "slow":
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            else:
                self.wfile.write(data)
        except OSError:
            self.close_connection = True


@contextmanager
def serving(shelf: Shelf) -> Iterator[Shelf]:
    """Serve until the block ends."""
    handler = type("Handler", (_Handler,), {"shelf": shelf})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # whoever asks may hang up
    server.block_on_close = False
    shelf.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield shelf
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
