"""Is the bottleneck named right, and the time forecast?    python benchmarks/verdict.py [--quick]

Ten bottlenecks are planted in real runs: slides in memory whose reads sleep, wait for each other or compute; an
encoder, a stain normalization, a tissue step, a writer that sleep; one core; little memory. Each case is planned
(`slidemil plan`) and then extracted by the machinery of any slide. The verdict of the run is held against what was
planted, never against a meter of ours; the forecast is that of the plan. Nothing is tried twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from _summary import line, summary

import stain
import wsi
from pipelines import extract_stage, records
from pipelines.config import load_settings

GOALS = {"named_right": (">=", 9), "forecast_within_15pct": (">=", 7)}
WITHIN = 0.15
OnRead = Callable[[int, int, int, int, int], None]


@dataclass(frozen=True)
class Plant:
    """One planted bottleneck.

    Attributes:
        truth: what limits the run; two where they are planted to take as long.
        on_read: what a read of a tile does.
        encode: seconds that the encoder sleeps per tile.
        encode_core: core seconds that it computes per tile.
        normalize: seconds that stain normalization sleeps per tile.
        tissue: seconds that the tissue step sleeps per slide.
        write: seconds that the writing of an output sleeps.
        one_core: whether the process may use one core only.
        across: tiles in a row, and in a column, of a slide.
        slides: how many.
        settings: of the run.
    """

    truth: frozenset[str]
    on_read: OnRead
    encode: float = 0.0002
    encode_core: float = 0.0
    normalize: float = 0.0
    tissue: float = 0.0
    write: float = 0.0
    one_core: bool = False
    across: int = 24
    slides: int = 6
    settings: dict[str, Any] = field(default_factory=dict)


def sleeps(mean: float, sigma: float = 0.5) -> OnRead:
    """Return a storage of lognormal latency: reads do not disturb each other."""
    dice, lock = random.Random(1), threading.Lock()
    middle = np.log(mean) - sigma**2 / 2

    def read(*_: int) -> None:
        with lock:
            span = dice.lognormvariate(middle, sigma)
        time.sleep(span)

    return read


def shares(seconds: float) -> OnRead:
    """Return a storage of little bandwidth: it serves one read after the other, whoever asks."""
    lock = threading.Lock()

    def read(*_: int) -> None:
        with lock:
            time.sleep(seconds)

    return read


def computes(seconds: float) -> OnRead:
    """Return a decoder: core seconds without the interpreter's lock."""

    def read(*_: int) -> None:
        burn(seconds)

    return read


def burn(seconds: float) -> None:
    data = bytes(1 << 15)
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        hashlib.sha256(data)


def quick_read(*_: int) -> None:
    """Take no time."""


def only(*truth: str) -> frozenset[str]:
    return frozenset(truth)


PLANTS = {
    "slow disk": Plant(only("storage"), sleeps(0.012), settings={"workers": 4}),
    "low bandwidth": Plant(only("storage"), shares(0.004)),
    "few readers": Plant(only("readers"), computes(0.003), settings={"workers": 1}),
    "few cores": Plant(only("cores"), computes(0.003), encode=0.0, encode_core=0.0015, one_core=True),
    "slow encoder": Plant(only("encoder"), sleeps(0.002), encode=0.004, settings={"workers": 2}),
    "heavy stain": Plant(
        only("stain"), sleeps(0.002), normalize=0.004, encode=0.001, settings={"workers": 2, "stain": "reinhard"}
    ),
    "slow tissue": Plant(only("preparation"), sleeps(0.002), tissue=2.0, across=12, settings={"workers": 4}),
    "slow writing": Plant(only("writing"), sleeps(0.002), write=1.2, across=16, settings={"workers": 4}),
    "tiny memory": Plant(
        only("memory"),
        sleeps(0.150, 0.2),
        encode=0.0005,
        settings={"workers": 200, "memory_gb": 0.1, "tile": 512},
    ),
    "balanced": Plant(only("storage", "encoder"), sleeps(0.012, 0.2), encode=0.003, settings={"workers": 4}),
}


class PlantedSlide(wsi.MemorySlide):
    """Tissue from edge to edge, of any size in no memory: every row is the same."""

    def __init__(self, path: Path, plant: Plant, tile: int) -> None:
        side = plant.across * tile
        seed = int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)
        super().__init__([stripes(side, seed), stripes(side // 4, seed), stripes(side // 16, seed)], mpp=0.5)
        self.name = path.name
        self._tile, self._slow = tile, plant.on_read

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Any:
        if (width, height, level) == (self._tile, self._tile, 0):
            self._slow(x, y, width, height, level)
        return super()._read(x, y, width, height, level)


def stripes(side: int, seed: int) -> Any:
    dice = np.random.default_rng(seed)
    row = dice.integers(90, 200, (1, side, 1)) * np.array([1.0, 0.6, 0.9])
    return np.broadcast_to(row.astype(np.uint8), (side, side, 3))


class PlantedEncoder:
    """Sleeps as a device does, or computes; its features are mean colors."""

    id, dim, device = "planted", 3, "cpu"

    def __init__(self, plant: Plant, tile: int) -> None:
        self.input_size, self._plant = tile, plant
        self.tiles = 0

    def __call__(self, pixels: Any) -> Any:
        """Encode a batch."""
        self.tiles += len(pixels)
        time.sleep(self._plant.encode * len(pixels))
        burn(self._plant.encode_core * len(pixels))
        return pixels[:, ::16, ::16].reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)

    def passport(self) -> dict[str, Any]:
        """Say what it is."""
        return {"id": self.id, "seconds": self._plant.encode}


@contextmanager
def planted(plant: Plant, tile: int) -> Iterator[PlantedEncoder]:
    """Put slow parts in the place of real ones, and give the encoder."""
    write, fit = records.write_bytes, stain.fit
    encoder = PlantedEncoder(plant, tile)

    def open_slide(path: Path, **_: Any) -> wsi.Slide:
        return PlantedSlide(Path(path), plant, tile)

    def find_tissue(slide: wsi.Slide, **_: Any) -> wsi.Tissue:
        time.sleep(plant.tissue)
        return all_tissue(slide)

    def write_bytes(path: Path, data: bytes) -> None:
        time.sleep(plant.write)
        write(path, data)

    def slow_fit(*given: Any, **more: Any) -> Any:
        return SlowParams(fit(*given, **more), plant.normalize)

    with ExitStack() as stack:
        for home, name, stand_in in (
            (wsi, "open_slide", open_slide),
            (wsi, "find_tissue", find_tissue),
            (records, "write_bytes", write_bytes),
            (stain, "fit", slow_fit),
            (extract_stage, "encoders_of", lambda *_, **__: [encoder]),
        ):
            stack.enter_context(mock.patch.object(home, name, stand_in))
        if plant.one_core:
            before = os.sched_getaffinity(0)
            stack.callback(os.sched_setaffinity, 0, before)
            os.sched_setaffinity(0, {min(before)})
        yield encoder


def all_tissue(slide: wsi.Slide) -> wsi.Tissue:
    """Return tissue from edge to edge on a small picture: what is planted must be the only thing that takes long."""
    picture = slide.read(0, 0, 64, 64, level=2)
    scale = slide.size[0] / 64, slide.size[1] / 64
    return wsi.Tissue(slide.name, np.ones((64, 64), bool), np.zeros((64, 64), bool), scale, picture)


class SlowParams:
    """Stain parameters that sleep whenever they are applied."""

    def __init__(self, params: Any, seconds: float) -> None:
        self._params, self._seconds = params, seconds

    def __getattr__(self, name: str) -> Any:
        """Be like the parameters in all else."""
        return getattr(self._params, name)

    def apply(self, pixels: Any, out: Any = None) -> Any:
        """Normalize a batch."""
        time.sleep(self._seconds * len(pixels))
        return self._params.apply(pixels, out)


def run(name: str, plant: Plant, folder: Path, probe: float) -> dict[str, Any]:
    """Plan a planted case, extract it, and return what was said."""
    tile = int(plant.settings.get("tile", 64))
    slides = folder / name.replace(" ", "-")
    slides.mkdir(parents=True)
    for number in range(plant.slides):
        (slides / f"s{number}.svs").write_bytes(os.urandom(1000))
    settings = load_settings(options={"tile": tile, "processes": "0", "quality": False, **plant.settings})
    job = folder / f"{slides.name}-job"
    with planted(plant, tile) as encoder:
        plan = extract_stage.plan([slides], job, settings, seconds=probe, quiet=True)
        probed = encoder.tiles
        outcome = extract_stage.extract([slides], job, settings, quiet=True)
    assert 0 < probed < encoder.tiles, "the planted encoder was not used"
    assert len(outcome.done) == plant.slides, outcome.failed
    scored = outcome.more["forecast"]
    verdict = outcome.more["verdict"]
    named = {verdict["limit"], *(verdict["beside"] if len(plant.truth) > 1 else ())}
    return {
        "planted": sorted(plant.truth),
        "named": verdict["limit"],
        "beside": verdict["beside"],
        "right": named == plant.truth,
        "forecast": plan.data["verdict"]["limit"],
        "forecast_s": scored["forecast_seconds"],
        "actual_s": scored["actual_seconds"],
        "ratio": scored["ratio"],
        "said": outcome.bottleneck,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three small cases")
    parser.add_argument("--only", help="one case")
    args = parser.parse_args()
    plants = {name: plant for name, plant in PLANTS.items() if args.only in (None, name)}
    if args.quick:
        small = ("slow disk", "slow encoder", "heavy stain")
        plants = {name: dataclasses.replace(PLANTS[name], across=12, slides=2) for name in small}
    probe = 3.0 if args.quick else 10.0
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, plant in plants.items():
            found.append(run(name, plant, Path(folder), probe))
            line(case=name, **found[-1])
    figures = {
        "named_right": sum(case["right"] for case in found),
        "forecast_within_15pct": sum(abs(case["ratio"] - 1) <= WITHIN for case in found),
        "forecast_named_right": sum(case["forecast"] in case["planted"] for case in found),
        "cases": len(found),
    }
    how = {"probe_s": probe, "cores": wsi.available_cores(), "python": sys.version.split()[0]}
    summary("verdict", figures, GOALS, how)


if __name__ == "__main__":
    main()
