"""Job folder → what the report tells. Missing parts are empty, damaged ones are named; nothing is guessed.

File names come from listing folders, never from cells of a table, so that no table can point outside the job.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now, why_older
from pipelines.records import read_record
from pipelines.units import counted

Row = dict[str, str]


@dataclass
class Model:
    """What the job has of one model."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: list[Row] = field(default_factory=list)
    table: str = "slides.csv"
    """Name of the table that `predictions` are from."""
    heatmaps: dict[str, Path] = field(default_factory=dict)
    top: dict[str, Path] = field(default_factory=dict)
    overlays: dict[str, Path] = field(default_factory=dict)
    """Grad-CAM over the top tiles."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)
    """Slide → which method its heatmap shows, for which class."""
    explained: list[Row] = field(default_factory=list)
    """What the methods are worth, as `slidemil heatmap --compare` found."""
    concepts: list[Row] = field(default_factory=list)
    """What concepts do to a class, as `slidemil heatmap --concepts` found."""
    older: list[str] = field(default_factory=list)
    """What lies there of another model or of older features, and is not shown."""
    members: list[str] = field(default_factory=list)
    """Of an ensemble, or of a cross-validation."""
    threshold: float | None = None
    folder: Path = Path()
    """With the prediction tables."""

    @property
    def classes(self) -> list[str]:
        """Class names in order."""
        test = self.metrics.get("test") or {}
        found = self.config.get("classes") or self.metrics.get("classes") or test.get("classes")
        if found:
            return [str(name) for name in found]
        columns = self.predictions[0] if self.predictions else {}
        return [name[2:] for name in columns if name.startswith("p_")]


@dataclass
class JobFacts:
    """Everything the report tells, as it lies in the files."""

    settings: dict[str, Any]
    manifest: list[Row]
    slides: list[Row]
    models: list[Model]
    contours: dict[str, Path]
    quality: dict[str, Path]
    truth: dict[str, Path]
    demo: dict[str, Any]
    run: dict[str, Any]
    runs: list[dict[str, Any]]
    """Runs that made something, oldest first."""
    passport: dict[str, Any]
    passports: dict[str, dict[str, Any]]
    """Folder of features → how they were made."""
    problems: list[str]


def read_job(job: Path) -> JobFacts:
    """Read what the report needs from a job folder.

    Args:
        job: The folder; any part of it may be missing.
    """
    problems: list[str] = []
    passports = _passports(job, problems)
    models = _models(job, problems)
    return JobFacts(
        settings=_yaml(job / "job.yaml", problems),
        manifest=_table(job / "manifest.csv", problems),
        slides=_table(job / "slides.csv", problems),
        models=models,
        contours=_files(job / "contours", ".jpg"),
        quality=_files(job / "quality", ".jpg"),
        truth=_files(job / "truth", ".geojson"),
        demo=_json(job / "demo.json", problems),
        run=_run(job / "runs", problems),
        runs=_runs(job / "runs"),
        passport=_passport(models, passports),
        passports=passports,
        problems=problems,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is no JSON object.
        OSError: the file cannot be read.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _models(job: Path, problems: list[str]) -> list[Model]:
    """Return the models, those that predicted first; members of an ensemble only where they did something alone."""
    names = {path.name for kind in ("models", "predictions", "heatmaps") for path in _folders(job / kind)}
    found = [_model(job, name, problems) for name in sorted(names)]
    inside = {name for model in found for name in model.members}
    kept = [model for model in found if model.predictions or model.heatmaps or model.name not in inside]
    return sorted(kept, key=lambda model: (not model.predictions, model.name))


def _model(job: Path, name: str, problems: list[str]) -> Model:
    folder = job / "predictions" / name
    members = _members(job / "models" / name, problems)
    configs = [_json(job / "models" / one / "config.json", problems) for one in members or [name]]
    cuts = [config["threshold"] for config in configs if isinstance(config.get("threshold"), int | float)]
    table = "slides.csv" if (folder / "slides.csv").is_file() else "folds.csv"
    return Model(
        name=name,
        config=configs[0],
        metrics=_json(job / "models" / name / "metrics.json", problems),
        predictions=_table(folder / table, problems),
        table=table,
        evaluation=_json(folder / "evaluation.json", problems),
        members=members,
        threshold=sum(cuts) / len(cuts) if cuts else None,
        folder=folder,
        **_explanations(JobFolder(job), name, problems),
    )


def _explanations(job: JobFolder, name: str, problems: list[str]) -> dict[str, Any]:
    """Return what explains the model that has the name now; what is left of one before it is only named."""
    folder, digest = job.heatmaps(name), digest_now(job, name)
    kinds = {
        "heatmaps": (folder, ".png"),
        "top": (folder / "top", ".jpg"),
        "overlays": (folder / "gradcam_tiles", ".jpg"),
    }
    files = {kind: _files(*where) for kind, where in kinds.items()}
    slides = {slide for found in files.values() for slide in found}
    old = {slide for slide in slides if why_older(job, folder / f"{slide}.png", digest)}
    shown = {kind: {slide: found[slide] for slide in found if slide not in old} for kind, found in files.items()}
    drawn = {slide: _drawn(job, folder / f"{slide}.png") for slide in shown["heatmaps"]}
    tables = {
        "what the methods are worth": _table(folder / "methods.csv", problems),
        "concepts": _table(folder / "concepts.csv", problems),
    }
    explained, concepts = (_of_model(rows, digest) for rows in tables.values())
    older = [f"heatmaps of {counted(len(old), 'slide')}"] * bool(old)
    older += [what for what, rows in tables.items() if rows and not _of_model(rows, digest)]
    return {**shown, "drawn": drawn, "explained": explained, "concepts": concepts, "older": older}


def _of_model(rows: list[Row], digest: str | None) -> list[Row]:
    """Return a table where it is of the model that has the name now, as its own column says, or no model is known."""
    return rows if digest is None or all(row.get("model_sha256") == digest for row in rows) else []


def _drawn(job: JobFolder, picture: Path) -> str:
    """Say which method a picture shows, and for which class; "" where no record tells."""
    record = read_record(job, picture)
    methods, target = (record.facts.get("methods"), record.facts.get("target")) if record is not None else ([], "")
    return f"{str(methods[0]).replace('_', ' ')} for {target}" if methods and target else ""


def _members(folder: Path, problems: list[str]) -> list[str]:
    """Return the names of the models that a folder stands for; a name is never a path."""
    names = _json(folder / "ensemble.json", problems).get("members")
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _run(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Return the newest run record, with the rates of the newest run that measured any.

    A later run that found everything done measured nothing; its empty rates would hide the real ones.
    """
    newest: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json"), reverse=True):
        record = _json(path, problems)
        if record.get("verb") in ("plan", "work", "predict", "heatmap", "report"):
            continue  # they tell nothing of how slides became features
        outcome = record.get("outcome")
        rates = record.get("rates") or (outcome.get("rates") if isinstance(outcome, Mapping) else None)
        newest = newest or record
        if rates:
            told: dict[str, Any] = {key: record[key] for key in ("cores", "versions") if key in record}
            return {**newest, **told, "rates": rates, "bottleneck": record.get("bottleneck") or ""}
    return newest


def _runs(folder: Path) -> list[dict[str, Any]]:
    """Return the records of runs that made features or a model: a run with nothing to do leaves the page as it was.

    Torn records are named where the newest is looked for.
    """
    found = [_json(path, []) for path in sorted(folder.glob("*.json"))]
    return [record for record in found if record.get("slides_done") or record.get("trained")]


def _passport(models: list[Model], passports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the encoder passport: that of a model, else that of the first features."""
    of_models = (model.config.get("encoder") for model in models)
    return next((one for one in of_models if isinstance(one, dict)), next(iter(passports.values()), {}))


def _passports(job: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return how the features of each folder were made, as its first file says."""
    from pipelines.files import open_h5

    found = {}
    for folder in sorted(job.glob("*/features_*")):
        path = min(folder.glob("*.h5"), default=None)
        if path is None:
            continue
        try:
            with open_h5(path) as file:
                told = json.loads(file.attrs.get("encoder_passport", "{}"))
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{path.name}: could not be read ({error})")
            continue
        if isinstance(told, dict):
            found[f"{folder.parent.name}/{folder.name}"] = told
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return slide → file, by listing the folder."""
    if not folder.is_dir():
        return {}
    found = sorted(p for p in folder.iterdir() if p.name.endswith(suffix) and not p.name.startswith("."))
    return {path.name.removesuffix(suffix): path for path in found if path.is_file()}


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: could not be read ({error})")
        return {}


def _yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name}: could not be read ({error})")
        return {}
    return value if isinstance(value, dict) else {}


def _table(path: Path, problems: list[str]) -> list[Row]:
    try:
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path.name}: could not be read ({error})")
        return []
    return [{str(key): str(value or "") for key, value in row.items() if key} for row in rows]
