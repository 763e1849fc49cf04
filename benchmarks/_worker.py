"""One reader in a process of its own, with the Python of its environment: takes commands, answers with seconds.

A command is one JSON line on stdin, its answer one JSON line on stdout (see `_turns.Worker`):

    {"do": "read", "reader": "pyvips", "case": FILE, "rows": [[0, 400]], "threads": 1}
        → {"cpu": seconds, "wall": seconds, "tiles": 400, "mean": of the middle pixels}
    {"do": "look", "reader": "pyvips", "case": FILE, "rows": [[7, 8], [90, 91]], "into": "pixels.npy"}
        → {"tiles": 2}; the file holds their pixels
    {"do": "versions", "of": ["pyvips"]} → {"pyvips": "3.2.0"}

Slides are opened anew for each command, so that no cache outlives a round; opening counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from _peers import PEERS

Reader = Callable[[dict[str, Any], list[int], int], tuple[int, float]]


@cache
def case_in(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


def read(command: dict[str, Any]) -> dict[str, Any]:
    case, rows = case_in(command["case"]), rows_of(command)
    reader = reader_named(command["reader"], command["case"])
    wall, cpu = time.perf_counter(), time.process_time()
    tiles, total = reader(case, rows, command["threads"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "tiles": tiles, "mean": total / max(1, tiles)}


def rows_of(command: dict[str, Any]) -> list[int]:
    return [row for one in command["rows"] for row in range(*one)]


@cache
def reader_named(name: str, case: str) -> Reader:
    """Return what reads; what the decoder alone needs is fetched here, before the clock runs."""
    if name == "ours":
        return ours
    if name == "limit":
        from _own import Limit

        limit = Limit(case_in(case))
        return lambda case, _, threads: (len(case["xy"]), float(limit(threads) * 0))
    return lambda case, rows, threads: peer(name, case, rows, threads)


def ours(case: dict[str, Any], _: list[int], threads: int) -> tuple[int, float]:
    from _own import ours

    tiles, total, middle = 0, 0, case["size"] // 2
    for batch in ours(case, threads):
        tiles += int(batch.ok.sum())
        total += int(batch.pixels[:, middle, middle, 1].sum())
    return tiles, total


def peer(name: str, case: dict[str, Any], rows: list[int], threads: int) -> tuple[int, float]:
    """Read with one thread, or let each thread read its share with a slide of its own."""
    if threads == 1:
        return one_run(name, case, rows)
    shares = [rows[len(rows) * i // threads : len(rows) * (i + 1) // threads] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda share: one_run(name, case, share), shares))
    return sum(tiles for tiles, _ in found), sum(total for _, total in found)


def one_run(name: str, case: dict[str, Any], rows: list[int]) -> tuple[int, int]:
    tiles, total, middle = 0, 0, case["size"] // 2
    for _, pixels in PEERS[name](case, rows):
        tiles += 1
        total += int(pixels[middle, middle, 1])
    return tiles, total


def look(command: dict[str, Any]) -> dict[str, Any]:
    case = case_in(command["case"])
    wanted = rows_of(command)
    found = dict(pixels_of(command["reader"], case, wanted))
    np.save(command["into"], np.stack([found[row] for row in wanted]))
    return {"tiles": len(found)}


def pixels_of(name: str, case: dict[str, Any], wanted: list[int]) -> Iterable[tuple[int, np.ndarray]]:
    if name != "ours":
        for row in wanted:
            yield from ((i, np.array(pixels)) for i, pixels in PEERS[name](case, [row]))
        return
    from _own import ours

    for batch in ours(case, 1):
        for i in np.flatnonzero(np.isin(batch.index, wanted)):
            yield int(batch.index[i]), batch.pixels[i].copy()


def versions(command: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in command["of"]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def quiet_threads() -> None:
    """One thread each for what would start some by itself: threads are asked for, not helped to."""
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    quiet_threads()
    for text in sys.stdin:
        command = json.loads(text)
        try:
            answer: dict[str, Any] = {"read": read, "look": look, "versions": versions}[command["do"]](command)
        except Exception as error:  # the border: another project's reader
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
