"""What the stress tests of a job share: small slides, a command, and what lies in the job folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import tifffile

APART = ("runs", "logs", ".state")
os.environ.setdefault("OMP_NUM_THREADS", "1")

_TEXT = "Aperio Image Library v12.0\n{0}x{0} (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"


def small_slides(folder: Path, count: int, side: int = 256) -> Path:
    """Write slides of real tissue, each turned and shifted, so that no two are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = skimage.data.immunohistochemistry()
    repeats = -(-side // len(picture))
    for number in range(count):
        turned = np.rot90(np.roll(picture, 37 * number, axis=0), number % 4)
        pixels = np.tile(turned, (repeats, repeats, 1))[:side, :side]
        with tifffile.TiffWriter(folder / f"slide{number:02d}.svs") as tiff:
            options: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90}, "metadata": None}
            text = _TEXT.format(side)
            tiff.write(pixels, tile=(256, 256), photometric="rgb", description=text, software=False, **options)
    return folder


def words(slides: Path, job: Path, *more: str) -> list[str]:
    """Return what follows the command's name to extract features."""
    few = ("--tile", "64", "--batch-size", "4", "--set", "quality=false")
    return ["extract", str(slides), "-o", str(job), "-q", *few, *more]


def preload(slides: Path, job: Path) -> None:
    """Load in this process all that a run needs: its forks then begin at once, not after seconds of imports."""
    assert begin(words(slides, job, "--set", "processes=0"), alone=False) == 0
    assert threading.active_count() == 1, "a process with threads must not be forked"


def begin(arguments: list[str], *, alone: bool = True) -> int:
    """Run the command inside this process; return its exit code."""
    with Path(os.devnull).open("w") as nowhere, contextlib.ExitStack() as stack:
        if not alone:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            _command()(arguments)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@cache
def _command() -> Any:
    """Return the command; made once, for forks of this process, too."""
    from typer.main import get_command

    from pipelines.cli import app

    return get_command(app)


class Forked:
    """The command in a fork of this process, the first of a group of its own; what it says goes to a file."""

    def __init__(self, arguments: list[str], said: Path | None = None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.setsid()
                out = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(out, 2)
                code = begin(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, None where the time was over."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.returncode

    def kill_group(self) -> None:
        """Kill it and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(30)


def calm(slides: Path, job: Path, *more: str) -> None:
    """Run the command to its end, undisturbed."""
    said = job.with_name(f"{job.name}.said")
    run = Forked(words(slides, job, *more), said)
    if run.wait(600) != 0:
        run.kill_group()
        raise RuntimeError(f"exit code {run.returncode}: {said.read_text()}")
    said.unlink()


def tree(job: Path) -> dict[str, str]:
    """Return relative path → SHA-256 of everything that must be the same bytes; leftovers of the dead are apart."""
    files = {}
    for path in sorted(job.rglob("*")):
        relative = path.relative_to(job)
        if path.is_file() and relative.parts[0] not in APART and path.suffix != ".tmp":
            files[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def differ(one: dict[str, str], other: dict[str, str]) -> int:
    """Count the files that are not the same in two trees."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def finished(job: Path) -> dict[str, int]:
    """Return the finished feature files with the time they were written."""
    records = (job / ".done").rglob("features_*/*.h5.json")
    outputs = [job / path.relative_to(job / ".done").with_suffix("") for path in records]
    return {path.as_posix(): path.stat().st_mtime_ns for path in outputs if path.is_file()}


def corrupt(job: Path) -> list[str]:
    """Name the finished outputs whose bytes are not those their record vouches for, and records that are torn."""
    bad = []
    for record in (job / ".done").rglob("*.json") if (job / ".done").is_dir() else ():
        output = job / record.relative_to(job / ".done").with_suffix("")
        try:
            wanted = json.loads(record.read_text())["sha256"]
            if not output.is_file() or hashlib.sha256(output.read_bytes()).hexdigest() != wanted:
                bad.append(str(output))
        except FileNotFoundError:  # taken back by a run that goes on
            continue
        except (ValueError, KeyError):
            bad.append(str(record))
    return bad


def leftovers(job: Path) -> list[str]:
    """Name temporary files."""
    return [str(path) for path in job.rglob(".*.tmp")]


def verify(job: Path) -> list[str]:
    """Return what `slidemil verify` finds wrong."""
    said = job.with_name(f"{job.name}.verified")
    run = Forked(["verify", str(job), "--json", "-q"], said)
    if run.wait(600) not in (0, 7):
        raise RuntimeError(f"verify: exit code {run.returncode}: {said.read_text()}")
    findings = [row["path"] for row in json.loads(said.read_text())["findings"]]
    said.unlink()
    return findings
