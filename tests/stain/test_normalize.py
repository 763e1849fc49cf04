"""What holds for every normalizer: any pixels, any library, any shape."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from _shared import shared_path
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import stain
from stain.density import optical_density

WHITE = np.full((40, 40, 3), 255, np.uint8)


def flat(color, count=4000):
    return np.tile(np.array(color, np.uint8), (count, 1))


def noisy(color, sd=3, count=4000):
    noise = np.random.default_rng(0).normal(0, sd, (count, 3))
    return np.clip(np.rint(np.array(color) + noise), 0, 255).astype(np.uint8)


HOSTILE = {
    "no pixels": np.zeros((0, 3), np.uint8),
    "one pixel": np.array([120, 60, 130], np.uint8),
    "few pixels": flat((120, 60, 130), 10),
    "white": flat((255, 255, 255)),
    "glass": noisy((240, 241, 239)),
    "black": flat((0, 0, 0)),
    "gray": flat((128, 128, 128)),
    "pink": flat((220, 150, 190)),
    "green pen": noisy((40, 150, 90), 20),
    "blue pen": noisy((40, 60, 180), 20),
    "red": flat((255, 0, 0)),
    "two colors": np.concatenate([flat((255, 0, 0)), flat((0, 0, 255))]),
    "random": np.random.default_rng(1).integers(0, 256, (4000, 3), dtype=np.uint8),
}


def real(name="histoqc_template1.png"):
    return np.asarray(Image.open(shared_path(f"data/tiles/stain/{name}")).convert("RGB"))


@pytest.fixture(params=stain.METHODS)
def method(request):
    return request.param


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pixels_never_raise(case, method):
    """A status, white stays white, and where the status is not "ok" every byte stays."""
    pixels = HOSTILE[case]
    params = stain.fit(method, pixels)
    assert params.status in stain.STATUSES
    np.testing.assert_array_equal(params.apply(WHITE), WHITE)
    out = params.apply(pixels)
    assert out.dtype == np.uint8
    assert out.shape == pixels.shape
    if params.status != "ok":
        np.testing.assert_array_equal(out, pixels)
    assert stain.StainParams.from_json(json.loads(json.dumps(params.to_json()))) == params


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("no pixels", "too little tissue"),
        ("few pixels", "too little tissue"),
        ("white", "too little tissue"),
        ("glass", "too little tissue"),
        ("pink", "degenerate"),
        ("green pen", "ink"),
        ("blue pen", "ink"),
    ],
)
def test_status_says_why(case, status, method):
    """The status names what is wrong with the pixels."""
    assert stain.fit(method, HOSTILE[case]).status == status


@settings(max_examples=40, deadline=None)
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(1, 40), st.just(3))),
    name=st.sampled_from(stain.METHODS),
)
def test_any_pixels_keep_white_and_shape(pixels, name):
    """No array of bytes raises or loses its shape."""
    params = stain.fit(name, np.tile(pixels, (20, 1, 1)))
    assert params.apply(pixels).shape == pixels.shape
    np.testing.assert_array_equal(params.apply(WHITE), WHITE)


def test_source_as_target_changes_nothing(method):
    """A slide normalized to itself stays within two grey levels, on all pixels."""
    pixels = real()
    params = stain.fit(method, pixels, reference=pixels)
    assert params.status == "ok"
    assert params.reference == "custom"
    np.testing.assert_allclose(params.apply(pixels).astype(int), pixels, atol=2)


def test_glass_keeps_its_bytes(method):
    """Glass of a slide, brighter or as bright as its white point, is not touched."""
    pixels = real("gigapath_01581x_25327y.png")
    params = stain.fit(method, pixels)
    glass = pixels[(pixels >= np.array(params.white)).all(axis=-1)]
    assert len(glass) > 1000
    np.testing.assert_array_equal(params.apply(glass), glass)
    assert (params.apply(pixels) != pixels).mean() > 0.3  # and the tissue is changed


def test_slide_moves_towards_the_reference(method):
    """Measured again, a normalized slide has the reference's stains (to 3°) or colours (to 1 unit)."""
    out = stain.fit(method, real()).apply(real())
    again = stain.fit(method, out)
    if method == "reinhard":
        np.testing.assert_allclose(again.source.mean, again.target.mean, atol=1)
        return
    cosines = (np.array(again.source.vectors) * np.array(again.target.vectors)).sum(axis=1)
    assert np.degrees(np.arccos(cosines)).max() < 3
    np.testing.assert_allclose(again.source.max_concentrations, again.target.max_concentrations, rtol=0.15)


def test_numpy_and_torch_agree(method):
    """The same parameters, and at most one grey level apart on one byte in ten thousand."""
    pixels = real()
    params = stain.fit(method, pixels)
    assert stain.fit(method, torch.tensor(pixels)) == params
    batch = torch.tensor(pixels)
    out = params.apply(batch)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.uint8
    difference = np.abs(out.numpy().astype(int) - params.apply(pixels))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def test_any_leading_shape_gives_the_same_bytes(method):
    """A pixel's result depends on nothing but the pixel: not on shape, batch, order or strides."""
    pixels = real()[:224, :224]
    params = stain.fit(method, real())
    whole = params.apply(pixels)
    before = pixels.copy()
    np.testing.assert_array_equal(params.apply(np.stack([pixels] * 3))[2], whole)
    np.testing.assert_array_equal(params.apply(pixels[::-1, ::2])[::-1], whole[:, ::2])
    np.testing.assert_array_equal(params.apply(pixels[7, 9]), whole[7, 9])
    np.testing.assert_array_equal(params.apply(np.asfortranarray(pixels)), whole)
    np.testing.assert_array_equal(params.apply(pixels[:13, :17]), whole[:13, :17])
    np.testing.assert_array_equal(pixels, before)


def test_error_against_exact_float64():
    """The float32 path stays within one grey level of the formula in float64."""
    pixels = real()
    params = stain.fit("macenko", pixels)
    density = optical_density(pixels.reshape(-1, 3), params.white)
    source, target = np.array(params.source.vectors), np.array(params.target.vectors)
    ratio = np.array(params.target.max_concentrations) / np.array(params.source.max_concentrations)
    amounts = np.maximum(np.linalg.lstsq(source.T, density.T, rcond=None)[0].T, 0)
    exact = pixels.reshape(-1, 3) * np.exp(amounts @ source - (amounts * ratio) @ target)
    exact = np.clip(np.rint(exact), 0, 255)
    assert np.abs(params.apply(pixels).reshape(-1, 3) - exact).max() <= 1


def test_json_round_trip_is_exact(method):
    """Parameters read back are equal, and so is what they do."""
    params = stain.fit(method, real())
    again = stain.StainParams.from_json(json.loads(json.dumps(params.to_json())))
    assert again == params
    np.testing.assert_array_equal(again.apply(real()), params.apply(real()))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 9},
        {"method": "none"},
        {"status": "fine"},
        {"source": None},
        {"white": [0, 1, 2]},
        {"target": {"vectors": [[1, 0, 0]]}},
        {"target": {"vectors": [[1, 0, 0], [0, 1, 0]], "max_concentrations": [1, 0]}},
    ],
)
def test_broken_json_is_refused(change):
    """Each kind of damage ends in one error of this package."""
    data = stain.fit("macenko", real()).to_json() | change
    with pytest.raises(stain.ParametersError, match="no stain parameters"):
        stain.StainParams.from_json(data)


def test_built_in_reference_is_what_our_fit_measures():
    """The numbers of the named reference come from the named file."""
    reference = stain.REFERENCES["tiatoolbox-target"]
    path = shared_path("data/tiles/stain/tia_target_1000.png")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == reference.sha256
    pixels = np.asarray(Image.open(path).convert("RGB"))
    got = stain.fit("macenko", pixels).source
    np.testing.assert_allclose(got.vectors, reference.macenko.vectors, atol=1e-5)
    np.testing.assert_allclose(got.max_concentrations, reference.macenko.max_concentrations, atol=1e-5)
    got = stain.fit("vahadane", pixels).source
    np.testing.assert_allclose(got.vectors, reference.vahadane.vectors, atol=1e-4)
    np.testing.assert_allclose(got.max_concentrations, reference.vahadane.max_concentrations, atol=1e-3)
    got = stain.fit("reinhard", pixels).source
    np.testing.assert_allclose(got.mean, reference.reinhard.mean, atol=1e-5)
    np.testing.assert_allclose(got.sd, reference.reinhard.sd, atol=1e-5)


def test_parameters_of_another_slide_serve_as_reference(method):
    """Fitted on an image or given as that image's parameters: the same."""
    reference = real("histoqc_template3.png")
    params = stain.fit(method, real(), reference=stain.fit(method, reference))
    assert params == stain.fit(method, real(), reference=reference)


def test_every_real_tile_is_normalized(method):
    """All H&E images of the shared set are fitted, and keep their structure: brightness order of pixels."""
    folder = shared_path("data/tiles/stain")
    for path in sorted(folder.iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        params = stain.fit(method, pixels)
        assert params.status == "ok", path.name
        before, after = (image.mean(axis=-1).ravel() for image in (pixels, params.apply(pixels)))
        assert np.corrcoef(before, after)[0, 1] > 0.9, path.name


def test_errors_name_the_mend(method):
    """Mistakes of the caller raise errors of this package, with the closest name."""
    with pytest.raises(stain.UnknownMethodError, match=r"Did you mean 'macenko'"):
        stain.fit("macenco", WHITE)
    with pytest.raises(stain.UnknownReferenceError, match=r"tiatoolbox-target"):
        stain.fit(method, WHITE, reference="tiatoolbox")
    with pytest.raises(stain.UnusableReferenceError, match="too little tissue"):
        stain.fit(method, WHITE, reference=WHITE)
    other = stain.fit("macenko" if method == "reinhard" else "reinhard", real())
    with pytest.raises(stain.UnusableReferenceError, match="fitted by"):
        stain.fit(method, real(), reference=other)
    for pixels in (WHITE.astype(float), WHITE[..., :2], [[1, 2, 3]], np.uint8(3)):
        with pytest.raises(stain.PixelFormatError):
            stain.fit(method, pixels)
    for white in ((0, 255, 255), (255, 255, np.nan), (1, 2), "abc", 5, ["a", "b", "c"], np.ones((1, 3))):
        with pytest.raises(stain.PixelFormatError, match="white point"):
            stain.fit(method, WHITE, white=white)
    with pytest.raises(stain.PixelFormatError, match=r"type uint8 and shape \(2, 3, 8, 8\).*permute\(0, 2, 3, 1\)"):
        stain.fit(method, torch.zeros((2, 3, 8, 8), dtype=torch.uint8))
    assert issubclass(stain.PixelFormatError, stain.StainError)


def test_given_white_point_is_used(method):
    """The caller's white point goes in as it is."""
    params = stain.fit(method, real(), white=(250, 251, 252))
    assert params.white == (250.0, 251.0, 252.0)
    assert params.white_source == "given"


def test_import_loads_no_heavy_package():
    """Importing and using the package on numpy loads no torch, no scikit-image, no scipy."""
    code = (
        "import sys, numpy as np, stain; p = stain.fit('macenko', np.zeros((9, 3), np.uint8));"
        "p.apply(np.zeros((2, 3), np.uint8));"
        "print([m for m in ('torch', 'skimage', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    """`__all__` lists what exists, sorted as the linter wants it."""
    assert all(hasattr(stain, name) for name in stain.__all__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(method):
    """On a GPU the batch stays there, and is at most one grey level off."""
    params = stain.fit(method, real())
    out = params.apply(torch.tensor(real(), device="cuda"))
    assert out.device.type == "cuda"
    assert np.abs(out.cpu().numpy().astype(int) - params.apply(real())).max() <= 1


HE = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


def stained(amounts, vectors=HE, count=20_000):
    """Return pixels of Beer-Lambert with noise."""
    rng = np.random.default_rng(0)
    density = rng.gamma(2, 0.4, (count, len(vectors))) * amounts @ (vectors / np.linalg.norm(vectors, axis=1)[:, None])
    return np.clip(np.rint(255 * np.exp(-density) + rng.normal(0, 2, (count, 3))), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amounts", [(1, 0), (0, 1)])
def test_one_stain_alone_is_left_as_it_is(amounts, method):
    """Given the colors of two, haematoxylin alone would turn pink in part."""
    params = stain.fit(method, stained(amounts))
    assert params.status == "single stain"
    assert stain.fit(method, stained((1, 1))).status == "ok"
