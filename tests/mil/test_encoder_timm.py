"""timm encoders with seeded random weights: shapes, bytes, preprocessing, and every way weights come in."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
import time

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torchvision import transforms

from mil import MilError, UnknownEncoderError, WeightsError, check_batch_invariance, create_encoder
from mil.encoders import lanes
from mil.encoders.preprocess import Preprocessing

# Small networks of the two kinds; the names in the issue are built once below.
SMALL = ("test_resnet", "test_vit")


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    """Parts of two tiles: eight of them would only be slower."""
    monkeypatch.setattr(lanes, "CPU_PART", 2)


def tiles(n, side=160, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture(params=SMALL)
def encoder(request):
    return create_encoder(request.param, weights="random", device="cpu", batch_size=4)


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("vit_small_patch16_224", 384)])
def test_well_known_networks_give_their_width_and_the_same_bytes_at_any_place(name, dim):
    encoder = create_encoder(name, weights="random", device="cpu", batch_size=2)
    features = encoder(tiles(1, 224))
    assert (features.shape, features.dtype) == ((1, dim), np.float32)
    check_batch_invariance(encoder, tiles=2)


def test_features_do_not_depend_on_the_batch_around_a_tile(encoder):
    pixels = tiles(6)
    together = encoder(pixels)
    assert np.array_equal(encoder(pixels[::-1])[::-1], together)
    assert all(np.array_equal(encoder(pixels[i : i + 1])[0], together[i]) for i in range(6))
    assert np.array_equal(encoder(pixels[:3]), together[:3])


def test_the_self_check_sees_an_encoder_whose_tiles_touch_each_other(encoder):
    class Leaky:
        id, dim, input_size, device = "leaky", encoder.dim, encoder.input_size, "cpu"

        def __call__(self, pixels):
            return encoder(pixels) + np.float32(pixels.mean() * 1e-3)

    check_batch_invariance(encoder, tiles=4)
    with pytest.raises(MilError, match="leaky"):
        check_batch_invariance(Leaky(), tiles=4)


def test_features_are_those_of_timm_itself(encoder):
    """The whole chain again with timm's model and torchvision's transform."""
    pixels = tiles(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(encoder.id, pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model)
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])])
    with torch.no_grad():
        expected = model(torch.stack([chain(Image.fromarray(t)) for t in pixels])).numpy()
    assert np.allclose(encoder(pixels), expected, atol=1e-5)


def test_no_tiles_and_wrong_tiles(encoder):
    assert encoder(tiles(0)).shape == (0, encoder.dim)
    with pytest.raises(MilError, match="uint8"):
        encoder(tiles(1).astype(np.float32))


# Preprocessing


def test_tiles_that_are_not_resized_are_made_ready_to_the_same_bits():
    """Line by line as pixel by pixel, and in the same order in memory: other kernels round otherwise."""
    ours = Preprocessing(32, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for count in (1, 5):
        pixels = torch.from_numpy(tiles(count, 32))
        mean, std = (torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std))
        expected = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std
        turned = pixels.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(ours(pixels), expected)
        assert torch.equal(ours(turned), expected)
        assert ours(pixels).stride() == expected.stride()


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [224, 256, 300, 100])
def test_preprocessing_is_torchvisions_transform(kernel, side):
    ours = Preprocessing(224, kernel, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    pixels = np.kron(tiles(2, side // 4), np.ones((1, 4, 4, 1), np.uint8))  # blocks: overshoot at edges
    mode = transforms.InterpolationMode(kernel)
    as_float = transforms.Compose(
        [
            transforms.Resize((224, 224), mode, antialias=True),
            transforms.Lambda(lambda x: x.clamp(0, 1)),
            transforms.Normalize(ours.mean, ours.std),
        ]
    )
    expected = torch.stack([as_float(transforms.functional.to_tensor(t)) for t in pixels])
    found = ours(torch.from_numpy(pixels))
    assert torch.allclose(found, expected, atol=1e-5)
    through_pillow = transforms.Compose(
        [transforms.Resize((224, 224), mode), transforms.ToTensor(), transforms.Normalize(ours.mean, ours.std)]
    )
    middle = pixels // 2 + 64  # Pillow cuts the overshoot after each of its two passes, we once at the end
    pillow = torch.stack([through_pillow(Image.fromarray(t)) for t in middle])
    assert (
        ours(torch.from_numpy(middle)) - pillow
    ).abs().max() <= 1.5 / 255 / 0.2  # Pillow rounds to whole grey values, twice


# Passport


def test_the_passport_says_everything_and_is_json(encoder):
    passport = json.loads(json.dumps(encoder.passport()))
    wanted = {"id", "weights_sha256", "arch", "arch_args", "pooling", "input_size", "interpolation", "antialias"}
    wanted |= {"mean", "std", "precision", "batch_size", "versions", "weights", "dim"}
    assert wanted <= set(passport)
    assert passport["weights"] == "random (seed 0)"
    assert passport["batch_size"] is None, "features do not depend on it"
    assert set(passport["versions"]) == {"timm", "torch"}
    other = create_encoder(encoder.id, weights="random:1", device="cpu").passport()
    assert other["weights_sha256"] != passport["weights_sha256"]


# Weights


@pytest.fixture
def network():
    torch.manual_seed(11)
    return timm.create_model("test_resnet", pretrained=False)  # with its classifier, as published files have it


def expected_features(network, pixels):
    network.reset_classifier(0)
    with torch.no_grad():
        x = Preprocessing.from_config(timm.data.resolve_model_data_config(network))(torch.from_numpy(pixels))
        return network.eval()(x).numpy()


def wrapped(state, prefix):
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".safetensors", lambda s: s),
        (".safetensors", lambda s: wrapped(s, "module.")),
        (".pt", lambda s: s),
        (".pt", lambda s: {"state_dict": wrapped(s, "model.")}),
        (".pth", lambda s: {"model": wrapped(s, "module.backbone."), "epoch": 3}),
    ],
)
def test_weights_from_a_file_are_taken_with_the_stated_tolerances(network, tmp_path, suffix, wrap):
    path = tmp_path / f"weights{suffix}"
    content = wrap(network.state_dict())
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    encoder = create_encoder("test_resnet", weights=path, device="cpu", batch_size=2)
    assert np.allclose(encoder(tiles(2)), expected_features(network, tiles(2)), atol=1e-5)
    assert encoder.passport()["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(encoder.passport())


def test_a_timm_folder_makes_the_round_trip(network, tmp_path):
    folder = tmp_path / "my-net"
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    by_name = create_encoder("test_resnet", weights=f"local-dir:{folder}", device="cpu", batch_size=2)
    by_folder = create_encoder(f"local-dir:{folder}", device="cpu", batch_size=2)
    assert by_folder.id == "my-net"
    expected = expected_features(network, tiles(2))
    assert np.allclose(by_name(tiles(2)), expected, atol=1e-5)
    assert np.array_equal(by_folder(tiles(2)), by_name(tiles(2)))
    with pytest.raises(WeightsError, match="--encoder test_resnet"):
        create_encoder("test_vit", weights=f"local-dir:{folder}")


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_files_that_are_no_weights_of_the_network_are_refused(network, tmp_path):
    state = network.state_dict()
    cases = {
        "code.pt": (lambda p: p.write_bytes(pickle.dumps(_Trap())), "refused|not a whole"),
        "model.pt": (lambda p: torch.save({"model": _Trap()}, p), "refused"),
        "short.safetensors": (lambda p: p.write_bytes(b"nothing"), "not a whole"),
        "less.pt": (lambda p: torch.save(dict(list(state.items())[3:]), p), "missing"),
        "more.pt": (lambda p: torch.save({**state, "adapter.weight": torch.ones(1)}, p), "no place"),
        "number.pt": (lambda p: torch.save({"a": 1}, p), "no tensors"),
    }
    for name, (write, words) in cases.items():
        path = tmp_path / name
        write(path)
        with pytest.raises(WeightsError, match=words):
            create_encoder("test_resnet", weights=path)
    torch.save(state, tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="another architecture"):
        create_encoder("test_vit", weights=tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="no weight file"):
        create_encoder("test_vit", weights=tmp_path / "absent.pt")


@pytest.fixture
def no_sockets(monkeypatch):
    opened = []

    def refuse(*args, **kwargs):
        opened.append(args)
        raise OSError("no sockets in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not opened, "a socket was opened"


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:someone/something"])
def test_offline_without_weights_no_socket_is_opened_and_the_three_ways_are_named(
    no_sockets, monkeypatch, tmp_path, name
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        create_encoder(name)
    for way in ("--weights FILE", "local-dir:FOLDER", "hub"):
        assert way in str(caught.value)


def test_with_weights_no_socket_is_opened(no_sockets, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert create_encoder("test_resnet", weights=tmp_path / "w.pt", device="cpu").dim > 0


def test_an_unreachable_hub_is_said_within_seconds(monkeypatch):
    def nowhere(*args, **kwargs):
        raise socket.gaierror("no name service")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be reached.*Three ways"):
        create_encoder("hf-hub:someone/that-is-not-cached")
    assert time.monotonic() - start < 6


# Names


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("resnet_18", "resnet18"), ("vit_smal_patch16_224", "vit_small_patch16_224"), ("descriptor", "descriptors")],
)
def test_a_typo_is_answered_with_the_name_that_was_meant(typo, meant):
    with pytest.raises(UnknownEncoderError, match=f"Did you mean .*{meant}"):
        create_encoder(typo)


def test_weights_for_an_encoder_without_weights_are_refused():
    with pytest.raises(MilError, match="no weights"):
        create_encoder("descriptors", weights="x.pt")
