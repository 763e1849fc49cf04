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

Row = dict[str, str]


@dataclass
class Model:
    """What the job has of one model."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: list[Row] = field(default_factory=list)
    heatmaps: dict[str, Path] = field(default_factory=dict)
    top: dict[str, Path] = field(default_factory=dict)

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
    passport: dict[str, Any]
    problems: list[str]


def read_job(job: Path) -> JobFacts:
    """Read what the report needs from a job folder.

    Args:
        job: The folder; any part of it may be missing.
    """
    problems: list[str] = []
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
        passport=_passport(job, models, problems),
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
    names = {path.name for kind in ("models", "predictions", "heatmaps") for path in _folders(job / kind)}
    return [
        Model(
            name=name,
            config=_json(job / "models" / name / "config.json", problems),
            metrics=_json(job / "models" / name / "metrics.json", problems),
            predictions=_table(job / "predictions" / name / "slides.csv", problems),
            heatmaps=_files(job / "heatmaps" / name, ".png"),
            top=_files(job / "heatmaps" / name / "top", ".jpg"),
        )
        for name in sorted(names)
    ]


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
            return {**newest, "rates": rates, "bottleneck": record.get("bottleneck") or ""}
    return newest


def _passport(job: Path, models: list[Model], problems: list[str]) -> dict[str, Any]:
    """Return the encoder passport: that of a model, else that of the first feature file."""
    for model in models:
        passport = model.config.get("encoder")
        if isinstance(passport, dict):
            return passport
    for path in sorted(job.glob("*/features_*/*.h5"))[:1]:
        from pipelines.files import open_h5

        try:
            with open_h5(path) as file:
                found = json.loads(file.attrs.get("encoder_passport", "{}"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{path.name}: could not be read ({error})")
    return {}


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
