"""A slide whose reader does on demand what libraries do on bad days; other processes can open it, too."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

import wsi
from wsi.mpp import resolve
from wsi.readers.base import BaseSlide, Facts
from wsi.readers.memory import crop_on_white
from wsi.slide import Level

SIDE = 512


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write_script(path: Path, seed: int = 0, **acts: object) -> Path:
    """Write a slide whose reads at level-0 places {"x,y": act} go as told; `always` is for all others.

    An act is `abort`, `kill`, `hang`, `hang_fast` (no other thread gets to run), `leave`, `damage`, `stray`, `bug`,
    `nonsense`, or seconds to sleep. With `once`, it is done only the first time that anyone comes to it. Opening it
    takes `opening` seconds.
    """
    path.write_text(json.dumps({"seed": seed, **acts}))
    return path


class StrayError(wsi.TileReadError):
    """An error that only this reader knows."""


class ScriptedSlide(BaseSlide):
    def __init__(self, path: Path) -> None:
        self.script = json.loads(path.read_text())
        time.sleep(self.script.get("opening", 0))
        value, problem = resolve((0.5, 0.5), "script", None)
        super().__init__(
            Facts(
                path=path,
                name=path.name,
                reader="script",
                levels=(Level(SIDE, SIDE, (1.0, 1.0)),),
                mpp=value,
                mpp_problem=problem,
            )
        )
        self._picture = picture(self.script["seed"])

    def _read(self, x, y, width, height, level):
        act = self.script.get(f"{x},{y}", self.script.get("always"))
        if act is not None and self._due(f"{x}-{y}"):
            self._do(act)
        return crop_on_white(self._picture, x, y, width, height)

    def _due(self, place: str) -> bool:
        if not self.script.get("once"):
            return True
        try:
            self.path.with_suffix(f".{place}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _do(self, act):
        if act == "abort":
            os.write(2, b"GLib-ERROR: failed to allocate 480 GB\n")
            os.abort()
        elif act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "leave":
            os._exit(7)
        elif act == "hang":
            time.sleep(1000)
        elif act == "hang_fast":
            ctypes.PyDLL(None).sleep(1000)
        elif act == "damage":
            raise OSError("bad sector")
        elif act == "stray":
            raise StrayError(self.name, "a kind of its own", "Do this.")
        elif act == "bug":
            raise KeyboardInterrupt("a bug of the reader")  # passes the border, where exceptions become tile errors
        else:
            time.sleep(act)


def source(path: Path, size: int = 64) -> tuple[ScriptedSlide, wsi.TileGrid]:
    slide = ScriptedSlide(path)
    return slide, wsi.tile_grid(slide, None, wsi.TileSpec(size, 0.5))
