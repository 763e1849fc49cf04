"""Grad-CAM through the head into the encoder: which places of which tiles speak for a class.

Two passes. The head, over the whole bag, gives d logit / d feature of every tile; then each batch of tiles goes through
the encoder with its own small graph. The chain rule makes that the gradient of the whole-bag function, while memory
does not know how many tiles there are. Maps are signed and never rescaled by themselves: all tiles share one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head

from .backbone import Backbone
from .gradients import class_logit, feature_gradient
from .result import Explanation, Reach, as_values

_SAME = 0.02
"""Stored features (float16, maybe of another device) and those of the tiles may differ by this share of their size."""


@dataclass(frozen=True, eq=False)
class TileMaps:
    """Maps of some tiles.

    Attributes:
        maps: shape (b, h, w), float32, signed.
        features: shape (b, D), what the encoder gave for these tiles.
    """

    maps: NDArray[np.float32]
    features: Tensor


def gradcam(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Mean of each tile's map.

    Raises:
        MilError: no tiles were given, they are not those of the bag, or the encoder is no network.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, eq. 1 and 2, without the ReLU (a class whose gradient is negative
    would show nothing).
    """
    network = Backbone.of(reach.encoder)
    if reach.tiles is None:
        raise MilError("gradcam reaches pixels: give the tiles of the bag, in its order, with tiles=.")
    rows = torch.cat([feature_gradient(head, one, target)[0] for one in bag.split()])
    values, start = torch.zeros(bag.n_tiles), 0
    apart = 0.0
    for part in stream_maps(network, rows, reach.tiles):
        end = start + len(part.maps)
        if end > bag.n_tiles:
            raise MilError(f"there are more tiles than the {bag.n_tiles} rows of the bag. Give those of the bag.")
        values[start:end] = torch.from_numpy(part.maps.mean(axis=(1, 2)))
        apart = max(apart, _difference(part.features, bag.features[start:end]))
        start = end
    if start < bag.n_tiles:
        raise MilError(f"there are {start} tiles for the {bag.n_tiles} rows of the bag. Give those of the bag.")
    if apart > _SAME:
        raise MilError(
            f"the tiles give other features than the bag holds (up to {apart:.1%} apart): another slide, another "
            "encoder, or pixels that were not normalized as they were then."
        )
    return Explanation(as_values(values), {"features_apart": apart})


def tile_maps(head: Head, bag: Bag, target: int, rows: Iterable[int], reach: Reach) -> NDArray[np.float32]:
    """Maps (n, h, w) of some tiles of one bag, on the scale of the whole bag; `reach.tiles` are just those tiles."""
    network = Backbone.of(reach.encoder)
    gradient, _ = feature_gradient(head, bag, target)
    chosen = gradient[torch.tensor(list(rows), dtype=torch.int64)]
    assert reach.tiles is not None
    parts = [part.maps for part in stream_maps(network, chosen, reach.tiles)]
    return np.concatenate(parts) if parts else np.zeros((0, 1, 1), np.float32)


def stream_maps(network: Backbone, gradients: Tensor, tiles: Iterable[NDArray[np.uint8]]) -> Iterator[TileMaps]:
    """Yield the maps batch by batch.

    Args:
        network: of the encoder.
        gradients: (T, D), d logit / d feature of each tile, in the order of the tiles.
        tiles: RGB (S, S, 3) or (b, S, S, 3), uint8.
    """
    start = 0
    for pixels in _batches(tiles, network.batch_size):
        n = len(pixels)
        slab = np.zeros((network.batch_size, *pixels.shape[1:]), np.uint8)
        slab[:n] = pixels
        leaf, features = network.split_at_maps(network.prepare(slab))
        wanted = gradients[start : start + n].to(features)
        if len(wanted) < n:
            raise MilError(f"there are more tiles than the {len(gradients)} rows of the bag. Give those of the bag.")
        (slope,) = torch.autograd.grad((features[:n] * wanted).sum(), leaf)
        yield TileMaps(_cam(network, leaf, slope)[:n], features[:n].detach())
        start += n


def network_maps(network: Backbone, pixels: NDArray[np.uint8], target: int) -> NDArray[np.float32]:
    """Grad-CAM of a network that gives logits itself: (B, C) of a classifier, or maps (B, C, …) of a segmentation.

    Of maps the mean over the places is explained.
    """
    leaf, logits = network.split_at_maps(network.prepare(pixels))
    (slope,) = torch.autograd.grad(class_logit(logits, target), leaf)
    return _cam(network, leaf, slope)


def _cam(network: Backbone, leaf: Tensor, slope: Tensor) -> NDArray[np.float32]:
    """Σ over the channels of (mean slope) × activation: (B, h, w)."""
    maps, slopes = network.as_maps(leaf.detach()), network.as_maps(slope)
    return as_values((slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))


def _batches(tiles: Iterable[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """Regroup tiles and batches of any size into batches of `size`, the last one as it comes."""
    held: list[NDArray[np.uint8]] = []
    for item in tiles:
        held += [item] if item.ndim == 3 else list(item)
        while len(held) >= size:
            yield np.stack(held[:size])
            held = held[size:]
    if held:
        yield np.stack(held)


def _difference(found: Tensor, stored: Tensor) -> float:
    """Largest difference, as a share of the largest feature of these tiles."""
    stored = stored.to(found)
    return float((found - stored).abs().max() / stored.abs().max().clamp(min=1e-6))
