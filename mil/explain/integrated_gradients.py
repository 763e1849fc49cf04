"""Integrated gradients: the gradient along the way from a baseline to the bag; the parts sum to the difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mil.bag import Bag
from mil.heads import Head
from mil.pooling import accumulation_dtype

from .gradients import feature_gradient
from .result import Explanation, Reach, as_values, bag_by_bag

PIECES, POINTS, MOST_STEPS, ERROR, SHARE = 4, 8, 1024, 1e-4, 0.01
WHITE, AVERAGE = "the encoder's output on white", "the average training tile (no encoder was given to encode white)"


@bag_by_bag
def integrated_gradients(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Σ over the features of (x - b) · mean gradient along b → x, with b the features of a white tile.

    One gradient at a time: memory does not grow with the steps. The way is cut where it bends: on each piece the parts
    must sum to the difference of the logit at its ends, and the piece where they do so least is halved, until the whole
    misses by `error` at most and the pieces, signs aside, by a hundredth of the difference; or `most_steps` gradients
    were taken. What is left of the sum is told.

    Options: `most_steps`, `error`, `baseline` (D,).

    Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017; Gauss-Legendre quadrature.
    """
    features = bag.features.to(accumulation_dtype(bag.features))
    baseline, told = _baseline(head, reach)
    way = _Way(head, bag, target, baseline.to(features).expand_as(features), features)
    most, allowed = int(reach.options.get("most_steps", MOST_STEPS)), float(reach.options.get("error", ERROR))
    ends = [k / PIECES for k in range(PIECES + 1)]
    logits = [way.logit(place) for place in ends]
    pieces = [way.piece(*ends[k : k + 2], *logits[k : k + 2]) for k in range(PIECES)]
    while not _good(pieces, allowed, logits[-1] - logits[0]) and (len(pieces) + 1) * POINTS <= most:
        worst = max(pieces, key=lambda piece: abs(piece.error))
        pieces.remove(worst)
        middle = (worst.start + worst.end) / 2
        logit = way.logit(middle)
        pieces.append(way.piece(worst.start, middle, worst.first, logit))
        pieces.append(way.piece(middle, worst.end, logit, worst.last))
    values = torch.stack([piece.values for piece in pieces]).sum(dim=0)
    facts = {
        "baseline": told,
        "steps": len(pieces) * POINTS,
        "completeness_error": abs(float(values.sum()) - (logits[-1] - logits[0])),
        "logit": logits[-1],
        "logit_of_white": logits[0],
    }
    return Explanation(as_values(values), facts)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of the way, with the logit at its ends and what each tile gets on it, (N,) float64."""

    start: float
    end: float
    first: float
    last: float
    values: Tensor

    @property
    def error(self) -> float:
        return float(self.values.sum()) - (self.last - self.first)


def _good(pieces: list[_Piece], allowed: float, difference: float) -> bool:
    errors = [piece.error for piece in pieces]
    return abs(sum(errors)) <= allowed and sum(map(abs, errors)) <= max(allowed, SHARE * abs(difference))


@dataclass(frozen=True, eq=False)
class _Way:
    """The straight way between two bags of features (N, D)."""

    head: Head
    bag: Bag
    target: int
    begin: Tensor
    end: Tensor

    def at(self, place: float) -> Tensor:
        return torch.lerp(self.begin, self.end, place)

    def logit(self, place: float) -> float:
        """Logit at a place from 0 to 1."""
        with torch.inference_mode():
            return float(self.head(replace(self.bag, features=self.at(place))).logits[0, self.target])

    def piece(self, start: float, end: float, first: float, last: float) -> _Piece:
        """Integrate from `start` to `end`."""
        places, shares = np.polynomial.legendre.leggauss(POINTS)
        change = self.end - self.begin
        values = torch.zeros(len(change), dtype=torch.float64, device=change.device)
        for place, share in zip((places + 1) / 2, shares / 2, strict=True):
            where = start + (end - start) * float(place)
            gradient, _ = feature_gradient(self.head, self.bag, self.target, self.at(where))
            values += float(share) * (end - start) * (gradient * change).sum(dim=1, dtype=torch.float64)
        return _Piece(start, end, first, last, values)


def _baseline(head: Head, reach: Reach) -> tuple[Tensor, str]:
    """Return features (D,) of nothing, and what they are."""
    given = reach.options.get("baseline")
    if given is not None:
        return torch.as_tensor(given), "given"
    if reach.encoder is None:
        return head.input.mean, AVERAGE
    side = reach.encoder.input_size
    white = reach.encoder(np.full((1, side, side, 3), 255, np.uint8))[0]
    return torch.from_numpy(np.asarray(white, np.float32)), WHITE
