"""The registry: what each row builds, counted by closed form; how it pools; what it says where weights are missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from mil import MilError, UnknownEncoderError, WeightsError, check_batch_invariance, create_encoder
from mil.encoders import build, lanes
from mil.encoders.layouts import from_transformers
from mil.encoders.network import Network
from mil.encoders.registry import find, registry
from mil.encoders.timm_encoder import Compute, TimmEncoder
from mil.encoders.weights import Source

HERE = Path(__file__).parent
BUILT = [entry.id for entry in registry().values() if entry.buildable]
LIKE = {  # rows that are another one with other weights or pooling
    "hoptimus1": "hoptimus0",
    **{f"{name}-token": name for name in ("virchow", "virchow2", "h0-mini", "midnight12k")},
}


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    """Parts of two tiles: eight of them would only be slower."""
    monkeypatch.setattr(lanes, "CPU_PART", 2)


# Facts of papers and model cards, apart from the table: width, depth, patch, MLP in and out, places, layer scale.
SHAPES = {
    "uni_v1": (1024, 24, 16, 4096, 4096, 197, True),
    "uni_v2": (1536, 24, 14, 8192, 4096, 256, True),
    "virchow": (1280, 32, 14, 6832, 3416, 257, True),
    "virchow2": (1280, 32, 14, 6832, 3416, 261, True),
    "gigapath": (1536, 40, 16, 8192, 4096, 197, True),
    "hoptimus0": (1536, 40, 14, 8192, 4096, 256, True),
    "h0-mini": (768, 12, 14, 4096, 2048, 256, True),
    "phikon": (768, 12, 16, 3072, 3072, 197, False),
    "phikon_v2": (1024, 24, 16, 4096, 4096, 197, True),
    "midnight12k": (1536, 40, 14, 8192, 4096, 257, True),
    "openmidnight": (1536, 40, 14, 8192, 4096, 256, True),
    "kaiko-vits16": (384, 12, 16, 1536, 1536, 197, False),
    "kaiko-vits8": (384, 12, 8, 1536, 1536, 785, False),
    "kaiko-vitb16": (768, 12, 16, 3072, 3072, 197, False),
    "kaiko-vitb8": (768, 12, 8, 3072, 3072, 785, False),
    "kaiko-vitl14": (1024, 24, 14, 4096, 4096, 1369, True),
    "lunit-vits8": (384, 12, 8, 1536, 1536, 785, False),
    "lunit-vits16": (384, 12, 16, 1536, 1536, 197, False),
    "gpfm": (1024, 24, 14, 4096, 4096, 257, True),
    "mstar": (1024, 24, 16, 4096, 4096, 197, True),
}
OTHERS = ("resnet50-trunc", "slidemil-compact")  # no transformers; the latter is counted in test_compact.py
REGISTERS = {"uni_v2": 8, "virchow2": 4, "hoptimus0": 4, "h0-mini": 4, "openmidnight": 4, "kaiko-vitl14": 4}


def tiles(n, side=224, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def closed_form(name):
    """Parameters of a vision transformer, summed up by hand."""
    width, depth, patch, mlp_in, mlp_out, places, scaled = SHAPES[name]
    block = 4 * width + 4 * width * width + 4 * width + width * mlp_in + mlp_in + mlp_out * width + width
    block += 2 * width * scaled
    outside = 3 * patch * patch * width + width + (1 + REGISTERS.get(name, 0) + places) * width + 2 * width
    return depth * block + outside


@pytest.mark.parametrize("name", [name for name in BUILT if name not in LIKE])
def test_each_row_builds_what_it_states(name):
    """The whole network, without memory for its weights."""
    entry = registry()[name]
    with torch.device("meta"):
        network = build.network_of(entry, build.backbone_of(entry))
    assert sum(p.numel() for p in network.parameters()) == entry.parameters
    assert name in OTHERS or closed_form(name) == entry.parameters
    assert network.prefix_tokens == entry.prefix_tokens
    tile = torch.zeros(1, 3, entry.size, entry.size, device="meta")
    assert network(tile).shape == (1, entry.dim)
    if name in SHAPES:
        del network.backbone.blocks[1:]  # what follows has these shapes at any depth
        side = entry.size // SHAPES[name][2]
        assert network.forward_features(tile).shape[1] == side * side + 1 + REGISTERS.get(name, 0)
        assert network.dense(tile).shape == (1, side, side, SHAPES[name][0])


@pytest.mark.parametrize("name", LIKE)
def test_rows_that_are_like_another_build_the_same(name):
    entry, other = registry()[name], registry()[LIKE[name]]
    for field in ("arch", "args", "swiglu", "prefix_tokens", "parameters", "mean", "std", "kernel", "resize"):
        assert getattr(entry, field) == getattr(other, field)
    assert (entry.repo == other.repo) == (entry.dim != other.dim)


def shallow(name, depth=1, **compute):
    """A row's encoder with random weights and few blocks: the real one may have a billion."""
    entry = registry()[name]
    torch.manual_seed(3)
    backbone = build.backbone_of(entry, **({} if entry.cut else {"depth": depth}))
    network = build.network_of(entry, backbone)
    made = Compute("cpu", **compute)
    return TimmEncoder(name, network, build.preprocessing_of(entry), Source("0" * 64, "random"), made, entry=entry)


@pytest.mark.parametrize("name", ["uni_v1", "virchow2", "virchow2-token", "midnight12k"])
def test_pooling_is_the_rows(name):
    """By hand from the tokens that leave the last norm."""
    encoder = shallow(name)
    seen = []
    encoder.module.backbone.norm.register_forward_hook(lambda *args: seen.append(args[2]))
    features = encoder(tiles(1))[0]
    tokens = seen[-1][0].numpy()
    expected = tokens[0]
    if not name.endswith("-token") and name != "uni_v1":
        expected = np.concatenate([tokens[0], tokens[5 if name == "virchow2" else 1 :].mean(0)])
    assert np.allclose(features, expected, atol=1e-5)
    assert np.abs(features).std() > 0


def test_the_cut_resnet_is_the_mean_of_its_third_block():
    encoder = shallow("resnet50-trunc")
    torch.manual_seed(3)
    whole = timm.create_model("resnet50", pretrained=False, num_classes=0).eval()
    torch.manual_seed(3)
    maps = timm.create_model("resnet50", pretrained=False, features_only=True, out_indices=[3]).eval()
    maps.load_state_dict({k: v for k, v in whole.state_dict().items() if k in maps.state_dict()})
    pixels = tiles(2)
    with torch.no_grad():
        expected = maps(encoder.prepare(pixels))[0].mean((2, 3)).numpy()
    assert np.allclose(encoder(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["kaiko-vits16", "virchow2", "resnet50-trunc"])
def test_features_do_not_depend_on_the_batch(name):
    check_batch_invariance(shallow(name), tiles=2)


def test_features_are_the_same_bytes_for_any_batch_size():
    pixels = tiles(3)
    few, many = (shallow("kaiko-vits16", batch_size=size)(pixels) for size in (1, 64))
    assert np.array_equal(few, many)


def test_gigapath_sees_the_middle_of_its_tile():
    prepare = build.preprocessing_of(registry()["gigapath"])
    pixels = torch.from_numpy(tiles(1, 256))
    found = prepare(pixels)
    assert (prepare.whole, found.shape) == (256, (1, 3, 224, 224))
    uncut = build.preprocessing_of(registry()["uni_v1"])
    assert torch.equal(found, uncut(pixels[:, 16:-16, 16:-16]))


# The differentiable face, for explanations


@pytest.mark.parametrize("name", ["kaiko-vits16", "resnet50-trunc", "test_resnet", "convnext_atto"])
def test_gradients_reach_pixels_and_the_feature_layer(name):
    encoder = (
        shallow(name) if name in registry() else create_encoder(name, weights="random", device="cpu", batch_size=2)
    )
    maps = []
    handle = encoder.feature_layer.register_forward_hook(lambda *args: maps.append(args[2]))
    pixels = encoder.prepare(tiles(1, encoder.input_size)).requires_grad_()
    features = encoder.module(pixels)
    handle.remove()
    assert np.allclose(features.detach().numpy(), encoder(tiles(1, encoder.input_size)), atol=1e-5)
    at_map, at_pixels = torch.autograd.grad(features.square().sum(), [maps[0], pixels])
    assert at_map.abs().sum() > 0
    assert at_pixels.abs().sum() > 0
    assert maps[0].ndim == (3 if encoder.prefix_tokens else 4)


def test_a_dense_map_is_what_its_mean_is_made_of():
    encoder = create_encoder("test_resnet", weights="random", device="cpu")
    pixels = tiles(3, encoder.input_size)
    maps = encoder.dense(pixels)
    assert maps.shape == (3, *encoder.map_shape)
    assert np.allclose(maps.mean((1, 2)), encoder(pixels), atol=1e-5)


# Weights as transformers stores them; the files were written by transformers itself, with what its networks give.


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2-swiglu"])
def test_weights_of_transformers_give_what_transformers_gives(kind):
    state = safetensors.torch.load_file(HERE / "data" / f"transformers-{kind}.safetensors")
    x, expected = state.pop("check.input"), state.pop("check.output")
    options = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    if kind == "vit":
        norm = partial(nn.LayerNorm, eps=1e-12)
        model = timm.create_model("vit_base_patch16_224", mlp_ratio=2, norm_layer=norm, **options)
    else:
        hidden = {} if kind == "dinov2" else {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 96 / 16}
        model = timm.create_model("vit_small_patch14_dinov2", init_values=1e-5, **options, **hidden)
    renamed = from_transformers({f"backbone.{name}": value for name, value in state.items()}, model)
    model.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        assert torch.allclose(model.eval().forward_features(x), expected, atol=1e-6)


def test_weights_of_timm_are_not_taken_for_those_of_transformers():
    model = timm.create_model("test_vit", pretrained=False)
    assert from_transformers(model.state_dict(), model) is None


# Names, licences, errors


def test_names_of_other_tools_are_known_and_mean_one_thing():
    assert find("uni").id == "uni_v1"
    assert find("h-optimus-0").id == "hoptimus0"
    assert find("Virchow2").id == "virchow2"
    assert find("H-optimus-1").id == "hoptimus1"
    assert find("nobody") is None
    assert all(find(name.upper()) is entry for entry in registry().values() for name in (entry.id, *entry.names))
    ids = list(registry())
    others = [name for entry in registry().values() for name in entry.names]
    assert len(set(ids) | set(others)) == len(ids) + len(others), "a name stands for two encoders"


def test_every_row_states_what_is_needed():
    for entry in registry().values():
        assert entry.commercial in ("yes", "no", "check")
        assert entry.gated in ("yes", "no", "check")
        assert entry.dim > 0
        assert entry.licence
        assert entry.buildable == bool(entry.arch and entry.files and entry.parameters)
        assert all(0 < one < 1 for one in (*entry.mean, *entry.std))


def test_an_encoder_that_needs_foreign_code_says_so_and_what_helps():
    with pytest.raises(UnknownEncoderError, match="slidemil convert"):
        create_encoder("conch_v1")


def test_gated_weights_that_are_missing_name_page_token_and_the_offline_way(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(build, "backbone_of", lambda entry: nn.Identity())
    with pytest.raises(WeightsError) as caught:
        create_encoder("uni_v1")
    for word in ("huggingface.co/MahmoodLab/UNI", "hf auth login", "encoders pull uni_v1 -o", "--weights FOLDER"):
        assert word in str(caught.value)


def test_offline_no_socket_is_opened_by_any_row():
    """In a process of its own, in which a socket ends everything."""
    code = """
        import os, socket
        def refuse(*args, **kwargs):
            print("SOCKET", args)
            os._exit(9)
        class Refusing(socket.socket):
            __init__ = refuse
        socket.socket, socket.create_connection, socket.getaddrinfo = Refusing, refuse, refuse
        from typer.testing import CliRunner
        from pipelines.cli import app
        run = CliRunner().invoke
        assert run(app, ["encoders", "list", "--offline"]).exit_code == 0
        assert run(app, ["encoders", "show", "uni_v2", "--offline"]).exit_code == 0
        assert run(app, ["encoders", "verify", "slidemil-compact", "--offline"]).exit_code == 0
        for verb in (["encoders", "pull"], ["encoders", "verify"]):
            for name in ("gpfm", "resnet18", "kaiko-vits16"):
                done = run(app, [*verb, name, "--offline"])
                assert done.exit_code == 6, (verb, name, done.exit_code, done.output)
        print("QUIET")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("QUIET"), done.stdout + done.stderr


def test_pooling_that_is_not_known_is_refused():
    with pytest.raises(MilError, match="pooling 'cls'"):
        Network(nn.Identity(), "cls")
