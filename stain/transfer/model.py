"""A trained transfer: what it is made of, how it is kept, and tiles through it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from stain.density import check_pixels
from stain.errors import ParametersError

from .networks import Generator, to_floats, to_pixels
from .streaming import transfer_image

KIND: Final = "stain transfer"
FILES: Final = ("config.json", "model.safetensors")

_FORMAT: Final = 1


@dataclass(frozen=True, eq=False)
class TransferModel:
    """Two generators, or one where pairs were given.

    Attributes:
        config: how it was trained, as JSON can hold it.
        there: from the first stain to the second.
        back: from the second to the first; None for a paired model.
    """

    config: Mapping[str, Any]
    there: Generator
    back: Generator | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.there.parameters()).device

    def to(self, device: str) -> TransferModel:
        """Move it, in place."""
        for network in (self.there, self.back):
            if network is not None:
                network.to(device)
        return self

    def apply(self, tiles: NDArray[np.uint8], *, backwards: bool = False) -> NDArray[np.uint8]:
        """Transfer tiles, or whole images; borders are mirrored, so that they get the same as the middle.

        Args:
            tiles: (N, H, W, 3) uint8, any size.
            backwards: from the second stain to the first.

        Returns:
            The same shape and type.

        Raises:
            PixelFormatError: not uint8 RGB.
            ParametersError: the model knows no way back.
        """
        check_pixels(tiles)
        network = self.there
        if backwards:
            if self.back is None:
                raise ParametersError("this model was trained on pairs: it knows no way back.")
            network = self.back
        out = np.empty_like(tiles)
        for tile, into in zip(tiles, out, strict=True):
            into[:] = transfer_image(lambda batch: run(network, batch), tile, network.margin)
        return out

    def files(self) -> dict[str, bytes]:
        """Return the content of each of `FILES`."""
        tensors = {f"there.{name}": value for name, value in self.there.state_dict().items()}
        if self.back is not None:
            tensors |= {f"back.{name}": value for name, value in self.back.state_dict().items()}
        text = json.dumps({"kind": KIND, "version": _FORMAT, **self.config}, indent=1, ensure_ascii=False) + "\n"
        plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
        return {"config.json": text.encode(), "model.safetensors": save_tensors(plain)}


@torch.inference_mode()
def run(network: Generator, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put pixels (B, H, W, 3), sides multiples of 4, through a generator where it is."""
    device = next(network.parameters()).device
    made: NDArray[np.uint8] = to_pixels(network(to_floats(torch.from_numpy(batch).to(device)))).cpu().numpy()
    return made


def load(files: Mapping[str, bytes], device: str = "cpu") -> TransferModel:
    """Read what `TransferModel.files` gave; nothing in it can run code.

    Raises:
        ParametersError: it is not such a model, or is damaged.
    """
    try:
        config = json.loads(files["config.json"])
        if config["kind"] != KIND or config["version"] != _FORMAT:
            raise ValueError(f"kind {config['kind']!r}, version {config['version']!r}")
        tensors = load_tensors(files["model.safetensors"])
        shape = {"width": int(config["width"]), "blocks": int(config["blocks"])}
        names = ("there",) if config["paired"] else ("there", "back")
        networks = [_filled(Generator(**shape), name, tensors) for name in names]
        if len(tensors) != sum(len(network.state_dict()) for network in networks):
            raise ValueError("weights of something else lie among its own")
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ParametersError(
            f"this is no stain transfer ({type(error).__name__}: {error}). Train one: slidemil stain train A B -o MODEL"
        ) from error
    own = {key: value for key, value in config.items() if key not in ("kind", "version")}
    return TransferModel(own, networks[0], networks[1] if len(networks) > 1 else None).to(device)


def _filled(network: Generator, name: str, tensors: Mapping[str, torch.Tensor]) -> Generator:
    prefix = f"{name}."
    mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    network.load_state_dict(mine)
    return network.eval()
