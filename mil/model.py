"""A trained model and its folder: config.json, model.safetensors, README.md. Nothing in it is ever executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from .bag import Bag
from .clinical import Variables
from .errors import MilError, ModelError
from .fusion import attach
from .heads import Head, create_head
from .model_card import model_card
from .tasks import Classification, Task, task_from

FORMAT, VERSION = "slidemil-model", 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A head with everything needed to use it again.

    Attributes:
        head: in evaluation mode, on the CPU.
        task: what was asked, and what the logits mean.
        config: what config.json holds; see `mil.train`.
    """

    head: Head
    task: Task
    config: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; empty for other tasks."""
        return self.task.classes if isinstance(self.task, Classification) else ()

    @property
    def threshold(self) -> float | None:
        """Cut of the positive class's probability, chosen on validation; None with more than two classes."""
        value = self.config["threshold"]
        return None if value is None else float(value)

    @property
    def variables(self) -> Variables | None:
        """The clinical variables that the model takes; None where it takes none."""
        clinical = self.config.get("clinical")
        return Variables.from_spec(clinical["variables"]) if clinical else None

    def joined(self, bag: Bag, cells: Mapping[str, str] | None) -> Bag:
        """Return a bag of one with the cells of its patient, column → cell, as the model takes them."""
        variables = self.variables
        if variables is None:
            return bag
        return replace(bag, clinical=torch.from_numpy(variables.encode(cells))[None])

    def described(
        self, *, encoder: Mapping[str, Any] | None = None, tile: Mapping[str, Any] | None = None, **more: Any
    ) -> TrainedModel:
        """Return the model with its encoder's passport, its tiles (size in px, mpp in µm/px) and more to record."""
        extra = {"encoder": encoder, "tile": tile, **more}
        return replace(self, config={**self.config, **{key: v for key, v in extra.items() if v is not None}})

    def to_files(self, metrics: Mapping[str, Any] | None = None) -> dict[str, bytes]:
        """Return name → content of the model folder; equal models give equal bytes, for no clock is in them.

        Args:
            metrics: how good it is on slides that it was not made with, for the model card.
        """
        state = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        text = json.dumps(self.config, indent=1, ensure_ascii=False, allow_nan=False)
        return {
            CONFIG: (text + "\n").encode(),
            WEIGHTS: safetensors.torch.save(state, metadata={"format": "pt"}),
            CARD: model_card(self.config, metrics).encode(),
        }


def load_model(folder: str | Path) -> TrainedModel:
    """Read a model folder.

    Raises:
        ModelError: a file is missing, damaged, a pickle, of a later version, or the weights do not fit the config.
    """
    folder = Path(folder)
    config = _read_config(folder)
    try:
        spec = config["head"]
        head = create_head(spec["name"], int(spec["in_dim"]), int(spec["classes"]), **spec["options"])
        task = task_of(config)
        clinical = config.get("clinical")
        if clinical:
            attach(head, str(clinical["fusion"]), Variables.from_spec(clinical["variables"]).sizes)
        config["threshold"]
    except MilError as error:
        raise ModelError(f"{folder.name}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder.name}: {CONFIG} lacks or garbles {error}. Train the model again.") from error
    if task.outputs != head.classes:
        raise ModelError(f"{folder.name}: {CONFIG} names {task.outputs} classes, its head has {head.classes}.")
    _load_weights(head, folder)
    return TrainedModel(head=head.eval(), task=task, config=config)


def task_of(config: Mapping[str, Any]) -> Task:
    """The task; a folder without one is of a classification."""
    names = tuple(str(name) for name in config["classes"])
    task = task_from(config["task_spec"]) if "task_spec" in config else Classification(names)
    if isinstance(task, Classification) and names != task.classes:
        raise MilError(f"{CONFIG} names {len(names)} classes, its task has {len(task.classes)}.")
    return task


def _read_config(folder: Path) -> dict[str, Any]:
    """Read and check config.json."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"})
        hint = f" {pickles[0]} may run code when it is read and is not opened." if pickles else ""
        raise ModelError(
            f"{folder}: no {' and no '.join(missing)} here.{hint} Give the folder that `slidemil train` wrote, "
            f"with {CONFIG} and {WEIGHTS}."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder.name}: {CONFIG} is not JSON ({error}). Copy the folder again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{folder.name}: {CONFIG} is not of a slidemil model (no format={FORMAT!r}).")
    if config.get("version") != VERSION:
        raise ModelError(
            f"{folder.name}: written in version {config.get('version')}, this slidemil reads {VERSION}. Update it."
        )
    return config


def _load_weights(head: Head, folder: Path) -> None:
    """Load the tensors strictly."""
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{folder.name}: {WEIGHTS} cannot be read ({error}). Copy the folder again.") from error
    try:
        head.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: {WEIGHTS} does not fit {CONFIG}: {error}") from error


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"numpy": np.__version__, "torch": str(torch.__version__)}
