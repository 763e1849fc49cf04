"""Heatmaps: colors are those of the values, data is that which went in, the bytes come again."""

from __future__ import annotations

import gzip
import io
import json
import time
import uuid

import h5py
import numpy as np
import pytest
import shapely
from matplotlib import colormaps
from PIL import Image

from pipelines import heatmap
from pipelines.score_files import geojson_gz, scores_h5
from pipelines.tile_sheet import top_tiles_jpeg

SIZE = (10_000, 8_000)
WORDS = {"title": "S1 · abmil", "unit": "attention", "normalization": "raw"}


def draw(xy, values, *, footprint=(1000, 1000), mpp=(0.25, 0.25), thumbnail=None, **more) -> Image.Image:
    picture = np.full((800, 1000, 3), 128, np.uint8) if thumbnail is None else thumbnail
    data = heatmap.draw(picture, SIZE, mpp, np.array(xy).reshape(-1, 2), footprint, values, **{**WORDS, **more})
    return Image.open(io.BytesIO(data))


def frame_of(image: Image.Image) -> dict:
    return json.loads(image.text[heatmap.FRAME_KEY])


def color_at(image: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    """The color at a place of the slide, found through the frame alone."""
    f = frame_of(image)
    px = f["left"] + x * f["width"] / f["slide_size"][0]
    py = f["top"] + y * f["height"] / f["slide_size"][1]
    return image.convert("RGB").getpixel((int(px), int(py)))


def test_colors_are_those_of_matplotlib_at_the_value() -> None:
    """On an even gray slide nothing of the tissue shows through, so the colors can be compared exactly."""
    values = [0.0, 0.25, 0.5, 1.0]
    image = draw([(k * 2000, 3000) for k in range(4)], values)
    for k, value in enumerate(values):
        wanted = colormaps[heatmap.COLORS](round(value * 255), bytes=True)[:3]
        assert np.abs(np.subtract(color_at(image, k * 2000 + 500, 3500), wanted)).max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_dark_and_pale_tissue_of_one_value_have_the_color_of_the_bar(value: float) -> None:
    tissue = (
        np.random.default_rng(0).integers(-40, 40, (800, 1000, 1)) + np.where(np.arange(1000) < 500, 60, 190)[:, None]
    )
    xy = [(x, y) for x in range(0, 9000, 1000) for y in range(0, 8000, 1000)]
    image = draw(xy, [value] * len(xy), limits=(0.0, 1.0), thumbnail=np.repeat(tissue, 3, 2).astype(np.uint8))
    wanted = np.array(colormaps[heatmap.COLORS](round(value * 255), bytes=True)[:3])
    f = frame_of(image)
    picture = np.asarray(image.convert("RGB"), float)[f["top"] :, f["left"] :]
    for x in (1500, 7500):  # far from the edge between dark and pale
        left, side = int(x * f["width"] / SIZE[0]), int(1000 * f["width"] / SIZE[0])
        shown = picture[2 * side : 4 * side, left : left + side]
        assert np.abs(shown.mean((0, 1)) - wanted).max() <= 10
        assert shown.std() > 0.5


def test_glass_and_tiles_without_a_value_stay_gray() -> None:
    image = draw([(0, 0), (2000, 0), (4000, 0)], [0.0, np.nan, 1.0])
    for x in (2500, 8000):
        assert len(set(color_at(image, x, 500))) == 1


def test_overlapping_tiles_show_their_mean() -> None:
    image = draw([(0, 0), (1000, 0), (4000, 0)], [0.0, 1.0, 1.0], footprint=(2000, 1000))
    wanted = colormaps[heatmap.COLORS](128, bytes=True)[:3]
    assert np.abs(np.subtract(color_at(image, 1500, 500), wanted)).max() <= 2


def test_limits_make_colors_comparable_between_slides() -> None:
    image = draw([(0, 0), (4000, 0)], [5.0, 10.0], limits=(0.0, 10.0))
    wanted = colormaps[heatmap.COLORS](128, bytes=True)[:3]
    assert np.abs(np.subtract(color_at(image, 500, 500), wanted)).max() <= 2


def test_scale_bar_has_the_length_it_names() -> None:
    image = draw([(0, 0)], [1.0], mpp=(0.5, 0.3))  # 10,000 px of 0.5 µm: 5 mm across
    f = frame_of(image)
    below = np.asarray(image.convert("L"))[f["top"] + f["height"] + 14 : f["top"] + f["height"] + 22]
    rows = ["".join("#" if v < 60 else " " for v in row) for row in below]
    dark = max(len(run) for row in rows for run in row.split())
    um = dark * 0.5 * SIZE[0] / f["width"]
    assert um == pytest.approx(1000, rel=0.02)


def test_without_mpp_there_is_no_scale_bar() -> None:
    assert draw([(0, 0)], [1.0], mpp=None).size == draw([(0, 0)], [1.0]).size


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf], [3.0], [2.0, 2.0]])
def test_odd_values_still_give_a_picture(values: list[float]) -> None:
    assert draw([(k * 1000, 0) for k in range(len(values))], values).format == "PNG"


def test_a_value_for_each_tile_is_demanded() -> None:
    with pytest.raises(ValueError, match="2 values for 1 tiles"):
        draw([(0, 0)], [1.0, 2.0])


def test_hostile_titles_are_only_text() -> None:
    image = draw([(0, 0)], [1.0], title="$\\frac{1}{0}$\n<b>" + "x" * 500)
    assert image.size == draw([(0, 0)], [1.0]).size


def test_outline_is_drawn_where_it_lies() -> None:
    plain = draw([], [])
    outlined = draw([], [], outline=[shapely.box(2000, 2000, 6000, 5000)])
    changed = np.any(np.asarray(plain.convert("RGB")) != np.asarray(outlined.convert("RGB")), axis=2)
    rows, columns = np.nonzero(changed)
    f = frame_of(plain)
    assert abs((columns.min() - f["left"]) * SIZE[0] / f["width"] - 2000) < 40
    assert abs((rows.max() - f["top"]) * SIZE[1] / f["height"] - 5000) < 40


def test_ten_thousand_tiles_are_drawn_in_under_five_seconds() -> None:
    xy = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2) * 400
    picture = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), dtype=np.uint8)
    values = np.random.default_rng(1).random(len(xy))
    began = time.process_time()
    heatmap.draw(picture, (40_000, 40_000), (0.25, 0.25), xy, (448, 448), values, **WORDS)
    geojson_gz("s", xy, (448, 448), {"attention": values})
    assert time.process_time() - began < 5


def test_same_values_give_same_bytes() -> None:
    xy = np.array([[0, 0], [1000, 0]])
    for make in (
        lambda: heatmap.draw(np.zeros((80, 100, 3), np.uint8), SIZE, None, xy, (1000, 1000), [1, 2], **WORDS),
        lambda: scores_h5(xy, {"name": "s"}, {"attention": [1, 2]}),
        lambda: geojson_gz("s", xy, (1000, 1000), {"attention": [1, 2]}),
        lambda: top_tiles_jpeg(np.zeros((2, 8, 8, 3), np.uint8), xy, [1, 2]),
    ):
        assert make() == make()


def test_scores_are_read_back_by_plain_h5py() -> None:
    xy = np.array([[0, 0], [448, 0], [0, 448]])
    data = scores_h5(xy, {"patch_size": 224, "name": "s"}, {"attention": [0.5, 0.25, 0.25], "gradcam": [1, 2, 3]})
    with h5py.File(io.BytesIO(data)) as file:
        assert sorted(file) == ["attention", "coords", "gradcam"]
        assert file["coords"].dtype == np.int64
        assert file["coords"][()].tolist() == xy.tolist()
        assert file["coords"].attrs["patch_size"] == 224
        assert file["attention"].dtype == np.float32
        assert file["attention"][()].tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("name", ["coords", "a/b", ""])
def test_a_method_cannot_take_the_place_of_the_coordinates(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        scores_h5(np.zeros((1, 2)), {}, {name: [1.0]})


def test_no_clock_time_is_in_the_gzip_header() -> None:
    data = geojson_gz("s", np.array([[0, 0]]), (1, 1), {"a": [1]})
    assert data[4:8] == bytes(4)  # RFC 1952: MTIME


def qupath_tiles(data: bytes) -> list[tuple[tuple[float, ...], dict]]:
    """Read by the rules of formats.md, section 8: bounds of each polygon and its measurements."""
    collection = json.loads(gzip.decompress(data))
    assert collection["type"] == "FeatureCollection"
    out = []
    for feature in collection["features"]:
        assert feature["properties"]["objectType"] == "tile"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        special = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
        numbers = feature["properties"]["measurements"]
        read = {k: special[v] if isinstance(v, str) else float(v) for k, v in numbers.items()}
        out.append((shapely.geometry.shape(feature["geometry"]).bounds, read))
    return out


def test_qupath_objects_lie_on_the_tiles_and_carry_the_values() -> None:
    xy = np.array([[100, 200], [548, 200]])
    values = [0.1, np.nan]
    tiles = qupath_tiles(geojson_gz("s", xy, (448, 400), {"attention": values}))
    assert [t[0] for t in tiles] == [(100, 200, 548, 600), (548, 200, 996, 600)]
    assert tiles[0][1]["attention"] == pytest.approx(0.1, rel=1e-7)
    assert np.isnan(tiles[1][1]["attention"])


@pytest.mark.parametrize(
    ("bounds", "slide_size", "corner"),
    [
        ((50, 60, 900, 900), None, (50, 140)),
        ((50, 60, 900, 900), (1000, 1000), (50, 140)),
        ((50, 60, 1000, 900), (1000, 1000), (100, 200)),  # QuPath crops only where both sides differ
        (None, (1000, 1000), (100, 200)),
    ],
)
def test_the_bounds_offset_follows_qupaths_rule(bounds, slide_size, corner) -> None:
    data = geojson_gz("s", np.array([[100, 200]]), (10, 10), {"a": [1]}, bounds, slide_size=slide_size)
    assert qupath_tiles(data)[0][0][:2] == corner


def test_ids_are_those_of_the_tile_not_of_the_call() -> None:
    def ids(slide: str) -> list[str]:
        data = geojson_gz(slide, np.array([[0, 0], [1, 0]]), (1, 1), {"a": [1, 2]})
        return [f["id"] for f in json.loads(gzip.decompress(data))["features"]]

    assert ids("s") == ids("s")
    assert not set(ids("s")) & set(ids("t"))
    assert len(set(ids("s"))) == 2


def test_top_tiles_stand_in_their_order() -> None:
    tiles = np.stack([np.full((200, 200, 3), level, np.uint8) for level in (10, 120, 230)])
    data = top_tiles_jpeg(tiles, np.array([[0, 0], [5, 5], [9, 9]]), [3, 2, 1], columns=2)
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    assert abs(sheet[100, 100] - 10) < 4
    assert abs(sheet[100, 300] - 120) < 4
    assert abs(sheet[350, 100] - 230) < 4


def test_no_top_tiles_are_no_error() -> None:
    assert top_tiles_jpeg(np.zeros((0, 224, 224, 3), np.uint8), np.zeros((0, 2), np.int64), [])[:2] == b"\xff\xd8"
