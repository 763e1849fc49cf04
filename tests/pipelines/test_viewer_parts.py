"""The parts of the viewer: pyramid, pool, cache, work, packing, selection."""

from __future__ import annotations

import asyncio
import struct
import threading

import h5py
import numpy as np
import pytest
from _slides import smooth_picture, write_aperio

import wsi
from pipelines.errors import CheckFailedError, NothingMatchedError, UsageError
from pipelines.formats.slide_features import Given
from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now
from pipelines.manifest import SlideEntry
from pipelines.records import finish
from pipelines.score_files import scores_h5
from pipelines.selection import read_selection
from pipelines.viewer.foreign import BLOCKS, ForeignHoldings
from pipelines.viewer.holdings import JobHoldings
from pipelines.viewer.packed import Placed, pack, step_of
from pipelines.viewer.pool import SlideGoneError, SlidePool
from pipelines.viewer.pyramid import SIDE, Pyramid, Zoomed
from pipelines.viewer.slides import Slides
from pipelines.viewer.tile_cache import TileCache
from pipelines.viewer.work import NobodyWaitsError, Work


def area_mean(image: np.ndarray, down: int) -> np.ndarray:
    """The oracle: white beyond the rim, then the mean of blocks."""
    rows, columns = (-side % down for side in image.shape[:2])
    padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), constant_values=255)
    height, width = (side // down for side in padded.shape[:2])
    return padded.reshape(height, down, width, down, 3).mean((1, 3))


@pytest.mark.parametrize(
    ("width", "height", "levels", "compression", "apart"),
    [
        (1100, 700, 3, "jpeg", 6),  # JPEG keeps half the colors, which shows most at the rim
        (1100, 700, 3, "adobe_deflate", 1),
        (5000, 300, 1, "jpeg", 6),
        (40_000, 40, 1, "adobe_deflate", 1),
    ],
)
def test_every_level_is_the_area_mean_of_the_slide(tmp_path, width, height, levels, compression, apart):
    picture = smooth_picture(width, height)
    more = {} if compression == "jpeg" else {"compressionargs": {}}
    path = write_aperio(tmp_path / "a.svs", picture, levels=levels, compression=compression, **more)
    with wsi.open_slide(path) as slide:
        zoomed, pyramid = Zoomed(slide), Pyramid(width, height)
        assert zoomed.pyramid == pyramid
        for level in range(pyramid.top + 1):
            down = pyramid.downsample(level)
            want = area_mean(picture, down)
            across, along = pyramid.size(level)
            assert want.shape == (along, across, 3)
            inside = width // down, height // down  # pixels at the rim also see what is beyond
            for column in (0, (across - 1) // SIDE):
                for row in (0, (along - 1) // SIDE):
                    tile = zoomed.tile(level, column, row)
                    x, y, wide, high = pyramid.box(level, column, row)
                    assert tile.shape == (high, wide, 3)
                    good = max(0, min(high, inside[1] - y)), max(0, min(wide, inside[0] - x))
                    off = np.abs(tile.astype(float) - want[y : y + high, x : x + wide])[: good[0], : good[1]]
                    assert off.size == 0 or off.mean() < apart, (level, column, row)
        assert pyramid.size(0) <= (SIDE, SIDE)


def test_places_that_are_none():
    pyramid = Pyramid(1000, 500)
    for place in ((3, 0, 0), (-1, 0, 0), (2, 4, 0), (2, 0, 2), (2, -1, 0), (10**9, 0, 0), (0, 0, 10**12)):
        assert pyramid.box(*place) is None
    assert pyramid.box(2, 3, 1) == (768, 256, 232, 244)


@pytest.fixture
def entries(tmp_path):
    for number in range(4):
        write_aperio(tmp_path / f"s{number}.svs", smooth_picture(256, 256, number))
    return [SlideEntry(f"s{number}", tmp_path / f"s{number}.svs", f"s{number}") for number in range(4)]


def test_the_pool_opens_once_and_closes_only_what_nobody_reads(entries):
    opened, closed = [], []

    def opening(entry):
        opened.append(entry.slide_id)
        slide = wsi.open_slide(entry.path)
        close = slide.close
        slide.close = lambda: (closed.append(entry.slide_id), close())
        return slide

    pool = SlidePool(opening, most=2)
    together = threading.Barrier(5)

    def look():
        together.wait()
        with pool.lease(entries[0]) as zoomed:
            zoomed.tile(0, 0, 0)

    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["s0"]
    with pool.lease(entries[0]) as zoomed:
        for entry in entries[1:]:
            with pool.lease(entry):
                pass
        assert "s0" not in closed
        assert zoomed.tile(0, 0, 0).shape == (256, 256, 3)
    assert len(pool) == 2
    pool.close()
    assert sorted(closed) == ["s0", "s1", "s2", "s3"]


def test_a_file_that_was_replaced_is_opened_anew_and_one_that_is_gone_is_told(entries):
    pool = SlidePool(lambda entry: wsi.open_slide(entry.path))
    with pool.lease(entries[0]) as zoomed:
        before = zoomed.tile(0, 0, 0)
    entries[0].path.write_bytes(entries[1].path.read_bytes())
    with pool.lease(entries[0]) as zoomed:
        assert (zoomed.tile(0, 0, 0) != before).any()
    entries[0].path.unlink()
    with pytest.raises(SlideGoneError, match="--slides FOLDER"), pool.lease(entries[0]):
        pass
    pool.close()


def test_the_cache_never_holds_more_than_its_bytes():
    cache, rng = TileCache(1000), np.random.default_rng(0)
    for _ in range(2000):
        cache.put(int(rng.integers(40)), bytes(int(rng.integers(1, 300))))
        assert cache.bytes == sum(map(len, cache._kept.values())) <= 1000
    cache.put("large", bytes(1001))
    assert cache.get("large") is None
    cache.put("a", b"1")
    assert cache.get("a") == b"1"


def test_the_same_is_made_once_and_for_nobody_not_at_all():
    made = []

    async def play():
        work = Work(1, TileCache(1000))
        begun, go_on = threading.Event(), threading.Event()

        def slowly():
            begun.set()
            go_on.wait(10)
            made.append("slow")
            return b"slow"

        async def here():
            return False

        async def gone():
            return True

        first = [asyncio.create_task(work.make("slow", slowly, here)) for _ in range(10)]
        await asyncio.to_thread(begun.wait, 10)
        lost = asyncio.create_task(work.make("lost", lambda: made.append("lost") or b"", gone))
        await asyncio.sleep(0.01)
        go_on.set()
        assert await asyncio.gather(*first) == [b"slow"] * 10
        with pytest.raises(NobodyWaitsError):
            await lost
        assert await work.make("slow", lambda: 1 / 0, here) == b"slow"
        with pytest.raises(ZeroDivisionError):
            await work.make("wrong", lambda: 1 / 0, here)
        assert await work.make("wrong", lambda: b"right", here) == b"right"
        work.close()

    asyncio.run(play())
    assert made == ["slow"]


def test_a_block_of_bytes_says_what_was_put_into_it():
    """Read back by hand: the browser knows nothing of numpy."""
    xy = np.array([[100, 7], [548, 7], [996, 455]], np.int64)
    data = pack(Placed(xy, (448, 448)), [0.5, -1.0, 2.5])
    assert struct.unpack_from("<6i", data) == (3, 448, 448, 448, 448, 0)
    assert struct.unpack_from("<6i", data, 24) == (100, 548, 996, 7, 7, 455)
    assert struct.unpack_from("<3f", data, 48) == (0.5, -1.0, 2.5)
    assert len(data) == 60
    assert struct.unpack_from("<6i", pack(Placed(xy[:0], (448, 448)))) == (0, 448, 448, 0, 0, 0)
    with pytest.raises(ValueError, match="2 values for 3 tiles"):
        pack(Placed(xy, (448, 448)), [1, 2])


@pytest.mark.parametrize("step", [224, 447.6, 1792.3])
def test_the_step_of_a_grid_is_found_and_of_no_grid_is_none(step):
    rng = np.random.default_rng(0)
    cells = np.sort(rng.choice(200, 60, replace=False))
    assert abs(step_of(np.rint(cells * step + 31).astype(int), 500) - step) <= 1
    assert step_of(np.sort(rng.choice(100_000, 60, replace=False)), 500) == 0
    assert step_of(np.array([5, 5]), 500) == 500


def test_a_selection_takes_what_was_decided(tmp_path):
    table = tmp_path / "review.csv"
    table.write_text("slide_id,status,note\na,accept,\nb,reject,pen\nc,flag,\nd,,\n")
    entries = [SlideEntry(name, tmp_path / name, name) for name in "abcde"]

    def names(text):
        return "".join(entry.slide_id for entry in read_selection(text).of(entries))

    assert names(str(table)) == "a"
    assert names(f"{table}:accept,flag") == "ac"
    assert names(f"{table}:not-reject") == "acde"
    (tmp_path / "list.csv").write_text("slide\nb\ne\n")
    assert names(str(tmp_path / "list.csv")) == "be"
    (tmp_path / "excel.csv").write_text("slide_id,Status\na,Accept\nb,reject\n")
    assert names(str(tmp_path / "excel.csv")) == "a", "a slide that was rejected is taken"
    with pytest.raises(UsageError, match="no status 'good'"):
        read_selection(f"{table}:good")
    with pytest.raises(UsageError, match="no such file"):
        read_selection(str(tmp_path / "none.csv"))
    table.write_text("slide_id,status\nzz,accept\n")
    with pytest.raises(NothingMatchedError, match="takes none of 5 slides"):
        read_selection(str(table)).of(entries)


@pytest.mark.parametrize("lacks", ["attention_scores", "coords", "values", "hdf5"])
def test_a_damaged_map_of_clam_is_no_layer_and_whoever_asks_is_told(tmp_path, lacks):
    path = tmp_path / f"S{BLOCKS}.h5"
    with h5py.File(path, "w") as file:
        for name, data in {"coords": np.eye(2, dtype=np.int64) * 9, "attention_scores": np.ones((2, 1))}.items():
            file[name] = data[:1] if lacks == "values" and name != "coords" else data
            if name == lacks:
                del file[name]
    if lacks == "hdf5":
        path.write_bytes(b"junk")
    holdings = ForeignHoldings(tmp_path, {}, Given(footprint=9), Slides())
    assert holdings.layers("S") == []
    assert "create_heatmaps.py" in holdings.unshown("S")[0]["why"]
    with pytest.raises(CheckFailedError, match=r"create_heatmaps\.py"):  # a JobError: 409 in the browser
        holdings.scores("S", "CLAM", "attention_scores")


def test_scores_of_a_model_that_had_the_name_before_are_no_layer(tmp_path):
    job = JobFolder(tmp_path)
    for weights in (b"old", b"new"):
        for name in ("config.json", "model.safetensors"):
            finish(job, job.model("m") / name, weights, {})
        if weights == b"old":
            scores = scores_h5(np.zeros((1, 2), np.int64), {"patch_size_level0": 9}, {"attention": [1.0]})
            (tmp_path / "heatmaps/m").mkdir(parents=True)
            (tmp_path / "heatmaps/m/S.scores.h5").write_bytes(scores)
            finish(job, job.heatmaps("m") / "S.png", b"", {"model": digest_now(job, "m")})
            assert [one["model"] for one in JobHoldings(job).layers("S")] == ["m"]
            assert JobHoldings(job).unshown("S") == []
    assert JobHoldings(job).layers("S") == []
    (told,) = JobHoldings(job).unshown("S")
    assert (told["model"], told["methods"], "had this name before" in told["why"]) == ("m", ["attention"], True)
    assert told["mend"] == f"slidemil heatmap {tmp_path} --model m --method attention"


def test_scores_of_features_that_were_made_anew_and_damaged_ones_are_told(tmp_path):
    job = JobFolder(tmp_path)
    for name in ("config.json", "model.safetensors"):
        finish(job, job.model("m") / name, b"", {})
    features = finish(job, tmp_path / "20x/features_d/S.h5", b"first", {}).sha256
    scores = scores_h5(np.zeros((1, 2), np.int64), {"patch_size_level0": 9}, {"lrp": [1.0]})
    (tmp_path / "heatmaps/m").mkdir(parents=True)
    (tmp_path / "heatmaps/m/S.scores.h5").write_bytes(scores)
    parts = {"model": digest_now(job, "m"), "features": features}
    finish(job, job.heatmaps("m") / "S.png", b"", parts, {"features": ["20x/features_d"]})
    assert len(JobHoldings(job).layers("S")) == 1
    finish(job, tmp_path / "20x/features_d/S.h5", b"second", {})
    (told,) = JobHoldings(job).unshown("S")
    assert (JobHoldings(job).layers("S"), "made anew" in told["why"]) == ([], True)
    finish(job, tmp_path / "20x/features_d/S.h5", b"first", {})
    (tmp_path / "heatmaps/m/S.scores.h5").write_bytes(b"junk")
    (told,) = JobHoldings(job).unshown("S")
    assert (told["why"], told["mend"].endswith("--force")) == ("the file is damaged", True)
