"""The classical descriptors: an independent oracle per family, invariances, and real labelled tiles."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from _shared import shared_path
from PIL import Image
from scipy.stats import pearsonr
from skimage.color import rgb2hed
from skimage.feature import graycomatrix, graycoprops
from skimage.measure import regionprops

from mil.encoders import descriptors as d
from mil.errors import MilError


@pytest.fixture(scope="module")
def encoder():
    return d.DescriptorEncoder()


@pytest.fixture(scope="module")
def tiles():
    """Eight 224 px tiles of real H&E."""
    image = np.asarray(Image.open(shared_path("data/tiles/stain/tia_target_1000.png")).convert("RGB"))
    return np.stack([image[y : y + 224, x : x + 224] for y in (0, 400) for x in (0, 224, 448, 672)])


def features(tile):
    return dict(d.describe(tile))


def random_tile(side=64, low=1, seed=0):
    return np.random.default_rng(seed).integers(low, 256, (side, side, 3), dtype=np.uint8)


def test_protocol(encoder, tiles):
    """Id, width, names, type and shape are what the registry promises."""
    out = encoder(tiles)
    assert (encoder.id, encoder.device) == ("descriptors", "cpu")
    assert out.dtype == np.float32
    assert out.shape == (8, encoder.dim)
    assert encoder.dim == len(encoder.feature_names) == len(set(encoder.feature_names)) == 159
    assert encoder(tiles[:0]).shape == (0, encoder.dim)
    assert "159 fixed measurements" in d.__doc__


def test_passport_is_plain_json(encoder):
    """The passport says that there are no weights, and survives JSON."""
    passport = encoder.passport()
    assert json.loads(json.dumps(passport)) == passport
    assert passport["id"] == "descriptors"
    assert passport["weights_sha256"] is None
    assert passport["version"] == d.VERSION


def test_amounts_of_stain_equal_scikit_image():
    """Color deconvolution equals `rgb2hed`, but for its unit: it divides by ln 1e6."""
    tile = random_tile()
    rgb = [np.take(d._DENSITY, tile[..., k]) for k in range(3)]
    got = np.stack(d.unmix(rgb), axis=-1)
    np.testing.assert_allclose(got, rgb2hed(tile) * np.log(1e6), atol=2e-5)


def test_stain_statistics_equal_numpy(tiles):
    """Mean, sd, quantiles and shares equal numpy's on the exact amounts, to half a level of quantization."""
    found = features(tiles[0])
    for k, name in enumerate(("haematoxylin", "eosin", "dab")):
        exact = np.minimum(rgb2hed(tiles[0])[..., k] * np.log(1e6), 255 / 80)
        assert found[f"stain.{name}.mean"] == pytest.approx(exact.mean(), abs=0.002)
        assert found[f"stain.{name}.sd"] == pytest.approx(exact.std(), abs=0.002)
        for q in (5, 25, 50, 75, 95):
            assert found[f"stain.{name}.q{q:02d}"] == pytest.approx(np.percentile(exact, q), abs=0.02)
        assert found[f"stain.{name}.over0.5"] == pytest.approx((exact > 0.5 - 0.5 / 80).mean(), abs=1e-3)


def test_color_features_equal_numpy(tiles):
    """Densities, saturation and glass equal the plain formulas; correlations equal scipy's."""
    tile = tiles[1]
    found = features(tile)
    density = -np.log(np.maximum(tile, 1) / 255.0)
    assert found["color.green.mean"] == pytest.approx(density[..., 1].mean(), rel=1e-5)
    assert found["color.blue.sd"] == pytest.approx(density[..., 2].std(), rel=1e-5)
    saturation = (tile.max(-1).astype(float) - tile.min(-1)) / 255
    assert found["color.saturation.sd"] == pytest.approx(saturation.std(), rel=1e-9)
    assert found["color.glass"] == pytest.approx((tile.min(-1) > 215).mean())
    hed = rgb2hed(tile).reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
    expected = pearsonr(hed[..., 0].ravel(), hed[..., 1].ravel()).statistic
    assert found["color.correlation.haematoxylin.eosin"] == pytest.approx(expected, abs=1e-3)


def test_local_binary_patterns_equal_brute_force():
    """Ojala's definition, pixel by pixel: ring in order, at most two changes, number of ones."""
    plane = np.random.default_rng(0).integers(0, 6, (20, 23), dtype=np.uint8)
    counts = np.zeros(10)
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for y, x in itertools.product(range(1, 19), range(1, 22)):
        bits = [int(plane[y + dy, x + dx] >= plane[y, x]) for dy, dx in ring]
        changes = sum(a != b for a, b in zip(bits, bits[1:] + bits[:1], strict=True))
        counts[sum(bits) if changes <= 2 else 9] += 1
    np.testing.assert_allclose([v for _, v in d.lbp_features(plane)], counts / counts.sum())


@pytest.mark.parametrize("distance", [1, 4])
def test_co_occurrence_equals_scikit_image(distance):
    """The pooled matrix and its five features equal `graycomatrix` and `graycoprops`."""
    plane = np.random.default_rng(1).integers(0, 256, (40, 37), dtype=np.uint8)
    plane[:20] //= 3
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    matrix = graycomatrix(plane >> 3, [distance], angles, levels=32, symmetric=True).sum(axis=3, keepdims=True)
    found = dict(d.glcm_features(plane, distance))
    np.testing.assert_allclose(d.co_occurrence(plane >> 3, distance), (matrix / matrix.sum())[..., 0, 0])
    for name in ("contrast", "homogeneity", "energy", "correlation", "entropy"):
        assert found[name] == pytest.approx(graycoprops(matrix.astype(float), name).item(), rel=1e-4), name


def test_gradients_of_a_ramp_and_a_wave():
    """A ramp has its slope, one direction and no Laplacian; a checkered wave has no direction."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    ramp = dict(d.edge_features(0.03 * x + 0.04 * y))
    assert ramp["mean"] == pytest.approx(0.05, rel=1e-4)
    assert ramp["sd"] == pytest.approx(0, abs=1e-3)
    assert ramp["coherence"] == pytest.approx(1, abs=1e-3)
    assert ramp["laplacian"] == pytest.approx(0, abs=1e-5)
    wave = np.cos(2 * np.pi * x[1:-1, 1:-1] / 8) + np.cos(2 * np.pi * y[1:-1, 1:-1] / 8)
    assert dict(d.edge_features(wave))["coherence"] < 0.05


def test_sharp_beats_blurred(tiles):
    """The Laplacian falls when a tile is blurred."""
    blurred = np.asarray(Image.fromarray(tiles[0]).resize((56, 56)).resize((224, 224)))
    assert (
        features(blurred)["edge.density.scale1.laplacian"] < 0.5 * features(tiles[0])["edge.density.scale1.laplacian"]
    )


def test_blobs_are_counted_and_measured():
    """Drawn nuclei come back: count, area, elongation and spacing, against scikit-image's region measures."""
    plane = np.full((112, 112), 0.1, np.float32)
    y, x = np.mgrid[:112, :112]
    for cy, cx in itertools.product((16, 44, 72, 100), (20, 56, 92)):
        plane[((y - cy) / 8.0) ** 2 + ((x - cx) / 4.0) ** 2 <= 1] = 0.5
    found = dict(d.blob_features(plane, d.to_bytes(plane)))
    assert found["count"] == pytest.approx(12 * 1e4 / 224**2)
    region = regionprops((plane[:30, :38] > 0.3).astype(np.uint8))[0]
    assert found["area.mean"] == pytest.approx(4 * region.area / 100, rel=0.15)
    assert found["elongation.mean"] == pytest.approx(region.axis_major_length / region.axis_minor_length, rel=0.1)
    assert found["spacing.mean"] == pytest.approx(2 * 28, rel=0.02)
    assert found["covered"] == pytest.approx(12 * region.area / 112**2, rel=0.15)
    slanted = np.full((112, 112), 0.1, np.float32)
    slanted[((y - 56 + x - 56) / 20) ** 2 + ((y - 56 - x + 56) / 10) ** 2 <= 1] = 0.5
    assert dict(d.blob_features(slanted, d.to_bytes(slanted)))["elongation.mean"] == pytest.approx(2, rel=0.05)
    dots = np.full((112, 112), 0.1, np.float32)
    dots[((y % 28 - 14) ** 2 + (x % 28 - 14) ** 2) <= 16] = 1.0
    found = dict(d.blob_features(dots, d.to_bytes(dots)))
    assert found["large.count"] == found["count"] == pytest.approx(16 * 1e4 / 224**2)
    assert found["elongation.mean"] == pytest.approx(1, abs=0.02)


def test_layout_equals_numpy(tiles):
    """Sd and range of cell means, against a reshape."""
    cells = tiles[2].astype(np.float32)[..., 0].reshape(4, 56, 4, 56).mean(axis=(1, 3))
    found = dict(d.layout_features(tiles[2][..., 0].astype(np.float32)))
    assert found["sd"] == pytest.approx(cells.std(), rel=1e-5)
    assert found["range"] == pytest.approx(np.ptp(cells), rel=1e-5)


@pytest.mark.parametrize("side", [32, 33, 57, 224, 255])
def test_any_pixels_give_finite_numbers(encoder, side):
    """White, black, constant, random, striped and single-dot tiles of any side: no NaN, no warning."""
    dot = np.full((side, side, 3), 255, np.uint8)
    dot[side // 2, side // 2] = 0
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[::2] = 255
    flat = [np.full((side, side, 3), value, np.uint8) for value in (0, 1, 128, 254, 255)]
    pink = np.tile(np.array([220, 150, 190], np.uint8), (side, side, 1))
    batch = np.stack([*flat, pink, dot, stripes, random_tile(side), random_tile(side, 0)])
    out = encoder(batch)
    assert np.isfinite(out).all()
    assert np.abs(out).max() < 1e4


def test_same_bytes_in_any_batch(encoder, tiles):
    """A tile's features depend on its pixels alone: not on batch, place, or memory layout."""
    whole = encoder(tiles)
    for i, tile in enumerate(tiles):
        assert encoder(tile[None]).tobytes() == whole[i].tobytes()
    assert encoder(tiles[::-1]).tobytes() == np.ascontiguousarray(whole[::-1]).tobytes()
    assert encoder(np.asfortranarray(tiles)).tobytes() == whole.tobytes()
    padded = np.pad(tiles, ((0, 0), (3, 5), (1, 2), (0, 0)))[:, 3:-5, 1:-2]
    assert encoder(padded).tobytes() == whole.tobytes()


def test_same_bytes_in_another_process(tiles, encoder, tmp_path):
    """A fresh process with another number of threads gives the same bytes."""
    np.save(tmp_path / "tiles.npy", tiles)
    code = (
        "import sys, numpy as np; from mil.encoders.descriptors import DescriptorEncoder as E;"
        "sys.stdout.buffer.write(E()(np.load(sys.argv[1])).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tiles.npy")],
        capture_output=True,
        check=True,
        env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
    )
    assert done.stdout == encoder(tiles).tobytes()


@pytest.mark.parametrize("turn", ["rotate 90", "rotate 180", "flip"])
def test_turning_a_tile_changes_little(encoder, tiles, turn):
    """Tissue has no upper side: a turned or mirrored tile has the same features to 0.1 % of their spread."""
    turned = {
        "rotate 90": np.rot90(tiles, axes=(1, 2)),
        "rotate 180": np.rot90(tiles, 2, axes=(1, 2)),
        "flip": tiles[:, :, ::-1],
    }[turn]
    before = encoder(tiles)
    # Two maxima of equal height in one window may both count: the only thing that a turn can change.
    np.testing.assert_allclose(encoder(turned), before, atol=1e-3, rtol=1e-3)


def test_stain_and_texture_move_the_right_features(encoder):
    """More stain raises its mean; a brown tile is brown; noise raises roughness."""
    calm = np.tile(np.array([200, 160, 200], np.uint8), (64, 64, 1))
    brown = np.tile(np.array([150, 110, 60], np.uint8), (64, 64, 1))
    rough = np.clip(calm + np.random.default_rng(0).normal(0, 25, calm.shape), 0, 255).astype(np.uint8)
    assert features(brown)["stain.dab.mean"] > features(calm)["stain.dab.mean"] + 0.5
    assert features(rough)["edge.density.scale1.laplacian"] > features(calm)["edge.density.scale1.laplacian"] + 0.05
    assert features(rough)["glcm.density.distance1.entropy"] > features(calm)["glcm.density.distance1.entropy"]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 31, 64, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((1, 64, 64, 4), np.uint8),
    ],
)
def test_wrong_tiles_are_refused(encoder, pixels):
    """Shape, type and size are checked, with the mend in the message."""
    with pytest.raises(MilError, match="descriptors encoder"):
        encoder(pixels)


def test_needs_no_torch():
    """The module itself loads no torch, though its package may."""
    code = (
        "import sys, mil; before = 'torch' in sys.modules; import mil.encoders.descriptors;"
        "print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after


def breast_tiles(encoder):
    """Features of 224 px tiles of the breast images, with label, TMA block and image of each."""
    folder = shared_path("data/tiles/ucsb_breast")
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    found, labels, blocks, images = [], [], [], []
    for number, row in enumerate(rows):
        image = np.asarray(Image.open(folder / row["image"]).convert("RGB"))
        cut = [
            image[y : y + 224, x : x + 224]
            for y in range(0, image.shape[0] - 223, 224)
            for x in range(0, image.shape[1] - 223, 224)
        ]
        found.append(encoder(np.stack(cut)))
        labels += [int(row["label"])] * len(cut)
        blocks += [row["tma_block"]] * len(cut)
        images += [number] * len(cut)
    return np.concatenate(found), np.array(labels), np.array(blocks), np.array(images)


def test_linear_probe_on_real_tiles_is_above_chance(encoder):
    """Benign against malignant breast, each TMA block held out in turn: image AUC clearly above 0.5."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels, blocks, images = breast_tiles(encoder)
    score = np.zeros(len(labels))
    for block in np.unique(blocks):
        held_out = blocks == block
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        probe.fit(values[~held_out], labels[~held_out])
        score[held_out] = probe.decision_function(values[held_out])
    per_image = np.array([score[images == i].mean() for i in np.unique(images)])
    image_labels = np.array([labels[images == i][0] for i in np.unique(images)])
    print("tile AUC", roc_auc_score(labels, score), "image AUC", roc_auc_score(image_labels, per_image))
    assert roc_auc_score(image_labels, per_image) > 0.6
