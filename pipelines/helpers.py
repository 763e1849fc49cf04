"""Several devices: the run itself takes the first, and a process of its own extracts on each of the others.

They share the job by claims: each takes the next slide that nobody has, so that a fast device does more, and what a
process that dies leaves is taken over.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import wsi

from .config import Settings, as_yaml
from .console import warn
from .manifest import Sources

_PATIENCE = 30.0
"""Seconds that a helper has to end by itself after a signal."""


def arguments_of(slides: Sequence[Path] | Sources, limit: int | None, shard: str | None, *, offline: bool) -> list[str]:
    """Return how `slidemil extract` is told the same slides."""
    sources = Sources.of(slides)
    told = [str(path) for path in sources.given]
    told += ["--allow-outside"] if sources.outside else []
    told += ["--pseudonymize", str(sources.keyfile)] if sources.keyfile is not None else []
    told += ["--select", sources.select] if sources.select is not None else []
    told += ["--limit", str(limit)] if limit is not None else []
    told += ["--shard", shard] if shard is not None else []
    return [*told, *(["--offline"] if offline else [])]


@contextlib.contextmanager
def helping(devices: Sequence[str], slides: Sequence[str], out: Path, settings: Settings) -> Iterator[Settings]:
    """Extract the same slides in a process for each device but the first, as long as the block runs.

    Args:
        devices: of which the caller itself takes the first.
        slides: from `arguments_of`.
        out: the job folder.
        settings: of the extraction; readers and memory are shared out evenly.

    Yields:
        The settings of the caller's own part.
    """
    if len(devices) == 1:
        yield settings
        return
    shares = [_share(settings, device, len(devices)) for device in devices]
    with tempfile.TemporaryDirectory() as folder:
        started = [_start(Path(folder), number, slides, out, share) for number, share in enumerate(shares[1:])]
        try:
            yield shares[0]
            for device, process in zip(devices[1:], started, strict=True):
                if process.wait() not in (0, 3):  # 3: some slides failed, which the run itself says
                    warn(f"the process on {device} ended early; its slides were done here")
        finally:
            _end(started)


def _share(settings: Settings, device: str, count: int) -> Settings:
    """Return the settings of one of `count` processes."""
    extract = settings.extract
    workers = max(1, (extract.workers or wsi.available_cores()) // count)
    extract = replace(extract, workers=workers, memory_gb=max(0.1, extract.memory_gb / count))
    return replace(settings, extract=replace(extract, device=device))


def _start(folder: Path, number: int, slides: Sequence[str], out: Path, settings: Settings) -> subprocess.Popen[bytes]:
    config = folder / f"{number}.yaml"
    config.write_text(as_yaml(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pipelines.cli", "extract", *slides, "-o", str(out), "-c", str(config), "-q"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - ourselves


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: the caller was interrupted, or failed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
