"""A made-up cohort in the shape of the demo's: few slides, few positive tiles, features of mixed scale."""

from __future__ import annotations

import numpy as np

from mil import Bag, BagSet

D, LATENT = 150, 20


def cohort(patients, slides_each, *, concept, seed, delta=2.0, shifted=25, positive=(2, 7), tiles=(50, 100)):
    """Return a BagSet and, per slide, which tiles carry the concept.

    Tiles are a mixture of `LATENT` common causes plus noise and a patient effect; positive tiles are shifted by about
    `delta` in `shifted` of the features. Scales run over six orders of magnitude. `concept` decides what is shifted.
    Where tiles lie says nothing.
    """
    world, rng = np.random.default_rng(1000 + concept), np.random.default_rng(seed)
    mixing = world.normal(size=(LATENT, D)) / np.sqrt(LATENT)
    scale, origin = 10 ** world.uniform(-3, 3, D), world.normal(size=D) * 3
    dims, sign = world.choice(D, shifted, replace=False), world.choice([-1, 1], shifted)
    bags, labels, names, truth = [], [], [], []
    for p in range(patients):
        effect = rng.normal(size=D) * 0.3
        for _ in range(slides_each):
            n = rng.integers(*tiles)
            x = rng.normal(size=(n, LATENT)) @ mixing + 0.6 * rng.normal(size=(n, D)) + effect
            marked = np.zeros(n, bool)
            if p % 2:
                rows = rng.choice(n, rng.integers(*positive), replace=False)
                marked[rows] = True
                x[np.ix_(rows, dims)] += delta * sign * rng.uniform(0.6, 1.4, (len(rows), 1))
            values, side = ((x + origin) * scale).astype(np.float32), 12
            cells = np.random.default_rng([seed, len(bags)]).permutation(side * side)[:n]
            xy = np.stack([cells % side, cells // side], axis=1) * 448
            bags.append(Bag.from_list([values], xy=[xy], ids=[f"s{len(bags)}"]))
            labels.append(p % 2)
            names.append(f"{seed}-{p}")
            truth.append(marked)
    return BagSet(bags, np.array(labels), tuple(names)), truth
