"""Two stains and their formula, written again: what replaces stains is held to it."""

from __future__ import annotations

import itertools

import numpy as np

from stain import macenko

RANDOM = np.random.default_rng(0).integers(0, 256, (200_000, 3), dtype=np.uint8)
CORNERS = np.array(list(itertools.product((0, 1, 2, 127, 239, 240, 254, 255), repeat=3)), np.uint8)
PIXELS = np.concatenate([CORNERS, RANDOM])

HE = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
CASES = {  # vectors and amounts of the slide, those of the reference, white point
    "usual": ((HE, (1.8, 0.9)), (((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)), (2.1, 1.0)), (242, 232, 237)),
    "weak": ((HE, (0.2, 0.1)), (HE, (2.0, 2.0)), (255, 255, 255)),
    "strong": ((HE, (3.0, 3.0)), (HE, (0.4, 0.4)), (250, 250, 250)),
    "12 degrees apart": ((((0.6, 0.7, 0.387), (0.42, 0.8, 0.43)), (2.0, 1.5)), (HE, (1.5, 1.0)), (245, 246, 244)),
    "swapped": ((HE, (1.0, 1.0)), (HE[::-1], (3.0, 3.0)), (255, 255, 255)),
    "one color each": ((((1, 0, 0), (0, 0, 1)), (1.0, 1.0)), (((0, 1, 0), (1, 0, 0)), (3.0, 0.3)), (200, 255, 3)),
}


def matrix(vectors, amounts):
    rows = np.asarray(vectors, float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return macenko.StainMatrix(tuple(map(tuple, rows.tolist())), amounts)


def exact(pixels, white, source, target):
    """The formula, written again: densities, least squares, no negative amount, other stains, in float64."""
    values = pixels.astype(float)
    density = np.maximum(np.log(np.array(white) / np.maximum(values, 1)), 0)
    vectors = np.array(source.vectors)
    amounts = np.maximum(np.linalg.lstsq(vectors.T, density.T, rcond=None)[0].T, 0)
    ratio = np.clip(np.divide(target.max_concentrations, source.max_concentrations), 1 / 3, 3)
    return np.clip(np.rint(values * np.exp(amounts @ vectors - (amounts * ratio) @ np.array(target.vectors))), 0, 255)
