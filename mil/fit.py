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

from .adaptation import ADAPTATIONS, Adaptation
from .bag import Bag
from .checkpoint import Checkpoint, grouped
from .epoch import Epoch, lr_share
from .errors import TrainingDataError
from .fusion import Late
from .heads import Head, MILOutput
from .heads.output import columns, single_precision
from .losses import objective_of
from .mixing import draw_share, drop_features, mix
from .prepared import PreparedBags
from .task_balance import UncertaintyWeights, conflict, pcgrad
from .tasks import Classification, Cox, MultiTask, Task
from .train_settings import TrainSettings

ADVERSARY = 10.0  # times the learning rate: one that lags behind the head finds nothing, and keeps nothing out


@dataclass(frozen=True, eq=False)
class Side:
    """One side, ready for the head: prepared bags, targets (n, W), and codes of the confounders (n, K) if any."""

    bags: PreparedBags
    target: Tensor
    codes: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Asked:
    """One task of a batch: rows of its slides, its first column of the logits, its targets of all slides (n, W)."""

    task: Task
    rows: list[int]
    column: int
    target: Tensor


class Fit:
    """A training under way."""

    def __init__(self, head: Head, task: Task, train: Side, validation: Side, settings: TrainSettings) -> None:
        self.head, self.task, self.settings = head, task, settings
        self.train, self.validation = train, validation
        self._tasks = list(task.tasks.values()) if isinstance(task, MultiTask) else [task]
        learned = len(self._tasks) > 1 and settings.task_weights == "uncertainty"
        self.balance = UncertaintyWeights(len(self._tasks)).to(settings.device) if learned else None
        self.parameters = [p for p in head.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if self.balance is not None:
            groups.append({"params": list(self.balance.parameters()), "weight_decay": 0.0})
        self.adaptation = self._adaptation()
        learned_too = [] if self.adaptation is None else list(self.adaptation.parameters())
        if learned_too:
            groups.append({"params": learned_too, "weight_decay": 0.1, "faster": ADVERSARY})
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.rows = torch.nonzero(torch.as_tensor(task.known(train.target.cpu().numpy()))).flatten().tolist()
        self.steps_each = math.ceil(len(self.rows) / settings.batch_size)
        self.average = copy.deepcopy(head.state_dict()) if settings.ema else None
        self.history: list[Epoch] = []
        self.best_loss, self.since, self.steps = math.inf, 0, 0
        self.best = copy.deepcopy(head.state_dict())
        self._bank: Tensor | None = None
        self._embeddings: Tensor | None = None

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
            leak = None if self.adaptation is None else self.adaptation.amount(self._embed(self.train.bags))
            weighed = value + self.settings.adapt_weight * (leak or 0.0)
            better = weighed < self.best_loss
            if better:
                self.best_loss, self.since, self.best = weighed, 0, copy.deepcopy(self.head.state_dict())
            else:
                self.since += 1
        answer = self.task.answer(logits.double().cpu().numpy())
        score = self.task.score(self.validation.target.cpu().numpy(), answer)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.history.append(Epoch(number, loss, value, score, better, lr, norm, *apart, leak))
        return self.history[-1]

    @torch.no_grad()
    def say(self, bags: PreparedBags) -> Tensor:
        """Logits (n, C) of bags without dropout, one by one; float32."""
        self.head.eval()
        with self._precision():
            return torch.cat([self.head(bags[i]).logits.float() for i in range(len(bags))])

    @torch.no_grad()
    def _said(self) -> Tensor:
        """Logits of every training slide, (n, 1, C); where slide and variables speak apart, of either, (n, 2, C)."""
        self.head.eval()
        with self._precision():
            outs = [self.head(self.train.bags[i]) for i in range(len(self.train.bags))]
        return torch.cat([out.logits[:, None] if out.parts is None else out.parts for out in outs]).float()

    @torch.no_grad()
    def _embed(self, bags: PreparedBags) -> Tensor:
        """Embeddings (n, E) of bags without dropout; float32."""
        self.head.eval()
        with self._precision():
            return torch.cat([self.head(bags[i]).embedding.float() for i in range(len(bags))])

    def _adaptation(self) -> Adaptation | None:
        """What keeps the confounders out."""
        if self.settings.adapt == "none" or self.train.codes is None:
            return None
        one_of = isinstance(self.task, Classification)
        classes = self.train.target[:, 0] if one_of else torch.zeros_like(self.train.target[:, 0])
        strata = torch.nan_to_num(classes, nan=float(self.task.outputs if one_of else 0)).long()
        width = int(self._embed_one().shape[1])
        made = ADAPTATIONS[self.settings.adapt](self.train.codes, strata, width)
        return made.to(self.settings.device)

    def _embed_one(self) -> Tensor:
        """Embedding of the first training slide."""
        with torch.no_grad(), self._precision():
            found: Tensor = self.head.eval()(self.train.bags[0]).embedding
        return found

    @torch.no_grad()
    def settle(self) -> None:
        """What is chosen on validation once the weights are: how much late fusion hears of the variables."""
        if not isinstance(self.head.fusion, Late):
            return
        self.head.eval()
        with self._precision():
            outs = [self.head(self.validation.bags[i]) for i in range(len(self.validation.bags))]
        slide = torch.cat([out.logits if out.parts is None else out.parts[:, 0] for out in outs]).float()
        joint = torch.cat([out.logits for out in outs]).float()
        self.head.fusion.settle(slide, joint, lambda logits: self.task.full_loss(logits, self.validation.target))

    def say_averaged(self, bags: PreparedBags) -> Tensor:
        """As `say`, with the averaged weights where there are any: as validation hears it."""
        with self._averaged():
            return self.say(bags)

    def _pass(self) -> tuple[float, float, tuple[float | None, float | None]]:
        """One shuffled pass over the training slides: mean loss, mean norm of the gradient, and conflict.

        The weighted losses are divided by the number of slides, not by the sum of their weights as torch's "mean"
        does: in a batch of one slide the weight would cancel.
        """
        if any(isinstance(task, Cox) for task in self._tasks):
            self._bank = self._said()
        if self.adaptation is not None:
            self._embeddings = self._embed(self.train.bags)
        self.head.train()
        order = [self.rows[i] for i in torch.randperm(len(self.rows)).tolist()]
        total, norms, apart = 0.0, 0.0, []
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            self._set_lr()
            each, penalty = self._losses(rows)
            losses = [loss.sum() / len(rows) for loss in each]
            total += float(sum(loss.detach() for loss in losses)) * len(rows)
            weighed = losses if self.balance is None else self.balance(losses)
            apart += self._backward(weighed, penalty)
            norms += self._step()
        found = [sum(values) / len(values) for values in zip(*apart, strict=True)] or [None, None]
        return total / len(order), norms / max(self.steps_each, 1), (found[1], found[0])

    def _losses(self, rows: list[int]) -> tuple[list[Tensor], Tensor | None]:
        """Loss of each task for each slide of a batch, (B,), and what the confounders cost."""
        bag, others, share = self._batch(rows)
        with self._precision():
            out = self.head(bag)
        out = single_precision(out)
        losses = self._objectives(out, bag, rows)
        if others is None:
            return losses, self._penalty(out.embedding.float(), rows)
        rest = self._objectives(out, bag, others)
        return [share * mine + (1 - share) * theirs for mine, theirs in zip(losses, rest, strict=True)], None

    def _penalty(self, z: Tensor, rows: list[int]) -> Tensor | None:
        """What the embeddings (B, E) of a batch, among those of all training slides, say of the confounders.

        Its slope is that of all n slides, shared out over the steps of an epoch.
        """
        if self.adaptation is None or self._embeddings is None:
            return None
        where, n = torch.as_tensor(rows, device=z.device), len(self._embeddings)
        self.adaptation.progress = min(self.steps / max(self.settings.epochs * self.steps_each, 1), 1.0)
        value = self.adaptation.penalty(self._embeddings.index_put((where,), z))
        self._embeddings[where] = z.detach()
        return self.settings.adapt_weight * (value + (n / len(rows) - 1) * (value - value.detach()))

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
        values, c, w = [], 0, 0
        for task in self._tasks:
            asked = _Asked(task, rows, c, self.train.target[:, w : w + task.target_width()])
            mine = out if len(self._tasks) == 1 else columns(out, c, c + task.outputs)
            values.append(self._objective(asked, mine, bag))
            c, w = c + task.outputs, w + task.target_width()
        return values

    def _objective(self, asked: _Asked, out: MILOutput, bag: Bag) -> Tensor:
        """What one task holds against the output; where slide and variables speak apart, against either by itself."""
        if out.parts is None:
            return self._held_against(asked, out, bag, 0)
        slide, variables = out.parts[:, 0], out.parts[:, 1]
        one = self._held_against(asked, replace(out, logits=slide), bag, 0)
        return one + self._slide_loss(asked, variables, 1)

    def _held_against(self, asked: _Asked, out: MILOutput, bag: Bag, part: int) -> Tensor:
        target = asked.target[asked.rows]
        one_of = isinstance(asked.task, Classification) and not bool(torch.isnan(target).any())
        number = target[:, 0].long() if one_of else None
        value = objective_of(self.head)(out, bag, number, lambda logits: self._slide_loss(asked, logits, part))
        if isinstance(asked.task, Cox) and self._bank is not None:
            self._bank[asked.rows, part, asked.column] = out.logits[:, 0].detach()
        return value

    def _slide_loss(self, asked: _Asked, logits: Tensor, part: int) -> Tensor:
        """Loss of the task, (B,)."""
        task = asked.task
        if isinstance(task, Cox) and self._bank is not None:
            where = torch.as_tensor(asked.rows, device=logits.device)
            return task.loss_in_bank(logits, where, self._bank[:, part, asked.column], asked.target)
        return task.loss(logits, asked.target[asked.rows])

    def _backward(self, losses: list[Tensor], penalty: Tensor | None) -> list[tuple[float, float]]:
        """Fill in the gradients; of several tasks return mean cosine and share of conflicts."""
        self.optimizer.zero_grad(set_to_none=True)
        if len(losses) == 1:
            torch.autograd.backward(losses[0] if penalty is None else losses[0] + penalty)
            return []
        if penalty is not None:
            torch.autograd.backward(penalty, retain_graph=True)
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
            p.grad = g.view_as(p).clone() if p.grad is None else p.grad + g.view_as(p)
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
            share = lr_share(self.steps, self.steps_each, self.settings)
            group["lr"] = self.settings.lr * group.get("faster", 1.0) * share

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
        if self.adaptation is not None:
            tensors |= grouped("adaptation", self.adaptation.state_dict())
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
        if self.adaptation is not None:
            self.adaptation.load_state_dict(checkpoint.group("adaptation"))
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


def _flat(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient as a vector; zeros where there is none."""
    return like.new_zeros(like.numel()) if gradient is None else gradient.flatten()
