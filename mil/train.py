"""Training a head on labeled bags. Test data have no way in: the signature takes training and validation only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from .bag import Bag
from .errors import TrainingDataError
from .heads import Head, create_head
from .input_transform import InputTransform
from .losses import objective_of
from .metrics import auc, choose_threshold
from .model import TrainedModel, versions


@dataclass(frozen=True, eq=False)
class BagSet:
    """Labeled bags of one side of a split.

    Attributes:
        bags: one Bag of length one per slide.
        labels: class number of each slide, shape (n,), int64.
        patients: patient of each slide.
    """

    bags: Sequence[Bag]
    labels: NDArray[np.int64]
    patients: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.bags)
        if len(self.labels) != n or len(self.patients) != n:
            raise TrainingDataError(
                f"{n} bags, {len(self.labels)} labels and {len(self.patients)} patients. Give one of each per slide."
            )
        if any(len(bag) != 1 for bag in self.bags):
            raise TrainingDataError("each entry of a BagSet is one slide. Split packed bags with Bag.split().")

    def __len__(self) -> int:
        return len(self.bags)


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained. The defaults serve 20 to 200 slides with features of any scale.

    Attributes:
        head: a key of `mil.HEADS`; some have a loss of their own beside that of the slide, see `mil.losses`.
        head_options: further arguments of the head, e.g. {"hidden": 128}.
        epochs: at most so many passes over the training slides.
        patience: stop after so many epochs without a lower validation loss.
        lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        dropout: share of the hidden features of each tile that is switched off in training.
        scaling: "each" brings every input feature to unit spread (descriptors of mixed units); "common" divides all by
            one number (features of one unit, e.g. pixels).
        decorrelate: how far correlated input features are pulled apart before training, from 0 (only brought to one
            scale) to 1 (fully whitened). With few slides it is what makes a faint concept learnable. Features wider
            than 512 are left at 0. It is folded into the first layer: the stored model is an ordinary head.
        batch_size: slides in one step.
        class_weights: "balanced" (inverse to the class's number of slides), "none", or one number over 0 per class.
            A slide's loss is multiplied by the weight of its class, whatever else is in its batch; balanced weights
            average 1 over the training slides.
        seed: decides initial weights, order and dropout; the same seed gives the same bytes on a CPU.
        device: "cpu" or "cuda"; only the CPU promises the same bytes.
    """

    head: str = "gated_abmil"
    head_options: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 200
    patience: int = 40
    lr: float = 5e-4
    weight_decay: float = 1e-2
    dropout: float = 0.25
    scaling: str = "each"
    decorrelate: float = 0.5
    batch_size: int = 1
    class_weights: str | tuple[float, ...] = "balanced"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        train_loss: mean over the slides of what the head is trained on (`mil.losses`), by default cross-entropy times
            class weight; with dropout.
        validation_loss: mean cross-entropy, weighted by class (divided by the sum of the weights), without dropout.
        validation_auc: one-versus-rest mean; None where validation has one class.
        best: the validation loss is the lowest so far.
    """

    number: int
    train_loss: float
    validation_loss: float
    validation_auc: float | None
    best: bool


def train(
    train: BagSet,
    validation: BagSet,
    classes: Sequence[str],
    settings: TrainSettings | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainedModel:
    """Train a head and keep the weights of the epoch with the lowest validation loss.

    Args:
        train: slides to learn from.
        validation: slides of other patients, for early stopping and the decision threshold.
        classes: class names; label i means `classes[i]`.
        settings: by default `TrainSettings()`.
        on_epoch: called after each epoch.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        TrainingDataError: one class only, a patient on both sides, labels out of range, no tiles at all, features
            that are not finite, or training that diverged.
        UnknownHeadError: no head of that name.
    """
    settings = settings or TrainSettings()
    _check_data(train, validation, classes)
    with _reproducible(settings):
        options = {"dropout": settings.dropout, **settings.head_options}
        head = create_head(settings.head, train.bags[0].dim, len(classes), **options).to(settings.device)
        prepare = InputTransform.fit(train.bags, settings.decorrelate, common=_common(settings))
        prepared = [replace(side, bags=[prepare(bag) for bag in side.bags]) for side in (train, validation)]
        history, best = _fit(head, prepared[0], prepared[1], settings, on_epoch)
        head.load_state_dict(best)
        prepare.fold_into(head.to("cpu").eval())
        probabilities = _probabilities(head, validation)
    config = _config(head, train, validation, classes, settings, history, probabilities)
    return TrainedModel(head=head, classes=tuple(classes), config=config)


def _check_data(train: BagSet, validation: BagSet, classes: Sequence[str]) -> None:
    """Raise TrainingDataError unless there is something to tell apart and the sides are apart."""
    for name, side in (("training", train), ("validation", validation)):
        if not len(side):
            raise TrainingDataError(f"no {name} slides. Label more patients, or change the shares of the split.")
        wrong = [int(v) for v in side.labels if not 0 <= int(v) < len(classes)]
        if wrong:
            raise TrainingDataError(
                f"{name} label {wrong[0]} names no class; there are {len(classes)}: {list(classes)}."
            )
    found = sorted({classes[int(v)] for v in train.labels})
    if len(found) < len(classes) or len(found) < 2:
        raise TrainingDataError(
            f"the training slides are all of {found}, the classes are {list(classes)}: nothing can be told apart. "
            "Every class needs training slides."
        )
    shared = sorted(set(train.patients) & set(validation.patients))
    if shared:
        raise TrainingDataError(
            f"{len(shared)} patient(s) in training and validation, e.g. {', '.join(shared[:3])}. "
            "Split by patient, e.g. with mil.split_by_patient."
        )
    if not sum(bag.n_tiles for bag in train.bags):
        raise TrainingDataError("no training slide has a tile. Look at slides.csv for the reasons.")
    spoiled = [name for side in (train, validation) for bag in side.bags if not _finite(bag) for name in bag.ids]
    if spoiled:
        raise TrainingDataError(
            f"{len(spoiled)} slide(s) have features that are NaN or infinite: {', '.join(spoiled[:3])}. "
            "Extract their features again, or leave these slides out."
        )


def _finite(bag: Bag) -> bool:
    """Say whether every feature is a number."""
    return bool(torch.isfinite(bag.features).all())


@contextmanager
def _reproducible(settings: TrainSettings) -> Iterator[None]:
    """Own random state from the seed, and one thread on the CPU: the number of cores changes the order of sums."""
    threads = torch.get_num_threads()
    cuda = [torch.cuda.current_device()] if settings.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(settings.seed)
        if not cuda:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _common(settings: TrainSettings) -> bool:
    """Say whether all features share one scale."""
    if settings.scaling not in {"each", "common"}:
        raise TrainingDataError(f"scaling={settings.scaling!r}: use 'each' or 'common'.")
    return settings.scaling == "common"


def _fit(
    head: Head,
    train: BagSet,
    validation: BagSet,
    settings: TrainSettings,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Run the epochs; return what they came to and the best weights."""
    weights = _class_weights(train.labels, head.classes, settings).to(settings.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    held_out = Bag.from_list(list(validation.bags)).to(settings.device)
    target = torch.as_tensor(validation.labels).to(settings.device)
    history: list[Epoch] = []
    best_loss, best, since = math.inf, copy.deepcopy(head.state_dict()), 0
    for number in range(1, settings.epochs + 1):
        train_loss = _one_epoch(head, train, weights, optimizer, settings)
        logits = _evaluate(head, held_out)
        validation_loss = float(cross_entropy(logits, target, weight=weights))
        if not math.isfinite(validation_loss):
            raise TrainingDataError(
                f"epoch {number}: the validation loss is {validation_loss}, the training loss {train_loss:.4g}. The "
                f"features are finite, so training diverged: use a learning rate lower than {settings.lr:g}."
            )
        better = validation_loss < best_loss
        if better:
            best_loss, best, since = validation_loss, copy.deepcopy(head.state_dict()), 0
        else:
            since += 1
        score = _auc(validation.labels, logits)
        history.append(Epoch(number, train_loss, validation_loss, score, better))
        if on_epoch:
            on_epoch(history[-1])
        if since >= settings.patience:
            break
    return history, best


def _one_epoch(
    head: Head, train: BagSet, weights: Tensor, optimizer: torch.optim.Optimizer, settings: TrainSettings
) -> float:
    """One shuffled pass over the training slides; returns the mean loss.

    The weighted losses are divided by the number of slides, not by the sum of their weights as torch's "mean" does:
    in a batch of one slide the weight would cancel.
    """
    head.train()
    objective = objective_of(head)
    order = torch.randperm(len(train)).tolist()
    total = 0.0
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        bag = Bag.from_list([train.bags[i] for i in rows]).to(settings.device)
        target = torch.as_tensor(train.labels[rows]).to(settings.device)
        optimizer.zero_grad(set_to_none=True)
        slide_loss = partial(cross_entropy, target=target, weight=weights, reduction="none")
        value = objective(head(bag), bag, target, slide_loss).sum() / len(rows)
        torch.autograd.backward(value)
        optimizer.step()
        total += float(value.detach()) * len(rows)
    return total / len(order)


def _class_weights(labels: NDArray[np.int64], classes: int, settings: TrainSettings) -> Tensor:
    """Weight of each class in the loss, shape (C,)."""
    if isinstance(settings.class_weights, tuple):
        if len(settings.class_weights) != classes:
            raise TrainingDataError(f"{len(settings.class_weights)} class weights for {classes} classes.")
        if not all(math.isfinite(weight) and weight > 0 for weight in settings.class_weights):
            raise TrainingDataError(f"class_weights={settings.class_weights}: every weight must be over 0.")
        return torch.tensor(settings.class_weights, dtype=torch.float32)
    if settings.class_weights == "none":
        return torch.ones(classes)
    if settings.class_weights != "balanced":
        raise TrainingDataError(f"class_weights={settings.class_weights!r}: use 'balanced', 'none' or numbers.")
    count = torch.bincount(torch.as_tensor(labels), minlength=classes)
    return (len(labels) / (classes * count)).to(torch.float32)


@torch.no_grad()
def _evaluate(head: Head, bag: Bag) -> Tensor:
    """Logits (B, C) without dropout."""
    head.eval()
    logits: Tensor = head(bag).logits
    return logits


def _probabilities(head: Head, side: BagSet) -> NDArray[np.float64]:
    """Class probabilities of each slide, (n, C)."""
    logits = _evaluate(head, Bag.from_list(list(side.bags)))
    return torch.softmax(logits.double(), dim=1).numpy()


def _auc(labels: NDArray[np.int64], logits: Tensor) -> float | None:
    """Mean one-versus-rest AUC over the classes present; None where there is only one."""
    p = torch.softmax(logits.double(), dim=1).cpu().numpy()
    columns = [1] if p.shape[1] == 2 else range(p.shape[1])
    values = [auc(labels == c, p[:, c]) for c in columns if 0 < int((labels == c).sum()) < len(labels)]
    return float(np.mean(values)) if values else None


def _config(
    head: Head,
    train: BagSet,
    validation: BagSet,
    classes: Sequence[str],
    settings: TrainSettings,
    history: list[Epoch],
    probabilities: NDArray[np.float64],
) -> dict[str, Any]:
    """Everything that the model folder says about the model."""
    best = max(epoch.number for epoch in history if epoch.best) if any(e.best for e in history) else 0
    return {
        "format": "slidemil-model",
        "version": 1,
        "task": "classification",
        "head": {"name": head.name, "in_dim": head.in_dim, "classes": head.classes, "options": dict(head.options)},
        "classes": list(classes),
        "threshold": choose_threshold(validation.labels, probabilities[:, 1]) if len(classes) == 2 else None,
        "threshold_rule": "highest balanced accuracy on validation; among equals the nearest to 0.5",
        "encoder": None,
        "tile": None,
        "training": {
            "settings": {**asdict(settings), "head_options": dict(settings.head_options)},
            "slides": {"train": len(train), "validation": len(validation)},
            "patients": {"train": len(set(train.patients)), "validation": len(set(validation.patients))},
            "slides_per_class": {
                name: {"train": int((train.labels == c).sum()), "validation": int((validation.labels == c).sum())}
                for c, name in enumerate(classes)
            },
            "best_epoch": best,
            "history": [asdict(epoch) for epoch in history],
        },
        "versions": versions(),
    }
