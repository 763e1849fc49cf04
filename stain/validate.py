"""Whether a change of stain leaves the tissue as it is: measures with intervals, thresholds and one verdict.

Example: `validate(tiles, transfer, target=target_tiles).go`. A transfer is any callable from tiles to tiles; a
normalizer is made one by `normalizer`. Nothing here knows how the transfer works, and a good picture is no evidence.

A measure passes where the worse end of its 95 % interval is on the right side of the threshold; where only the value
is, the verdict is "unproven", and more tiles may decide. Go needs every measure to pass but those that were not asked
for: what could not be measured is no evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import measures
from .errors import PixelFormatError, unknown
from .measures import Floats, Pixels
from .normalize import fit

Transfer = Callable[[Pixels], Pixels]
"""Tiles (N, S, S, 3) uint8 of one slide → the same number of tiles, in the other stain."""

Back = Callable[[Pixels, Pixels], Pixels]
"""Changed tiles, and the tiles they were made from → tiles in the first stain again."""

Predict = Callable[[Pixels], Floats]
"""Tiles → probabilities (N, C)."""

RESAMPLES: Final = 1000
FEWEST_GROUPS: Final = 8
"""Slides from which on the interval is over slides instead of tiles."""

VERDICTS: Final = ("pass", "unproven", "fail", "not measured")


@dataclass(frozen=True)
class Kind:
    """What is measured, and where the line lies.

    Attributes:
        title: for people.
        unit: of value and threshold.
        sense: "<=" or ">=", on which side of the threshold it is good.
        threshold: the line.
        catches: what kind of harm it is for.
    """

    title: str
    unit: str
    sense: str
    threshold: float
    catches: str


KINDS: Final = {
    "cycle": Kind("cycle consistency: there and back", "grey levels", "<=", 8.0, "content lost or hidden on the way"),
    "identity": Kind(
        "identity: tiles of the target domain", "grey levels", "<=", 8.0, "change where nothing is to be changed"
    ),
    "dice": Kind("Dice of nuclei before and after", "", ">=", 0.80, "nuclei erased, grown or shrunk"),
    "variation": Kind("total variation, amplified by", "×", "<=", 1.20, "added texture and noise"),
    "components": Kind("change in the number of nuclei", "share", "<=", 0.25, "nuclei painted in, split, merged"),
    "structure": Kind("structural similarity of density", "", ">=", 0.90, "shifts, blur, warps"),
    "stain": Kind("stains, from those of the target", "share", "<=", 0.35, "wrong or swapped stains"),
    "agreement": Kind(
        "agreement of a model's predictions", "share", ">=", 0.90, "harm to what the tiles are needed for"
    ),
}
"""The measures, by name. Thresholds can be given anew, see `validate`."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure.

    Attributes:
        name: key of `KINDS`.
        value: over all tiles; NaN where it was not measured.
        interval: 95 %, by resampling slides or tiles.
        threshold: the line it was held to.
        verdict: one of `VERDICTS`.
        tiles: (N,) the same of each tile, NaN where a tile has none; empty where there is no such thing.
        of: "tiles", or "target" where the tiles are those of the target.
        note: why it was not measured.
        asked: whether it had to be measured; not without a model, or a way back.
    """

    name: str
    value: float
    interval: tuple[float, float]
    threshold: float
    verdict: str
    tiles: Floats = field(default_factory=lambda: np.zeros(0))
    of: str = "tiles"
    note: str = ""
    asked: bool = True

    @property
    def good(self) -> bool:
        """Whether it says nothing against a go."""
        return self.verdict == "pass" or (self.verdict == "not measured" and not self.asked)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kind = KINDS[self.name]
        measured = self.verdict != "not measured"
        return {
            "name": self.name,
            "title": kind.title,
            "unit": kind.unit,
            "value": _plain(self.value) if measured else None,
            "interval": [_plain(end) for end in self.interval] if measured else None,
            "threshold": [kind.sense, self.threshold],
            "verdict": self.verdict,
            **({"note": self.note} if self.note else {}),
        }

    def worst(self, count: int) -> list[int]:
        """Return the rows of the tiles that are worst by this measure, the worst first."""
        known = np.flatnonzero(np.isfinite(self.tiles))
        order = known[np.argsort(self.tiles[known], kind="stable")]
        return [int(row) for row in (order if KINDS[self.name].sense == ">=" else order[::-1])[:count]]


@dataclass(frozen=True, eq=False)
class Validation:
    """What the protocol found.

    Attributes:
        measures: in the order of `KINDS`.
        after: (N, S, S, 3) uint8, the tiles as they came out.
        target_after: (M, S, S, 3) uint8, the target's tiles as they came out; none where the identity was not asked.
        resampled: "slides" or "tiles": over what the intervals go.
        unchanged: the slides that came out byte for byte as they were.
    """

    measures: tuple[Measured, ...]
    after: Pixels
    target_after: Pixels
    resampled: str
    unchanged: tuple[str, ...] = ()

    @property
    def go(self) -> bool:
        """Whether every measure that was asked for was taken and passes."""
        return all(one.good for one in self.measures)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "go": self.go,
            "tiles": len(self.after),
            "intervals_over": self.resampled,
            "unchanged": list(self.unchanged),
            "measures": [one.to_json() for one in self.measures],
        }


def validate(
    tiles: Pixels,
    transfer: Transfer,
    *,
    target: Pixels,
    groups: Sequence[str] | None = None,
    target_groups: Sequence[str] | None = None,
    back: Back | None = None,
    predict: Predict | None = None,
    thresholds: Mapping[str, float] | None = None,
    identity: bool = True,
    seed: int = 0,
) -> Validation:
    """Measure what a transfer does to held-out tiles.

    Args:
        tiles: (N, S, S, 3) uint8, in the first stain, that the transfer was not made with.
        transfer: called once for each slide.
        target: (M, S, S, 3) uint8 of the target domain.
        groups: the slide of each tile; none: all are of one slide.
        target_groups: the slide of each tile of the target.
        back: the way back, for the cycle; none: it is not measured.
        predict: a model's probabilities; none: agreement is not measured.
        thresholds: other lines than those of `KINDS`, by name.
        identity: whether the transfer takes tiles of its target domain at all (virtual staining does not).
        seed: of the resampling.

    Raises:
        PixelFormatError: not tiles, too few, or the transfer gives tiles of another shape.
        StainError: a threshold of an unknown measure.
    """
    lines = {name: kind.threshold for name, kind in KINDS.items()}
    for name in thresholds or {}:
        if name not in lines:
            raise PixelFormatError(unknown("measure", name, lines))
    lines |= dict(thresholds or {})
    for what, some in (("tiles", tiles), ("target", target)):
        _check_tiles(what, some)
    names = np.asarray(list(groups) if groups is not None else [""] * len(tiles))
    others = np.asarray(list(target_groups) if target_groups is not None else [""] * len(target))
    after = _each(transfer, tiles, names)
    units, resampled = _units(names)
    rng = np.random.default_rng(seed)

    def mean_of(name: str, values: Floats, own: NDArray[np.int64] = units) -> Measured:
        return _judged(name, values, own, lines[name], rng)

    def skipped(name: str, why: str) -> Measured:
        return Measured(name, float("nan"), (float("nan"),) * 2, lines[name], "not measured", note=why, asked=False)

    density = measures.density_of(after)
    nearest = np.empty_like(density)
    for rows in _rows_of(names):
        nearest[rows] = measures.recolored(tiles[rows], density[rows])
    masks, masks_after = (_nuclei(some, names) for some in (tiles, after))
    found = [
        mean_of("dice", measures.dice(masks, masks_after)),
        mean_of("variation", measures.variation_amplified(nearest, density)),
        mean_of("components", measures.components_changed(masks, masks_after)),
        mean_of("structure", measures.structure(nearest, density)),
        _stains(tiles, after, names, [target[rows] for rows in _rows_of(others)], units, lines["stain"], rng),
    ]
    if back is None:
        found.insert(0, skipped("cycle", "no way back was given"))
    else:
        restored = np.empty_like(tiles)
        for rows in _rows_of(names):
            restored[rows] = _checked(back(after[rows], tiles[rows]), tiles[rows])
        found.insert(0, mean_of("cycle", measures.levels_apart(tiles, restored)))
    if identity:
        kept = _each(transfer, target, others)
        stayed = mean_of("identity", measures.levels_apart(target, kept), _units(others)[0])
        found.insert(1, replace(stayed, of="target"))
    else:
        kept = target[:0]
        found.insert(1, skipped("identity", "the transfer is not meant for tiles of its target domain"))
    if predict is None:
        found.append(skipped("agreement", "no model was given"))
    else:
        first, second = (np.asarray(predict(some)).argmax(axis=1) for some in (tiles, after))
        found.append(mean_of("agreement", (first == second).astype(np.float64)))
    same = tuple(str(names[rows[0]]) for rows in _rows_of(names) if np.array_equal(tiles[rows], after[rows]))
    return Validation(tuple(found), after, kept, resampled, same)


def normalizer(method: str, reference: Any = None) -> tuple[Transfer, Back]:
    """Return a normalizer as a transfer, fitted anew for each slide, and its way back to that slide's own stains.

    Args:
        method: "macenko", "vahadane" or "reinhard".
        reference: what `stain.fit` takes.
    """

    def transfer(tiles: Pixels) -> Pixels:
        return np.asarray(fit(method, tiles, reference=reference).apply(tiles))

    def back(after: Pixels, before: Pixels) -> Pixels:
        own = fit(method, before, reference=reference)
        if own.status != "ok":
            return after  # the slide was left as it is
        return np.asarray(fit(method, after, reference=own).apply(after))

    return transfer, back


def _judged(
    name: str, values: Floats, units: NDArray[np.int64], threshold: float, rng: np.random.Generator
) -> Measured:
    """Take the mean of the tiles that have a value, with its interval, and hold it to the line."""
    known = np.isfinite(values)
    if not known.any():
        nothing = (float("nan"), float("nan"))
        return Measured(
            name, float("nan"), nothing, threshold, "not measured", values, note="no tile has anything to measure"
        )
    sums = np.bincount(units[known], values[known], minlength=units.max() + 1)
    sizes = np.bincount(units[known], minlength=units.max() + 1)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    picks = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    value = float(values[known].mean())
    interval = _ends(means)
    return Measured(name, value, interval, threshold, _verdict(name, value, interval, threshold), values)


def _stains(
    tiles: Pixels,
    after: Pixels,
    names: NDArray[Any],
    target: Sequence[Pixels],
    units: NDArray[np.int64],
    threshold: float,
    rng: np.random.Generator,
) -> Measured:
    """Hold what each stain became to the target's stains."""
    nothing = (float("nan"), float("nan"))
    wanted = measures.stains_of(target)
    found = {rows[0]: (rows, measures.stain_moments(tiles[rows], after[rows])) for rows in _rows_of(names)}
    if wanted is None or all(moments is None for _, moments in found.values()):
        why = "the stains of the target, or of every slide, cannot be told apart"
        return Measured("stain", float("nan"), nothing, threshold, "not measured", note=why)
    sums = np.zeros((len(tiles), 2, 5))
    for rows, moments in found.values():
        if moments is not None:
            sums[rows] = moments
    pooled = np.zeros((units.max() + 1, 2, 5))
    np.add.at(pooled, units, sums)
    picks = rng.integers(0, len(pooled), (RESAMPLES, len(pooled)))
    again = measures.stains_apart(pooled[picks].sum(axis=1), wanted)
    value = float(measures.stains_apart(sums.sum(axis=0), wanted))
    interval = _ends(again[np.isfinite(again)]) if np.isfinite(again).any() else nothing
    verdict = _verdict("stain", value, interval, threshold)
    return Measured("stain", value, interval, threshold, verdict, measures.stains_apart(sums, wanted))


def _verdict(name: str, value: float, interval: tuple[float, float], threshold: float) -> str:
    """Return "pass" where even the worse end is on the right side, "unproven" where only the value is."""
    if KINDS[name].sense == "<=":
        value, worse, threshold = -value, -interval[1], -threshold
    else:
        worse = interval[0]
    if worse >= threshold:
        return "pass"
    return "unproven" if value >= threshold else "fail"


def _ends(values: Floats) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _units(names: NDArray[Any]) -> tuple[NDArray[np.int64], str]:
    """Return what is resampled: slides where there are enough of them, else tiles."""
    kinds, rows = np.unique(names, return_inverse=True)
    if len(kinds) >= FEWEST_GROUPS:
        return rows.astype(np.int64), "slides"
    return np.arange(len(names)), "tiles"


def _rows_of(names: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the rows of each slide."""
    return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]


def _nuclei(tiles: Pixels, names: NDArray[Any]) -> NDArray[np.bool_]:
    """Cut out the nuclei of each slide, by its own stains and threshold."""
    masks = np.empty(tiles.shape[:3], np.bool_)
    for rows in _rows_of(names):
        masks[rows] = measures.nuclei(tiles[rows])
    return masks


def _each(transfer: Transfer, tiles: Pixels, names: NDArray[Any]) -> Pixels:
    """Transfer the tiles slide by slide."""
    after = np.empty_like(tiles)
    for rows in _rows_of(names):
        after[rows] = _checked(transfer(tiles[rows]), tiles[rows])
    return after


def _checked(after: Pixels, before: Pixels) -> Pixels:
    """Return what a transfer gave.

    Raises:
        PixelFormatError: it is not as many tiles of the same size.
    """
    if not isinstance(after, np.ndarray) or after.shape != before.shape or after.dtype != np.uint8:
        got = f"{getattr(after, 'dtype', type(after).__name__)} {getattr(after, 'shape', '')}"
        raise PixelFormatError(f"the transfer turned uint8 {before.shape} into {got}: it must keep type and shape.")
    return after


def _check_tiles(what: str, tiles: Pixels) -> None:
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
        raise PixelFormatError(f"{what} must be a numpy array (N, S, S, 3) of uint8.")
    if len(tiles) < 2 or min(tiles.shape[1:3]) < 32:
        raise PixelFormatError(
            f"{what}: {len(tiles)} of {tiles.shape[1:3]} px; at least two tiles of 32 px are needed."
        )


def _plain(value: float) -> float | None:
    return round(value, 5) if np.isfinite(value) else None
