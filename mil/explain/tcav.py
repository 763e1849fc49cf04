"""TCAV: does a concept, given by example tiles, push a class? With a test against many random concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head

from .gradients import feature_gradient

Rows = NDArray[Any]

LEAST_COUNTERS, LEAST_EXAMPLES = 10, 5


@dataclass(frozen=True)
class ConceptScore:
    """What a concept does to a class.

    Attributes:
        concept: its name.
        score: share of the slides whose logit rises with the concept, mean over the counter-concepts; 0.5 is nothing.
        spread: standard deviation over the counter-concepts.
        random: mean score of random concepts.
        p: of the two-sided Mann-Whitney test against random concepts, corrected after Holm for all concepts asked.
        accuracy: of the concept's classifier on tiles it has not seen, mean; near 0.5 the concept was not learned.
        apart: standard deviation of the score over the models of an ensemble; 0 of a single one.
    """

    concept: str
    score: float
    spread: float
    random: float
    p: float
    accuracy: float
    apart: float = 0.0


def tcav(
    head: Head,
    bags: Sequence[Bag],
    target: int,
    concepts: Mapping[str, Rows],
    counters: Sequence[Rows],
    *,
    seed: int = 0,
) -> list[ConceptScore]:
    """Score concepts, in the order given.

    A concept activation vector is the direction, in standardized features, that tells the concept's tiles from those of
    a counter-concept. A slide's sensitivity is the derivative of its logit when all its tiles move that way.

    Args:
        head: the trained head.
        bags: slides of the class, one bag each.
        target: class number.
        concepts: name → features (n, D) of example tiles.
        counters: features (m, D) of random tiles, at least ten sets.
        seed: of the halves by which `accuracy` is measured.

    Raises:
        MilError: too few examples, counter-concepts or slides.

    Source: Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018, §3; the rank test in place of the
    t-test, for scores of few slides are far from normal.
    """
    return tcav_of_several([(head, bags)], target, concepts, counters, seed=seed)


def tcav_of_several(
    members: Sequence[tuple[Head, Sequence[Bag]]],
    target: int,
    concepts: Mapping[str, Rows],
    counters: Sequence[Rows],
    *,
    seed: int = 0,
) -> list[ConceptScore]:
    """Score concepts for an ensemble: each member has vectors of its own, and a score is the mean of the members'.

    The test is between these means, one for each counter-concept: members answer alike and are no further samples.

    Args:
        members: each head with the slides of the class as it takes them.
        target: class number.
        concepts: as `tcav` takes them.
        counters: likewise.
        seed: likewise.

    Raises:
        MilError: too few examples, counter-concepts, slides or members.
    """
    _check(members[0][1] if members else [], concepts, counters)
    asked = [_Asked.of(head, bags, target, counters, seed) for head, bags in members]
    random = np.mean([one.random for one in asked], axis=0)
    found, chances = [], []
    for name, examples in concepts.items():
        each, shares = zip(*(one.scores(examples) for one in asked), strict=True)  # (members, counters)
        scores = np.mean(each, axis=0)
        chances.append(_two_sided(scores.tolist(), random.tolist()))
        apart = float(np.std([np.mean(one) for one in each]))
        found.append((name, float(scores.mean()), float(scores.std()), float(np.mean(shares)), apart))
    return [
        ConceptScore(name, score, spread, float(random.mean()), p, accuracy, apart)
        for (name, score, spread, accuracy, apart), p in zip(found, holm(chances), strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Asked:
    """One head with what all concepts are held against.

    Attributes:
        head: the head.
        slopes: of its logit on each slide, (slides, D).
        counters: standardized features of each counter-concept.
        random: score of each counter-concept against the next.
        seed: of the halves.
    """

    head: Head
    slopes: NDArray[np.float64]
    counters: Sequence[NDArray[np.float64]]
    random: Sequence[float]
    seed: int

    @classmethod
    def of(cls, head: Head, bags: Sequence[Bag], target: int, counters: Sequence[Rows], seed: int) -> _Asked:
        slopes = np.stack([_slope(head, bag, target) for bag in bags])
        rows = [_standardized(head, counter) for counter in counters]
        random = [_score(slopes, _direction(one, rows[(k + 1) % len(rows)], seed)[0]) for k, one in enumerate(rows)]
        return cls(head, slopes, rows, random, seed)

    def scores(self, examples: Rows) -> tuple[list[float], list[float]]:
        """Return the concept's score against each counter-concept, and how well it is told from each."""
        mine = _standardized(self.head, examples)
        vectors = [_direction(mine, other, self.seed) for other in self.counters]
        return [_score(self.slopes, vector) for vector, _ in vectors], [share for _, share in vectors]


def holm(chances: Sequence[float]) -> list[float]:
    """Correct p-values for their number. Source: Holm 1979, Scandinavian Journal of Statistics 6."""
    order = np.argsort(chances, kind="stable")
    out, least = [0.0] * len(chances), 0.0
    for place, k in enumerate(order.tolist()):
        least = max(least, min(1.0, (len(chances) - place) * chances[k]))
        out[k] = least
    return out


def _check(bags: Sequence[Bag], concepts: Mapping[str, Rows], counters: Sequence[Rows]) -> None:
    if not bags:
        raise MilError("no slide of the class to ask: concepts are scored on slides with tiles.")
    if not concepts:
        raise MilError("no concept: give a folder with one folder of example tiles for each.")
    if len(counters) < LEAST_COUNTERS:
        raise MilError(f"{len(counters)} random counter-concepts: at least {LEAST_COUNTERS} are needed for a test.")
    few = {name: len(rows) for name, rows in concepts.items() if len(rows) < LEAST_EXAMPLES}
    if few:
        name, n = next(iter(few.items()))
        raise MilError(f"concept {name}: {n} example tiles, at least {LEAST_EXAMPLES} are needed.")


def _standardized(head: Head, rows: Rows) -> NDArray[np.float64]:
    mean, factor = (values.double().cpu().numpy() for values in (head.input.mean, head.input.factor))
    z: NDArray[np.float64] = np.multiply(np.asarray(rows, np.float64) - mean, factor)
    return z


def _slope(head: Head, bag: Bag, target: int) -> NDArray[np.float64]:
    """Derivative of the logit when all tiles move together, per standardized feature, (D,)."""
    gradient = feature_gradient(head, bag, target)[0].double().sum(dim=0).cpu().numpy()
    factor = head.input.factor.double().cpu().numpy()
    slope: NDArray[np.float64] = np.divide(gradient, factor, out=np.zeros_like(gradient), where=factor > 0)
    return slope


def _direction(ones: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], float]:
    """Unit vector from others to ones, and how well it tells held-out halves apart."""
    from sklearn.linear_model import LogisticRegression

    x, y = np.concatenate([ones, others]), np.repeat([1, 0], [len(ones), len(others)])
    kind = {"C": 0.1, "class_weight": "balanced", "max_iter": 1000}
    vector = LogisticRegression(**kind).fit(x, y).coef_[0]
    rng = np.random.default_rng(seed)
    half = np.concatenate([rng.permutation(np.flatnonzero(y == k))[: max(1, (y == k).sum() // 2)] for k in (0, 1)])
    rest = np.setdiff1d(np.arange(len(y)), half)
    said = LogisticRegression(**kind).fit(x[half], y[half]).predict(x[rest])
    accuracy = float(np.mean([(said[y[rest] == k] == k).mean() for k in (0, 1)]))
    return vector / max(float(np.linalg.norm(vector)), 1e-30), accuracy


def _score(slopes: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
    """Share of the slides whose logit rises along the direction; a derivative of zero counts as half."""
    along = slopes @ direction
    return float(((along > 0) + 0.5 * (along == 0)).mean())


def _two_sided(scores: Sequence[float], random: Sequence[float]) -> float:
    from scipy.stats import mannwhitneyu

    if len({*scores, *random}) == 1:
        return 1.0
    return float(mannwhitneyu(scores, random, alternative="two-sided").pvalue)
