"""The public data sets of the references, from $SLIDEMIL_SHARED, as bags."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from _house import SHARED
from numpy.typing import NDArray

import mil

STEP = 256  # places of tiles that have none, one after another along a line


def row_of(n: int) -> NDArray[np.int64]:
    """Places of n tiles along a line, in the order of the file: some heads ask for coordinates."""
    return np.stack([np.arange(n) * STEP, np.zeros(n, np.int64)], axis=1)


def bag(features: NDArray[Any], name: str, xy: NDArray[np.int64] | None = None) -> mil.Bag:
    """One bag with places."""
    places = row_of(len(features)) if xy is None else xy
    return mil.Bag.from_list([np.ascontiguousarray(features, np.float32)], xy=[places], ids=[name])


def musk1() -> mil.BagSet:
    """92 molecules (47 musks), 476 shapes of 166 features. Dietterich et al., Artificial Intelligence 1997."""
    table: dict[str, list[list[float]]] = {}
    label: dict[str, int] = {}
    for row in (SHARED / "data/mil/musk1.data").read_text().splitlines():
        name, _, *values = row.strip().rstrip(".").split(",")
        if values:
            table.setdefault(name, []).append([float(v) for v in values[:166]])
            label[name] = int(float(values[166]))
    names = sorted(table)
    bags = [bag(np.array(table[name]), name) for name in names]
    return mil.BagSet(bags, np.array([label[name] for name in names]), tuple(names))


def animal(name: str) -> mil.BagSet:
    """`elephant` or `fox`: 200 images (100 with the animal), regions of 230 features. Andrews et al., NIPS 2002."""
    from scipy.io import loadmat

    found = loadmat(SHARED / f"data/mil/{name}.mat")
    features, labels = found["features"].toarray(), found["labels"].toarray().ravel()
    ids = found["bag_ids"].ravel()
    numbers = np.unique(ids)
    bags = [bag(features[ids == i], f"{name}-{i}") for i in numbers]
    return mil.BagSet(bags, np.array([int(labels[ids == i][0] > 0) for i in numbers]), tuple(b.ids[0] for b in bags))


def tissue(folder: str, side: int, group: str, at_most: int | None = None) -> mil.BagSet:
    """Images of `data/tiles/FOLDER` as bags of square tiles, each told by the descriptors encoder.

    Args:
        folder: "crc_nuclei" or "ucsb_breast".
        side: of a tile in px.
        group: column of labels.csv that names what must stay on one side.
        at_most: so many images of each class and group.
    """
    from PIL import Image

    home, encoder = SHARED / "data/tiles" / folder, mil.create_encoder("descriptors")
    bags, labels, groups = [], [], []
    for row in chosen(home / "labels.csv", group, at_most):
        with Image.open(home / row["image"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        xy = corners(pixels.shape[1], pixels.shape[0], side)
        tiles = np.stack([pixels[y : y + side, x : x + side] for x, y in xy])
        bags.append(bag(encoder(tiles), row["image"], xy))
        labels.append(int(row["label"]))
        groups.append(row[group])
    return mil.BagSet(bags, np.array(labels), tuple(groups))


def chosen(table: Path, group: str, at_most: int | None) -> list[dict[str, str]]:
    """Rows of labels.csv; with `at_most` the first ones of each class, and of each group where it has several."""
    rows, seen = list(csv.DictReader(table.read_text().splitlines())), {}
    kept = []
    for row in rows:
        key = (row["label"], row[group] if group != "image" else "")
        seen[key] = seen.get(key, 0) + 1
        kept += [row] if at_most is None or seen[key] <= at_most else []
    return kept


def corners(width: int, height: int, side: int) -> NDArray[np.int64]:
    """Top-left corners of the whole tiles of an image, (N, 2)."""
    return np.array([(x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)])
