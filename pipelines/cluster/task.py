"""What moves between the client and the workers: paths, settings and states; never a pixel, never a feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import ExtractSettings
from pipelines.manifest import SlideEntry


@dataclass(frozen=True)
class Task:
    """Slides worth some minutes, that share one stream; with none, the question what the encoders are there.

    Attributes:
        id: of this very task; one that is given out anew has another.
        run: name of the run.
        version: of slidemil, where the task was made.
        job: absolute path of the job folder.
        proof: name and bytes of a file in the job folder, by which a worker knows that it sees the same folder.
        entries: the slides, with absolute paths.
        sizes: bytes of each slide, as the client sees it.
        settings: of the extraction.
        force: do again what is done.
        offline: open no connection for weights.
        hosts: workers on each host that share its cores.
        gpus: CUDA devices that the workers of this machine share out, 0 where each worker sees its own.
        portion: number and count, where only that part of the one slide is to be encoded; None for whole slides.
        passports: of each encoder, what decides which features may be mixed: a worker whose own differ takes no slides.
    """

    id: str
    run: str
    version: str
    job: str
    proof: tuple[str, str]
    entries: tuple[SlideEntry, ...]
    sizes: Mapping[str, int]
    settings: ExtractSettings
    force: bool = False
    offline: bool = False
    hosts: Mapping[str, int] = field(default_factory=dict)
    gpus: int = 0
    passports: tuple[Mapping[str, Any], ...] = ()
    portion: tuple[int, int] | None = None


@dataclass(frozen=True)
class KnownEncoder:
    """What the client knows of the encoder that the workers have: enough to tell what is done.

    Attributes:
        told: its passport.
        device: where it computes.
        dim: length of a feature vector.
    """

    told: Mapping[str, Any]
    device: str
    dim: int

    def passport(self) -> dict[str, Any]:
        """Return how it makes features."""
        return dict(self.told)


@dataclass(frozen=True)
class Answer:
    """What a task came to; which slides are done is in the files.

    Attributes:
        id: of the task.
        worker: address of the worker.
        host: its machine.
        seconds: from the first slide to the last.
        tiles: that were encoded.
        rates: per stage, as a run records them.
        verdict: what limited it.
        trouble: why this worker cannot take any slide of this run; "" where it can.
        lost: how the process that worked on the slides was lost; "" where it was not.
        stopped: it was told to stop, and let go of its slides in good order.
        bug: a traceback, where our own code failed.
        warnings: what the user should know.
        fault: an error of the whole job (disk full, weights): class of the error and its text.
        encoders: what the encoders are there, where that was the question.
    """

    id: str
    worker: str = ""
    host: str = ""
    seconds: float = 0.0
    tiles: int = 0
    rates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    lost: str = ""
    stopped: bool = False
    bug: str = ""
    warnings: tuple[str, ...] = ()
    fault: tuple[str, str] = ("", "")
    encoders: tuple[KnownEncoder, ...] = ()


@dataclass(frozen=True)
class News:
    """How far a task is, told while it works.

    Attributes:
        tiles: encoded since the last news.
        ended: slides that ended since the last news.
        note: what limits it, in words; "" where nothing was measured yet.
    """

    tiles: int = 0
    ended: int = 0
    note: str = ""
