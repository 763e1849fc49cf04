"""How slides are read, as the settings ask: by how many processes, through which stream."""

from __future__ import annotations

from collections.abc import Iterable

import wsi

from .config import ExtractSettings

_THREADS_PER_PROCESS = 16


def prepares_apart(settings: ExtractSettings) -> bool:
    """Say whether slides are prepared in a process of their own: from the first one on, where any process reads."""
    return reading_processes(settings) > 0


def reading_processes(settings: ExtractSettings) -> int:
    """Return how many processes read: enough that the threads of each do not hinder one another."""
    if settings.processes != "auto":
        return int(settings.processes)
    return -(-(settings.workers or wsi.available_cores()) // _THREADS_PER_PROCESS)


def stream_of(sources: Iterable[tuple[wsi.Slide, wsi.TileGrid]], settings: ExtractSettings) -> wsi.TileStream:
    """Return the stream that reads as the settings ask."""
    return wsi.stream(
        sources,
        batch_size=settings.batch_size,
        workers=settings.workers or None,
        memory=int(settings.memory_gb * 1e9),
        processes=reading_processes(settings),
        read_timeout=settings.read_timeout,
        slide_timeout=settings.slide_timeout,
    )
