"""Epochs shown in TensorBoard or on an MLflow server; what the job keeps of them does not depend on it.

Source of the calls: MLflow's REST API 2.0, `experiments/create`, `runs/create`, `runs/log-batch`, `runs/update`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import mil

from .errors import EnvironmentFault, UsageError
from .jobfolder import JobFolder

_SECONDS = 20.0  # for one call of a server


class Tracker(Protocol):
    """Takes the figures of each epoch."""

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        """Show one epoch."""

    def end(self, figures: Mapping[str, float]) -> None:
        """Show what the finished model came to; nothing follows."""


def trackers(job: JobFolder, name: str, wanted: Sequence[str], settings: mil.TrainSettings) -> list[Tracker]:
    """Return those that were asked for.

    Raises:
        EnvironmentFault: TensorBoard is not installed, or the MLflow server does not answer.
        UsageError: no MLflow server is named.
    """
    made: list[Tracker] = []
    if "tensorboard" in wanted:
        made.append(TensorBoard(job, name))
    if "mlflow" in wanted:
        made.append(MLflow(os.environ.get("MLFLOW_TRACKING_URI", ""), name, asdict(settings)))
    return made


def figures_of(epoch: mil.Epoch) -> dict[str, float]:
    """The numbers of an epoch that are there."""
    values = {key: value for key, value in asdict(epoch).items() if key not in ("number", "best")}
    return {key: float(value) for key, value in values.items() if value is not None}


class TensorBoard:
    """Event files in `logs/tensorboard/<model>`: `tensorboard --logdir JOB/logs/tensorboard`."""

    def __init__(self, job: JobFolder, name: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EnvironmentFault(
                "track=tensorboard needs TensorBoard. Install it: pip install 'slidemil[track]'."
            ) from error
        folder = job.root / "logs" / "tensorboard" / name
        self._writer = SummaryWriter(str(folder))

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        """Write scalars."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, number)

    def end(self, figures: Mapping[str, float]) -> None:
        """Write the last ones and close."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value)
        self._writer.close()


class MLflow:
    """A run of the experiment `slidemil` on a tracking server; settings are its parameters. No file is sent."""

    def __init__(self, server: str, name: str, settings: Mapping[str, Any]) -> None:
        if not server.startswith(("http://", "https://")):
            raise UsageError(
                "track=mlflow: name the server, e.g. MLFLOW_TRACKING_URI=http://127.0.0.1:5000 "
                "(of a folder on disk: `mlflow server` serves it)."
            )
        self._server = server.rstrip("/")
        run = self._post("runs/create", {"experiment_id": self._experiment(), "run_name": name, "start_time": _now()})
        self._run = str(run["run"]["info"]["run_id"])
        params = [{"key": key, "value": str(value)[:500]} for key, value in settings.items()]
        self._post("runs/log-batch", {"run_id": self._run, "params": params})

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        """Send metrics."""
        metrics = [{"key": k, "value": v, "timestamp": _now(), "step": number} for k, v in figures.items()]
        self._post("runs/log-batch", {"run_id": self._run, "metrics": metrics})

    def end(self, figures: Mapping[str, float]) -> None:
        """Send the last ones, and close the run."""
        self.epoch(figures, 0)
        self._post("runs/update", {"run_id": self._run, "status": "FINISHED", "end_time": _now()})

    def _experiment(self) -> str:
        try:
            return str(self._post("experiments/create", {"name": "slidemil"})["experiment_id"])
        except _ExistsError:
            found = self._call("experiments/get-by-name?experiment_name=slidemil", None)
            return str(found["experiment"]["experiment_id"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call(path, json.dumps(body).encode())

    def _call(self, path: str, data: bytes | None) -> dict[str, Any]:
        address = f"{self._server}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310 - http(s), checked above
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if "RESOURCE_ALREADY_EXISTS" in text:
                raise _ExistsError from error
            raise EnvironmentFault(f"{self._server}: MLflow answers {error.code} to {path}: {text[:200]}") from error
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"{self._server}: no MLflow server answers there ({error}). Start it, or train without track=mlflow."
            ) from error


class _ExistsError(Exception):
    """The server has an experiment of that name."""


def _now() -> int:
    return int(time.time() * 1000)
