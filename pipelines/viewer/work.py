"""Reading and drawing in threads: as many at once as there are cores, the same thing once, for nobody not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .tile_cache import TileCache

Asker = Callable[[], Awaitable[bool]]
"""Says whether who asked has gone."""


class NobodyWaitsError(Exception):
    """All who asked have gone before their turn came."""


@dataclass
class _Asked:
    """What is being made, and who waits for it."""

    made: asyncio.Future[bytes | None]
    askers: list[Asker] = field(default_factory=list)


class Work:
    """Makes bytes, each only once while it is kept.

    Args:
        threads: that work at once.
        cache: of what was made.
    """

    def __init__(self, threads: int, cache: TileCache) -> None:
        self.cache = cache
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="viewer")
        self._places = asyncio.Semaphore(threads)
        self._asked: dict[Hashable, _Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def make(self, key: Hashable, how: Callable[[], bytes | None], gone: Asker) -> bytes | None:
        """Return the bytes under a key, made in a thread where they are not kept; None where there are none.

        Raises:
            NobodyWaitsError: who asked has gone.
        """
        kept = self.cache.get(key)
        if kept is not None:
            return kept
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.get_running_loop().create_future())
            task = asyncio.create_task(self._run(key, how, asked))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        asked.askers.append(gone)
        return await asyncio.shield(asked.made)

    async def _run(self, key: Hashable, how: Callable[[], bytes | None], asked: _Asked) -> None:
        try:
            async with self._places:
                if all([await gone() for gone in asked.askers]):
                    raise NobodyWaitsError
                data = await asyncio.get_running_loop().run_in_executor(self._threads, how)
            if data is not None:
                self.cache.put(key, data)
            asked.made.set_result(data)
        except Exception as error:  # it belongs to those who wait
            asked.made.set_exception(error)
            asked.made.exception()  # where all have gone, nobody else looks at it
        finally:
            del self._asked[key]

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
