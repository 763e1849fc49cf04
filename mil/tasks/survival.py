"""Time until an event, which for some had not come when they were last seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from mil.errors import TrainingDataError
from mil.survival import concordance

from .base import Array, Task, masked


@dataclass(frozen=True)
class Survival(Task):
    """Targets are time (over 0) and event (1: it came then; 0: not until then), (n, 2)."""

    width = 2
    score_name = "c_index"

    def known(self, target: Array) -> np.ndarray:
        """Both time and event are needed."""
        return np.asarray(~np.isnan(target).any(axis=1))

    def check(self, target: Array) -> Array:
        """Return the known rows; some event has to have come."""
        rows: Array = target[self.known(target)]
        if (rows[:, 0] <= 0).any() or not np.isin(rows[:, 1], (0, 1)).all():
            raise TrainingDataError("survival targets are a time over 0 and an event of 0 or 1.")
        if not rows[:, 1].any():
            raise TrainingDataError("no training slide has an event: nothing says who is at risk.")
        return rows

    def score(self, target: Array, answer: Array) -> float | None:
        """Harrell's C of the risk, the first column of the answer."""
        known = self.known(target)
        value = concordance(target[known, 0], target[known, 1] == 1, answer[known, 0])
        return value if np.isfinite(value) else None


@dataclass(frozen=True)
class Cox(Survival):
    """The output is the log relative hazard; partial likelihood over full risk sets, divided by the events.

    A batch is no risk set. The trainer hands in what the head last said of all training slides (`bank`); those of the
    batch take their live values, so each step follows the gradient of the full likelihood for its slides.

    Attributes:
        ties: "efron" or "breslow", for events at the same time.

    Source: Cox 1972; Breslow 1974; Efron 1977, doi:10.1080/01621459.1977.10480613.
    """

    ties: str = "efron"
    kind = "cox"

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The risk."""
        return ("risk",)

    def fitted(self, target: Array) -> Self:
        """Check the targets."""
        self.check(target)
        if self.ties not in ("efron", "breslow"):
            raise TrainingDataError(f"ties={self.ties!r}: use 'efron' or 'breslow'.")
        return self

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Partial likelihood of these slides alone, shared out equally."""
        known = ~torch.isnan(target).any(dim=1)
        value = cox_loss(logits[known, 0], target[known, 0], target[known, 1], ties=self.ties)
        return value.expand(len(logits)) + 0 * logits[:, 0]

    def loss_in_bank(self, logits: Tensor, rows: Tensor, bank: Tensor, target: Tensor) -> Tensor:
        """Full partial likelihood with the batch's rows live, (B,) times the same; its slope is that of n slides.

        Args:
            logits: of the batch, (B, 1).
            rows: which slides of the bank these are.
            bank: what was last said of all training slides, (n,).
            target: of all training slides, (n, 2).
        """
        risks = bank.detach().clone().index_put((rows,), logits[:, 0])
        known = ~torch.isnan(target).any(dim=1)
        value = cox_loss(risks[known], target[known, 0], target[known, 1], ties=self.ties)
        steeper = (len(bank) / max(len(logits), 1) - 1) * (value - value.detach())  # a slope, and no value
        return (value + steeper).expand(len(logits))

    def full_loss(self, logits: Tensor, target: Tensor) -> float:
        """Over the whole side."""
        known = ~torch.isnan(target).any(dim=1)
        return float(cox_loss(logits[known, 0].double(), target[known, 0], target[known, 1], ties=self.ties))

    def answer(self, logits: Array) -> Array:
        """Log relative hazard: larger means sooner."""
        return logits


def cox_loss(risk: Tensor, time: Tensor, event: Tensor, *, ties: str = "efron") -> Tensor:
    """Negative log partial likelihood per event; 0 without an event.

    Args:
        risk: log relative hazards, shape (n,).
        time: shape (n,).
        event: 1 where the event came, shape (n,).
        ties: how events at the same time are counted.

    With R the risk set at an event time and D the d events at it: Σ_{i ∈ D} r_i - Σ_l log(Σ_R e^r - l/d Σ_D e^r) over
    l = 0 … d - 1 (Efron), or without the second sum (Breslow). Sums are taken relative to the largest risk.
    """
    happened = event > 0.5
    if not bool(happened.any()):
        return risk.sum() * 0
    times, place = torch.unique(time, return_inverse=True)  # rising
    top = risk.detach().max()
    e = torch.exp(risk - top)
    zeros = risk.new_zeros(len(times))
    at_time = zeros.index_add(0, place, e)
    at_risk = at_time.flip(0).cumsum(0).flip(0)
    d = torch.bincount(place[happened], minlength=len(times))
    tied = zeros.index_add(0, place[happened], e[happened])
    index = torch.repeat_interleave(torch.arange(len(times), device=risk.device), d)  # one entry per event
    start = torch.cumsum(d, 0) - d
    l_over_d = (torch.arange(len(index), device=risk.device) - start[index]).to(risk.dtype) / d[index].to(risk.dtype)
    share = l_over_d if ties == "efron" else torch.zeros_like(l_over_d)
    logs = torch.log(at_risk[index] - share * tied[index]) + top
    return (logs.sum() - risk[happened].sum()) / happened.sum()


@dataclass(frozen=True)
class DiscreteHazard(Survival):
    """Time in bins; logit k is the log odds that the event comes in bin k, given that it had not before.

    Attributes:
        bins: number of bins, cut at quantiles of the training events' times.
        cuts: ends of the bins but the last, rising, once fitted.

    Source: Gensheimer and Narasimhan 2019, doi:10.7717/peerj.6257; Zadeh and Schmid 2021,
    doi:10.1109/TPAMI.2020.2979450.
    """

    bins: int = 4
    cuts: tuple[float, ...] = ()
    kind = "discrete_hazard"

    @property
    def outputs(self) -> int:
        """One per bin."""
        return len(self.cuts) + 1 if self.cuts else self.bins

    @property
    def columns(self) -> tuple[str, ...]:
        """The risk, and the chance of living past each cut."""
        return ("risk", *(f"survival_{cut:.6g}" for cut in self.cuts))

    @property
    def output_names(self) -> tuple[str, ...]:
        """`hazard 1` and so on, a bin of time each."""
        return tuple(f"hazard {k + 1}" for k in range(self.outputs))

    def fitted(self, target: Array) -> Self:
        """Cut time so that as many events lie in each bin."""
        rows = self.check(target)
        events = rows[rows[:, 1] == 1, 0]
        cuts = np.unique(np.quantile(events, np.arange(1, self.bins) / self.bins))
        cuts = cuts[cuts < events.max()]
        if not len(cuts):
            raise TrainingDataError("all training events come at the same time: there are no bins to tell apart.")
        return replace(self, cuts=tuple(float(cut) for cut in cuts))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """-log of the chance of what was seen: of no event before its bin, and of the event in it.

        Who was censored in a bin counts as having outlived the bins before it.
        """
        known = ~torch.isnan(target).any(dim=1)
        time, event = torch.nan_to_num(target, nan=1.0).unbind(dim=1)
        cuts = torch.tensor(self.cuts, dtype=time.dtype, device=time.device)
        own = torch.searchsorted(cuts, time.contiguous())[:, None]  # a time at a cut lies in the bin that ends there
        step = torch.arange(logits.shape[1], device=logits.device)
        outlived = torch.where(step < own, softplus(logits), torch.zeros_like(logits)).sum(dim=1)
        came = torch.where(step == own, softplus(-logits), torch.zeros_like(logits)).sum(dim=1)
        return masked(outlived + event.to(logits.dtype) * came, known)

    def answer(self, logits: Array) -> Array:
        """Risk: expected number of bins not outlived; then the survival at the cuts."""
        alive = np.cumprod(1 / (1 + np.exp(np.clip(logits, -500, 500))), axis=1)
        return np.concatenate([logits.shape[1] - alive.sum(axis=1, keepdims=True), alive[:, : len(self.cuts)]], axis=1)
