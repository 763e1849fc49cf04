"""A linear probe: what a straight line can read out of an encoder's features, over real labelled tiles.

Images are never on both sides of a fold (breast: nor TMA blocks), the probe's one setting is chosen inside the training
side, and intervals resample whole images.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARED = Path(os.environ.get("SLIDEMIL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS, INNER = 5, 3


@dataclass
class Probe:
    """Labelled tiles of one kind.

    Attributes:
        name: of the task.
        tiles: (N, S, S, 3) uint8.
        labels: (N,) classes from 0.
        images: image of each tile: what intervals resample.
        groups: what is held out as a whole.
    """

    name: str
    tiles: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    groups: np.ndarray


def probes() -> list[Probe]:
    """Return all tasks."""
    return [breast(), epithelium(), cells()]


def breast(most: int | None = None) -> Probe:
    """Benign or malignant, as the image is, of `most` images each; tiles of 224 px, whole TMA blocks held out."""
    rows = _rows("ucsb_breast/labels.csv", "label", most)
    parts = [_grid(_image("ucsb_breast", row["image"]), 224) for row in rows]
    return _joined("breast", parts, [[int(row["label"])] * len(part) for row, part in zip(rows, parts, strict=True)],
                   [row["image"] for row in rows], [row["tma_block"] for row in rows])  # fmt: skip


def epithelium() -> Probe:
    """Whether any epithelial nucleus lies in a quarter of the image (250 px)."""
    rows = _rows("crc_nuclei/labels.csv", "label")
    inside = _nuclei(250)
    parts = [_grid(_image("crc_nuclei", row["image"]), 250) for row in rows]
    labels = [[int(inside[row["image"], k]["epithelial"] > 0) for k in range(4)] for row in rows]
    return _joined("crc_epithelium", parts, labels, [row["image"] for row in rows])


def cells() -> Probe:
    """Which of four kinds of nuclei is in the majority in a tile of 125 px, where one is (of 3 at least)."""
    rows = _rows("crc_nuclei/labels.csv", "label")
    inside = _nuclei(125)
    parts, labels = [], []
    for row in rows:
        counts = [inside[row["image"], k] for k in range(16)]
        clear = [k for k, one in enumerate(counts) if one.total() >= 3 and 2 * max(one.values()) > one.total()]
        parts.append(_grid(_image("crc_nuclei", row["image"]), 125)[clear])
        labels.append([CLASSES.index(counts[k].most_common(1)[0][0]) for k in clear])
    return _joined("crc_cells", parts, labels, [row["image"] for row in rows])


def probabilities(probe: Probe, features: np.ndarray) -> np.ndarray:
    """Return the class probabilities (N, C) of every tile, by probes that never saw its image."""
    found = np.zeros((len(features), probe.labels.max() + 1))
    for test in _folds(probe.groups, probe.images, probe.labels, FOLDS):
        rest = np.setdiff1d(np.arange(len(features)), test)
        inner = _folds(probe.images[rest], probe.images[rest], probe.labels[rest], INNER)
        losses = [
            sum(_loss(_fit(features[rest], probe.labels[rest], fit, held, c), probe.labels[rest][held])
                for held in inner for fit in [np.setdiff1d(np.arange(len(rest)), held)])
            for c in PENALTIES
        ]  # fmt: skip
        best = PENALTIES[int(np.argmin(losses))]
        found[test] = _fit(features, probe.labels, rest, test, best)
    return found


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve; of several classes the mean of each against the rest."""
    import mil

    classes = (1,) if scores.shape[1] == 2 else range(scores.shape[1])
    return float(np.nanmean([mil.auc(labels == k, scores[:, k]) for k in classes]))


def gain(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return by how much the first of two (N, 2, C) is better."""
    return area(labels, scores[:, 0]) - area(labels, scores[:, 1])


def with_interval(probe: Probe, scores: np.ndarray, metric: Any = area, *, resamples: int = 2000) -> dict[str, Any]:
    """Return a value with its 95 % interval over images."""
    import mil

    found = mil.bootstrap_interval(probe.labels, scores, list(probe.images), metric, n=resamples)
    return {"value": round(metric(probe.labels, scores), 4), "interval": [round(found.low, 4), round(found.high, 4)]}


def _fit(features: np.ndarray, labels: np.ndarray, fit: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    mean, sd = features[fit].mean(0), np.maximum(features[fit].std(0), 1e-6)
    model = LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit((features[fit] - mean) / sd, labels[fit])
    out = np.zeros((len(test), labels.max() + 1))
    out[:, model.classes_] = model.predict_proba((features[test] - mean) / sd)
    return out


def _loss(chances: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(chances[np.arange(len(labels)), labels], 1e-9)).sum())


def _folds(groups: np.ndarray, images: np.ndarray, labels: np.ndarray, k: int) -> list[np.ndarray]:
    """Return rows of k test folds: whole groups, each of about as many images of each class."""
    from mil.folds import k_folds

    names, first = np.unique(images, return_index=True)
    if len(set(groups)) < len(names):  # few large groups: each is a fold
        return [np.flatnonzero(groups == one) for one in np.unique(groups)]
    kinds = [int(Counter(labels[images == one].tolist()).most_common(1)[0][0] > 0) for one in names]
    return [np.flatnonzero(np.isin(images, names[split.test]))
            for split in k_folds([str(groups[i]) for i in first], kinds, k=k, seed=0)]  # fmt: skip


def _rows(path: str, column: str, most: int | None = None) -> list[dict[str, str]]:
    rows = list(csv.DictReader((SHARED / "data/tiles" / path).read_text().splitlines()))
    if most is None:
        return rows
    return [row for kind in ("0", "1") for row in [one for one in rows if one[column] == kind][:most]]


def _image(folder: str, name: str) -> np.ndarray:
    with Image.open(SHARED / "data/tiles" / folder / name) as image:
        return np.asarray(image.convert("RGB"))


def _grid(image: np.ndarray, side: int) -> np.ndarray:
    """Cut an image into tiles, line by line; a rest at the edge is left out."""
    tops, lefts = (range(0, n - side + 1, side) for n in image.shape[:2])
    return np.stack([image[y : y + side, x : x + side] for y in tops for x in lefts])


def _nuclei(side: int) -> defaultdict[tuple[str, int], Counter]:
    """Count the nuclei of each kind in each tile of an image of 500 px."""
    across = 500 // side
    found: defaultdict[tuple[str, int], Counter] = defaultdict(Counter)
    for row in csv.DictReader((SHARED / "data/tiles/crc_nuclei/nuclei.csv").read_text().splitlines()):
        x, y = (min(int((float(row[axis]) - 1) // side), across - 1) for axis in "xy")  # MATLAB counts from 1
        found[row["image"], y * across + x][row["class"]] += 1
    return found


def _joined(name: str, parts: list[np.ndarray], labels: list[list[int]], images: list[str],
            groups: list[str] | None = None) -> Probe:  # fmt: skip
    each = partial(np.repeat, repeats=[len(part) for part in parts])
    return Probe(name, np.concatenate(parts), np.concatenate(labels).astype(np.int64), each(images),
                 each(images if groups is None else groups))  # fmt: skip
