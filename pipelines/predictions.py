"""A model and features → the prediction tables of a job, and the model a name stands for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mil

from .errors import UsageError
from .feature_sets import FeatureSet
from .features import same_passport
from .files import sha256_file, sha256_json
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .records import current, finish

NOT_PREDICTED = "no tiles: not predicted"


@dataclass(frozen=True)
class NamedModel:
    """A model and where it lies.

    Attributes:
        name: in the folders `predictions/` and `heatmaps/`.
        folder: with config.json and model.safetensors.
        model: ready to use.
        sha256: of the weights.
    """

    name: str
    folder: Path
    model: mil.TrainedModel
    sha256: str


def find_model(job: JobFolder, wanted: str) -> NamedModel:
    """Return the model that `--model` means: the name of one of the job's, or a folder.

    Raises:
        UsageError: there is no such model; the message lists those there are.
        mil.ModelError: the folder is damaged.
    """
    inside, outside = job.model(wanted), Path(wanted)
    if Path(wanted).name == wanted and inside.is_dir():
        folder = inside
    elif outside.is_dir():
        folder = outside
    else:
        known = sorted(path.name for path in job.model("").glob("*") if path.is_dir())
        listed = f"The job has {', '.join(known)}." if known else "The job has none yet: train one, or give a folder."
        raise UsageError(f"--model {wanted}: no such model. {listed}")
    model = mil.load_model(folder)
    return NamedModel(folder.resolve().name, folder, model, sha256_file(folder / "model.safetensors"))


def check_fits(named: NamedModel, features: FeatureSet) -> None:
    """Refuse features that were made differently from those the model was trained on.

    Raises:
        CheckFailedError: names the fields that differ.
    """
    wanted = named.model.config.get("encoder")
    if wanted is not None:
        same_passport(wanted, features.passport, what=f"model {named.name} on {features.folder}")


def predict(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    *,
    labels: Mapping[str, str] | None = None,
    cases: Mapping[str, str] | None = None,
    sides: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Predict every slide with features, and write `slides.csv` and `cases.csv` of the model.

    Returns:
        The rows of `slides.csv`, and whether they were made anew.
    """
    labels, cases, sides = labels or {}, cases or {}, sides or {}
    mine = [entry for entry in slides if entry.slide_id in features.files]
    case_of = {entry.slide_id: cases.get(entry.slide_id, entry.case_id) for entry in mine}
    parts = {
        "model": named.sha256,
        "slides": sha256_json([[name, features.hashes[name]] for name in sorted(case_of)]),
        "labels": sha256_json([sorted(labels.items()), sorted(case_of.items()), sorted(sides.items())]),
    }
    table = job.predictions(named.name) / "slides.csv"
    if current(job, table, parts) and current(job, table.with_name("cases.csv"), parts):
        return read_predictions(job, named.name), False
    rows = [
        _row(named, features, name, labels.get(name, ""), case_of[name], sides.get(name, ""))
        for name in sorted(case_of)
    ]
    classes = named.model.classes
    finish(job, table, _csv(_columns(classes), rows), parts)
    per_case = _cases(rows, classes, named.model.threshold)
    finish(job, table.with_name("cases.csv"), _csv(_case_columns(classes), per_case), parts)
    return rows, True


def read_predictions(job: JobFolder, name: str) -> list[dict[str, Any]]:
    """Read the slide predictions of a model; empty where there are none."""
    from .files import read_csv

    path = job.predictions(name) / "slides.csv"
    return list(read_csv(path)) if path.is_file() else []


def _row(named: NamedModel, features: FeatureSet, slide_id: str, label: str, case: str, side: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "slide_id": slide_id,
        "case_id": case,
        "label": label,
        "n_tiles": len(features.files[slide_id].xy),
        "head_id": named.model.config["head"]["name"],
        "encoder_id": features.passport.get("id", ""),
        "split": side,
        "warning": "",
    }
    if row["n_tiles"] == 0:
        return row | {"pred": "", "warning": NOT_PREDICTED}
    found = mil.predict(named.model, features.bag(slide_id))[0]
    chances = {f"p_{name}": float(value) for name, value in zip(named.model.classes, found.probabilities, strict=True)}
    return row | chances | {"pred": found.pred}


def _cases(rows: Iterable[Mapping[str, Any]], classes: Sequence[str], threshold: float | None) -> list[dict[str, Any]]:
    """Aggregate slides to cases: the mean of the slides' probabilities."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["pred"]:
            groups.setdefault(str(row["case_id"]), []).append(row)
    cases = []
    for case, mine in sorted(groups.items()):
        chances = np.mean([[row[f"p_{name}"] for name in classes] for row in mine], axis=0)
        cut = len(classes) == 2 and threshold is not None
        best = int(chances[1] >= threshold) if cut else int(np.argmax(chances))
        known = sorted({str(row["label"]) for row in mine if row["label"]})
        cases.append(
            {
                "case_id": case,
                "label": "|".join(known),
                "pred": classes[best],
                **{f"p_{name}": float(value) for name, value in zip(classes, chances, strict=True)},
                "n_slides": len(mine),
                "rule": "mean of slide probabilities",
            }
        )
    return cases


def _columns(classes: Sequence[str]) -> list[str]:
    chances = [f"p_{name}" for name in classes]
    return [
        "slide_id",
        "case_id",
        "label",
        "pred",
        *chances,
        "n_tiles",
        "head_id",
        "encoder_id",
        "fold",
        "split",
        "warning",
    ]


def _case_columns(classes: Sequence[str]) -> list[str]:
    return ["case_id", "label", "pred", *(f"p_{name}" for name in classes), "n_slides", "rule"]


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.9g}" if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue().encode()
