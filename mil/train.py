"""Training a head on labeled bags. Test data have no way in: the signature takes training and validation only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adaptation import coded
from .bag import Bag
from .bag_set import BagSet, SealedLabels
from .checkpoint import Checkpoint
from .clinical import Variables
from .epoch import Epoch
from .errors import TrainingDataError
from .fit import Fit, Keep, Side, told
from .fusion import attach
from .heads import Head, create_head
from .input_transform import InputTransform
from .metrics import choose_threshold
from .model import TrainedModel, versions
from .predict import infer
from .prepared import PreparedBags
from .tasks import Array, Classification, MultiTask, Task, as_task
from .train_settings import TrainSettings

__all__ = ["BagSet", "Epoch", "SealedLabels", "TrainSettings", "train"]

Watch: TypeAlias = tuple[Sequence[Bag], Callable[[Epoch, Array], None]]
_WIDE = 512  # features from which on bfloat16 pays


def train(
    train: BagSet,
    validation: BagSet,
    task: Task | Sequence[str],
    settings: TrainSettings | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    keep: Keep | None = None,
    resume: bytes | None = None,
    watch: Watch | None = None,
    variables: Variables | None = None,
) -> TrainedModel:
    """Train a head and keep the weights of the epoch with the lowest validation loss.

    Args:
        train: slides to learn from.
        validation: slides of other patients, for early stopping and the decision threshold.
        task: what is asked, from `mil.tasks`; class names stand for a classification, label i means the i-th.
        settings: by default `TrainSettings()`.
        on_epoch: called after each epoch.
        keep: called after each epoch with a function that returns the checkpoint as bytes.
        resume: such bytes, from the same data and settings: training goes on from there, and ends in the same model.
        watch: bags without labels, and who is told after each epoch what the model says of them: they change nothing.
        variables: what the numbers in `Bag.clinical` stand for; needed with `settings.fusion`.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        TrainingDataError: one class only, a patient on both sides, labels out of range, no tiles at all, features
            that are not finite, training that diverged, a checkpoint of other settings, no clinical
            variables for a fusion, or no confounder with two levels for an adaptation.
        UnknownHeadError: no head of that name.
    """
    settings = settings or TrainSettings()
    wanted = as_task(task, settings.class_weights)
    _check_sides(train, validation)
    targets = [_targets(wanted, side, name) for side, name in ((train, "training"), (validation, "validation"))]
    fitted = wanted.fitted(targets[0])
    _check_bags(train, validation)
    codes = _codes(train, settings)
    with _reproducible(settings):
        options = {"dropout": settings.dropout, **settings.head_options}
        head = create_head(settings.head, train.bags[0].dim, fitted.outputs, **options).to(settings.device)
        if settings.fusion != "none":
            attach(head, settings.fusion, _sizes_of(variables), hide=settings.clinical_dropout)
        prepare = InputTransform.fit(train.bags, settings.decorrelate, common=settings.scaling == "common")
        fit = Fit(head, fitted, *_sides(train, validation, targets, prepare, settings, codes), settings)
        if resume is not None:
            fit.go_on_from(Checkpoint.from_bytes(resume))
        with head.takes_prepared(fused=not isinstance(fitted, MultiTask) and settings.fusion != "early"):
            _run(fit, on_epoch, keep, _watching(fit, prepare, watch))
        head.load_state_dict(fit.best)
        fit.settle()
        prepare.fold_into(head.to("cpu").eval())
        answers = fitted.answer(_logits(head, validation))
    config = _config(head, train, validation, fitted, settings, fit.history, targets, answers)
    if head.fusion is not None and variables is not None:
        config["clinical"] = {"fusion": settings.fusion, "variables": variables.spec()}
    return TrainedModel(head=head, task=fitted, config=config)


def _run(
    fit: Fit, on_epoch: Callable[[Epoch], None] | None, keep: Keep | None, tell: Callable[[Epoch], None] | None
) -> None:
    """Epochs until it is enough."""
    while not fit.done:
        epoch = fit.epoch()
        if tell:
            tell(epoch)
        if on_epoch:
            on_epoch(epoch)
        if keep:
            keep(lambda: fit.state().to_bytes())


def _watching(fit: Fit, prepare: InputTransform, watch: Watch | None) -> Callable[[Epoch], None] | None:
    """Return what tells of the watched bags after an epoch."""
    if watch is None:
        return None
    bags, tell = watch
    prepared = PreparedBags(bags, prepare, fit.train.bags.dtype, 0.0, fit.settings.device)

    def told_of(epoch: Epoch) -> None:
        tell(epoch, fit.task.answer(fit.say_averaged(prepared).double().cpu().numpy()))

    return told_of


def _sides(
    train: BagSet,
    validation: BagSet,
    targets: Sequence[Array],
    prepare: InputTransform,
    settings: TrainSettings,
    codes: Tensor | None,
) -> tuple[Side, Side]:
    """Both sides as the head takes them; the memory is shared by their number of slides."""
    dtype = _dtype(settings, train.bags[0].dim)
    slides, made = len(train) + len(validation), []
    for side, target in zip((train, validation), targets, strict=True):
        budget = settings.memory_gb * 1e9 * len(side) / slides
        bags = PreparedBags(side.bags, prepare, dtype, budget, settings.device)
        mine = codes.to(settings.device) if codes is not None and side is train else None
        made.append(Side(bags, torch.as_tensor(target).to(settings.device), mine))
    return made[0], made[1]


def _sizes_of(variables: Variables | None) -> tuple[int, ...]:
    """How many numbers stand for each variable.

    Raises:
        TrainingDataError: there are no variables.
    """
    if variables is None or not variables.items:
        raise TrainingDataError("a fusion needs clinical variables: name columns of the table, or use fusion='none'.")
    return variables.sizes


def _codes(train: BagSet, settings: TrainSettings) -> Tensor | None:
    """Codes of the confounders of the training slides, where they are to be kept out.

    Raises:
        TrainingDataError: none has two levels, so that there is nothing to keep out.
    """
    if settings.adapt == "none":
        return None
    codes, levels = coded(train.confounders) if train.confounders else (torch.zeros(0, 0), [])
    several = [k for k, names in enumerate(levels) if len(names) > 1]
    if not several:
        raise TrainingDataError(
            f"adapt={settings.adapt}: the training slides are all of one site (or none is told). Name a column of the "
            "table that tells sites apart, or use adapt='none'."
        )
    return codes[:, several]


def _dtype(settings: TrainSettings, dim: int) -> torch.dtype:
    """Precision of the products."""
    if settings.precision == "auto":
        cuda = settings.device.startswith("cuda")
        able = torch.cuda.is_bf16_supported() if cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if able and dim >= _WIDE else torch.float32
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def _targets(task: Task, side: BagSet, name: str) -> Array:
    """Targets of a side.

    Raises:
        TrainingDataError: names the side.
    """
    try:
        target = task.encode(side.labels)
    except TrainingDataError as error:
        raise TrainingDataError(f"{name} slides: {error}") from error
    if not task.known(target).any():
        raise TrainingDataError(f"no {name} slide has a label. Label more patients.")
    return target


def _check_sides(train: BagSet, validation: BagSet) -> None:
    """Raise TrainingDataError unless there is something on both sides, and the sides are apart."""
    for name, side in (("training", train), ("validation", validation)):
        if not len(side):
            raise TrainingDataError(f"no {name} slides. Label more patients, or change the shares of the split.")
    shared = sorted(set(train.patients) & set(validation.patients))
    if shared:
        raise TrainingDataError(
            f"{len(shared)} patient(s) in training and validation, e.g. {', '.join(shared[:3])}. "
            "Split by patient, e.g. with mil.split_by_patient."
        )


def _check_bags(train: BagSet, validation: BagSet) -> None:
    """Raise TrainingDataError unless there are tiles, and all features are numbers."""
    tiles, spoiled = 0, []
    for side in (train, validation):
        for bag in side.bags:
            tiles += bag.n_tiles if side is train else 0
            spoiled += [] if bool(torch.isfinite(bag.features).all()) else list(bag.ids)
    if not tiles:
        raise TrainingDataError("no training slide has a tile. Look at slides.csv for the reasons.")
    if spoiled:
        raise TrainingDataError(
            f"{len(spoiled)} slide(s) have features that are NaN or infinite: {', '.join(spoiled[:3])}. "
            "Extract their features again, or leave these slides out."
        )


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


def _logits(head: Head, side: BagSet) -> NDArray[np.float64]:
    """Logits of the finished head, (n, C): as `predict` gives them."""
    with torch.inference_mode():
        return np.stack([infer(head, side.bags[i]).logits[0].double().numpy() for i in range(len(side))])


def _config(
    head: Head,
    train: BagSet,
    validation: BagSet,
    task: Task,
    settings: TrainSettings,
    history: list[Epoch],
    targets: Sequence[Array],
    answers: Array,
) -> dict[str, Any]:
    """Everything that the model folder says about the model."""
    best = max((epoch.number for epoch in history if epoch.best), default=0)
    classes = list(task.classes) if isinstance(task, Classification) else []
    counts = [[int((t == c).sum()) for t in targets] for c in range(len(classes))]
    return {
        "format": "slidemil-model",
        "version": 1,
        "task": task.kind,
        "task_spec": task.spec(),
        "head": {"name": head.name, "in_dim": head.in_dim, "classes": head.classes, "options": dict(head.options)},
        "classes": classes,
        "columns": list(task.columns),
        "threshold": _threshold(task, targets[1], answers),
        "threshold_rule": "highest balanced accuracy on validation; among equals the nearest to 0.5",
        "encoder": None,
        "tile": None,
        "clinical": None,
        "training": {
            "settings": told(settings),
            "slides": {"train": len(train), "validation": len(validation)},
            "patients": {"train": len(set(train.patients)), "validation": len(set(validation.patients))},
            "slides_per_class": {
                name: {"train": count[0], "validation": count[1]} for name, count in zip(classes, counts, strict=True)
            },
            "score": task.score_name,
            "best_epoch": best,
            "history": [asdict(epoch) for epoch in history],
        },
        "versions": versions(),
    }


def _threshold(task: Task, target: Array, answers: Array) -> float | None:
    """Cut of the positive class's probability, chosen on validation; None where there are not two classes."""
    if not isinstance(task, Classification) or len(task.classes) != 2:
        return None
    known = ~np.isnan(target[:, 0])
    return choose_threshold(target[known, 0], answers[known, 1])
