"""Learned transfer: no seam, exact resume, and losses that do what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _shared import shared_path
from PIL import Image

import stain
from stain.transfer import Crops, TrainSettings, TransferModel, load, pieces, train, transfer_image
from stain.transfer.losses import ImagePool, looks_real, told_apart
from stain.transfer.model import run
from stain.transfer.networks import STRIDE, Discriminator, Generator, to_floats, to_pixels

TINY = {"width": 4, "blocks": 1, "crop": 64, "steps": 6, "pool": 2}


def image(name, rows=slice(None), columns=slice(None)):
    return np.asarray(Image.open(shared_path(f"data/tiles/stain/{name}.png")).convert("RGB"))[rows, columns].copy()


def wild(width=4, blocks=2, seed=0):
    """A generator whose weights are far from nothing, so that each pixel within its reach matters."""
    torch.manual_seed(seed)
    network = Generator(width, blocks).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return network


def crops():
    return Crops([image("torchstain_source")], [image("tia_target_1000"), image("histoqc_template1")])


# --- without seams


@pytest.mark.parametrize("size", [(256, 256), (301, 203), (64, 500), (17, 23)])
@pytest.mark.parametrize("core", [64, 100])
def test_pieces_give_what_the_whole_image_gives(size, core):
    network, whole = wild(), image("torchstain_source", slice(0, size[0]), slice(0, size[1]))
    whole = np.resize(whole, (*size, 3)) if whole.shape[:2] != size else whole
    at_once = transfer_image(lambda batch: run(network, batch), whole, network.margin, core=2048)
    in_pieces = transfer_image(lambda batch: run(network, batch), whole, network.margin, core=core)
    assert np.abs(at_once.astype(int) - in_pieces).max() <= 1
    assert np.abs(at_once.astype(int) - whole).mean() > 5, "this network changes what it sees"


def test_away_from_the_borders_it_is_the_network_itself():
    """No mirror, no margin: the plain forward pass, compared where its own padding cannot reach."""
    network, whole = wild(), image("torchstain_source", slice(0, 320), slice(0, 320))
    plain = to_pixels(network(to_floats(torch.from_numpy(whole[None]))).detach())[0].numpy()
    in_pieces = transfer_image(lambda batch: run(network, batch), whole, network.margin, core=64)
    inner = slice(network.margin, -network.margin)
    assert np.abs(plain.astype(int) - in_pieces)[inner, inner].max() <= 1


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_margin_is_as_wide_as_the_reach_of_the_network(blocks):
    """The oracle is the gradient: which input pixels an output pixel depends on."""
    network = wild(blocks=blocks).double()
    side = 2 * network.margin + 8
    middle = side // 2
    for offset in range(STRIDE):
        x = torch.randn(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        network(x)[0, :, middle + offset, middle + offset].sum().backward()
        rows = torch.nonzero(x.grad.abs().sum((0, 1, 3)))[:, 0]
        reach = max(middle + offset - int(rows.min()), int(rows.max()) - middle - offset)
        assert network.margin - 2 * STRIDE <= reach <= network.margin


def test_a_margin_that_is_too_small_shows_seams():
    network, whole = wild(), image("torchstain_source", slice(0, 200), slice(0, 200))
    at_once = transfer_image(lambda batch: run(network, batch), whole, network.margin, core=2048)
    in_pieces = transfer_image(lambda batch: run(network, batch), whole, 4, core=64)
    assert np.abs(at_once.astype(int) - in_pieces).max() > 10


def test_pieces_cover_each_pixel_once():
    for width, height, core in ((1, 1, 4), (100, 37, 16), (64, 64, 64), (65, 64, 64)):
        seen = np.zeros((height, width), int)
        for piece in pieces(width, height, core):
            seen[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width] += 1
        assert (seen == 1).all()
    with pytest.raises(ValueError, match="multiple of 4"):
        list(pieces(10, 10, 6))


# --- training


def test_it_begins_as_the_identity():
    tiles = image("torchstain_source", slice(0, 99), slice(0, 130))[None]
    model = TransferModel({}, Generator(8, 2).eval(), None)
    np.testing.assert_array_equal(model.apply(tiles), tiles)


@pytest.mark.parametrize("paired", [False, True])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(paired):
    source = image("torchstain_source", slice(0, 200), slice(0, 200))
    images = Crops([source], [255 - source]) if paired else crops()
    settings = TrainSettings(paired=paired, **TINY)
    kept = []
    through = train(images, settings, keep=kept.append, keep_every=2)
    assert len(kept) == 3
    again = train(images, settings, checkpoint=kept[0])
    assert through.files() == again.files()
    assert through.files() != train(images, TrainSettings(paired=paired, seed=1, **TINY)).files()


def test_a_run_is_the_same_each_time_and_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train(crops(), TrainSettings(**TINY))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert first.files() == train(crops(), TrainSettings(**TINY)).files()


@pytest.mark.parametrize(
    ("change", "told"),
    [({"steps": 8}, "other steps"), ({"seed": 3, "rate": 1e-3}, "other rate, seed"), (None, "other images")],
)
def test_a_checkpoint_of_another_run_is_refused(change, told):
    kept = []
    train(crops(), TrainSettings(**{**TINY, "steps": 1}), keep=kept.append)
    images = Crops([image("histoqc_template2")], [image("histoqc_template3")]) if change is None else crops()
    with pytest.raises(stain.ParametersError, match=told):
        train(images, TrainSettings(**{**TINY, "steps": 1, **(change or {})}), checkpoint=kept[0])


def test_a_damaged_checkpoint_is_refused_and_runs_no_code():
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    import io

    out = io.BytesIO()
    torch.save({"version": 1, "settings": Evil()}, out)
    for data in (b"", b"nothing", out.getvalue()):
        with pytest.raises(stain.ParametersError, match="damaged"):
            train(crops(), TrainSettings(**TINY), checkpoint=data)


def test_paired_training_learns_the_partner():
    """The partner is known: colors mixed and darkened. An hour of training is not needed for that."""
    source = image("torchstain_source", slice(0, 192), slice(0, 192))
    partner = np.rint(source.astype(float) @ np.array([[0.2, 0.5, 0.1], [0.3, 0.3, 0.1], [0.2, 0.1, 0.6]])).astype(
        np.uint8
    )
    settings = TrainSettings(paired=True, width=8, blocks=1, crop=64, steps=80, rate=2e-3, pool=0)
    model = train(Crops([source], [partner]), settings)
    before = np.abs(source.astype(int) - partner).mean()
    after = np.abs(model.apply(source[None])[0].astype(int) - partner).mean()
    assert after < before / 3
    assert model.back is None
    with pytest.raises(stain.ParametersError, match="no way back"):
        model.apply(source[None], backwards=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unpaired_training_moves_colors_towards_the_target_and_finds_back(seed):
    """It must leave the identity, where it begins, and not for any other color."""
    first, second = image("torchstain_source"), image("tia_target_1000")
    settings = TrainSettings(width=8, blocks=1, crop=64, steps=120, rate=1e-3, seed=seed)
    model = train(Crops([first], [second]), settings)
    there = model.apply(first[None])
    mean = [one.reshape(-1, 3).mean(axis=0) for one in (first, there[0], second)]
    assert np.abs(mean[1] - mean[2]).mean() < 0.5 * np.abs(mean[0] - mean[2]).mean()
    restored = model.apply(there, backwards=True)
    assert np.abs(restored[0].astype(int) - first).mean() < 0.2 * np.abs(there[0].astype(int) - first).mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_judge_alone_tells_two_stains_apart_within_50_steps(seed):
    """Nothing in it may take away the color of the whole, which is what it has to judge."""
    settings = TrainSettings(width=8, crop=64, batch=2, seed=seed)
    images = Crops([image("torchstain_source")], [image("tia_target_1000")])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Discriminator(width=8)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-4, (0.5, 0.999))
    for step in range(50):
        made, real = (judge(to_floats(torch.from_numpy(some))) for some in images.at(step, settings))
        loss = told_apart(real, made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (real > 0.5).all()
    assert (made < 0.5).all()


def test_pairs_are_cut_and_turned_alike():
    source = image("torchstain_source")
    first, second = Crops([source, source[::-1]], [255 - source, 255 - source[::-1]]).at(
        7, TrainSettings(paired=True, crop=64, batch=4)
    )
    np.testing.assert_array_equal(first, 255 - second)
    assert len({one.tobytes() for one in first}) == 4


@pytest.mark.parametrize(
    ("first", "second", "more", "told"),
    [
        ([], [np.zeros((99, 99, 3), np.uint8)], {}, "no image in the first"),
        ([np.zeros((99, 99), np.uint8)], [np.zeros((99, 99, 3), np.uint8)], {}, "no .H, W, 3. uint8"),
        ([np.zeros((60, 99, 3), np.uint8)], [np.zeros((99, 99, 3), np.uint8)], {}, "smaller crops"),
        ([np.zeros((99, 99, 3), np.uint8)], [np.zeros((98, 99, 3), np.uint8)], {"paired": True}, "same sizes"),
    ],
)
def test_images_that_do_not_serve_are_refused(first, second, more, told):
    with pytest.raises(stain.StainError, match=told):
        train(Crops(first, second), TrainSettings(**{**TINY, **more}))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"crop": 70}, {"crop": 32}, {"cycle": -1}, {"rate": float("nan")}])
def test_settings_that_cannot_be_trained_are_refused(wrong):
    with pytest.raises(stain.ParametersError):
        TrainSettings(**wrong)


# --- parts


def test_a_model_comes_back_from_its_files_exactly():
    model = train(crops(), TrainSettings(**TINY), config={"mpp": 0.5})
    again = load(model.files())
    assert again.config == model.config
    assert again.config["mpp"] == 0.5
    tiles = image("histoqc_template2", slice(0, 80), slice(0, 80))[None]
    np.testing.assert_array_equal(model.apply(tiles), again.apply(tiles))
    np.testing.assert_array_equal(model.apply(tiles, backwards=True), again.apply(tiles, backwards=True))
    files = model.files()
    for broken in (
        {},
        {**files, "model.safetensors": files["model.safetensors"][:-9]},
        {**files, "config.json": b"{}"},
        {**files, "config.json": files["config.json"].replace(b'"blocks": 1', b'"blocks": 2')},
        {**files, "config.json": files["config.json"].replace(b'"paired": false', b'"paired": true')},
    ):
        with pytest.raises(stain.ParametersError, match="slidemil stain train"):
            load(broken)


def test_least_squares_losses_have_their_closed_form():
    real, made = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5])
    assert looks_real(made).item() == pytest.approx((1 + 0.25) / 2)
    assert told_apart(real, made).item() == pytest.approx(0.5 * (0.25 / 2 + 0.25 / 2))
    assert told_apart(torch.ones(3), torch.zeros(3)).item() == 0


def test_the_pool_shows_old_images_half_of_the_time_and_is_repeatable():
    def shown(size):
        pool = ImagePool(size, seed=3)
        return [float(pool.swap(torch.full((1, 3, 2, 2), float(step)), step)[0, 0, 0, 0]) for step in range(2000)]

    assert shown(0) == list(range(2000))
    first = shown(50)
    assert first == shown(50)
    assert first[:50] == list(range(50))
    assert 0.45 < np.mean(np.array(first[50:]) == np.arange(50, 2000)) < 0.55


def test_the_discriminator_judges_patches_of_70_pixels():
    judge = Discriminator(width=4).double()
    for module in judge.modules():  # the normalization sees the whole crop; the patch is that of the convolutions
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    out = judge(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = torch.nonzero(x.grad.abs().sum((0, 1, 3)))
    assert int(rows.max() - rows.min()) + 1 == 70


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_and_resumes_the_same():
    kept = []
    settings = TrainSettings(**TINY)
    through = train(crops(), settings, device="cuda", keep=kept.append, keep_every=2)
    assert through.files() == train(crops(), settings, device="cuda", checkpoint=kept[0]).files()
