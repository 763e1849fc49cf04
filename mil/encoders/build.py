"""A name → a network with its weights: from the registry, from timm, from a folder, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from mil.errors import UnknownEncoderError, WeightsError, did_you_mean

from . import compact
from . import weights as store
from .network import Network
from .preprocess import Preprocessing
from .registry import Entry, find, registry
from .timm_encoder import Compute, TimmEncoder

_FOLDER, _HUB = "local-dir:", "hf-hub:"


def create_timm_encoder(name: str, *, weights: str | Path | None, compute: Compute) -> TimmEncoder:
    """Build the network of that name and give it weights; see `mil.create_encoder`."""
    entry = None if name.startswith((_FOLDER, _HUB)) else find(name)
    if entry is not None:
        return _registered(entry, weights, compute)
    if name.startswith((_FOLDER, _HUB)):
        name, model, source = _from_source(name, weights)
    else:
        check_name(name)
        model, source = _with_weights(name, weights)
    preprocessing = Preprocessing.from_config(_data_config(model))
    return TimmEncoder(name, Network(model), preprocessing, source, compute)


def backbone_of(entry: Entry, **changes: Any) -> nn.Module:
    """Build the network of a row of the registry, without weights.

    Args:
        entry: the row.
        changes: arguments that differ from the row's, e.g. `depth=1` in tests.

    Raises:
        UnknownEncoderError: timm does not build it.
    """
    if not entry.buildable:
        raise UnknownEncoderError(
            f"{entry.id}: needs {entry.code}, which slidemil does not run. Extract with a tool that carries it, and "
            f"bring the features in with `slidemil convert`."
        )
    if entry.arch == compact.ARCHITECTURE:
        return compact.Compact(**changes)
    arguments: dict[str, Any] = {**entry.args, **changes}
    if entry.swiglu:
        arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if entry.norm_eps is not None:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=entry.norm_eps)
    return timm.create_model(entry.arch, pretrained=False, num_classes=0, **arguments)


def network_of(entry: Entry, backbone: nn.Module) -> Network:
    """Return a row's network with the row's pooling; what the row cuts off is gone."""
    if entry.cut:
        setattr(backbone, entry.cut, nn.Identity())
    return Network(backbone, "timm" if entry.pooling == "cut" else entry.pooling)


def preprocessing_of(entry: Entry) -> Preprocessing:
    """Return what a row does to tiles."""
    return Preprocessing(entry.size, entry.kernel, entry.mean, entry.std, resize=entry.resize)


def fetch(entry: Entry) -> Path:
    """Return a row's weight file: the one that comes with slidemil, else from the hub cache, else from the hub.

    Raises:
        WeightsError: not there, not reachable, or not allowed; says what to do.
    """
    if entry.shipped is not None:
        return entry.shipped
    if not entry.repo or not entry.files:
        raise WeightsError(f"{entry.id}: its weights are not on the hub. {store.WAYS}.")
    try:
        return store.from_hub(entry.repo, entry.files, encoder=entry.id)
    except WeightsError as error:
        raise WeightsError(f"{error}{_access(entry)}") from error


def _access(entry: Entry) -> str:
    """Say how to get at gated weights, with and without a network."""
    ask = (
        f" {entry.title} is gated: ask for access at {entry.page}, then `hf auth login`." if entry.gated != "no" else ""
    )
    return (
        f"{ask} On a machine with a network: `slidemil encoders pull {entry.id} -o FOLDER`; carry the folder over, and "
        f"give --encoder {entry.id} --weights FOLDER/{entry.files[0]}."
    )


def _registered(entry: Entry, weights: str | Path | None, compute: Compute) -> TimmEncoder:
    """Build a row of the registry and give it weights."""
    word = str(weights) if weights is not None else ""
    if _is_random(word):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(word))
            model = backbone_of(entry)
        source = store.random_state(model, _seed(word))
    elif not word:
        path = fetch(entry) if entry.buildable else Path()  # before the network is built: that takes a while
        model = backbone_of(entry)
        source = store.load_file(model, path, name=entry.repo)
    else:
        model = backbone_of(entry)
        source = store.load_file(model, _given(entry, Path(word.removeprefix(_FOLDER))))
    return TimmEncoder(entry.id, network_of(entry, model), preprocessing_of(entry), source, compute, entry=entry)


def _given(entry: Entry, path: Path) -> Path:
    """Return the weight file of a folder, by the row's own names first; a file is itself."""
    if not path.is_dir():
        return path
    return next((path / name for name in entry.files if (path / name).is_file()), None) or store.weight_file(path)


def check_name(name: str) -> None:
    """Raise unless timm can build it.

    Raises:
        UnknownEncoderError: says which names are close.
    """
    models = timm.list_models()
    tagged = timm.list_pretrained()
    if name not in models and name not in tagged:
        known = ["descriptors", *registry(), *models, *(tagged if "." in name else ())]
        raise UnknownEncoderError(
            f"no encoder is called {name!r}.{did_you_mean(name, known)} "
            "There are: descriptors (embedded, no weights), those of `slidemil encoders list`, and every network of "
            "timm (timm.list_models())."
        )


def _with_weights(name: str, weights: str | Path | None) -> tuple[nn.Module, store.Source]:
    """Build a network of timm and load what was asked for."""
    word = str(weights) if weights is not None else ""
    if _is_random(word):
        return _random(name, word)
    if word.startswith(_FOLDER):
        folder = Path(word.removeprefix(_FOLDER))
        architecture = _folder_config(folder).get("architecture")
        if architecture != name.split(".")[0]:
            raise WeightsError(f"{folder}: holds {architecture}, not {name}. Use --encoder {architecture}.")
        model = timm.create_model(f"{_FOLDER}{folder}", pretrained=False, num_classes=0)
        return model, store.load_file(model, store.weight_file(folder))
    model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is not None:
        return model, store.load_file(model, Path(weights))
    repo = _config(model).get("hf_hub_id")
    if not repo:
        raise WeightsError(f"{name}: no weights given, and timm knows no hub repository for it. {store.WAYS}.")
    return model, store.load_file(model, store.from_hub(repo, store.FILES, encoder=name), name=repo)


def _from_source(encoder: str, weights: str | Path | None) -> tuple[str, nn.Module, store.Source]:
    """Build what a folder or hub repository describes; returns a name fit for a folder, network and source."""
    if weights is not None:
        raise WeightsError(f"{encoder} brings its own weights. Leave --weights out, or name an architecture instead.")
    if encoder.startswith(_HUB):
        repo = encoder.removeprefix(_HUB)
        folder = store.from_hub(repo, ("config.json",), encoder=encoder).parent
        file = store.from_hub(repo, store.FILES, encoder=encoder)
        name, origin = repo.replace("/", "--"), repo
    else:
        folder = Path(encoder.removeprefix(_FOLDER))
        _folder_config(folder)
        file, name, origin = store.weight_file(folder), folder.resolve().name, folder.resolve().name
    try:
        model = timm.create_model(f"{_FOLDER}{folder}", pretrained=False, num_classes=0)
    except (RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{origin}: timm cannot build what its config.json describes: {error}") from error
    return name, model, store.load_file(model, file, name=f"{origin}/{file.name}")


def _folder_config(folder: Path) -> dict[str, Any]:
    """Read a timm folder's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: no readable config.json in it ({error}). {store.WAYS}.") from error
    return config if isinstance(config, dict) else {}


def _random(name: str, word: str) -> tuple[nn.Module, store.Source]:
    """Seeded random weights, only ever on request."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(word))
        model = timm.create_model(name, pretrained=False, num_classes=0)
    return model, store.random_state(model, _seed(word))


def _is_random(word: str) -> bool:
    return word == "random" or word.startswith("random:")


def _seed(word: str) -> int:
    """Return the seed of "random" or "random:SEED"."""
    digits = word.partition(":")[2] or "0"
    if not digits.isdigit():
        raise WeightsError(f"weights={word!r}: use 'random' or 'random:SEED' with a whole number.")
    return int(digits)


def _config(model: nn.Module) -> Mapping[str, Any]:
    """Return timm's record of the network."""
    config: Any = model.pretrained_cfg
    return dict(config)


def _data_config(model: nn.Module) -> dict[str, Any]:
    """Return input size, interpolation, mean and std of the network."""
    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=dict(_config(model)), model=model)  # type: ignore[no-untyped-call]
    return found
