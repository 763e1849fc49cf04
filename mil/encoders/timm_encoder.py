"""Any network of timm as a tile encoder.

Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (Apache-2.0).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.config import resolve_data_config
from torch import nn

from mil.errors import MilError, UnknownEncoderError, WeightsError, did_you_mean

from . import weights as store
from .preprocess import Preprocessing

_FOLDER, _HUB = "local-dir:", "hf-hub:"


class TimmEncoder:
    """A headless timm network with its own preprocessing.

    Arithmetic is float32 throughout (TF32 off), and every forward pass has the same shape (batch_size, 3, S, S): the
    last batch is filled up with black tiles that are thrown away, so results do not depend on how full a batch is.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        source: store.Source,
        *,
        device: str = "auto",
        batch_size: int = 64,
    ) -> None:
        self.id, self.batch_size, self.source = name, batch_size, source
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.preprocessing = Preprocessing.from_config(_data_config(model))
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.dim = self._width()

    @property
    def input_size(self) -> int:
        """Side of the network's input in pixels."""
        return self.preprocessing.size

    @cached_property
    def levels(self) -> NDArray[np.float32] | None:
        """What each byte of R, G, B becomes, (3, 256), where the caller may do that; None where the device does it."""
        return self.preprocessing.levels().numpy() if self.device == "cpu" else None

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode RGB tiles (B, S, S, 3) uint8 → (B, D) float32.

        Planes (B, 3, S, S) float32 of the network's own size, whose values are `levels`, are taken as they are.

        Raises:
            MilError: another shape or type.
        """
        planes = pixels.dtype == np.float32 and pixels.shape[1:] == (3, self.input_size, self.input_size)
        if not planes and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3):
            raise MilError(f"tiles are {pixels.shape} {pixels.dtype}, wanted (B, S, S, 3) uint8 RGB.")
        features = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self.batch_size):
            part = pixels[start : start + self.batch_size]
            slab = torch.zeros((self.batch_size, *pixels.shape[1:]), dtype=torch.float32 if planes else torch.uint8)
            slab.numpy()[: len(part)] = part
            slab = slab.to(self.device)
            if planes:  # in memory as the preprocessing leaves it: other kernels round otherwise
                slab = slab.contiguous(memory_format=torch.channels_last)
            with _exact(self.device):
                out = self.model(slab if planes else self.preprocessing(slab))
            features[start : start + len(part)] = out[: len(part)].float().cpu().numpy()
        return features

    def passport(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        return {
            "id": self.id,
            "kind": "timm",
            "weights": self.source.name,
            "weights_sha256": self.source.sha256,
            "arch": _config(self.model)["architecture"],
            "arch_args": _jsonable(getattr(self.model, "_model_args", {})),
            "pooling": _pooling(self.model),
            "dim": self.dim,
            **self.preprocessing.to_json(),
            "precision": "fp32",
            "batch_size": self.batch_size,
            "versions": {"timm": timm.__version__, "torch": str(torch.__version__)},
        }

    @torch.inference_mode()
    def _width(self) -> int:
        """Width of what the network gives for one tile."""
        side = self.input_size
        shape = self.model(torch.zeros(1, 3, side, side, device=self.device)).shape
        if len(shape) != 2:
            raise MilError(f"{self.id}: gives {tuple(shape[1:])} per tile, not one vector. Choose a pooled network.")
        return int(shape[1])


def create_timm_encoder(name: str, *, weights: str | Path | None, device: str, batch_size: int) -> TimmEncoder:
    """Build the network of that name and give it weights; see `mil.create_encoder`."""
    if name.startswith((_FOLDER, _HUB)):
        name, model, source = _from_source(name, weights)
    else:
        _check_name(name)
        model, source = _with_weights(name, weights)
    return TimmEncoder(name, model, source, device=device, batch_size=batch_size)


def _check_name(name: str) -> None:
    """Raise unless timm can build it."""
    models = timm.list_models()
    tagged = timm.list_pretrained()
    if name not in models and name not in tagged:
        known = ["descriptors", *models, *(tagged if "." in name else ())]
        raise UnknownEncoderError(
            f"no encoder is called {name!r}.{did_you_mean(name, known)} "
            "There are: descriptors (embedded, no weights) and every network of timm (timm.list_models())."
        )


def _with_weights(name: str, weights: str | Path | None) -> tuple[nn.Module, store.Source]:
    """Build a registered network and load what was asked for."""
    word = str(weights) if weights is not None else ""
    if word == "random" or word.startswith("random:"):
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
    digits = word.partition(":")[2] or "0"
    if not digits.isdigit():
        raise WeightsError(f"weights={word!r}: use 'random' or 'random:SEED' with a whole number.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digits))
        model = timm.create_model(name, pretrained=False, num_classes=0)
    return model, store.random_state(model, int(digits))


@contextlib.contextmanager
def _exact(device: str) -> Iterator[None]:
    """On CUDA: full float32 products and fixed kernels, for the passport says fp32."""
    if not device.startswith("cuda"):
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _config(model: nn.Module) -> dict[str, Any]:
    """Return timm's record of the network: architecture, input size, mean, std, hub repository."""
    config: Any = model.pretrained_cfg
    return dict(config)


def _data_config(model: nn.Module) -> dict[str, Any]:
    """Return input size, interpolation, mean and std of the network."""
    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=_config(model), model=model)  # type: ignore[no-untyped-call]
    return found


def _pooling(model: nn.Module) -> str:
    """Name how the network makes one vector of its map or tokens: "avg", "token" …."""
    pool = getattr(model, "global_pool", None)
    return str(getattr(pool, "pool_type", pool) or "timm default")


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """Architecture arguments as JSON can hold them."""
    return {
        k: v if isinstance(v, (str, int, float, bool, list, type(None))) else str(v) for k, v in sorted(values.items())
    }
