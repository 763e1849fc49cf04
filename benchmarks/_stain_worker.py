"""One stain normalizer in a process of its own, with the Python of its environment; see `_turns.Worker`.

    {"do": "run", "who": "tiatoolbox_reinhard", "tiles": FILE, "target": FILE, "count": 8}
        → {"cpu": seconds per Mpx}; the tiles are (N, S, S, 3) uint8, the first `count` are normalized
    {"do": "look", "who": …, "tiles": FILE, "target": FILE, "into": FILE} → the file holds all tiles, normalized
    {"do": "vectors", "tiles": FILE} → {"vectors": of each tile, [[H], [E]]} as torchstain fits them
    {"do": "versions", "of": ["torchstain"]}

What is fitted once for a slide (the target; for ours, the slide) is fitted before the clock runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Any]
TURN = 0.1
"""Core seconds of a turn, at least."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(tiles: np.ndarray, target: np.ndarray) -> Run:
    slides, out = fitted(tiles, target), np.empty_like(tiles)

    def run(some: np.ndarray) -> None:
        for params, rows in slides:
            params.apply(some[rows], out[: len(some)][rows])

    return run


def ours_fused(tiles: np.ndarray, target: np.ndarray) -> Run:
    slides, side = fitted(tiles, target), tiles.shape[1]
    levels = (np.arange(256)[None] / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    out = np.empty((len(tiles), 3, side, side), np.float32)

    def run(some: np.ndarray) -> None:
        for params, rows in slides:
            params.apply_normalized(some[rows], levels.astype(np.float32), out[: len(some)][rows])

    return run


def nine_lookups(tiles: np.ndarray, target: np.ndarray) -> Run:
    """Look up as ours does, without its test for amounts that are clamped: wrong there, and what ours is at best."""
    from numba import njit

    from stain import macenko
    from stain.tables import QUICK_FIELD, ROUGH_FIELD

    slides, out = fitted(tiles, target), np.empty_like(tiles)
    made = [(macenko.tables_of(params.white, params.source, params.target), rows) for params, rows in slides]
    mask, _2, _3 = (np.uint64(number) for number in (2**QUICK_FIELD - 1, 2, 3))
    first, second, third = (np.uint64(2 * ROUGH_FIELD + k * QUICK_FIELD) for k in range(3))
    red, green, blue = (np.uint64(number) for number in (0, 256, 512))
    one = np.uint64(1)

    @njit(nogil=True)
    def change(pixels: np.ndarray, into: np.ndarray, quick: np.ndarray, levels: np.ndarray) -> None:
        for k in range(np.uint64(pixels.shape[0] // 3)):
            i = _3 * k
            word = quick[red + pixels[i]] + quick[green + pixels[i + one]] + quick[blue + pixels[i + _2]]
            into[i] = levels[(word >> first) & mask]
            into[i + one] = levels[(word >> second) & mask]
            into[i + _2] = levels[word >> third]

    def run(some: np.ndarray) -> None:
        for tables, rows in made:
            into = out[: len(some)][rows].reshape(-1)
            change(some[rows].reshape(-1), into, tables.quick.reshape(-1).view(np.uint64), tables.levels)

    return run


def copy(tiles: np.ndarray, _: np.ndarray) -> Run:
    out = np.empty_like(tiles)
    return lambda some: np.copyto(out[: len(some)], some)


def fitted(tiles: np.ndarray, target: np.ndarray) -> list[tuple[Any, slice]]:
    """Return the parameters of each of four slides, and which rows are its tiles."""
    import stain
    from stain import replace

    replace._way.left = 0  # machine code from the first pixel on
    each = len(tiles) // 4
    rows = [slice(first, first + each) for first in range(0, len(tiles), each)]
    slides = [(stain.fit("macenko", tiles[some], reference=target), some) for some in rows]
    assert all(params.status == "ok" for params, _ in slides)
    return slides


def to_tensor(_: np.ndarray, __: np.ndarray) -> Run:
    """All tensors are kept, as a loader must until the batch is whole."""
    transform = torchvision_transform()
    return lambda some: [transform(tile) for tile in some]


def to_tensor_in_cache(_: np.ndarray, __: np.ndarray) -> Run:
    """Each tensor is thrown away: memory comes back warm, which no batch ever gets."""
    transform = torchvision_transform()

    def run(some: np.ndarray) -> None:
        for tile in some:
            transform(tile)

    return run


def torchvision_transform() -> Any:
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def tiatoolbox(method: str) -> Callable[[np.ndarray, np.ndarray], Run]:
    def make(_: np.ndarray, target: np.ndarray) -> Run:
        from tiatoolbox.tools.stainnorm import get_normalizer

        normalizer = get_normalizer(method)
        normalizer.fit(target.copy())
        return lambda some: [normalizer.transform(tile.copy()) for tile in some]  # it writes into what it is given

    return make


def torchstain(backend: str) -> Callable[[np.ndarray, np.ndarray], Run]:
    def make(_: np.ndarray, target: np.ndarray) -> Run:
        import torch
        import torchstain

        torch.set_num_threads(1)
        normalizer = torchstain.normalizers.MacenkoNormalizer(backend=backend)

        def given(tile: np.ndarray) -> Any:
            return tile if backend == "numpy" else torch.from_numpy(tile).permute(2, 0, 1)

        normalizer.fit(given(target))
        return lambda some: [normalizer.normalize(given(tile), stains=False)[0] for tile in some]

    return make


CANDIDATES = {
    "ours": ours,
    "ours_fused": ours_fused,
    "nine_lookups": nine_lookups,
    "copy": copy,
    "totensor": to_tensor,
    "totensor_in_cache": to_tensor_in_cache,
    "tiatoolbox_reinhard": tiatoolbox("reinhard"),
    "tiatoolbox_macenko": tiatoolbox("macenko"),
    "torchstain_numpy": torchstain("numpy"),
    "torchstain_torch": torchstain("torch"),
}


@cache
def loaded(file: str) -> np.ndarray:
    return np.load(file)


@cache
def made(who: str, tiles: str, target: str) -> Run:
    return CANDIDATES[who](loaded(tiles), loaded(target))


def run(command: dict[str, Any]) -> dict[str, Any]:
    """Take a turn of whole passes: who is quick is measured for as long as who is slow."""
    work = made(command["who"], command["tiles"], command["target"])
    some = loaded(command["tiles"])[: command["count"]]
    began, spent, passes = time.process_time(), 0.0, 0
    while spent < TURN:
        work(some)
        spent, passes = time.process_time() - began, passes + 1
    return {"cpu": spent / passes / (some.size / 3e6)}


def look(command: dict[str, Any]) -> dict[str, Any]:
    tiles = loaded(command["tiles"])
    found = [np.asarray(one) for one in made(command["who"], command["tiles"], command["target"])(tiles)]
    np.save(command["into"], np.stack(found).astype(np.float64))
    return {"tiles": len(found)}


def vectors(command: dict[str, Any]) -> dict[str, Any]:
    import torchstain as peer

    found = []
    for tile in loaded(command["tiles"]):
        normalizer = peer.normalizers.MacenkoNormalizer(backend="numpy")
        normalizer.fit(tile)
        found.append(normalizer.HERef.T.tolist())
    return {"vectors": found}


def versions(command: dict[str, Any]) -> dict[str, str]:
    return {name: version(name) for name in command["of"]}


def main() -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for text in sys.stdin:
        command = json.loads(text)
        try:
            answer: dict[str, Any] = {"run": run, "look": look, "vectors": vectors, "versions": versions}[
                command["do"]
            ](command)
        except Exception as error:  # the border: another project's code
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
