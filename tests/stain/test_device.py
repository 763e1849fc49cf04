"""Stains replaced where the network is: what the host makes, each tile of a mixed batch by its own slide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _stains import CASES, PIXELS, exact, matrix

import stain
from stain import device, macenko
from stain.device import OnDevice, normalized
from stain.tables import placed

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
WHERE = pytest.mark.parametrize("where", ["cpu", CUDA])
LEVELS = torch.tensor((np.arange(256) / 255 - [[0.485], [0.456], [0.406]]) / [[0.229], [0.224], [0.225]]).float()


def params_of(case="usual", status="ok"):
    source, target, white = CASES[case]
    source = matrix(*source) if status == "ok" else None
    return stain.StainParams("macenko", status, "custom", tuple(map(float, white)), "given", 9, source, matrix(*target))


@pytest.fixture(scope="module")
def slides():
    """Slides of five kinds: two stains, others, colors, nothing that could be fitted, brighter glass."""
    tissue = np.clip(np.random.default_rng(3).normal((190, 120, 170), 30, (4000, 3)), 0, 255).astype(np.uint8)
    return [params_of(), params_of("strong"), stain.fit("reinhard", tissue), params_of(status="ink"), params_of("weak")]


def tiles(count, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def host(params, batch, levels=LEVELS):
    """What the host makes of tiles of one slide: (B, 3, H, W)."""
    return params.apply_normalized(batch, levels.float().numpy())


@WHERE
@pytest.mark.parametrize("name", CASES)
def test_the_result_is_the_formula_to_one_grey_level(name, where):
    params, case = params_of(name), CASES[name]
    batch = PIXELS[:200_000].reshape(8, 250, 100, 3)
    there = placed(macenko.tables_of(params.white, params.source, params.target), *_library(where))
    got = normalized(there, torch.tensor(batch, device=where), LEVELS.to(where))
    assert (got.dtype, tuple(got.shape), got.device.type) == (torch.float32, (8, 3, 250, 100), where)
    mean, sd = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = (got.cpu().numpy().transpose(0, 2, 3, 1) * sd + mean) * 255
    wanted = exact(batch.reshape(-1, 3), tuple(map(float, case[2])), params.source, params.target)
    assert np.abs(levels.reshape(-1, 3) - wanted).max() < 1.001
    assert np.array_equal(got.cpu().numpy(), host(params, batch))


@WHERE
def test_the_type_is_the_networks_and_memory_has_the_channel_last(where):
    params, batch = params_of(), tiles(3)
    there = OnDevice(lambda number: params)
    for kind in (torch.float16, torch.bfloat16):
        got = there(torch.tensor(batch, device=where), np.zeros(3, int), LEVELS.to(where, kind))
        assert got.dtype == kind
        assert torch.equal(got.cpu(), torch.tensor(host(params, batch)).to(kind)), "rounded as autocast would"
        assert got.is_contiguous(memory_format=torch.channels_last)
    plain = there(torch.tensor(batch, device=where), np.zeros(3, int))
    assert np.array_equal(plain.cpu().numpy(), params.apply(batch))


@WHERE
@pytest.mark.parametrize("levels", [LEVELS, None], ids=["planes", "bytes"])
def test_each_tile_of_a_mixed_batch_is_changed_by_its_own_slide(where, levels, slides):
    batch, own = tiles(23), np.random.default_rng(1).integers(0, len(slides), 23)
    assert len(set(own.tolist())) == len(slides)
    there = OnDevice(lambda number: slides[number])
    got = there(torch.tensor(batch, device=where), own, None if levels is None else levels.to(where)).cpu().numpy()
    for row, number in enumerate(own):
        one = batch[row : row + 1]
        wanted = slides[number].apply(one) if levels is None else host(slides[number], one)
        near = 0.0 if where == "cpu" or number != 2 else 0.02 if levels is not None else 1.0  # powers are not one's own
        assert np.abs(got[row : row + 1].astype(float) - wanted).max() <= near


def test_the_tables_of_a_slide_are_sent_once_and_never_taken_for_anothers(monkeypatch):
    sent = []
    monkeypatch.setattr(device, "placed", lambda made, *more: sent.append(made) or placed(made, *more))
    monkeypatch.setattr(device, "_KEPT", 2)
    names = ["usual", "strong"]
    there = OnDevice(lambda number: params_of(names[number]))
    batch = tiles(6)
    for own in ([0] * 6, [0, 1, 0, 1, 1, 0], [1] * 6, [1, 0, 0, 0, 0, 0]):
        there(torch.tensor(batch), np.array(own), LEVELS)
    assert len(sent) == 2
    names[0] = "weak"  # a second round over other slides begins at number 0 again
    got = there(torch.tensor(batch), np.zeros(6, int), LEVELS)
    assert np.array_equal(got.numpy(), host(params_of("weak"), batch))
    assert len(there._there) == 2, "those of slides long done are given up"


def test_a_large_batch_goes_in_pieces(monkeypatch):
    params, batch = params_of(), tiles(5, 31)
    monkeypatch.setattr(device, "_PIECE", 1000)
    got = OnDevice(lambda number: params)(torch.tensor(batch), np.zeros(5, int), LEVELS)
    assert np.array_equal(got.numpy(), host(params, batch))


def test_numpy_is_served_too_and_mistakes_are_told():
    params, batch = params_of(), tiles(2)
    there = OnDevice(lambda number: params)
    assert np.array_equal(there(batch, np.zeros(2, int), LEVELS.numpy()), host(params, batch))
    with pytest.raises(stain.PixelFormatError, match="one slide each, not 3"):
        there(batch, np.zeros(3, int))
    with pytest.raises(stain.PixelFormatError, match="uint8"):
        there(batch.astype(float), np.zeros(2, int))


def _library(where):
    import array_api_compat.torch as xp

    return xp, torch.device(where)
