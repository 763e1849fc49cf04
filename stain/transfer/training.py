"""Training in seeded steps: what a step does depends on the settings, the images and its number, and on nothing else.

So a run that was stopped goes on from its last checkpoint as if it had never stopped: same device, same bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stain.errors import ParametersError, PixelFormatError

from .losses import ImagePool, looks_real, told_apart
from .model import TransferModel
from .networks import STRIDE, Discriminator, Generator, to_floats

Pixels = NDArray[np.uint8]

_BETAS: Final = (0.5, 0.999)
_FORMAT: Final = 1


@dataclass(frozen=True)
class TrainSettings:
    """How a transfer is trained.

    Attributes:
        paired: the images of the two stains show the same tissue, pixel by pixel.
        steps: batches; from half of them on the learning rate falls to 0 in a straight line.
        batch: crops of each stain in a batch.
        crop: side of a crop in pixels, a multiple of 4.
        width: channels of the generator at full resolution.
        blocks: residual blocks of the generator.
        rate: learning rate of Adam at the start.
        judging: learning rate of the discriminators, as a share of `rate`.
        cycle: weight of the way there and back (unpaired).
        identity: weight of leaving alone what is in the other stain already (unpaired).
        l1: weight of the mean absolute difference to the partner (paired).
        pool: earlier images that discriminators are shown, 0 for none.
        seed: of weights, crops and pool.

    Where we differ from the papers: weights of 10 and 5 hold a generator that begins as the identity there forever. It
    stands in the kink of both mean absolute differences, whose slope is the same however small the change; a judge that
    has learned to tell two stains is flat about each, and pulls with a tenth of that. Hence weights a tenth as large,
    and judges that learn more slowly than the generators.
    """

    paired: bool = False
    steps: int = 10_000
    batch: int = 1
    crop: int = 256
    width: int = 32
    blocks: int = 6
    rate: float = 2e-4
    judging: float = 0.25
    cycle: float = 1.0
    identity: float = 0.5
    l1: float = 100.0
    pool: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        whole = {name: getattr(self, name) for name in ("steps", "batch", "width", "blocks")}
        for name, value in whole.items():
            if value < 1:
                raise ParametersError(f"{name} = {value}: at least 1 is needed.")
        if self.crop < 64 or self.crop % STRIDE:
            raise ParametersError(f"crop = {self.crop}: a multiple of {STRIDE} is needed, 64 at least.")
        for name in ("rate", "judging", "cycle", "identity", "l1", "pool"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParametersError(f"{name} = {getattr(self, name)}: a number from 0 upwards is needed.")


class Crops:
    """Images of two stains, and the crops that each step takes of them.

    Args:
        first: (H, W, 3) uint8 images in the first stain, any sizes.
        second: the same in the second; for pairs, in the same order and of the same sizes.

    Raises:
        PixelFormatError: not RGB images.
    """

    def __init__(self, first: Sequence[Pixels], second: Sequence[Pixels]) -> None:
        self.first, self.second = list(first), list(second)
        for what, images in (("first", self.first), ("second", self.second)):
            if not images:
                raise PixelFormatError(f"there is no image in the {what} stain.")
            for image in images:
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                    raise PixelFormatError(f"an image in the {what} stain is no (H, W, 3) uint8.")

    def check(self, settings: TrainSettings) -> None:
        """Refuse images that do not serve.

        Raises:
            PixelFormatError: one is smaller than a crop, or pairs are none.
        """
        smallest = min(min(image.shape[:2]) for image in (*self.first, *self.second))
        if smallest < settings.crop:
            raise PixelFormatError(
                f"the smallest image is {smallest} px, a crop {settings.crop} px. Take smaller crops (--crop)."
            )
        shapes = [[image.shape for image in images] for images in (self.first, self.second)]
        if settings.paired and shapes[0] != shapes[1]:
            raise PixelFormatError(
                f"pairs must be as many ({len(shapes[0])} and {len(shapes[1])}) and of the same sizes."
            )

    def at(self, step: int, settings: TrainSettings) -> tuple[Pixels, Pixels]:
        """Return the crops of a step, turned and mirrored by chance: two of (B, S, S, 3) uint8."""
        dice = np.random.default_rng([settings.seed, step])
        if not settings.paired:
            batches = [self._batch(images, dice, settings) for images in (self.first, self.second)]
            return batches[0], batches[1]
        again = int(dice.integers(2**62))  # the same places in both
        pairs = [self._batch(im, np.random.default_rng(again), settings) for im in (self.first, self.second)]
        return pairs[0], pairs[1]

    def digest(self) -> str:
        """Return the SHA-256 of all images, which tells a run from another."""
        found = hashlib.sha256()
        for image in itertools.chain(self.first, [np.zeros(1, np.uint8)], self.second):
            found.update(repr(image.shape).encode())
            found.update(np.ascontiguousarray(image).data)
        return found.hexdigest()

    @staticmethod
    def _batch(images: Sequence[Pixels], dice: np.random.Generator, settings: TrainSettings) -> Pixels:
        areas = np.array([image.shape[0] * image.shape[1] for image in images], float)
        crops = []
        for _ in range(settings.batch):
            image = images[int(dice.choice(len(images), p=areas / areas.sum()))]
            y, x = (int(dice.integers(side - settings.crop + 1)) for side in image.shape[:2])
            crop = np.rot90(image[y : y + settings.crop, x : x + settings.crop], int(dice.integers(4)))
            crops.append(crop[:, ::-1] if dice.integers(2) else crop)
        return np.stack(crops)


class Trainer:
    """The networks of a run, their optimizers, and how far it is."""

    def __init__(self, settings: TrainSettings, device: str) -> None:
        self.settings, self.device, self.step = settings, device, 0
        channels = 6 if settings.paired else 3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            makers = ("there",) if settings.paired else ("there", "back")
            judges = ("second",) if settings.paired else ("first", "second")
            self.generators = nn.ModuleDict({name: Generator(settings.width, settings.blocks) for name in makers})
            self.judges = nn.ModuleDict({name: Discriminator(channels, settings.width) for name in judges})
        self.generators.to(device)
        self.judges.to(device)
        self.pools = {name: ImagePool(settings.pool, settings.seed + k + 1) for k, name in enumerate(judges)}
        self.optimizers = {
            "generators": torch.optim.Adam(self.generators.parameters(), settings.rate, _BETAS),
            "judges": torch.optim.Adam(self.judges.parameters(), settings.rate, _BETAS),
        }

    def advance(self, crops: Crops) -> dict[str, float]:
        """Do one step; return its losses."""
        rate = self.settings.rate * min(1.0, 2.0 * (1.0 - self.step / self.settings.steps))
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * (self.settings.judging if name == "judges" else 1.0)
        x, y = (to_floats(torch.from_numpy(some).to(self.device)) for some in crops.at(self.step, self.settings))
        losses, made = self._paired(x, y) if self.settings.paired else self._unpaired(x, y)
        self._follow("generators", sum(losses.values(), torch.zeros((), device=self.device)))
        judged = {
            f"judge_{name}": told_apart(judge(made[name][0]), judge(self.pools[name].swap(made[name][1], self.step)))
            for name, judge in self.judges.items()
        }
        self._follow("judges", sum(judged.values(), torch.zeros((), device=self.device)))
        self.step += 1
        return {name: float(value.detach()) for name, value in (losses | judged).items()}

    def _unpaired(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Return the generators' losses, and of each stain what its judge is to tell apart: real and made."""
        there, back, weights = self.generators["there"], self.generators["back"], self.settings
        like_y, like_x = there(x), back(y)
        losses = {
            "fools_first": looks_real(self.judges["first"](like_x)),
            "fools_second": looks_real(self.judges["second"](like_y)),
            "cycle": weights.cycle * (functional.l1_loss(back(like_y), x) + functional.l1_loss(there(like_x), y)),
        }
        if weights.identity:
            kept = functional.l1_loss(there(y), y) + functional.l1_loss(back(x), x)
            losses["identity"] = weights.identity * kept
        return losses, {"first": (x, like_x), "second": (y, like_y)}

    def _paired(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """The same for pairs: the judge sees an image beside what it was made from."""
        like_y = self.generators["there"](x)
        shown = torch.cat([x, like_y], dim=1)
        losses = {
            "fools_second": looks_real(self.judges["second"](shown)),
            "l1": self.settings.l1 * functional.l1_loss(like_y, y),
        }
        return losses, {"second": (torch.cat([x, y], dim=1), shown)}

    def _follow(self, name: str, loss: Tensor) -> None:
        """Take a step down the slope of a loss, for the networks of one side alone."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def checkpoint(self, digest: str) -> bytes:
        """Return everything that the rest of the run depends on; `restore` takes it back."""
        state = {
            "version": _FORMAT,
            "settings": asdict(self.settings),
            "images": digest,
            "step": self.step,
            "generators": self.generators.state_dict(),
            "judges": self.judges.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "pools": {name: pool.images for name, pool in self.pools.items()},
        }
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    def restore(self, data: bytes, digest: str) -> None:
        """Go on from a checkpoint.

        Raises:
            ParametersError: it is damaged, or of a run with other settings or images.
        """
        try:
            state: Mapping[str, Any] = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
            if state["version"] != _FORMAT:
                raise ValueError(f"version {state['version']!r}")
            settings = TrainSettings(**state["settings"])
        except (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ParametersError(f"the checkpoint is damaged ({error}). Start again with --force.") from error
        other = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(self.settings, f.name)]
        other += ["images"] if state["images"] != digest else []
        if other:
            raise ParametersError(
                f"the checkpoint is of a run with other {', '.join(other)}. Give what it was begun with, or --force."
            )
        self.step = int(state["step"])
        self.generators.load_state_dict(state["generators"])
        self.judges.load_state_dict(state["judges"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, pool in self.pools.items():
            pool.images = list(state["pools"][name])


def train(
    crops: Crops,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    checkpoint: bytes | None = None,
    keep: Callable[[bytes], None] | None = None,
    keep_every: int = 500,
    tell: Callable[[int, Mapping[str, float]], None] | None = None,
    config: Mapping[str, Any] | None = None,
) -> TransferModel:
    """Train a transfer, or go on where a checkpoint was made.

    Args:
        crops: the images.
        settings: how.
        device: "cpu", "cuda" …
        checkpoint: what `keep` was given last.
        keep: called with a checkpoint every `keep_every` steps, and after the last.
        keep_every: steps.
        tell: called after each step with its number and losses.
        config: what else the model shall say of itself, e.g. µm per pixel.

    Returns:
        The model, on the device.

    Raises:
        ParametersError: the checkpoint is of another run, or a loss is no number any more.
        PixelFormatError: the images do not serve.
    """
    crops.check(settings)
    digest = crops.digest()
    trainer = Trainer(settings, device)
    if checkpoint is not None:
        trainer.restore(checkpoint, digest)
    losses: dict[str, float] = {}
    with _repeatable():
        while trainer.step < settings.steps:
            losses = trainer.advance(crops)
            if not all(np.isfinite(value) for value in losses.values()):
                raise ParametersError(f"step {trainer.step}: a loss is no number any more ({losses}). Lower --rate.")
            if tell is not None:
                tell(trainer.step, losses)
            if keep is not None and (trainer.step % keep_every == 0 or trainer.step == settings.steps):
                keep(trainer.checkpoint(digest))
    told = {**asdict(settings), "images": digest, **(config or {})}
    networks = [network.eval() for network in trainer.generators.values()]
    assert all(isinstance(network, Generator) for network in networks)
    back = networks[1] if len(networks) > 1 else None
    return TransferModel(told, networks[0], back)  # type: ignore[arg-type]


@contextmanager
def _repeatable() -> Iterator[None]:
    """Let CUDA choose only convolutions that give the same bytes on every run."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
