"""Encoders by way of OpenVINO: held against torch, the same bytes at any place of a batch, and silent."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

if importlib.util.find_spec("openvino") is None:  # not by importing it, which would send word of that to its makers
    pytest.skip("the extra `openvino` is not installed", allow_module_level=True)

from mil import MilError, check_batch_invariance, create_encoder
from mil.encoders import build, lanes, openvino_graph
from mil.encoders.registry import registry
from mil.encoders.timm_encoder import Compute, TimmEncoder
from mil.encoders.weights import Source

QUICK = ("test_resnet", "test_vit", "kaiko-vits16")


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(lanes, "CPU_PART", 2)


def tiles(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def made(name, device, precision="fp32", depth=1):
    """An encoder; of a foundation model only the first block, for it may have a billion weights."""
    entry = registry().get(name)
    if entry is None or entry.shipped:
        weights = None if entry else "random"
        return create_encoder(name, weights=weights, device=device, precision=precision)
    torch.manual_seed(3)
    changes = {} if entry.cut else {"depth": depth, "img_size": 448 if name == "kaiko-vits16" else 224}
    network = build.network_of(entry, build.backbone_of(entry, **changes))  # 448: its places are resampled
    how = Compute(device, precision)
    return TimmEncoder(name, network, build.preprocessing_of(entry), Source("0" * 64, "random"), how, entry=entry)


def spread_off(found, wanted):
    return float(np.sqrt(np.square(found - wanted).mean()) / wanted.std())


@pytest.mark.parametrize("name", [*QUICK, pytest.param("virchow2", marks=pytest.mark.slow)])
def test_features_are_torchs_and_the_same_bytes_at_any_place(name):
    ours, wanted = made(name, "openvino"), made(name, "cpu")
    pixels = tiles(3, ours.input_size)
    assert spread_off(ours(pixels), wanted(pixels)) < 5e-6
    assert ours.tolerance == 0
    check_batch_invariance(ours, tiles=3)


@pytest.mark.parametrize(
    ("name", "precision"), [("test_vit", "bf16"), ("test_resnet", "bf16"), ("test_resnet", "fp16")]
)
def test_lower_precisions_are_within_their_tolerance_and_not_exact(name, precision):
    if not openvino_graph.can(precision):
        pytest.skip(f"this processor has no {precision}")
    ours, wanted = made(name, "openvino", precision), made(name, "cpu")
    pixels = tiles(2, ours.input_size)
    off = spread_off(ours(pixels), wanted(pixels))
    assert 1e-5 < off < openvino_graph.TOLERANCE[precision]
    check_batch_invariance(ours, tiles=2)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_maps_planes_and_gradients_are_as_without_it(name):
    ours, wanted = made(name, "openvino"), made(name, "cpu")
    pixels = tiles(3, ours.input_size)
    features, maps = ours.with_map(pixels)
    assert spread_off(features, ours(pixels)) < 1e-5
    assert np.allclose(maps, wanted.with_map(pixels)[1], atol=1e-4 * maps.std())
    assert np.allclose(ours.dense(pixels), maps, atol=1e-4 * maps.std())
    planes = np.stack([ours.levels[c][pixels[..., c]] for c in range(3)], axis=1)
    assert np.array_equal(ours(planes), ours(pixels))
    x = ours.prepare(pixels).requires_grad_()
    (gradient,) = torch.autograd.grad(ours.module(x).square().sum(), x)
    assert gradient.abs().sum() > 0


def test_the_passport_tells_it():
    encoder = made("test_vit", "openvino")
    passport = json.loads(json.dumps(encoder.passport()))
    assert (passport["backend"], encoder.device, passport["precision"]) == ("openvino", "openvino", "fp32")
    assert passport["versions"]["openvino"][:2] == "20"
    others = {k: v for k, v in passport.items() if k not in ("backend", "versions")}
    assert others == {k: v for k, v in made("test_vit", "cpu").passport().items() if k in others}


def test_a_graph_that_differs_from_torch_is_refused(monkeypatch):
    good = openvino_graph.Graph.__call__
    monkeypatch.setattr(openvino_graph.Graph, "__call__", lambda self, x: good(self, x) * 1.001)
    with pytest.raises(MilError, match=r"other features than torch.*--device cpu"):
        made("test_resnet", "openvino")
    monkeypatch.setattr(openvino_graph.Graph, "__call__", lambda self, x: good(self, x) * float("nan"))
    with pytest.raises(MilError, match="nan of their spread"):
        made("test_resnet", "openvino")


def test_a_network_that_it_does_not_take_is_refused_with_the_mend():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, 0, :4, :4]).real

    odd = Odd()
    with pytest.raises(MilError, match=r"OpenVINO does not take this network.*--device cpu"):
        openvino_graph.Graph(odd, odd, (2, 3, 8, 8), "fp32")


def test_compile_is_torchs():
    with pytest.raises(MilError, match="compiles by itself"):
        create_encoder("test_vit", weights="random", device="openvino", compile=True)


def test_nothing_is_sent_to_its_makers():
    """The package tells of every import; with its sender out of reach it turns to a stub."""
    openvino_graph.library()
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_it_is_not_there(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "openvino":
            raise ImportError("no openvino here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MilError, match=r"pip install 'slidemil\[openvino\]'"):
        create_encoder("test_vit", weights="random", device="openvino")
