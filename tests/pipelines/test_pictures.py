"""Pictures of a slide on its way in: what is drawn lies where the arrays say, and the bytes come again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import wsi
from pipelines.drawing import BLUE, GREEN, ORANGE, fitted, font, length_text, nice_length
from pipelines.pictures import contour_jpeg, grid_jpeg, thumbnail_jpeg

SCALE = (16.0, 16.0)


def tissue(*, name: str = "slide.svs", empty: bool = False) -> wsi.Tissue:
    """A gray slide of 800 x 600 px with a square of tissue, a hole in it, and a pen mark."""
    mask = np.zeros((600, 800), bool)
    pen = np.zeros_like(mask)
    if not empty:
        mask[100:400, 100:500] = True
        mask[200:280, 200:300] = False
        pen[450:520, 600:700] = True
    picture = np.full((600, 800, 3), 200, np.uint8)
    return wsi.Tissue(name, mask, pen, SCALE, picture, "no tissue: all glass" if empty else None)


def grid(xy: list[tuple[int, int]], side: int = 1600) -> wsi.TileGrid:
    return wsi.TileGrid(
        xy=np.array(xy, np.int64).reshape(-1, 2),
        footprint_xy=(side, side),
        stride_xy=(side, side),
        spec=wsi.TileSpec(size=800, mpp=0.5),
        mpp=wsi.Mpp(0.25, 0.25, "test"),
        level=0,
        read_size=(side, side),
        slide_size=(12800, 9600),
        tissue_share=np.ones(len(xy), np.float32),
        reason=None if xy else "no tile has enough tissue",
    )


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def near(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 60) -> np.ndarray:
    return np.abs(picture - color).max(axis=2) < tolerance


def test_thumbnail_has_the_geometry_of_the_mask() -> None:
    shown = pixels(thumbnail_jpeg(tissue()))
    assert shown.shape == (600, 800, 3)
    assert np.abs(shown - 200).max() <= 2


def test_outline_lies_on_the_border_of_tissue_and_hole() -> None:
    shown = pixels(contour_jpeg(tissue()))[:600]
    rows, columns = np.nonzero(near(shown, GREEN))
    assert abs(rows.min() - 100) <= 4
    assert abs(rows.max() - 400) <= 4
    assert abs(columns.min() - 100) <= 4
    assert abs(columns.max() - 500) <= 4
    rows, columns = np.nonzero(near(shown, BLUE))
    assert abs(rows.min() - 200) <= 4
    assert abs(columns.max() - 300) <= 4


def test_pen_is_marked_in_its_own_color_and_nowhere_else() -> None:
    shown = pixels(contour_jpeg(tissue()))[:600]
    toward_orange = (shown[..., 0] - shown[..., 2]) > 60
    assert toward_orange[460:510, 610:690].all()
    toward_orange[445:525, 595:705] = False
    assert not toward_orange.any()
    assert ORANGE[0] > ORANGE[2]


def test_tiles_are_drawn_at_their_place() -> None:
    shown = pixels(grid_jpeg(tissue(), grid([(1600, 1600), (3200, 1600)])))[:600]
    bluish = ((shown[..., 2] - shown[..., 0]) > 15) & (shown[..., 2] - shown[..., 1] > 4)
    assert bluish[110:190, 110:290].mean() > 0.95  # 1600 px are 100 px of the picture
    assert bluish[:, 320:].mean() == 0
    assert bluish[220:, :].mean() == 0


@pytest.mark.parametrize("name", ["a" * 400, "<script>\n\t$x^2$ {{7*7}}", "標本 1 é.svs", ""])
def test_any_name_can_be_drawn(name: str) -> None:
    assert contour_jpeg(tissue(name=name))[:2] == b"\xff\xd8"
    assert fitted(name, 13, 200) == "" or font(13).getlength(fitted(name, 13, 200)) <= 200


def test_a_slide_without_tissue_still_gets_its_pictures() -> None:
    assert pixels(contour_jpeg(tissue(empty=True))).shape[1] == 800
    assert pixels(grid_jpeg(tissue(empty=True), grid([]))).shape[1] == 800


def test_same_arrays_give_same_bytes() -> None:
    assert contour_jpeg(tissue()) == contour_jpeg(tissue())
    assert grid_jpeg(tissue(), grid([(0, 0)])) == grid_jpeg(tissue(), grid([(0, 0)]))


@pytest.mark.parametrize(("longest", "nice"), [(1.0, 1), (4.9, 2), (5.0, 5), (999.0, 500), (1000.0, 1000), (0.3, 0.2)])
def test_nice_length_is_the_longest_round_one(longest: float, nice: float) -> None:
    assert nice_length(longest) == pytest.approx(nice)


def test_lengths_name_their_unit() -> None:
    assert length_text(500) == "500 µm"
    assert length_text(2000) == "2 mm"
