"""Train the embedded encoder, without a label.    python benchmarks/_train_embedded.py -o mil/encoders/FILE.safetensors

Of two neighboring tiles in other colors, turned and mirrored at will, the network has to tell

* what the classical descriptors measure on each in its true colors (159 numbers, distilled through one linear layer);
* nearly the same in an embedding whose parts vary and are independent (VICReg, Bardes et al., ICLR 2022,
  arXiv:2105.04906), after the mean of each source is taken away, so that a slide's colors and habits earn nothing.

The network learns the numbers of the descriptors only to see what they see: the layer that tells them is thrown away.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from _ssl_tiles import SIDE, Pairs, pairs
from _summary import line
from torch import Tensor, nn
from torch.nn import functional

from mil.encoders.compact import Compact
from mil.encoders.descriptors import DescriptorEncoder
from stain.augment import jitter_stains

SOURCES_OF_BATCH, PAIRS_OF_SOURCE = 4, 16
EMBEDDING = 256


class Student(nn.Module):
    """The network, with the two heads that only training needs."""

    def __init__(self, measures: int) -> None:
        super().__init__()
        self.network = Compact()
        width = self.network.num_features
        self.measures = nn.Linear(width, measures)
        self.embedding = nn.Sequential(nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared tiles → what the descriptors should say, and the embedding."""
        with torch.autocast(x.device.type, torch.bfloat16):
            learned = self.network.maps(x)
        pooled = learned.float().mean((2, 3))
        return self.measures(pooled), self.embedding(pooled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--embedding", type=float, default=0.5, help="weight of VICReg beside the descriptors'")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    bank = pairs(args.pairs, args.seed)
    targets = measured(bank)
    student = Student(targets.shape[-1])
    train(student, bank, targets, args)
    network = student.network
    for kernel in (one for one in network.parameters() if one.ndim == 4):
        kernel.data = kernel.data.half().float()  # as the file will hold them
    settle(network, bank)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.half() if value.ndim == 4 else value for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, args.out)
    line(out=args.out.name, bytes=args.out.stat().st_size, parameters=sum(p.numel() for p in network.parameters()))


def measured(bank: Pairs) -> Tensor:
    """Return what the descriptors say of each tile, (N, 2, 159), each of mean 0 and spread 1, cut at 3."""
    found = torch.from_numpy(DescriptorEncoder()(bank.tiles.reshape(-1, SIDE, SIDE, 3)))
    found = ((found - found.mean(0)) / found.std(0).clamp(min=1e-6)).clamp(-3, 3)
    return found.reshape(len(bank.tiles), 2, -1)


def train(student: Student, bank: Pairs, targets: Tensor, args: argparse.Namespace) -> None:
    """Run all steps: AdamW, a rate that rises over the first twentieth and falls like a cosine."""
    rows = [np.flatnonzero(bank.sources == n) for n in np.unique(bank.sources)]
    chance = np.array([len(one) for one in rows]) / len(bank.sources)
    rng = np.random.default_rng([args.seed, 2])
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.rate, weight_decay=0.02)
    began, seen = time.perf_counter(), []
    student.train()
    for step in range(args.steps):
        done = step / args.steps
        rate = args.rate * min(1.0, 20 * (step + 1) / args.steps) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn = rng.choice(len(rows), SOURCES_OF_BATCH, replace=False, p=chance)
        batch = np.concatenate([rng.choice(rows[n], PAIRS_OF_SOURCE) for n in drawn])
        views = [view(bank.tiles[batch, k], (args.seed, step, k)) for k in range(2)]
        said, embedded = student(torch.cat(views))
        wanted = torch.cat([targets[batch, 0], targets[batch, 1]])
        distilled = functional.smooth_l1_loss(said, wanted)
        regular = vicreg(embedded)
        loss = distilled + args.embedding * regular
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((distilled.item(), regular.item()))
        if (step + 1) % 20 == 0 or step + 1 == args.steps:
            descriptors, embedding = np.mean(seen[-20:], axis=0)
            line(step=step + 1, descriptors=round(descriptors, 4), embedding=round(embedding, 4),
                 seconds=round(time.perf_counter() - began, 1))  # fmt: skip


def view(tiles: np.ndarray, seed: tuple[int, ...]) -> Tensor:
    """Return tiles (B, S, S, 3) in other colors and another position, as the network takes them."""
    rng = np.random.default_rng([*seed, 3])
    colored = np.empty_like(tiles)
    for turn, rows in enumerate(np.array_split(rng.permutation(len(tiles)), 8)):
        turned = np.rot90(tiles[rows], turn % 4, axes=(1, 2))
        colored[rows] = turned[:, :, ::-1] if turn >= 4 else turned
    colored = jitter_stains(colored, seed=[*seed], strength=0.35)
    x = torch.from_numpy(colored).permute(0, 3, 1, 2).float() / 255
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.12, (len(tiles), 3, 1, 1)))).float()  # of density, per color
    return 2 * x.clamp(1 / 255, 1) ** gain - 1


def vicreg(embedded: Tensor) -> Tensor:
    """Embeddings (2B, E), both views one after the other, sources in blocks → their loss."""
    first, second = embedded.chunk(2)
    loss = functional.mse_loss(first, second)
    for one in (first, second):
        parts = one.reshape(SOURCES_OF_BATCH, PAIRS_OF_SOURCE, -1)
        centered = (parts - parts.mean(1, keepdim=True)).flatten(0, 1)
        covariance = centered.T @ centered / (len(centered) - SOURCES_OF_BATCH)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        outside = covariance - torch.diag(covariance.diagonal())
        loss = loss + 0.5 * functional.relu(1 - spread).mean() + 0.02 * outside.square().sum() / len(covariance)
    return loss


@torch.no_grad()
def settle(network: Compact, bank: Pairs) -> None:
    """Give each feature mean 0 and spread 1 over the tiles of training, in their true colors."""
    network.eval()
    tiles = torch.from_numpy(bank.tiles[:, 0]).permute(0, 3, 1, 2)
    pooled = torch.cat([network.maps(part.float() / 127.5 - 1).mean((2, 3)) for part in tiles.split(64)])
    network.norm.running_mean.copy_(pooled.mean(0))
    network.norm.running_var.copy_(pooled.var(0).clamp(min=1e-6))


if __name__ == "__main__":
    main()
