"""The loop of training: steps, validation, what is kept, and where it stands."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .bag import Bag
from .checkpoint import Checkpoint, grouped
from .errors import TrainingDataError
from .heads import Head, MILOutput
from .losses import objective_of
from .mixing import draw_share, drop_features, mix
from .prepared import PreparedBags
from .task_balance import UncertaintyWeights, conflict, pcgrad
from .tasks import Classification, Cox, MultiTask, Task
from .train_settings import TrainSettings


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        train_loss: mean over the slides of what the head is trained on (`mil.losses`), by default cross-entropy times
            class weight; with dropout.
        validation_loss: the task's loss over all validation slides, without dropout.
        validation_score: the task's own figure (`Task.score_name`), e.g. AUC; None where it is not defined.
        best: the validation loss is the lowest so far.
        lr: learning rate of the last step.
        gradient_norm: mean over the steps, before it is clipped.
        conflict: of several tasks, the share of pairs of gradients that point against one another; else None.
        cosine: mean cosine of those pairs.
    """

    number: int
    train_loss: float
    validation_loss: float
    validation_score: float | None
    best: bool
    lr: float
    gradient_norm: float
    conflict: float | None = None
    cosine: float | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One side, ready for the head: prepared bags and targets (n, W)."""

    bags: PreparedBags
    target: Tensor


class Fit:
    """A training under way."""

    def __init__(self, head: Head, task: Task, train: Side, validation: Side, settings: TrainSettings) -> None:
        self.head, self.task, self.settings = head, task, settings
        self.train, self.validation = train, validation
        tasks = list(task.tasks.values()) if isinstance(task, MultiTask) else [task]
        learned = len(tasks) > 1 and settings.task_weights == "uncertainty"
        self.balance = UncertaintyWeights(len(tasks)).to(settings.device) if learned else None
        self.parameters = [p for p in head.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if self.balance is not None:
            groups.append({"params": list(self.balance.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.rows = torch.nonzero(torch.as_tensor(task.known(train.target.cpu().numpy()))).flatten().tolist()
        self.steps_each = math.ceil(len(self.rows) / settings.batch_size)
        self.average = copy.deepcopy(head.state_dict()) if settings.ema else None
        self.history: list[Epoch] = []
        self.best_loss, self.since, self.steps = math.inf, 0, 0
        self.best = copy.deepcopy(head.state_dict())
        self._bank: Tensor | None = None

    @property
    def done(self) -> bool:
        """Enough epochs, or none better for long."""
        return len(self.history) >= self.settings.epochs or self.since >= self.settings.patience

    def epoch(self) -> Epoch:
        """Run one epoch and look at validation."""
        number = len(self.history) + 1
        loss, norm, apart = self._pass()
        with self._averaged():
            logits = self.say(self.validation.bags)
            value = self.task.full_loss(logits, self.validation.target)
            if not math.isfinite(value):
                raise TrainingDataError(
                    f"epoch {number}: the validation loss is {value}, the training loss {loss:.4g}. The features are "
                    f"finite, so training diverged: use a learning rate lower than {self.settings.lr:g}."
                )
            better = value < self.best_loss
            if better:
                self.best_loss, self.since, self.best = value, 0, copy.deepcopy(self.head.state_dict())
            else:
                self.since += 1
        answer = self.task.answer(logits.double().cpu().numpy())
        score = self.task.score(self.validation.target.cpu().numpy(), answer)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.history.append(Epoch(number, loss, value, score, better, lr, norm, *apart))
        return self.history[-1]

    @torch.no_grad()
    def say(self, bags: PreparedBags) -> Tensor:
        """Logits (n, C) of bags without dropout, one by one; float32."""
        self.head.eval()
        with self._precision():
            return torch.cat([self.head(bags[i]).logits.float() for i in range(len(bags))])

    def say_averaged(self, bags: PreparedBags) -> Tensor:
        """As `say`, with the averaged weights where there are any: as validation hears it."""
        with self._averaged():
            return self.say(bags)

    def _pass(self) -> tuple[float, float, tuple[float | None, float | None]]:
        """One shuffled pass over the training slides: mean loss, mean norm of the gradient, and conflict.

        The weighted losses are divided by the number of slides, not by the sum of their weights as torch's "mean"
        does: in a batch of one slide the weight would cancel.
        """
        if isinstance(self.task, Cox):
            self._bank = self.say(self.train.bags)[:, 0]
        self.head.train()
        order = [self.rows[i] for i in torch.randperm(len(self.rows)).tolist()]
        total, norms, apart = 0.0, 0.0, []
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            self._set_lr()
            losses = [loss.sum() / len(rows) for loss in self._losses(rows)]
            total += float(sum(loss.detach() for loss in losses)) * len(rows)
            weighed = losses if self.balance is None else self.balance(losses)
            apart += self._backward(weighed)
            norms += self._step()
        found = [sum(values) / len(values) for values in zip(*apart, strict=True)] or [None, None]
        return total / len(order), norms / max(self.steps_each, 1), (found[1], found[0])

    def _losses(self, rows: list[int]) -> list[Tensor]:
        """Loss of each task for each slide of a batch, (B,)."""
        bag, others, share = self._batch(rows)
        with self._precision():
            out = self.head(bag)
        out = _single(out)
        losses = self._objectives(out, bag, rows)
        if others is None:
            return losses
        rest = self._objectives(out, bag, others)
        return [share * mine + (1 - share) * theirs for mine, theirs in zip(losses, rest, strict=True)]

    def _batch(self, rows: list[int]) -> tuple[Bag, list[int] | None, float]:
        """Packed bags of a batch, with whom they are mixed, and how much of their own stays."""
        bag, others, share = self.train.bags.pack(rows), None, 1.0
        if self.settings.mixup:
            share = draw_share(self.settings.mixup)
            others = [self.rows[i] for i in torch.randint(len(self.rows), (len(rows),)).tolist()]
            mixed = [mix(a, self.train.bags[i], share) for a, i in zip(bag.split(), others, strict=True)]
            bag = Bag.from_list(mixed).to(self.settings.device)
        if self.settings.feature_dropout:
            bag = replace(bag, features=drop_features(bag, self.settings.feature_dropout))
        return bag, others, share

    def _objectives(self, out: MILOutput, bag: Bag, rows: list[int]) -> list[Tensor]:
        """What each task holds against the head's output, were these the slides."""
        target = self.train.target[rows]
        if not isinstance(self.task, MultiTask):
            return [self._objective(self.task, out, bag, target, rows)]
        values, c = [], 0
        for task, _, wanted in self.task.parts(None, target).values():
            values.append(self._objective(task, _columns(out, c, c + task.outputs), bag, wanted, rows))
            c += task.outputs
        return values

    def _objective(self, task: Task, out: MILOutput, bag: Bag, target: Tensor, rows: list[int]) -> Tensor:
        def slide_loss(logits: Tensor) -> Tensor:
            if isinstance(task, Cox) and self._bank is not None and not isinstance(self.task, MultiTask):
                where = torch.as_tensor(rows, device=logits.device)
                return task.loss_in_bank(logits, where, self._bank, self.train.target)
            return task.loss(logits, target)

        one_of = isinstance(task, Classification) and not bool(torch.isnan(target).any())
        number = target[:, 0].long() if one_of else None
        value = objective_of(self.head)(out, bag, number, slide_loss)
        if isinstance(task, Cox) and self._bank is not None:
            self._bank[rows] = out.logits[:, 0].detach()
        return value

    def _backward(self, losses: list[Tensor]) -> list[tuple[float, float]]:
        """Fill in the gradients; of several tasks return mean cosine and share of conflicts."""
        self.optimizer.zero_grad(set_to_none=True)
        if len(losses) == 1:
            torch.autograd.backward(losses[0])
            return []
        each = []
        for i, loss in enumerate(losses):
            parts = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            each.append(torch.cat([_flat(g, p) for g, p in zip(parts, self.parameters, strict=True)]))
            if self.balance is not None:
                (s,) = torch.autograd.grad(loss, [self.balance.s], retain_graph=i + 1 < len(losses))
                self.balance.s.grad = s if self.balance.s.grad is None else self.balance.s.grad + s
        order = [torch.randperm(len(each)).tolist() for _ in each]
        whole = pcgrad(each, order) if self.settings.surgery == "pcgrad" else torch.stack(each).sum(dim=0)
        sizes = [p.numel() for p in self.parameters]
        for p, g in zip(self.parameters, torch.split(whole, sizes), strict=True):
            p.grad = g.view_as(p).clone()
        return [conflict(each)]

    def _step(self) -> float:
        """Clip, step, average; return the norm of the gradient."""
        limit = self.settings.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        self.optimizer.step()
        self.steps += 1
        if self.average is not None:
            keep = min(self.settings.ema, (1 + self.steps) / (10 + self.steps))  # the first weights are soon forgotten
            for name, value in self.head.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
        return norm

    def _set_lr(self) -> None:
        """Learning rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * lr_share(self.steps, self.steps_each, self.settings)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The head with the averaged weights, where there are any."""
        if self.average is None:
            yield
            return
        live = copy.deepcopy(self.head.state_dict())
        self.head.load_state_dict(self.average)
        try:
            yield
        finally:
            self.head.load_state_dict(live)

    def _precision(self) -> torch.autocast:
        """bfloat16 where the prepared features are."""
        half = self.train.bags.dtype == torch.bfloat16
        kind = torch.device(self.settings.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=half)

    def state(self) -> Checkpoint:
        """Where the training stands."""
        moments = self.optimizer.state_dict()
        tensors = {
            f"optimizer.{i}.{name}": value for i, kept in moments["state"].items() for name, value in kept.items()
        }
        tensors |= grouped("head", self.head.state_dict()) | grouped("best", self.best)
        tensors |= grouped("average", self.average or {}) | {"random": torch.get_rng_state()}
        if self.balance is not None:
            tensors |= grouped("balance", self.balance.state_dict())
        if self.settings.device.startswith("cuda"):
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        best = self.best_loss if math.isfinite(self.best_loss) else None
        facts = {"history": [asdict(e) for e in self.history], "best_loss": best, "since": self.since}
        return Checkpoint(tensors, facts | {"steps": self.steps, "settings": told(self.settings)})

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take up a training where it stood.

        Raises:
            TrainingDataError: it is of other settings, or of another head.
        """
        if checkpoint.facts["settings"] != told(self.settings):
            raise TrainingDataError("the checkpoint is of other settings. Delete it; training begins anew.")
        try:
            self.head.load_state_dict(checkpoint.group("head"))
        except RuntimeError as error:
            raise TrainingDataError(f"the checkpoint is of another head ({error}). Delete it.") from error
        self.best = checkpoint.group("best")
        self.average = checkpoint.group("average") or None
        if self.balance is not None:
            self.balance.load_state_dict(checkpoint.group("balance"))
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in checkpoint.group("optimizer").items():
            number, _, part = name.partition(".")
            kept.setdefault(int(number), {})[part] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        torch.set_rng_state(checkpoint.tensors["random"])
        if "random_cuda" in checkpoint.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint.tensors["random_cuda"])
        facts = checkpoint.facts
        self.history = [Epoch(**entry) for entry in facts["history"]]
        self.best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self.since, self.steps = facts["since"], facts["steps"]


Keep = Callable[[Callable[[], bytes]], None]
"""Called after every epoch with a function that returns the checkpoint's bytes; it decides whether to call it."""


def told(settings: TrainSettings) -> dict[str, Any]:
    """Settings as JSON has them."""
    values = asdict(settings) | {"head_options": dict(settings.head_options)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def lr_share(step: int, steps_each: int, settings: TrainSettings) -> float:
    """Share of the learning rate at a step from 0: rising over `warmup`, then half a cosine down to 0.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5, without restarts.
    """
    if settings.schedule == "constant":
        return 1.0
    total = settings.epochs * steps_each
    rise = max(1, round(settings.warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


def _single(out: MILOutput) -> MILOutput:
    """The output with logits in float32: losses are not for half precision."""
    branches = None if out.branch_logits is None else _wide(out.branch_logits)
    instances = None if out.instance_logits is None else _wide(out.instance_logits)
    scores = _wide(out.scores)
    return replace(out, logits=_wide(out.logits), branch_logits=branches, instance_logits=instances, scores=scores)


def _wide(values: Tensor) -> Tensor:
    """Half precision as float32."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _columns(out: MILOutput, start: int, end: int) -> MILOutput:
    """The output for the logits of one task."""
    branches = None if out.branch_logits is None else out.branch_logits[..., start:end]
    instances = None if out.instance_logits is None else out.instance_logits[:, start:end]
    return replace(out, logits=out.logits[:, start:end], branch_logits=branches, instance_logits=instances)


def _flat(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient as a vector; zeros where there is none."""
    return like.new_zeros(like.numel()) if gradient is None else gradient.flatten()
