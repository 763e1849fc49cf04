"""Tile encoders: a batch of tiles → one feature vector per tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import MilError

DEFAULT_ENCODER = "descriptors"


class Encoder(Protocol):
    """Turns tiles into features. Deterministic on a CPU: a tile's features do not depend on its neighbors."""

    @property
    def id(self) -> str:
        """Name, fit for a folder name."""

    @property
    def dim(self) -> int:
        """Width D of the features."""

    @property
    def input_size(self) -> int:
        """Side in pixels at which tiles are seen; tiles of another side are resized."""

    @property
    def device(self) -> str:
        """Where it computes, as torch names it, "cpu", "cuda", or "openvino"."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode RGB tiles, shape (B, S, S, 3), uint8 → features (B, D), float32."""

    def passport(self) -> dict[str, Any]:
        """Say everything that decides the numbers, as JSON can hold it; features of two passports do not mix."""


def create_encoder(
    id: str,  # noqa: A002 - the agreed name
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
    precision: str = "auto",
    compile: bool = False,  # noqa: A002 - what torch calls it
) -> Encoder:
    """Build an encoder.

    Args:
        id: "descriptors" (embedded, no weights), "slidemil-compact" (a small network that comes with its
            weights), another name of the registry such as "uni_v1", any timm name such as "resnet18", with or without
            a tag, "local-dir:FOLDER" (a folder that timm saved), or "hf-hub:OWNER/REPO".
        weights: a `.safetensors` or torch file, "local-dir:FOLDER", or "random" (or "random:SEED", for tests; the
            passport says so). None takes the hub cache, then the hub where there is a network.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" …, or "openvino": the CPU by way of OpenVINO.
        batch_size: tiles in one pass on CUDA, 0 for as many as fit; the last one is filled up, so the shape is always
            the same. On a CPU passes have a shape of their own, and features do not depend on it.
        precision: "fp32", "bf16", "fp16", or "auto": fp32 on a CPU, what the encoder is used with on CUDA.
        compile: let torch.compile make machine code of it.

    Raises:
        UnknownEncoderError: no encoder of that name.
        WeightsError: weights missing, refused, or of another architecture.
    """
    if batch_size < 0:
        raise MilError(f"batch_size={batch_size}: an encoder needs at least one tile at a time, or 0 for what fits.")
    if id == DEFAULT_ENCODER:
        if weights is not None:
            raise MilError(f"the encoder {id} has no weights. Leave --weights out, or name the encoder they belong to.")
        from .encoders.descriptors import DescriptorEncoder

        return DescriptorEncoder()
    from .encoders.build import create_timm_encoder
    from .encoders.timm_encoder import Compute

    compute = Compute(device, precision, batch_size, compile)
    return create_timm_encoder(id, weights=weights, compute=compute)


def check_batch_invariance(encoder: Encoder, *, tiles: int = 8, seed: int = 0, quick: bool = False) -> None:
    """Raise unless a tile's features are the same at any place of a batch and beside any other tiles.

    The same bytes; of an encoder that states a `tolerance`, the same to within so much of the features' spread.

    Args:
        encoder: the encoder to look at.
        tiles: how many tiles of noise and smooth color are encoded, each four times.
        seed: of the tiles.
        quick: look only at tiles that are put behind others: of 2 tiles that takes two passes. Any dependence on place
            or neighbors shows there, but for one that cancels out.

    Raises:
        MilError: the features differ; the message says by how much.
    """
    rng = np.random.default_rng(seed)
    side = encoder.input_size
    pixels = rng.integers(0, 256, (tiles, side, side, 3), dtype=np.uint8)
    pixels[::2] = rng.integers(0, 256, (len(pixels[::2]), 1, 1, 3), dtype=np.uint8)
    together = encoder(pixels)
    others = {"behind other tiles": encoder(np.concatenate([pixels[::-1], pixels]))[tiles:]}
    if not quick:
        order = rng.permutation(tiles)
        others["in another order"] = encoder(pixels[order])[np.argsort(order)]
        others["alone"] = np.concatenate([encoder(tile[None]) for tile in pixels])
    allowed = getattr(encoder, "tolerance", 0.0) * float(together.std())
    for how, features in others.items():
        if not np.allclose(features, together, rtol=0, atol=allowed):
            worst = float(np.abs(features - together).max())
            raise MilError(
                f"{encoder.id}: a tile {how} gets other features (by up to {worst:.2g}). "
                "Always use the same batch size with this encoder, and keep it in the passport."
            )
