"""A large slide that several workers encode in portions: the bytes of one worker, whatever becomes of a portion."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from _command import digests
from _slides import smooth_picture, write_aperio
from hypothesis import given
from hypothesis import strategies as st

import wsi
from pipelines import __version__
from pipelines.cluster.batches import TASK_SECONDS, Batches
from pipelines.cluster.flight import Flight
from pipelines.cluster.runner import Desk, work_on
from pipelines.cluster.splits import Portion
from pipelines.cluster.task import Task
from pipelines.config import ExtractSettings
from pipelines.jobfolder import JobFolder
from pipelines.manifest import SlideEntry
from pipelines.portions import rows_of

SETTINGS = ExtractSettings(
    tile=128, min_tissue=0.0, quality=False, processes="0", device="cpu", max_bad_tiles=0.2, batch_size=7, workers=1
)
GB = 10**9


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7))
def test_portions_hold_each_tile_once_and_cut_no_row(widths, count):
    """Painted and counted: rows of the grid of any length."""
    xy = np.array([(64 * x, 64 * y) for y, width in enumerate(widths) for x in range(width)], np.int64).reshape(-1, 2)
    grid = wsi.TileGrid(
        xy, (64, 64), (64, 64), wsi.TileSpec(64), None, 0, (64, 64), (640, 768), np.ones(len(xy), np.float32)
    )
    parts = [rows_of(grid, number, count) for number in range(count)]
    assert np.concatenate(parts).tolist() == list(range(len(xy)))
    lines = [set(xy[part, 1].tolist()) for part in parts]
    assert sum(map(len, lines)) == len({*xy[:, 1].tolist()})
    if widths and count <= len(widths):
        assert max(map(len, parts)) <= len(xy) / count + max(widths)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 12 x 8 tiles; one of its JPEG tiles, 2 x 2 of these, is damaged."""
    path = write_aperio(tmp_path_factory.mktemp("slides") / "big.svs", smooth_picture(1536, 1024, 3), levels=3)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[7]
    data = bytearray(path.read_bytes())
    data[place : place + 2] = bytes(2)
    path.write_bytes(data)
    return path


class Worker:
    """Does tasks on one job in this process, as the process of a worker would."""

    def __init__(self, folder, slide) -> None:
        self.job, self.slide, self.desk, self.count = JobFolder(folder), slide, Desk(), 0

    def do(self, portion=None, settings=SETTINGS):
        """Return what the book of the task says of the slide."""
        self.count += 1
        entry = SlideEntry("big", self.slide, "big")
        task = Task(
            f"t{self.count}", "run", __version__, str(self.job.root), ("", ""), (entry,), {"big": 1}, settings,
            portion=portion,
        )  # fmt: skip
        answer = work_on(task, self.desk, lambda _: None)
        book = Flight(self.job.flight("run", task.id))
        assert not book.open
        return book.ended["big"]["state"], answer.tiles

    def made(self):
        """Return what has come to lie there, when all is over."""
        self.desk.close()
        return digests(self.job.root)

    def logged(self, event):
        lines = (line for path in self.job.logs.glob("*.jsonl") for line in path.read_text().splitlines())
        return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture(scope="module")
def whole(slide, tmp_path_factory):
    """What one worker makes of it."""
    worker = Worker(tmp_path_factory.mktemp("whole"), slide)
    assert worker.do() == ("done", 96)
    found = worker.made()
    assert any("features_" in name for name in found)
    return found


def test_portions_make_the_bytes_of_one_worker(slide, whole, tmp_path):
    """Done by portions alone, the last step reads no tile; a missing tile is missing with its cause; nothing stays."""
    worker = Worker(tmp_path, slide)
    assert [worker.do((number, 3))[1] for number in (2, 0, 1)] == [24, 36, 36], "8 rows of 12 tiles"
    assert not list(tmp_path.glob(".done/*/features_*/*")), "no portion makes a slide done"
    assert worker.do() == ("done", 0)
    assert worker.made() == whole
    assert worker.logged("done")[0]["missing"] > 0
    assert not worker.job.portions("big").exists()


def test_colors_changed_by_chance_are_those_of_the_tile_whatever_portion_it_is_in(slide, tmp_path):
    settings = replace(SETTINGS, augment="hed:0.3:7:tile")
    alone, parted = (Worker(tmp_path / name, slide) for name in ("alone", "parted"))
    assert alone.do(settings=settings)[0] == "done"
    for number in (1, 0):
        assert parted.do((number, 2), settings)[0] == "portion"
    assert parted.do(settings=settings) == ("done", 0)
    assert parted.made() == alone.made()


def test_a_portion_that_is_not_what_was_written_is_encoded_again(slide, whole, tmp_path):
    """One of three is gone, one has a byte that is another."""
    worker = Worker(tmp_path, slide)
    for number in range(3):
        worker.do((number, 3))
    first, second, _ = sorted(worker.job.portions("big").iterdir())
    first.unlink()
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    assert worker.do() == ("done", 72)
    assert worker.made() == whole


def test_portions_of_other_settings_are_not_taken(slide, whole, tmp_path):
    worker = Worker(tmp_path, slide)
    worker.do((0, 2), ExtractSettings(**{**vars(SETTINGS), "dtype": "float32"}))
    assert worker.do() == ("done", 96)
    assert worker.made() == whole


def test_what_an_earlier_run_encoded_is_not_encoded_again(slide, whole, tmp_path):
    """Also where it cut the slide otherwise."""
    worker = Worker(tmp_path, slide)
    worker.do((0, 2))
    assert [worker.do((number, 3))[1] for number in range(3)] == [0, 24, 24]
    assert worker.do() == ("done", 0)
    assert worker.made() == whole


def test_portions_of_two_encoders_make_the_bytes_of_one_worker(slide, tmp_path):
    """A portion of which one encoder's part is damaged is encoded again by both."""
    both = replace(SETTINGS, encoder="descriptors,test_resnet", weights=",random")
    alone, parted = (Worker(tmp_path / name, slide) for name in ("alone", "parted"))
    assert alone.do(settings=both) == ("done", 96)
    assert [parted.do((number, 3), both)[1] for number in (2, 0, 1)] == [24, 36, 36]
    files = sorted(parted.job.portions("big").iterdir())
    assert len(files) == 6
    files[4].write_bytes(files[4].read_bytes()[:-1])
    state, tiles = parted.do(settings=both)
    assert (state, tiles in (24, 36)) == ("done", True)
    assert parted.made() == alone.made()
    assert sum("features_" in name and name.endswith(".h5") for name in alone.made()) == 2
    assert not parted.job.portions("big").exists()


def test_a_slide_that_cannot_be_read_fails_in_any_portion(tmp_path):
    (tmp_path / "big.svs").write_bytes(b"no slide")
    worker = Worker(tmp_path / "job", tmp_path / "big.svs")
    assert worker.do((1, 2))[0] == "failed"
    worker.desk.close()


def test_a_slide_is_cut_where_the_others_would_wait_for_it():
    """One of 4 GB among eight workers; what is large in bytes and no more than a share of the rest is not."""
    alone = Batches({"big": 4 * GB})
    assert alone.next(8) == ["big"]
    assert alone.portions("big", 8) == 8
    assert alone.portions("big", 1) == 1
    small = Batches({"s": GB // 10})
    assert small.portions(small.next(8)[0], 8) == 1, "opening it would cost more than it gains"
    many = Batches({f"s{n}": 4 * GB for n in range(100)})
    assert many.portions(many.next(8)[0], 8) == 1


def test_a_slide_is_cut_where_it_is_worth_two_tasks():
    """At 1 MB/s a slide of 2 GB takes 33 minutes: seven tasks of five; at 10 MB/s it is one."""
    for rate, count in ((1e6, 7), (1e7, 1)):
        batches = Batches({f"s{n}": 2 * GB for n in range(1000)})
        batches.learn(["s0"], 2 * GB / rate)
        assert batches.portions(batches.next(8)[0], 8) == count
        assert (2 * GB / rate) / count < 2 * TASK_SECONDS


def test_a_portion_is_a_task_of_its_own():
    names = [Portion("big", number) for number in range(3)]
    batches = Batches({"a": 10, "b": 10})
    batches.learn(["a"], 1e-3)
    batches.add(dict.fromkeys(names, 5))
    given_out = []
    while some := batches.next(1):
        given_out.append(some)
    assert sorted(map(sorted, given_out)) == sorted([["a", "b"], *([name] for name in names)])
    batches.put_back(names)
    assert [batches.take_out(name) for name in (names[1], names[1])] == [True, False]
    assert [batches.next(1) for _ in range(3)] == [[names[2]], [names[0]], []]
