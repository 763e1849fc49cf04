"""Transfers that do harm, each in one way: an honest Macenko, and then something else."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

import stain
from stain import measures
from stain.density import density_table

SIDE = 128


def crops(image, side=SIDE):
    """Return the crops of an image, side by side, that hold some tissue."""
    height, width = image.shape[:2]
    places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    found = [image[y : y + side, x : x + side] for y, x in places]
    return np.stack([tile for tile in found if (tile.min(axis=-1) < 200).mean() > 0.3])


def honest(target):
    return lambda tiles: stain.fit("macenko", tiles, reference=target).apply(tiles)


def texture(target):
    """A fine checkerboard of ± 12 levels, as a decoder without smoothing leaves."""
    y, x = np.mgrid[:SIDE, :SIDE]
    board = np.where((x + y) % 2, 12, -12)[None, :, :, None]
    return lambda tiles: np.clip(honest(target)(tiles) + board, 0, 255).astype(np.uint8)


def erased(target):
    """Two nuclei in three become what surrounds them."""

    def transfer(tiles):
        after = honest(target)(tiles)
        for tile, mask in zip(after, measures.nuclei(tiles), strict=True):
            labels, _ = ndimage.label(mask)
            gone = ndimage.binary_dilation(mask & (labels % 3 > 0), iterations=2)
            nearest = ndimage.distance_transform_edt(gone, return_distances=False, return_indices=True)
            tile[gone] = ndimage.uniform_filter(tile[tuple(nearest)], (3, 3, 1))[gone]
        return after

    return transfer


def painted(target):
    """Discs of the color of nuclei where there are none: half as many again."""

    def transfer(tiles):
        after, rng = honest(target)(tiles), np.random.default_rng(0)
        y, x = np.mgrid[:SIDE, :SIDE]
        for tile, mask in zip(after, measures.nuclei(tiles), strict=True):
            color = np.median(tile[mask], axis=0) if mask.any() else np.array([90, 60, 140])
            far = ndimage.distance_transform_edt(~mask)
            for _ in range(max(4, ndimage.label(mask)[1] // 2)):
                free = np.argwhere(far > 7)
                if not len(free):
                    break
                cy, cx = free[rng.integers(len(free))]
                disc = (y - cy) ** 2 + (x - cx) ** 2 <= 16
                tile[disc] = color
                far = np.minimum(far, np.hypot(y - cy, x - cx) - 4)
        return after

    return transfer


def swapped(target):
    """Haematoxylin in the color of eosin, and the other way round."""
    known = stain.fit("macenko", target).source
    turned = stain.StainMatrix(known.vectors[::-1], known.max_concentrations[::-1])

    def transfer(tiles):
        params = stain.fit("macenko", tiles)
        white, vectors = params.white, np.array(params.source.vectors)
        amounts = sum(density_table(white)[c][tiles[..., c]][..., None] * np.linalg.pinv(vectors)[c] for c in range(3))
        ratio = np.divide(turned.max_concentrations, params.source.max_concentrations)
        density = np.maximum(amounts, 0) * ratio @ np.array(turned.vectors)
        return np.rint(np.array(white) * np.exp(-density)).clip(0, 255).astype(np.uint8)

    return transfer


def shifted(target):
    """All moved by 4 px."""
    return lambda tiles: np.roll(honest(target)(tiles), (4, 4), axis=(1, 2))


HARMS = {  # what is planted → the measure that was made for it
    texture: "variation",
    erased: "dice",
    painted: "components",
    swapped: "stain",
    shifted: "structure",
}
