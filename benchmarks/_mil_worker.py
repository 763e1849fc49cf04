"""One way of training or predicting in a process of its own (see `_turns.Worker`).

    {"do": "epoch", "way": "ours", "sizes": [5100, 4800], "dim": 1024} → {"cpu": seconds, "wall": …, "tiles": 9900}
    {"do": "infer", "file": FILE, "tiles": 100000, "dim": 1536} → {"mb": memory of its own above the start, "cpu": …}
    {"do": "versions", "of": ["torch"]} → {"torch": "2.15.0"}

Features are random and lie in memory before the clock runs, in the type that the way trains on. No dropout: not all
have it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

HIDDEN, ATTENTION = 512, 256
Epoch = Callable[[], None]


def features(sizes: list[int], dim: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.normal(size=(n, dim)).astype(np.float16)) for n in sizes]


def ours(sizes: list[int], dim: int) -> Epoch:
    """The trainer's own pass over the bags, one slide a step."""
    return our_pass(sizes, dim, batch_size=1)


def packed(sizes: list[int], dim: int) -> Epoch:
    """All bags in one step, end to end."""
    return our_pass(sizes, dim, batch_size=len(sizes))


def padded(sizes: list[int], dim: int) -> Epoch:
    """All bags in one step, each as long as the longest: the same operations, on rows that are then not used."""
    return our_pass([max(sizes)] * len(sizes), dim, batch_size=len(sizes))


def our_pass(sizes: list[int], dim: int, batch_size: int) -> Epoch:
    import mil
    from mil.fit import Fit, Side
    from mil.prepared import PreparedBags
    from mil.tasks import Classification

    settings = mil.TrainSettings(precision="bfloat16", dropout=0.0, decorrelate=0.0, batch_size=batch_size)
    bags = [mil.Bag.from_list([x]) for x in features(sizes, dim)]
    target = torch.arange(len(bags), dtype=torch.float64)[:, None] % 2
    side = Side(PreparedBags(bags, lambda bag: bag, torch.bfloat16, 1e12, "cpu"), target)
    head = mil.create_head("gated_abmil", dim, 2, hidden=HIDDEN, attention=ATTENTION, dropout=0.0)
    head.fused = head.prepared = True
    fit = Fit(head, Classification(("a", "b")).fitted(target.numpy()), side, side, settings)
    return lambda: fit._pass() and None


class Plain(torch.nn.Module):
    """Gated attention as it is usually written."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(torch.nn.Linear(dim, HIDDEN), torch.nn.ReLU())
        self.v, self.u = torch.nn.Linear(HIDDEN, ATTENTION), torch.nn.Linear(HIDDEN, ATTENTION)
        self.w, self.classifier = torch.nn.Linear(ATTENTION, 1), torch.nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        a = torch.softmax(self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))), dim=0)
        return self.classifier(a.T @ h)


def plain(sizes: list[int], dim: int) -> Epoch:
    bags, model = [x.float() for x in features(sizes, dim)], Plain(dim)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def epoch() -> None:
        for i, x in enumerate(bags):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), torch.tensor([i % 2])).backward()
            optimizer.step()

    return epoch


def torchmil(sizes: list[int], dim: int) -> Epoch:
    from torchmil.models import ABMIL

    bags = [x.float()[None] for x in features(sizes, dim)]
    embed = torch.nn.Sequential(torch.nn.Linear(dim, HIDDEN), torch.nn.ReLU())
    model = ABMIL(in_shape=(dim,), att_dim=ATTENTION, gated=True, feat_ext=embed)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def epoch() -> None:
        for i, x in enumerate(bags):
            optimizer.zero_grad()
            _, losses = model.compute_loss(torch.tensor([float(i % 2)]), x)
            sum(losses.values()).backward()
            optimizer.step()

    return epoch


def gemm(sizes: list[int], dim: int) -> Epoch:
    """The five bfloat16 products that forward and backward need, and nothing else: one call each for every bag."""
    return products(sizes, dim, max(sizes))


def gemm_pieces(sizes: list[int], dim: int) -> Epoch:
    """The same products over 1,024 tiles at a time; the pieces of the weights' gradients are not even added up."""
    return products(sizes, dim, 1024)


def products(sizes: list[int], dim: int, piece: int) -> Epoch:
    half = torch.bfloat16
    bags = [x.to(half) for x in features(sizes, dim)]
    first, second = torch.randn(HIDDEN, dim).to(half), torch.randn(2 * ATTENTION, HIDDEN).to(half)
    h, g = torch.randn(max(sizes), HIDDEN).to(half), torch.randn(max(sizes), 2 * ATTENTION).to(half)

    def epoch() -> None:
        for bag in bags:
            for start in range(0, len(bag), piece):
                x = bag[start : start + piece]
                hidden, gated = h[: len(x)], g[: len(x)]
                _ = x @ first.T, hidden @ second.T, gated @ second, gated.T @ hidden, hidden.T @ x

    return epoch


WAYS = {way.__name__: way for way in (ours, packed, padded, plain, torchmil, gemm, gemm_pieces)}


@cache
def way_of(name: str, sizes: tuple[int, ...], dim: int) -> Epoch:
    return WAYS[name](list(sizes), dim)


def epoch(command: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    one = way_of(command["way"], tuple(command["sizes"]), command["dim"])
    wall, cpu = time.perf_counter(), time.process_time()
    one()
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "tiles": sum(command["sizes"]),
    }


def infer(command: dict[str, Any]) -> dict[str, Any]:
    """Predict one large slide from a mapped file; pages of the file are the system's, not ours."""
    import mil
    from mil.predict import infer as predict

    head = mil.create_head("gated_abmil", command["dim"], 2, hidden=HIDDEN, attention=ATTENTION)
    predict(head, mil.Bag.from_list([torch.zeros(5000, command["dim"], dtype=torch.float16)]))
    rows = np.memmap(command["file"], np.float16, "c", shape=(command["tiles"], command["dim"]))
    bag = mil.Bag(torch.from_numpy(rows), torch.tensor([0, len(rows)]))
    start, peak, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu = time.process_time()
    predict(head, bag)
    cpu = time.process_time() - cpu
    done.set()
    watcher.join()
    return {"mb": (peak[0] - start) / 1e6, "cpu": cpu}


def own_memory() -> int:
    """Bytes of this process that are no pages of a file."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("RssAnon"):
            return int(text.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def versions(command: dict[str, Any]) -> dict[str, str]:
    return {name: version(name) for name in command["of"]}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    for text in sys.stdin:
        command = json.loads(text)
        try:
            answer: dict[str, Any] = {"epoch": epoch, "infer": infer, "versions": versions}[command["do"]](command)
        except Exception as error:  # the border: another project's model
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
