"""A network of timm as a tile encoder: what it computes, and what it says of itself.

Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.errors import MilError

from . import openvino_graph
from .lanes import Run, lane_of, probe_cuda
from .network import Network
from .precision import DTYPES, choose
from .preprocess import Preprocessing
from .registry import Entry
from .weights import Source

AUTO_BATCH = 0

Change = Callable[[Tensor, int, Tensor | None], Tensor]
"""What is done to tiles on the device, in front of the network: tiles (B, S, S, 3) uint8 of one pass, the row of the
batch at which they begin (a last pass is filled up behind the batch's end), and either what each value of R, G, B
becomes, (3, 256) → planes (B, 3, S, S) of that type; or None → tiles like those given."""


@dataclass(frozen=True)
class Compute:
    """Where and how a network computes.

    Attributes:
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" …, or "openvino": the CPU by way of OpenVINO.
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: tiles in one pass on CUDA, 0 for as many as fit; a CPU always takes its own few.
        compile: let torch.compile make machine code of the network.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 64
    compile: bool = False


class TimmEncoder:
    """A headless timm network with its own preprocessing, precision and pooling.

    Every pass has the same shape: the last one is filled up with black tiles that are thrown away, so results do not
    depend on how full a batch is; on a CPU the shape does not depend on the batch size either.

    Attributes:
        id: name, fit for a folder.
        dim: width of the features.
        device: "cpu", "cuda", "openvino" …
        precision: "fp32", "bf16" or "fp16".
        preprocessing: what is done to tiles first.
        entry: its row in the registry, None for other networks.
        source: where its weights came from.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        preprocessing: Preprocessing,
        source: Source,
        compute: Compute,
        *,
        entry: Entry | None = None,
    ) -> None:
        self.id, self.source, self.preprocessing, self.entry = name, source, preprocessing, entry
        device = compute.device
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.precision = choose(compute.precision, self.device, usual=entry.autocast if entry else "fp16")
        self._host = "cpu" if self.device == openvino_graph.DEVICE else self.device
        self._network = _placed(network, self._host)
        self.dim = _width(name, self._network, preprocessing.size)
        self._lane = lane_of(self.device, compute.batch_size or 1)
        self._probing = compute.batch_size == AUTO_BATCH and self._host != "cpu"
        self._tied = False
        self._backend, self._forward = self._computing(compile_=compute.compile)

    def _computing(self, *, compile_: bool) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Return what computes the network, and its name."""
        if self.device != openvino_graph.DEVICE:
            self._network.set_precision(self.precision)
            if not compile_:
                return "torch", self._network
            return "torch.compile", torch.compile(self._network, dynamic=False)
        if compile_:
            raise MilError(f"{self.id}: compile is torch's, and OpenVINO compiles by itself. Leave it out.")
        openvino_graph.settle_places(self._network, self.preprocessing.size)
        graph = self._graph(self._network)
        noise = torch.randn(graph.shape, generator=torch.Generator().manual_seed(0))
        openvino_graph.check_alike(self.id, graph, self._network, noise, self.precision)
        return openvino_graph.DEVICE, graph

    def _graph(self, function: Callable[[Tensor], Tensor]) -> openvino_graph.Graph:
        """Return a function of the network, compiled by OpenVINO for the shape of every pass."""
        side = self.preprocessing.size
        return openvino_graph.Graph(self._network, function, (self.batch_size, 3, side, side), self.precision)

    @cached_property
    def _dense(self) -> Callable[[Tensor], Tensor]:
        return self._graph(self._network.dense) if self.device == openvino_graph.DEVICE else self._network.dense

    @cached_property
    def _with_map(self) -> Callable[[Tensor], Tensor]:
        return self._graph(self._joined) if self.device == openvino_graph.DEVICE else self._joined

    @property
    def input_size(self) -> int:
        """Side in px of tiles that are not resized."""
        return self.preprocessing.whole

    @property
    def batch_size(self) -> int:
        """Tiles in one pass."""
        return self._lane.part

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how it went."""
        return tuple(self._lane.notes)

    @property
    def tolerance(self) -> float:
        """How far features of one tile may differ with the batch, of their spread: nothing on a CPU."""
        return 0.0 if self._host == "cpu" else {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}[self.precision]

    @cached_property
    def levels(self) -> NDArray[np.float32] | None:
        """What each byte of R, G, B becomes, (3, 256), where the caller may do that; None where the device does it."""
        cropped = self.preprocessing.whole != self.preprocessing.size
        return self.preprocessing.levels().numpy() if self._host == "cpu" and not cropped else None

    @property
    def takes_change(self) -> bool:
        """Whether tiles are best changed (`change`) where the network is: on a device other than the CPU."""
        return self._host != "cpu"

    @cached_property
    def _levels_there(self) -> Tensor:
        """What each byte becomes, on the device and in the type that the network computes in."""
        return self.preprocessing.levels().to(self._host, DTYPES[self.precision])

    @property
    def module(self) -> Network:
        """The network, prepared tiles (B, 3, S, S) → features (B, D); gradients reach its input."""
        return self._network

    @property
    def model(self) -> Network:
        """The same network, under its older name."""
        return self._network

    @property
    def feature_layer(self) -> nn.Module:
        """The last layer whose output still has places: (B, T, C) tokens or a map (B, C, h, w)."""
        return self._network.feature_layer

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers in front of the patch tokens; 0 for a CNN."""
        return self._network.prefix_tokens

    def prepare(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        """RGB tiles (B, S, S, 3) uint8 → the network's input (B, 3, S, S) float32, on its device."""
        tiles = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels, copy=True))
        return self.preprocessing(tiles.to(self._host))

    def __call__(
        self, pixels: NDArray[np.uint8] | NDArray[np.float32], change: Change | None = None
    ) -> NDArray[np.float32]:
        """Encode RGB tiles (B, S, S, 3) uint8 → (B, D) float32.

        Planes (B, 3, S, S) float32 of the network's own size, whose values are `levels`, are taken as they are; tiles
        of bytes go through `change` first, on the device.

        Raises:
            MilError: another shape or type, or no memory even for one tile.
        """
        planes = pixels.dtype == np.float32 and pixels.shape[1:] == (3, self.input_size, self.input_size)
        if not planes and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3):
            raise MilError(f"tiles are {pixels.shape} {pixels.dtype}, wanted (B, S, S, 3) uint8 RGB.")
        if self._probing and len(pixels):
            self.fit_memory(self.input_size if planes else pixels.shape[1])
        return self._take(pixels, lambda slab, row: self._pass(slab, self._forward, change, row), self.dim)

    def dense(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode RGB tiles (B, S, S, 3) uint8 → one vector per place of the last map: (B, h, w, C) float32."""
        height, width, depth = self.map_shape
        run = lambda slab, _: self._pass(slab, self._dense).flatten(1)  # noqa: E731
        return self._take(pixels, run, height * width * depth).reshape(len(pixels), height, width, depth)

    def with_map(
        self, pixels: NDArray[np.uint8] | NDArray[np.float32], change: Change | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode tiles, given as to `__call__` → their features (B, D), and their maps (B, h, w, C), in one pass."""
        run = lambda slab, row: self._pass(slab, self._with_map, change, row)  # noqa: E731
        if self._probing and len(pixels):
            self.fit_memory(pixels.shape[1] if pixels.dtype == np.uint8 else self.input_size)
        both = self._take(pixels, run, self.dim + math.prod(self.map_shape))
        return both[:, : self.dim], both[:, self.dim :].reshape(len(pixels), *self.map_shape)

    def _joined(self, x: Tensor) -> Tensor:
        """Features and map of prepared tiles, one behind the other."""
        features, places = self._network.with_map(x)
        return torch.cat([features.float(), places.flatten(1).float()], dim=1)

    @cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, C) of the last map of one tile."""
        side = self.preprocessing.size
        with torch.inference_mode():
            _, height, width, depth = self._network.dense(torch.zeros(1, 3, side, side, device=self._host)).shape
        return height, width, depth

    def passport(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        entry = self.entry
        return {
            "id": self.id,
            "kind": "slidemil" if entry and entry.shipped else "timm",
            "weights": self.source.name,
            "weights_sha256": self.source.sha256,
            "revision": self.source.revision,
            "licence": entry.licence if entry else _config(self._network).get("license"),
            "arch": _config(self._network)["architecture"],
            "arch_args": _arguments(self._network, entry),
            "pooling": _pooling(self._network, entry),
            "prefix_tokens": self.prefix_tokens,
            "dim": self.dim,
            **self.preprocessing.to_json(),
            "precision": self.precision,
            "backend": self._backend,
            "batch_size": self.batch_size if self._tied else None,
            "versions": {"timm": timm.__version__, "torch": str(torch.__version__), **self._more_versions()},
        }

    def _more_versions(self) -> dict[str, str]:
        openvino = self.device == openvino_graph.DEVICE
        return {"openvino": str(openvino_graph.library().__version__).partition("-")[0]} if openvino else {}

    def tie_batch_size(self, why: str) -> None:
        """State that features depend on the batch size: it enters the passport, and may not change any more."""
        self._tied = True
        self._lane.notes.append(why)

    def fit_memory(self, side: int) -> None:
        """Find out how many tiles of that side fit on the device, where that was asked for (`batch_size=0`)."""
        if self._probing:
            run = lambda slab, _: self._pass(slab, self._forward)  # noqa: E731
            self._lane.part, self._probing = probe_cuda(run, (side, side, 3), self.device), False

    def _take(self, pixels: Any, run: Run, width: int) -> NDArray[np.float32]:
        before = self._lane.part
        try:
            values = self._lane(pixels, run, width)
        except torch.OutOfMemoryError as error:
            raise MilError(f"{self.id}: {self.device} has no memory even for one tile. Use another device.") from error
        if self._tied and self._lane.part != before:
            raise MilError(
                f"{self.id}: no memory for {before} tiles at once, and its features depend on the batch size. "
                f"Begin anew with --batch-size {self._lane.part}."
            )
        return values

    @torch.inference_mode()
    def _pass(
        self, slab: Tensor, network: Callable[[Tensor], Tensor], change: Change | None = None, row: int = 0
    ) -> Tensor:
        """One pass: a slab of bytes, which begins at a row of the batch, or of planes that the caller has prepared."""
        slab = slab.to(self._host)
        if change is not None and slab.dtype == torch.uint8:
            slab = change(slab, row, self._levels_there if self._as_it_is(slab) else None)
        if slab.dtype == torch.uint8:
            x = self.preprocessing(slab)
        else:  # in memory as the preprocessing leaves it: other kernels round otherwise
            x = slab.contiguous(memory_format=torch.channels_last)
        return network(x)

    def _as_it_is(self, slab: Tensor) -> bool:
        """Whether tiles are neither resized nor cropped."""
        side = self.preprocessing.size
        return side == self.preprocessing.whole and slab.shape[1:3] == (side, side)


def _placed(network: Network, device: str) -> Network:
    """Return the network on its device, frozen; a CNN in the memory format that tiles come in."""
    network = network.eval().requires_grad_(False).to(device)
    return network if network.prefix_tokens else network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def _width(name: str, network: Network, side: int) -> int:
    """Width of what the network gives for one tile."""
    device = next(network.parameters()).device
    shape = network(torch.zeros(1, 3, side, side, device=device)).shape
    if len(shape) != 2:
        raise MilError(f"{name}: gives {tuple(shape[1:])} per tile, not one vector. Choose a pooled network.")
    return int(shape[1])


def _config(network: Network) -> dict[str, Any]:
    """Return timm's record of the network: architecture, input size, mean, std, hub repository."""
    config: Any = network.backbone.pretrained_cfg
    return dict(config)


def _pooling(network: Network, entry: Entry | None) -> str:
    """Name how one vector is made of the map or tokens."""
    if entry is not None:
        return f"{entry.pooling}:{entry.cut}" if entry.cut else entry.pooling
    pool = getattr(network.backbone, "global_pool", None)
    return str(getattr(pool, "pool_type", pool) or "timm default")


def _arguments(network: Network, entry: Entry | None) -> dict[str, Any]:
    """Architecture arguments as JSON can hold them."""
    values: Mapping[str, Any] = getattr(network.backbone, "_model_args", {})
    if entry is not None:
        values = {**entry.args, **({"mlp": "SwiGLUPacked, SiLU"} if entry.swiglu else {})}
        values = {**values, **({"norm_eps": entry.norm_eps} if entry.norm_eps else {})}
    return {
        k: v if isinstance(v, (str, int, float, bool, list, type(None))) else str(v) for k, v in sorted(values.items())
    }
