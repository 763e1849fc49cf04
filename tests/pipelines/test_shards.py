"""`--shard i/n`: every slide in exactly one part, however the parts are started."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from _command import slidemil, slidemil_json
from _slides import smooth_picture, write_aperio
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import shards
from pipelines.errors import UsageError
from pipelines.jobfolder import JobFolder
from pipelines.manifest import Manifest, SlideEntry

SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 10**10), max_size=40)
TILES = ("--tile", 64, "--set", "min_tissue=0", "--set", "quality=false", "--set", "processes=0")


@given(sizes=SIZES, count=st.integers(1, 12))
def test_every_slide_is_in_exactly_one_part(sizes, count):
    dealt = shards.deal(sizes, count)
    parts = [[name for name in sizes if shards.part_of(name, count, dealt) == part] for part in range(count)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)


@given(sizes=SIZES, count=st.integers(1, 12))
def test_parts_are_as_even_as_the_largest_slide_allows(sizes, count):
    """The part with the most got its last slide while it had the fewest: the spread is at most one slide."""
    loads = [0] * count
    for name, part in shards.deal(sizes, count).items():
        loads[part] += sizes[name]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


@given(sizes=SIZES, later=st.text(min_size=1, max_size=8), count=st.integers(1, 12))
def test_a_slide_that_comes_later_moves_no_other(sizes, later, count):
    dealt = shards.deal(sizes, count)
    before = {name: shards.part_of(name, count, dealt) for name in sizes}
    assert 0 <= shards.part_of(later, count, dealt) < count
    assert before == {name: shards.part_of(name, count, dealt) for name in sizes}


@given(sizes=SIZES, count=st.integers(1, 12), order=st.randoms())
@settings(max_examples=50)
def test_the_order_of_the_slides_does_not_matter(sizes, count, order):
    names = list(sizes)
    order.shuffle(names)
    assert shards.deal({name: sizes[name] for name in names}, count) == shards.deal(sizes, count)


def manifest(folder: Path, sizes: dict[str, int]) -> Manifest:
    entries = []
    for name, size in sizes.items():
        path = folder / f"{name}.svs"
        path.write_bytes(bytes(size))
        entries.append(SlideEntry(name, path, name))
    return Manifest(tuple(entries))


def test_all_parts_go_by_the_deal_of_the_first(tmp_path):
    """Slides that arrive between the starts of two array tasks are done once, and no other slide is lost."""
    job = JobFolder(tmp_path / "job")
    few = manifest(tmp_path, {f"s{n}": 1000 * (n + 1) for n in range(7)})
    first = shards.take(shards.Shard(0, 3), few, job)
    more = manifest(tmp_path, {f"s{n}": 1000 * (n + 1) for n in range(7)} | {f"late{n}": 10**6 for n in range(9)})
    rest = [shards.take(shards.Shard(part, 3), more, job) for part in (0, 1, 2)]
    names = [entry.slide_id for part in rest for entry in part.entries]
    assert sorted(names) == sorted(entry.slide_id for entry in more.entries)
    assert {e.slide_id for e in first.entries} <= {e.slide_id for e in rest[0].entries}


def test_parts_that_start_at_once_share_one_deal(tmp_path):
    job = JobFolder(tmp_path / "job")
    slides = manifest(tmp_path, {f"s{n}": n for n in range(30)})
    cut = replace(slides, entries=slides.entries[:20])  # half of them see fewer slides

    def names(part: int) -> list[str]:
        seen = slides if part % 2 else cut
        return [entry.slide_id for entry in shards.take(shards.Shard(part, 8), seen, job).entries]

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(names, range(8)))
    flat = [name for part in parts for name in part]
    assert len(flat) == len(set(flat))
    assert [path.name for path in job.deal(8).parent.iterdir()] == ["8.json"]


@pytest.mark.parametrize("text", ["", "3", "a/b", "-1/4", "1/0", "4/4", "5/4", "1.0/2"])
def test_what_is_no_shard_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="--shard"):
        shards.parse_shard(text)


def array(task: int, low: int, high: int, count: int) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT")
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, (task, low, high, count), strict=True)}


@given(low=st.integers(0, 1000), count=st.integers(1, 50))
def test_the_tasks_of_an_array_are_all_parts(low, count):
    """Whatever number the array starts from."""
    found = [shards.chosen(None, array(low + n, low, low + count - 1, count)) for n in range(count)]
    assert [(s.index, s.count) for s in found if s] == [(n, count) for n in range(count)]


def test_an_array_with_gaps_is_refused():
    """--array=1,3,7 has three tasks, of which nobody can tell which part task 7 is meant to do."""
    with pytest.raises(UsageError, match="gaps"):
        shards.chosen(None, array(7, 1, 7, 3))


def test_the_option_wins_over_the_array_and_no_array_is_no_shard():
    assert shards.chosen("1/2", array(5, 0, 9, 10)) == shards.Shard(1, 2)
    assert shards.chosen(None, {}) is None


@pytest.fixture
def three(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_aperio(folder / f"{name}.svs", smooth_picture(256, 256, seed))
    return folder


def test_the_parts_together_make_the_job(three, tmp_path, monkeypatch):
    """Each does its own; what is left undone is told; the table is whole at the end; the whole job redoes nothing."""
    job = tmp_path / "job"
    done = 0
    monkeypatch.setattr("pipelines.tables_of_job._recorded", lambda *_: pytest.fail("read of a slide of another part"))
    for task in (4, 5):
        for name, value in array(task, 4, 5, 2).items():
            monkeypatch.setenv(name, value)
        code, said = slidemil_json("extract", three, "-o", job, *TILES)
        assert code == 0, said
        assert any("SLURM_ARRAY_TASK_ID" in text for text in said["warnings"]), said["warnings"]
        done += said["slides"]["done"]
        assert said["slides"]["found"] == said["slides"]["done"]
    assert done == 3
    assert [row.split(",")[3] for row in (job / "slides.csv").read_text().splitlines()[1:]] == ["done"] * 3
    code, said = slidemil_json("extract", three, "-o", job, *TILES, "--shard", "0/1")
    assert (code, said["slides"]["skipped"]) == (0, 3)


def test_of_very_many_parts_none_waits_for_a_table(three, tmp_path, monkeypatch):
    """Each that comes later looks at no slide but its own, writes neither table, and `status` tells of all the same."""
    job, asked = tmp_path / "job", []
    monkeypatch.setattr(shards, "MOST_WRITERS", 2)
    monkeypatch.setattr("pipelines.shards.size_of", lambda entry: asked.append(entry.slide_id) or 1)
    tiles = []
    for part in range(3):
        code, said = slidemil_json("extract", three, "-o", job, *TILES, "--shard", f"{part}/3")
        assert (code, said["slides"]["done"]) == (0, 1)
        assert any("slides.csv" in text for text in said["warnings"]), said["warnings"]
        monkeypatch.setattr("pipelines.tables_of_job.alone", lambda _: pytest.fail("waits for a table"))
        tiles.append(json.loads(slidemil("status", job, "--json")[1])["tiles"])
    assert sorted(asked) == ["a", "b", "c"], "only who deals asks how large they are"
    assert not (job / "slides.csv").exists()
    assert tiles == [16, 32, 48]
    monkeypatch.undo()
    code, said = slidemil_json("extract", three, "-o", job, *TILES)
    assert (code, said["slides"]["skipped"]) == (0, 3)
    assert [row.split(",")[3] for row in (job / "slides.csv").read_text().splitlines()[1:]] == ["done"] * 3


def test_a_part_without_slides_is_done(three, tmp_path):
    codes = [slidemil_json("extract", three, "-o", tmp_path / "job", *TILES, "--shard", f"{n}/5") for n in range(5)]
    assert [code for code, _ in codes] == [0] * 5
    assert sorted(said["slides"]["done"] for _, said in codes) == [0, 0, 1, 1, 1]


def test_a_part_of_run_leaves_the_model_to_the_end(three, tmp_path):
    """What needs all slides is done when all are there; it is checked at once."""
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\na,0\nb,1\nc,1\n")
    code, said = slidemil("run", three, "-o", tmp_path / "job", "-l", labels, *TILES, "--shard", "0/2", "-q")
    assert code == 0, said
    assert re.search(r"slidemil run .* without --shard", said), said
    assert not (tmp_path / "job" / "models").exists()
    labels.write_text("nonsense\n1\n")
    code, said = slidemil("run", three, "-o", tmp_path / "job", "-l", labels, *TILES, "--shard", "1/2", "-q")
    assert code == 2, said


def test_a_deal_that_was_damaged_is_told(three, tmp_path):
    deal = JobFolder(tmp_path / "job").deal(2)
    deal.parent.mkdir(parents=True)
    deal.write_text("[1")
    code, said = slidemil("extract", three, "-o", tmp_path / "job", *TILES, "--shard", "0/2")
    assert code == 2
    assert "Delete it" in said
    deal.write_text(json.dumps({"a": 77, "b": -1}))  # parts that there are not: by the hash
    codes = [slidemil_json("extract", three, "-o", tmp_path / "job", *TILES, "--shard", f"{n}/2") for n in (0, 1)]
    assert sum(said["slides"]["done"] for _, said in codes) == 3
