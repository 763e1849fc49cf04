"""A network of torch handed to OpenVINO, which computes it on the processor (Intel's own kernels).

OpenVINO gets the traced network once, for one shape, and is held to torch's numbers before it is used: a conversion
that went wrong must not make features. Torch keeps the network beside it, for what needs gradients.

Source: https://github.com/openvinotoolkit/openvino (Apache-2.0), the extra `openvino`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mil.errors import MilError

DEVICE = "openvino"
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}
"""How far from torch in float32 features may lie, root mean square, of their spread.

Measured: 1e-7 to 2e-6 in fp32, 0.003 to 0.010 in bf16, which is how far torch's own bf16 lies."""

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_CAPABILITIES = {"fp16": "FP16", "bf16": "BF16"}
_PROBES = 2


class _Step(nn.Module):
    """One function of a network as a module, which is what can be traced."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Graph:
    """A function of a network, compiled for one shape: prepared tiles (B, 3, S, S) float32 → what torch gives.

    Attributes:
        shape: of what it takes.
    """

    def __init__(
        self, network: nn.Module, function: Callable[[Tensor], Tensor], shape: tuple[int, int, int, int], precision: str
    ) -> None:
        openvino, self.shape = library(), shape
        frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
        try:
            # Kept, for the graph's weights lie in torch's memory.
            self._decoder = _traced(_Step(network, function).eval(), shape)
            graph = frontend.convert(frontend.load(self._decoder))
            graph.reshape(list(shape))
        except Exception as error:  # a foreign importer may stumble anywhere over a network that it does not know
            why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise MilError(f"OpenVINO does not take this network ({why[0][:200]}). Use --device cpu.") from error
        self._compiled = openvino.Core().compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "PERFORMANCE_HINT": "LATENCY",  # one pass at a time, by all threads that torch would use
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,  # two commands on one machine would be pinned to the same cores
            },
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function gives for prepared tiles of the graph's shape."""
        found = self._compiled([x.contiguous().numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(found[0])


def library() -> Any:
    """Import OpenVINO without its telemetry, which would send word of every import to its makers.

    Raises:
        MilError: it is not installed.
    """
    name = "openvino_telemetry"
    kept = sys.modules.get(name)
    try:
        sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail, for which OpenVINO has a stub
        import openvino
        import openvino.frontend.pytorch.ts_decoder
    except ImportError as error:
        raise MilError(f"device {DEVICE}: {error}. Install it: pip install 'slidemil[openvino]'") from error
    finally:
        sys.modules.pop(name)
        if kept is not None:
            sys.modules[name] = kept
    return openvino


@cache
def can(precision: str) -> bool:
    """Tell whether the processor computes in a precision by itself, as OpenVINO sees it."""
    needed = _CAPABILITIES.get(precision)
    return needed is None or needed in library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def settle_places(network: nn.Module, side: int) -> None:
    """Bring the places of a vision transformer to its input once, as timm would in every pass, with the same numbers.

    OpenVINO's own resampling of them differs in the fourth digit.
    """
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, VisionTransformer) or backbone.pos_embed is None:
        return
    before = backbone.patch_embed.grid_size
    backbone.patch_embed.set_input_size(img_size=(side, side))
    after = backbone.patch_embed.grid_size
    if after != before:
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        places = resample_abs_pos_embed(backbone.pos_embed, after, old_size=before, num_prefix_tokens=prefix)
        backbone.pos_embed = nn.Parameter(places, requires_grad=False)


def check_alike(name: str, graph: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, precision: str) -> None:
    """Raise unless the graph gives what the network gives, to within `TOLERANCE`.

    Args:
        name: of the encoder.
        graph: what OpenVINO made of the network.
        network: the same in torch, in float32.
        x: prepared tiles (B, 3, S, S) of the shape the graph takes; torch looks at the first two.
        precision: of the graph.

    Raises:
        MilError: says by how much they differ.
    """
    with torch.inference_mode():
        wanted = network(x[:_PROBES]).float()
        found = graph(x)[:_PROBES].float()
    off = float((found - wanted).square().mean().sqrt() / wanted.std())
    if not off <= TOLERANCE[precision]:  # nor if it is no number
        mend = "--device cpu" if precision == "fp32" else "--precision fp32, or --device cpu"
        raise MilError(
            f"{name}: in {precision}, OpenVINO gives other features than torch (by {off:.2g} of their spread, "
            f"allowed are {TOLERANCE[precision]:g}). Use {mend}."
        )


def _traced(step: nn.Module, shape: tuple[int, int, int, int]) -> Any:
    """Return the network as OpenVINO's importer reads it."""
    decoder = library().frontend.pytorch.ts_decoder.TorchScriptPythonDecoder
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch would like another way of tracing, whose operators OpenVINO lacks
        return decoder(step, example_input=(torch.zeros(shape),), trace_kwargs={"check_trace": False})
