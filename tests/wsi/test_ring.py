"""The shared memory: what is taken overlaps nothing, and the other side sees it where it is said to lie."""

from __future__ import annotations

import numpy as np
import pytest

from wsi.ring import Ring, RingReader

SIDE = 16


@pytest.fixture
def ring():
    ring = Ring()
    yield ring
    ring.close()


def test_what_is_taken_overlaps_nothing_and_is_seen_by_the_other_side(ring):
    reader = RingReader(ring.descriptor)
    dice = np.random.default_rng(0)
    taken = []
    for number, tiles in enumerate(dice.integers(1, 40, 60)):  # many stretches, several slabs in each
        slab = ring.take(int(tiles) * 3 * SIDE * SIDE).reshape(-1, SIDE, SIDE, 3)
        slab[...] = number
        taken.append(slab)
    assert 3 < len(ring._stretches) < len(taken) / 4
    for number, slab in enumerate(taken):
        assert (slab == number).all()
        for row in (0, -1):
            seen = reader.tile(ring.offset_of(slab[row]), SIDE)
            assert (seen == number).all()
            seen[0, 0] = 200  # what the reader writes is what the owner has
            assert (slab[row, 0, 0] == 200).all()
            seen[0, 0] = number


def test_memory_from_elsewhere_is_refused(ring):
    ours = ring.take(6 * SIDE)
    for other in (np.zeros(3, np.uint8), ours[::2]):
        with pytest.raises(ValueError, match="in one piece"):
            ring.offset_of(other)


def test_pages_that_nobody_wrote_to_cost_nothing(ring):
    import os

    ring.take(200 << 20)
    assert os.fstat(ring.descriptor).st_blocks == 0
