"""Facts of a job → what each section of the page shows: plain values, no HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.probe_text import spoken

from .read import JobFacts, Model, Row

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Step:
    """One step of the funnel."""

    name: str
    count: int
    share: float
    lost: list[tuple[str, int]]
    """Why slides of the step before did not come this far, most frequent first."""


def number(value: Any, digits: int = 3) -> str:
    """Return a number for people; a dash where there is none."""
    try:
        return f"{float(value):.{digits}f}"
    except (TypeError, ValueError):
        return "–"


def interval(values: Any) -> str:
    """Return two ends as text; empty where there are none."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2 or None in values:
        return ""
    return f"{number(values[0])} to {number(values[1])}"


def funnel(facts: JobFacts) -> list[Step]:
    """Return found → readable → tissue → features → predicted, with the reasons for each loss."""
    found = {row["slide_id"] for row in (*facts.manifest, *facts.slides) if row.get("slide_id")}
    by_name = {row["slide_id"]: row for row in facts.slides if row.get("slide_id")}
    readable = {name for name in found if _was_read(by_name.get(name, {}))}
    tissue = {name for name in readable if _above_zero(by_name[name], "tissue_share", "n_tiles")}
    features = {name for name in tissue if _above_zero(by_name[name], "n_tiles") and _is_done(by_name[name])}
    steps = [("found", found), ("readable", readable), ("tissue", tissue), ("features", features)]
    predicted = {row["slide_id"] for model in facts.models for row in model.predictions if row.get("pred")} & features
    if any(model.predictions for model in facts.models):
        steps.append(("predicted", predicted))
    out, before = [], found
    for name, here in steps:
        lost = Counter(_reason(by_name.get(slide, {})) for slide in sorted(before - here))
        share = len(here) / len(found) if found else 0.0
        out.append(Step(name, len(here), share, lost.most_common()))
        before = here
    return out


def failed(facts: JobFacts) -> list[Row]:
    """Return the slides that failed, were skipped, or came through with a warning or without tiles."""
    return [
        row
        for row in facts.slides
        if row.get("status") not in ("done", "") or row.get("cause") or row.get("n_tiles") == "0"
    ]


def settings_pairs(facts: JobFacts) -> Pairs:
    """Return the settings as (name, value), nested names joined by a dot."""
    return [(name, "–" if value is None else str(value)) for name, value in _flat(facts.settings)]


def encoder_pairs(passport: Mapping[str, Any]) -> Pairs:
    """Return the encoder passport as (name, value)."""
    return [(name, "–" if value is None else str(value)) for name, value in _flat(dict(passport))]


def result_pairs(side: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value, interval) of one side's metrics."""
    names = [
        ("AUC", "auc", "auc_interval"),
        ("average precision", "average_precision", ""),
        ("accuracy", "accuracy", "accuracy_interval"),
        ("balanced accuracy", "balanced_accuracy", ""),
        ("sensitivity", "sensitivity", ""),
        ("specificity", "specificity", ""),
        ("Brier score", "brier", ""),
    ]
    return [(label, number(side.get(key)), spread(side.get(ends))) for label, key, ends in names if key in side]


def spread(ends: Any) -> str:
    """Return an interval; one without width says nothing about how sure the figure is."""
    text = interval(ends)
    return "none: all resamples agree" if text and ends[0] == ends[1] else text


def rate_rows(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return λ, W, L and wait of each measured stage."""
    rates = run.get("rates")
    if not isinstance(rates, Mapping):
        return []
    rows = []
    for stage, rate in rates.items():
        if isinstance(rate, Mapping):
            wait = rate.get("wait")
            rows.append(
                {
                    "stage": str(stage),
                    "lambda": number(rate.get("lambda"), 1),
                    "W_mean": _milliseconds(rate.get("W_mean")),
                    "W_p99": _milliseconds(rate.get("W_p99")),
                    "L": number(rate.get("L"), 1),
                    "wait": f"{float(wait):.1%}" if isinstance(wait, int | float) else "–",
                    "more": ", ".join(
                        f"{key} {rate[key]}{_planned(rate) if key == 'depth' else ''}"
                        for key in ("workers", "depth", "capped_by")
                        if rate.get(key) not in (None, "")
                    ),
                }
            )
    return rows


def _planned(rate: Mapping[str, Any]) -> str:
    """Return the λ, W and L from which a depth was planned last."""
    plan = rate.get("planned")
    if not isinstance(plan, Mapping) or not isinstance(plan.get("lambda"), int | float):
        return ""
    return f" (λ {number(plan['lambda'], 1)} · W {_milliseconds(plan.get('W'))} ms = L {number(plan.get('L'), 2)})"


def ordered(model: Model) -> list[Row]:
    """Return predictions with held-out slides first, wrong ones before right ones, sure ones before unsure."""
    side = {"test": 0, "val": 1, "validation": 1, "train": 2}

    def key(row: Row) -> tuple[Any, ...]:
        return (
            side.get(row.get("split", ""), 3),
            not is_wrong(row, model),
            -or_zero(sureness(row)),
            row.get("slide_id", ""),
        )

    return sorted(model.predictions, key=key)


def names_classes(model: Model) -> bool:
    """Return whether the answers of a model are classes, which can be right or wrong."""
    return str(model.config.get("task", "classification")) in ("classification", "ordinal")


def is_wrong(row: Row, model: Model) -> bool:
    """Return whether a slide's label is known and another class was predicted."""
    known = bool(row.get("label")) and bool(row.get("pred"))
    return known and names_classes(model) and row["label"] != row["pred"]


def sureness(row: Row) -> float:
    """Return the probability of the class that was predicted; NaN where there is none."""
    try:
        return float(row[f"p_{row['pred']}"])
    except (KeyError, ValueError):
        return math.nan


def methods(facts: JobFacts) -> list[str]:
    """Return the methods as sentences that can go into a paper."""
    get: dict[str, Any] = {name.rsplit(".", 1)[-1]: value for name, value in _flat(facts.settings)}
    extract = facts.settings.get("extract")
    get |= extract if isinstance(extract, Mapping) else {}
    slidemil = dict(facts.run.get("versions") or {}).get("slidemil")
    out = []
    if facts.slides:
        tool = f" with slidemil {slidemil}" if slidemil else " with slidemil"
        out.append(f"{len(facts.slides)} whole-slide images were processed{tool}.")
    tile, mpp, least = (get.get(name) for name in ("tile", "mpp", "min_tissue"))
    if isinstance(tile, int) and isinstance(mpp, int | float) and isinstance(least, int | float):
        cut = f" Tissue flagged as {get['exclude']} was cut out." if get.get("exclude") else ""
        out.append(
            f"Tissue was outlined on a low-resolution picture of each slide.{cut} Tiles of {tile} px at {mpp} µm per "
            f"pixel ({tile * mpp:g} µm), {get.get('overlap', 0)} px overlapping, were kept where at least "
            f"{least:.0%} of their area is tissue."
        )
    if facts.passport or "encoder" in get:
        name = facts.passport.get("id", get.get("encoder", "unknown"))
        weights, dim = facts.passport.get("weights"), facts.passport.get("dim")
        what = f" ({dim} values{f', weights: {weights}' if weights else ''})" if dim else ""
        stain = facts.passport.get("stain", get.get("stain", "none"))
        normalized = "no stain normalization" if stain == "none" else f"{stain} stain normalization, fitted per slide"
        out.append(f"Each tile was turned into a feature vector by the encoder {name}{what}, with {normalized}.")
    for model in facts.models[:_MOST_TOLD]:
        out += _training_sentences(model)
    if any(model.predictions for model in facts.models):
        out.append(
            "Intervals are 95 % percentile intervals of a bootstrap that draws whole patients; where all resamples "
            "agree, those of as many independent patients."
        )
    methods_drawn = sorted({row["method"] for model in facts.models for row in model.explained if row.get("method")})
    if methods_drawn:
        out.append(
            f"Explanations ({', '.join(methods_drawn)}) were compared by deletion and insertion of tiles, by their "
            "agreement between heads trained from other seeds, and against a head of random weights."
        )
    return out


def limits(facts: JobFacts) -> list[str]:
    """Return what the reader must not conclude."""
    model = facts.models[0] if facts.models else None
    out = ["For research only; not a medical device. Nothing here has been validated for diagnosis."]
    if model is not None:
        out.append(
            "Attention says where the model took its information from. It is no proof of cause: a tile may get "
            "much attention and speak against the predicted class, or for none."
        )
        test = model.metrics.get("test")
        if isinstance(test, Mapping) and isinstance(test.get("n_patients"), int) and test["n_patients"] < 100:
            out.append(
                f"{test['n_patients']} held-out patients: the intervals are wide, and patients from one source "
                "say nothing about another hospital, scanner or stain."
            )
        if model.metrics and not model.metrics.get("test"):
            out.append("No slides were held out: how well this model does on new patients is unknown.")
    if facts.passport.get("id") == "descriptors":
        out.append(
            "The features are classical descriptors of color and texture, made to run anywhere without weights; "
            "a foundation model's features usually carry more."
        )
    return out


_MOST_TOLD = 4
"""Models whose training the methods tell."""


def _training_sentences(model: Model) -> list[str]:
    if model.members:
        n = len(model.members)
        head = model.config.get("head")
        name = head.get("name", model.name) if isinstance(head, Mapping) else model.name
        folds = len({str(one).rpartition("f")[2] for one in model.members})
        how = f"{folds}-fold cross-validation by patient" + (f", dealt {n // folds} times" if n > folds else "")
        return [
            f"{model.name}: {n} multiple-instance heads ({name}) were trained in {how}; each slide was answered by the "
            "model that had not seen its patient."
        ]
    if not model.metrics:
        return []
    split = model.metrics.get("split")
    head = model.config.get("head")
    name = head.get("name", model.name) if isinstance(head, Mapping) else model.name
    sides = split if isinstance(split, Mapping) else {}

    def count(side: str) -> str:
        n = sides.get(side)
        if isinstance(n, Mapping):
            return f"{n.get('slides', '?')} slides of {n.get('patients', '?')} patients"
        return f"{n} slides" if n is not None else "some slides"

    out = [
        f"{model.name}: a multiple-instance head ({name}) was trained on {count('train')}; training stopped early on "
        f"the loss of {count('val' if 'val' in sides else 'validation')}, on which the decision threshold was chosen, "
        "too. All slides of a patient are on the same side."
    ]
    test = model.metrics.get("test")
    if isinstance(test, Mapping):
        out.append(
            f"The figures are those of {test.get('n', '?')} slides of {test.get('n_patients', '?')} patients that "
            f"were used for nothing before; the {number(test.get('auc_interval_level', 0.95), 2)} interval of the AUC "
            f"comes from: {test.get('auc_interval_method', 'resampled patients')}."
        )
    clinical = model.config.get("clinical")
    if isinstance(clinical, Mapping):
        names = ", ".join(str(one.get("name")) for one in clinical.get("variables", ()))
        kind = str(clinical.get("fusion")).replace("_", " ")
        out.append(f"Clinical variables joined the slide by {kind} fusion: {names}.")
    taught, conflict = model.config.get("taught_by"), model.metrics.get("gradient_conflict")
    if isinstance(taught, Mapping):
        out.append(f"It learned from {taught.get('members', '?')} other models (knowledge distillation), too.")
    if isinstance(conflict, Mapping) and isinstance(conflict.get("share"), float):
        projected = " and were projected (PCGrad)" if conflict.get("surgery") == "pcgrad" else ""
        out.append(f"The tasks' gradients conflicted in {conflict['share']:.0%} of the pairs{projected}.")
    probed = model.metrics.get("site_probe")
    if isinstance(probed, Mapping):
        out.append(f"Kept out in training, with a fresh probe as the judge: {'; '.join(spoken(probed))}.")
    return out


def _reason(row: Row) -> str:
    if row.get("cause"):
        return row["cause"]
    if row.get("warning"):
        return row["warning"]
    if row.get("status") in ("", None, "pending"):
        return "not processed yet"
    return "no tiles" if row.get("n_tiles") in ("0", "") else "no prediction"


def _was_read(row: Row) -> bool:
    return bool(row.get("width") or row.get("reader")) or _is_done(row)


def _is_done(row: Row) -> bool:
    return row.get("status") in ("done", "skipped") and not row.get("cause")


def _above_zero(row: Row, *names: str) -> bool:
    for name in names:
        try:
            if float(row.get(name) or 0) > 0:
                return True
        except ValueError:
            continue
    return False


def or_zero(value: float) -> float:
    """Return a number, 0 for NaN."""
    return 0.0 if math.isnan(value) else value


def _milliseconds(seconds: Any) -> str:
    return f"{float(seconds) * 1000:.1f}" if isinstance(seconds, int | float) else "–"


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            out += _flat(inner, f"{before}{name}.")
        elif isinstance(inner, list):
            out.append((f"{before}{name}", ", ".join(str(item) for item in inner)))
        else:
            out.append((f"{before}{name}", inner))
    return out
