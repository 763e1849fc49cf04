"""A viewer that answers on a port of this machine while a test runs, and a browser to look at it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.viewer import asset, server


@contextlib.contextmanager
def serving(folder: Path, **wish: Any) -> Iterator[server.Server]:
    """Serve a folder on any free port, in a thread; stopped at the end."""
    ready = server.Server(folder, server.Wish(port=0, **wish))
    thread = threading.Thread(target=ready.run, name="viewer under test")
    thread.start()
    try:
        yield ready
    finally:
        ready.stop()
        thread.join(20)
        assert not thread.is_alive()


def asked(url: str, *, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return status and body of an answer, whatever the status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=data, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def told(url: str) -> Any:
    """Return the JSON at an address."""
    status, body = asked(url)
    assert status == 200, body
    return json.loads(body)


def needs_asset() -> None:
    """Skip where OpenSeadragon is not built."""
    if not (asset.FOLDER / asset.SCRIPT).is_file():
        pytest.skip("OpenSeadragon is not built: make viewer (needs npm)")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless Chromium, or skip where there is none."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.common.exceptions import SessionNotCreatedException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        chromium = webdriver.Chrome(options=options, service=Service(driver))
    except SessionNotCreatedException as error:
        pytest.skip(f"the browser does not start here: {str(error)[:120]}")
    try:
        yield chromium
    finally:
        chromium.quit()


def until(look: Any, what: str, seconds: float = 15) -> Any:
    """Wait until `look()` is true; return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds} s: {what}")
