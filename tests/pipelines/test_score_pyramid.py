"""Pyramids of tile values: read back by tifffile and zarr, they lie where the tiles lie."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tifffile

from pipelines.score_pyramid import ome_tiff, ome_zarr, raster

MPP, STEP, FIRST = (0.25, 0.5), (448.0, 224.0), (1000, 300)


@pytest.fixture(scope="module")
def scores():
    """A ragged piece of a grid of 90 × 70 tiles, two methods."""
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(np.arange(90), np.arange(70)), axis=-1).reshape(-1, 2)
    cells = np.vstack([cells[:1], cells[rng.random(len(cells)) < 0.4], cells[-1:]])
    xy = np.rint(cells * STEP + FIRST).astype(np.int64)
    return xy, cells, {"lrp": rng.normal(size=len(xy)).astype(np.float32), "attention": rng.random(len(xy))}


def test_every_tile_lies_in_its_pixel_and_nowhere_else(scores):
    xy, cells, methods = scores
    image = raster(xy, STEP, MPP, methods)
    assert image.levels[0].shape == (2, 70, 90)
    assert np.array_equal(image.levels[0][0][cells[:, 1], cells[:, 0]], methods["lrp"])
    assert np.isfinite(image.levels[0][0]).sum() == len({tuple(c) for c in cells.tolist()})
    assert (image.origin_um, image.step_um) == ((250.0, 150.0), (112.0, 112.0))


def test_lower_levels_are_means_of_the_tiles_there(scores):
    xy, _, methods = scores
    levels = raster(xy, STEP, MPP, methods).levels
    assert [level.shape[1:] for level in levels] == [(70, 90), (35, 45), (18, 23)]
    for row, column in [(0, 0), (10, 20), (34, 44)]:
        block = levels[0][0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        wanted = np.nan if np.isnan(block).all() else np.nanmean(block)
        assert levels[1][0, row, column] == pytest.approx(wanted, nan_ok=True, rel=1e-5)


def test_tifffile_reads_the_pyramid_with_its_size_and_place(scores):
    xy, _, methods = scores
    image = raster(xy, STEP, MPP, methods)
    data = ome_tiff(image, "S1")
    assert data == ome_tiff(image, "S1")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        assert series.kind == "ome"
        assert series.axes == "CYX"
        assert len(series.levels) == 3
        for level, wanted in zip(series.levels, image.levels, strict=True):
            assert np.array_equal(level.asarray(), wanted, equal_nan=True)
        root = ElementTree.fromstring(file.ome_metadata)
    pixels = next(e for e in root.iter() if e.tag.endswith("Pixels"))
    assert float(pixels.get("PhysicalSizeX")) == pytest.approx(112)
    assert pixels.get("PhysicalSizeXUnit") == "µm"
    assert [e.get("Name") for e in root.iter() if e.tag.endswith("Channel")] == ["lrp", "attention"]
    planes = [e for e in root.iter() if e.tag.endswith("Plane")]
    assert [(float(p.get("PositionX")), float(p.get("PositionY"))) for p in planes] == [(250, 150)] * 2


def written(folder, files):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_zarr_reads_every_level_at_its_place(scores, tmp_path):
    zarr = pytest.importorskip("zarr")
    xy, _, methods = scores
    image = raster(xy, STEP, MPP, methods)
    group = zarr.open_group(written(tmp_path, ome_zarr(image, "S1")), mode="r", zarr_format=2)
    scales = group.attrs["multiscales"][0]
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert {axis.get("unit") for axis in scales["axes"][1:]} == {"micrometer"}
    for number, (dataset, wanted) in enumerate(zip(scales["datasets"], image.levels, strict=True)):
        array = group[dataset["path"]]
        assert np.array_equal(array[:], wanted, equal_nan=True)
        scale, shift = dataset["coordinateTransformations"]
        assert scale["scale"] == [1.0, 112.0 * 2**number, 112.0 * 2**number]
        assert shift["translation"] == [0.0, 150.0, 250.0]
    assert [c["label"] for c in group.attrs["omero"]["channels"]] == ["lrp", "attention"]


def test_chunks_at_the_edge_are_padded_to_their_size(tmp_path):
    zarr = pytest.importorskip("zarr")
    cells = np.stack(np.meshgrid(np.arange(300), np.arange(260)), axis=-1).reshape(-1, 2)
    values = np.arange(len(cells), dtype=np.float32)
    image = raster(cells * 100, (100.0, 100.0), (1.0, 1.0), {"a": values})
    group = zarr.open_group(written(tmp_path, ome_zarr(image, "S1")), mode="r", zarr_format=2)
    assert np.array_equal(group["0"][0], values.reshape(260, 300))


def test_a_slide_without_tiles_has_one_empty_pixel():
    image = raster(np.zeros((0, 2), np.int64), (1.0, 1.0), (1.0, 1.0), {"a": []})
    assert image.levels[0].shape == (1, 1, 1)
    assert json.loads(ome_zarr(image, "x")[".zattrs"])["multiscales"]
    assert ome_tiff(image, "x")
