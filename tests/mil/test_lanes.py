"""How batches get through a network: memory that runs out, parts of one shape, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil import MilError, create_encoder
from mil.encoders import lanes, precision
from mil.encoders.lanes import CudaLane, Lane, largest_part

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tiles(n, side=160, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def short_of_memory(encoder, most):
    """Let the network raise as a device does that holds so many tiles."""
    seen = []

    def refuse(module, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")

    encoder.module.register_forward_pre_hook(refuse)
    return seen


@pytest.fixture
def parts_of_32(monkeypatch):
    monkeypatch.setattr(lanes, "CPU_PART", 32)


@pytest.mark.usefixtures("parts_of_32")
def test_out_of_memory_halves_the_batch_and_says_so_once():
    pixels = tiles(33)
    expected = create_encoder("test_vit", weights="random", device="cpu")(pixels)
    encoder = create_encoder("test_vit", weights="random", device="cpu")
    seen = short_of_memory(encoder, 8)
    found = encoder(pixels)
    assert np.allclose(found, expected, atol=1e-5)
    assert encoder.batch_size == 8
    assert seen[:3] == [32, 16, 8], "it is halved, not tried again"
    encoder(pixels)
    assert encoder.notes == ("no memory for 16 tiles at once: the encoder takes 8 (--batch-size 8)",)


@pytest.mark.usefixtures("parts_of_32")
def test_no_memory_for_one_tile_is_an_error_that_helps():
    encoder = create_encoder("test_resnet", weights="random", device="cpu")
    short_of_memory(encoder, 0)
    with pytest.raises(MilError, match="no memory even for one tile"):
        encoder(tiles(3))


@pytest.mark.usefixtures("parts_of_32")
def test_where_features_depend_on_the_batch_it_is_not_changed_in_silence():
    encoder = create_encoder("test_resnet", weights="random", device="cpu")
    encoder.tie_batch_size("its tiles touch each other")
    assert encoder.passport()["batch_size"] == 32
    short_of_memory(encoder, 8)
    with pytest.raises(MilError, match="--batch-size 8"):
        encoder(tiles(40))


@given(st.integers(1, 10**7), st.integers(0, 10**8), st.integers(10**6, 10**10))
def test_the_largest_part_fits_and_the_next_one_would_not(each, fixed, free):
    part = largest_part(lambda n: fixed + n * each, free, share=1.0, most=10**9)
    step = 8 if part >= 8 else 1
    assert part == 1 or fixed + part * each <= free
    assert part % step == 0
    if 8 <= part < 10**9:
        assert fixed + (part + step) * each > free


def test_the_largest_part_has_an_end():
    assert largest_part(lambda n: n, 10**12) == 1024


@given(st.integers(0, 30), st.integers(1, 9))
def test_parts_have_one_shape_and_rows_keep_their_place(count, part):
    shapes = set()

    def run(slab, start):
        shapes.add(tuple(slab.shape))
        some = slab[: len(pixels) - start].numpy()
        assert np.array_equal(some, pixels[start : start + len(some)]), "told where the part begins"
        return slab.float().mean((1, 2, 3))[:, None]

    pixels = tiles(count, 4)
    pixels.setflags(write=False)
    found = Lane(part)(pixels, run, 1)
    assert np.allclose(found[:, 0], pixels.reshape(count, -1).mean(1) if count else [], atol=1e-3)
    assert shapes <= {(part, 4, 4, 3)}


# Precision


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_low_precision_is_near_and_stays_in_the_passport(name, kind):
    if not precision._has(kind, "cpu"):
        pytest.skip(f"this processor has no {kind}")
    pixels = tiles(4)
    exact = create_encoder(name, weights="random", device="cpu", precision="fp32")
    low = create_encoder(name, weights="random", device="cpu", precision=kind)
    close, far = low(pixels), exact(pixels)
    assert close.dtype == np.float32
    assert np.abs(close - far).max() < 0.15 * far.std()
    assert np.abs(close - far).max() > 0, "it did compute otherwise"
    assert (low.passport()["precision"], exact.passport()["precision"]) == (kind, "fp32")
    assert np.array_equal(low(pixels[::-1])[::-1], close)


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(precision, "_has", lambda kind, device: kind == "fp32")
    with pytest.raises(MilError, match="--precision fp32"):
        create_encoder("test_vit", weights="random", device="cpu", precision="bf16")
    assert create_encoder("test_vit", weights="random", device="cpu").precision == "fp32"
    with pytest.raises(MilError, match="precision 'int8'"):
        create_encoder("test_vit", weights="random", device="cpu", precision="int8")


def test_auto_is_what_an_encoder_is_used_with_on_cuda():
    assert precision.choose("auto", "cpu") == "fp32"
    assert precision.choose("auto", "cuda", usual="fp16") == "fp16"


# CUDA


@needs_cuda
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_on_cuda_features_are_those_of_the_cpu_within_the_stated_tolerance(name):
    pixels = tiles(37)
    expected = create_encoder(name, weights="random", device="cpu")(pixels)
    for kind in ("fp32", "fp16", "bf16"):
        for batch_size in (0, 5, 16):
            encoder = create_encoder(name, weights="random", device="cuda", batch_size=batch_size, precision=kind)
            assert np.abs(encoder(pixels) - expected).max() < 3 * encoder.tolerance * expected.std()


@needs_cuda
def test_on_cuda_no_slab_is_overwritten_before_it_is_copied():
    lane = CudaLane(4, "cuda")
    pixels = tiles(403, 64)
    found = lane(pixels, lambda slab, _: slab.double().mean((1, 2, 3))[:, None], 1)
    assert np.allclose(found[:, 0], pixels.reshape(403, -1).mean(1), atol=1e-3)
