"""Weights for a network: from a file, a folder, the hub cache or the hub. Only tensors are read, never code."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mil.errors import WeightsError

from .layouts import from_transformers

WAYS = (
    "Three ways to give weights: --weights FILE (.safetensors, or a torch file of tensors); "
    "--weights local-dir:FOLDER (config.json + model.safetensors, as timm saves it); "
    "or the Hugging Face hub, where there is a network (HF_HUB_OFFLINE unset)"
)
FILES = ("model.safetensors", "pytorch_model.bin")
# A checkpoint may hold the network under one of these keys, and its parameters under one of these prefixes.
_NESTS = ("state_dict", "model_state_dict", "model", "teacher")
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "trunk.")
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """Where weights came from.

    Attributes:
        sha256: of the file, or of the tensors where there is none.
        name: file name, hub repository, or "random (seed n)"; never a path of this machine.
        revision: commit of the hub repository, where it came from there.
    """

    sha256: str
    name: str
    revision: str | None = None


def load_file(model: nn.Module, path: Path, *, name: str | None = None) -> Source:
    """Load a weight file strictly: every parameter must be there, and none may be left over but a classifier.

    Tolerated are one nesting (`state_dict`, `model_state_dict`, `model`, `teacher`), the prefixes of wrappers
    (`module.`, `_orig_mod.`, `model.`, `encoder.`, `backbone.`, `trunk.`), a foreign key layout that timm's own
    filter for the architecture knows, and that of transformers (ViT, DINOv2).

    Raises:
        WeightsError: no such file, not only tensors, or another architecture.
    """
    if not path.is_file():
        raise WeightsError(f"no weight file {path}. {WAYS}.")
    state = _fitting(model, _read(path), path.name)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path.name}: weights of another architecture: {_short(error)}") from error
    return Source(_sha256(path), name or path.name, _revision(path))


def _revision(path: Path) -> str | None:
    """Return the commit that a file of the hub cache belongs to (`snapshots/<commit>/<file>`)."""
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else len(parts)
    return parts[at + 1] if at + 2 < len(parts) else None


def weight_file(folder: Path) -> Path:
    """Return the weight file of a folder.

    Raises:
        WeightsError: there is none.
    """
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: no {' or '.join(FILES)} in it. {WAYS}.")


def random_state(model: nn.Module, seed: int) -> Source:
    """Describe seeded random weights; their hash tells two torch versions apart that draw differently."""
    blob = safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()})
    return Source(hashlib.sha256(blob).hexdigest(), f"random (seed {seed})")


def from_hub(repo: str, names: tuple[str, ...], *, encoder: str) -> Path:
    """Return the first of the files that the hub cache has, else that the hub gives.

    With HF_HUB_OFFLINE=1 no socket is opened. Without a network it fails in seconds: the hub client alone would
    retry for half a minute.

    Raises:
        WeightsError: not there, not reachable, or not allowed; the message names the three ways.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "on", "yes", "true"}:
        raise WeightsError(
            f"{encoder}: no weights given, {repo} is not in the hub cache, and nothing may be fetched "
            f"(--offline, or HF_HUB_OFFLINE is set). {WAYS}."
        )
    _probe(encoder, constants.ENDPOINT)
    return _download(repo, names, encoder)


def _probe(encoder: str, endpoint: str) -> None:
    """Raise at once when the hub cannot be reached."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=_PROBE_SECONDS)
    except Exception as error:
        raise WeightsError(
            f"{encoder}: no weights given, and the hub ({endpoint}) cannot be reached: {_short(error)}. {WAYS}."
        ) from error


def _download(repo: str, names: tuple[str, ...], encoder: str) -> Path:
    """Fetch the first of the files that the repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

    for name in names:
        try:
            return Path(hf_hub_download(repo, name, etag_timeout=_PROBE_SECONDS))
        except GatedRepoError as error:
            raise WeightsError(
                f"{encoder}: {repo} is gated. Ask for access at https://huggingface.co/{repo}, then run "
                f"`hf auth login`; or fetch the file elsewhere. {WAYS}."
            ) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise WeightsError(f"{encoder}: {repo} could not be fetched: {_short(error)}. {WAYS}.") from error
    raise WeightsError(f"{encoder}: {repo} has none of {', '.join(names)}. {WAYS}.")


def _read(path: Path) -> dict[str, Tensor]:
    """Read tensors by name; nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud about foreign pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name}: refused, for it holds more than tensors and could run code when read. "
            "Save it again as safetensors, or with torch.save(model.state_dict(), …)."
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path.name}: not a whole weight file: {_short(error)}") from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path.name}: holds no tensors by name. {WAYS}.")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _fitting(model: nn.Module, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return exactly the model's entries, found under a prefix or through timm's filter."""
    wanted = set(model.state_dict())
    renamed = from_transformers(state, model) or {}
    for found in (
        _unprefixed(state, wanted),
        _unprefixed(renamed, wanted),
        _unprefixed(_filtered(model, state), wanted),
    ):
        if found is None:
            continue
        spare = [k for k in found if k not in wanted and not k.startswith(_classifiers(model))]
        if spare:
            raise WeightsError(
                f"{name}: weights of another architecture: {len(spare)} tensors have no place, e.g. {spare[:3]}."
            )
        return {k: v for k, v in found.items() if k in wanted}
    missing = sorted(wanted - set(state))
    raise WeightsError(
        f"{name}: weights of another architecture: {len(missing)} of {len(wanted)} tensors are missing, "
        f"e.g. {missing[:3]}; the file has e.g. {sorted(state)[:3]}. Name the encoder that they belong to."
    )


def _unprefixed(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor] | None:
    """Strip wrapper prefixes until every wanted name is there; None where that never happens."""
    layers = [state]
    while layers:
        current = layers.pop()
        if wanted <= set(current):
            return current
        for prefix in _PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in current.items() if k.startswith(prefix)}
            if inner:
                layers.append(inner)
    return None


def _filtered(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys as timm does for checkpoints of the architecture's own authors."""
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except Exception:  # a filter handed a foreign file may stumble anywhere; the caller then reports what is missing
        return state


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier that a headless network leaves out."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names)) or ("head.", "fc.")


def _sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(error: Exception) -> str:
    """First two lines of a message."""
    return " ".join(str(error).strip().splitlines()[:2])[:300] or type(error).__name__
