"""A model and features → the prediction tables of a job, and the model a name stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.bag_set import join
from mil.predict import decide
from mil.tasks import Classification, Task, said

from .clinical import KEPT, Cells, cells_file, kept_cells
from .errors import UsageError
from .feature_sets import FeatureSet
from .features import same_passport
from .files import csv_bytes, read_csv, sha256_file, sha256_json
from .jobfolder import JobFolder
from .learn import COHORT, masked
from .manifest import SlideEntry
from .records import current, finish, read_record

ENSEMBLE, FOLDS, LABELS = "ensemble.json", "folds.csv", "labels.csv"
AS_ONE = "all slides of the case as one bag"
NOT_PREDICTED = "no tiles: not predicted"


@dataclass(frozen=True)
class NamedModel:
    """A model and where it lies.

    Attributes:
        name: in the folders `predictions/` and `heatmaps/`.
        folder: with config.json and model.safetensors.
        model: ready to use.
        sha256: of configuration and weights.
        members: of an ensemble all its models; `model` is then the first, and stands for their task and features.
        cells: slide → column → cell of the clinical variables, where the model takes any.
    """

    name: str
    folder: Path
    model: mil.TrainedModel
    sha256: str
    members: tuple[mil.TrainedModel, ...] = ()
    cells: Cells = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Column, or columns, of the label table that it was trained on; `label` where the model does not say."""
        return str(self.model.config.get("target") or "label")

    @property
    def threshold(self) -> float | None:
        """Cut of a two-class task; of an ensemble the mean of its members'."""
        cuts = [model.threshold for model in self.each if model.threshold is not None]
        return float(np.mean(cuts)) if cuts else None

    @property
    def each(self) -> tuple[mil.TrainedModel, ...]:
        """All members of an ensemble; else the model alone."""
        return self.members or (self.model,)

    def joined(self, bag: mil.Bag, model: mil.TrainedModel | None = None) -> mil.Bag:
        """A slide's bag with its clinical variables, as `model`, or one of the members, takes them."""
        return (model or self.model).joined(bag, self.cells.get(bag.ids[0]))

    def answer(self, *bags: mil.Bag) -> NDArray[np.float64]:
        """What is said of a slide, or of several as one bag, (P,); of an ensemble the mean."""
        mean: NDArray[np.float64] = np.mean([answer_of(model, bags, self.cells) for model in self.each], axis=0)
        return mean

    def said_of(self, bag: mil.Bag) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Answer (P,) and logits (C,) of one slide; of an ensemble the mean of each."""
        found = [mil.predict(model, self.joined(bag, model))[0] for model in self.each]
        answer: NDArray[np.float64] = np.mean([one.answer for one in found], axis=0)
        return answer, np.mean([one.logits for one in found], axis=0).astype(np.float32)


def answer_of(model: mil.TrainedModel, bags: Sequence[mil.Bag], cells: Cells) -> NDArray[np.float64]:
    """What one model says of a slide, or of several as one bag, (P,)."""
    each = [model.joined(bag, cells.get(bag.ids[0])) for bag in bags]
    answer: NDArray[np.float64] = mil.predict(model, each[0] if len(each) == 1 else join(each, bags[0].ids[0]))[
        0
    ].answer
    return answer


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
    members = members_of(folder)
    if members is None:
        _check_whole(job, folder)
        name = _name_for(job, folder, digest_of(folder))
        return NamedModel(name, folder, mil.load_model(folder), digest_of(folder), cells=kept_cells(job, name))
    folders = [folder.parent / name for name in members]
    for one in folders:
        _check_whole(job, one)
    models, digest = tuple(mil.load_model(one) for one in folders), sha256_json([digest_of(one) for one in folders])
    name = _name_for(job, folder, digest)
    return NamedModel(name, folder, models[0], digest, models, kept_cells(job, name))


def digest_of(folder: Path) -> str:
    """Return the hash of a model folder's configuration and weights."""
    return sha256_json([sha256_file(folder / "config.json"), sha256_file(folder / "model.safetensors")])


def members_of(folder: Path) -> list[str] | None:
    """Names of the models beside it that a folder stands for; None where it holds a model itself.

    Raises:
        UsageError: the list is damaged.
    """
    path = folder / ENSEMBLE
    if not path.is_file():
        return None
    try:
        names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["members"]]
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"members are {names}")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: damaged ({error}). Run `slidemil train` again.") from error
    return names


def _check_whole(job: JobFolder, folder: Path) -> None:
    """Refuse a model of the job whose training was stopped between its files."""
    if not folder.resolve().is_relative_to(job.root.resolve()):
        return
    records = [read_record(job, job.model(folder.name) / name) for name in ("config.json", "model.safetensors")]
    if None in records or len({record.key for record in records if record}) > 1:
        raise UsageError(f"{folder}: the training that writes this model did not end. Run `slidemil train` again.")


def _name_for(job: JobFolder, folder: Path, digest: str) -> str:
    """Return the name under which a model's results lie; a stranger never takes that of another model."""
    name = folder.resolve().name
    if folder.resolve().parent == job.model("").resolve():
        return name
    record = read_record(job, job.predictions(name) / "slides.csv")
    taken = job.model(name).is_dir() or (record is not None and record.parts.get("model") != digest)
    return f"{name}__{digest[:8]}" if taken else name


def check_fits(named: NamedModel, features: FeatureSet) -> None:
    """Refuse features that were made differently from those the model was trained on.

    Colors that were changed by chance may differ: that is how it is seen what a model bears, and how it is taught to.

    Raises:
        CheckFailedError: names the fields that differ.
    """
    wanted = named.model.config.get("encoder")
    if wanted is not None:
        what = f"model {named.name} on {features.folder}"
        same_passport(wanted, features.passport, what=what, but=("augment",))


def predict(
    job: JobFolder,
    named: NamedModel,
    features: FeatureSet,
    slides: Sequence[SlideEntry],
    *,
    labels: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Predict every slide with features, and write `slides.csv` and `cases.csv` of the model.

    Returns:
        The rows of `slides.csv`, and whether they were made anew.
    """
    labels = labels or {}
    mine = [entry for entry in slides if entry.slide_id in features]
    case_of = {entry.slide_id: entry.case_id for entry in mine}
    parts = {
        "model": named.sha256,
        "slides": sha256_json([[name, features.digest(name)] for name in sorted(case_of)]),
        "labels": sha256_json([sorted(labels.items()), sorted(case_of.items())]),
    }
    parts |= {"clinical": sha256_json(named.cells)} if named.cells else {}
    table = job.predictions(named.name) / "slides.csv"
    if current(job, table, parts) and current(job, table.with_name("cases.csv"), parts):
        return read_predictions(job, named.name), False
    cohort = read_cohort(named.folder)
    rows = [_row(named, features, name, labels.get(name, ""), case_of[name], cohort) for name in sorted(case_of)]
    task = named.model.task
    finish(job, table, slide_table(task, rows), parts)
    together: dict[str, NDArray[np.float64]] = {}
    if named.model.config.get("per_patient"):
        together = {case: named.answer(*map(features.bag, mine)) for case, mine in slides_of_cases(rows).items()}
    finish(job, table.with_name("cases.csv"), case_table(task, rows, named.threshold, together), parts)
    keep_cells(job, named.name, named.cells)
    keep_labels(job, named.name, named.model.task, labels)
    return rows, True


def keep_cells(job: JobFolder, name: str, cells: Cells) -> None:
    """Keep the clinical variables beside the predictions that were made with them: heatmaps need them, too."""
    if cells:
        data = cells_file(cells)
        finish(job, job.predictions(name) / KEPT, data, {"clinical": sha256_json(cells)})


def keep_labels(job: JobFolder, name: str, task: Task, labels: Mapping[str, str]) -> None:
    """Keep the labels beside the predictions: a table of some slides, or one that was deleted, loses none."""
    if labels:
        data = csv_bytes(["slide_id", "label"], [{"slide_id": s, "label": labels[s]} for s in sorted(labels)])
        finish(job, job.predictions(name) / LABELS, data, {"columns": list(task.columns)})


def kept_labels(job: JobFolder, name: str, task: Task) -> dict[str, str]:
    """Return slide → label as they were last told, to a model of the same answers."""
    path = job.predictions(name) / LABELS
    record = read_record(job, path)
    if record is None or record.parts.get("columns") != list(task.columns) or not path.is_file():
        return {}
    return {row["slide_id"]: row["label"] for row in read_csv(path, strip=False)}


def read_predictions(job: JobFolder, name: str, digest: str | None = None) -> list[dict[str, Any]]:
    """Read the slide predictions of a model; empty where there are none, or where they are of other weights."""
    path = job.predictions(name) / "slides.csv"
    record = read_record(job, path)
    if digest is not None and (record is None or record.parts.get("model") != digest):
        return []
    return list(read_csv(path, strip=False)) if path.is_file() else []


def read_cohort(folder: Path) -> dict[str, dict[str, str]]:
    """Return which slides and patients a model has seen, under hashes; empty for a model that does not say."""
    try:
        raw = json.loads((folder / COHORT).read_text(encoding="utf-8"))
        return {kind: dict(raw[kind]) for kind in ("slides", "cases")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"slides": {}, "cases": {}}


def _row(
    named: NamedModel,
    features: FeatureSet,
    slide_id: str,
    label: str,
    case: str,
    cohort: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    side = cohort["slides"].get(masked(slide_id), "")
    of_case = cohort["cases"].get(masked(case), "")
    row: dict[str, Any] = {
        "slide_id": slide_id,
        "case_id": case,
        "label": label,
        "n_tiles": features.n_tiles(slide_id),
        "head_id": named.model.config["head"]["name"],
        "encoder_id": features.passport.get("id", ""),
        "split": side,
        "warning": _seen(side, of_case),
    }
    if row["n_tiles"] == 0:
        return row | {"pred": "", "warning": NOT_PREDICTED}
    answer = named.answer(features.bag(slide_id))
    task = named.model.task
    return row | answers_of(task, answer) | {"pred": said_at(task, answer, named.threshold)}


def _seen(side: str, of_case: str) -> str:
    """Say where a prediction is no evidence: the model knows the slide, or its patient."""
    if side in ("train", "val"):
        return f"the model was made with this slide ({side})"
    return f"the model was made with another slide of this case ({of_case})" if of_case in ("train", "val") else ""


def slides_of_cases(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Case → its predicted slides."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["pred"]:
            found.setdefault(str(row["case_id"]), []).append(str(row["slide_id"]))
    return found


def _cases(
    rows: Iterable[Mapping[str, Any]],
    task: Task,
    threshold: float | None,
    together: Mapping[str, NDArray[np.float64]] | None = None,
) -> list[dict[str, Any]]:
    """Aggregate slides to cases: what was said of all slides as one bag, else the mean of the slides' answers."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["pred"]:
            groups.setdefault(str(row["case_id"]), []).append(row)
    cases = []
    for case, mine in sorted(groups.items()):
        mean = np.mean([[row[name] for name in task.columns] for row in mine], axis=0)
        answer = (together or {}).get(case, mean)
        cut = float(np.mean([row["threshold"] for row in mine])) if _has_cuts(mine) else threshold
        known = sorted({str(row["label"]) for row in mine if row["label"]})
        cases.append(
            {
                "case_id": case,
                "label": "|".join(known),
                "pred": said_at(task, answer, cut),
                **{name: float(value) for name, value in zip(task.columns, answer, strict=True)},
                "n_slides": len(mine),
                "split": "|".join(sorted({str(row["split"]) for row in mine if row["split"]})),
                "rule": AS_ONE if together and case in together else "mean of the slides' answers",
            }
        )
    return cases


def _has_cuts(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(isinstance(row.get("threshold"), float) for row in rows)


def slide_table(task: Task, rows: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> bytes:
    """Return the table of slides, with further columns at its end."""
    return csv_bytes([*_columns(task.columns), *more], rows)


def case_table(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    threshold: float | None,
    together: Mapping[str, NDArray[np.float64]] | None = None,
) -> bytes:
    """Return the table of cases; `together` is what was said of all slides of a case as one bag."""
    return csv_bytes(_case_columns(task.columns), _cases(rows, task, threshold, together))


def answers_of(task: Task, answer: NDArray[np.float64]) -> dict[str, float]:
    """Column → number."""
    return {name: float(value) for name, value in zip(task.columns, answer, strict=True)}


def said_at(task: Task, answer: NDArray[np.float64], threshold: float | None) -> str:
    """Say one answer in a word; of two classes by the threshold."""
    if isinstance(task, Classification):
        return task.classes[decide(answer, threshold)]
    return said(task, answer)


def _columns(answers: Sequence[str]) -> list[str]:
    return [
        "slide_id",
        "case_id",
        "label",
        "pred",
        *answers,
        "n_tiles",
        "head_id",
        "encoder_id",
        "fold",
        "split",
        "warning",
    ]


def _case_columns(answers: Sequence[str]) -> list[str]:
    return ["case_id", "label", "pred", *answers, "n_slides", "split", "rule"]
