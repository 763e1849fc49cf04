"""A run of days must not end because a library aborts: the slide it aborts on fails, the others are as ever."""

from __future__ import annotations

import pytest
from _command import digests, slidemil, slidemil_json
from _prepare_badly import prepared_badly
from _scripted_slide import ScriptedSlide, write_script
from _slides import smooth_picture, write_aperio

import wsi
from pipelines import preparing
from pipelines.config import ExtractSettings
from pipelines.reading import reading_processes

TILES = ("--tile", 64, "--set", "min_tissue=0", "--set", "quality=false")


@pytest.fixture
def slides(tmp_path, monkeypatch):
    """Two good slides, and one between them whose reader can be told to abort."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate("ac"):
        write_aperio(folder / f"{name}.svs", smooth_picture(512, 512, seed))
    write_script(folder / "b.svs", 3, **{"256,320": "abort"})
    really = wsi.open_slide

    def open_slide(path, **given):
        return ScriptedSlide(path) if path.name == "b.svs" else really(path, **given)

    monkeypatch.setattr(wsi, "open_slide", open_slide)
    return folder


def test_a_reader_that_aborts_costs_its_slide_alone(slides, tmp_path):
    """The command lives on; the row says what happened; the others' files are those of a run without the bad slide."""
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES)
    assert code == 3
    assert said["slides"] == {"found": 3, "done": 2, "failed": 1, "skipped": 0}
    (failure,) = said["failed"]
    assert failure["slide"] == "b"
    assert "the reader process died (signal 6, SIGABRT: GLib-ERROR: failed to allocate" in failure["cause"]
    assert "--max-bad-tiles" in failure["mend"]
    assert said["rates"]["read"]["processes_lost"] == 2
    code, _ = slidemil("extract", slides / "a.svs", slides / "c.svs", "-o", tmp_path / "alone", *TILES, "-q")
    assert code == 0
    ours, alone = digests(tmp_path / "job"), digests(tmp_path / "alone")
    made = {name for name in alone if name.startswith("20x_64px_0px_overlap/")}
    assert len(made) >= 4
    assert all(ours[name] == alone[name] for name in made)


def test_processes_change_no_byte_and_redo_nothing(slides, tmp_path):
    """How slides are prepared and tiles are read is no part of what features are made of."""
    (slides / "b.svs").unlink()
    jobs = []
    for count in (0, 2):
        jobs.append(tmp_path / f"job{count}")
        code, said = slidemil_json(
            "extract", slides, "-o", jobs[-1], *TILES, "--stain", "macenko", "--set", f"processes={count}"
        )
        assert (code, said["slides"]["done"]) == (0, 2), said
        assert (said["rates"]["read"]["core_elsewhere"] > 0) == (count > 0)
        assert said["rates"]["prepare"]["core"] > 0
    ours, other = (digests(job) for job in jobs)
    for name in ("job.yaml", ".done/job.yaml.json"):
        del ours[name], other[name]
    assert ours == other
    code, said = slidemil_json("extract", slides, "-o", jobs[0], *TILES, "--stain", "macenko")
    assert (code, said["slides"]["skipped"]) == (0, 2)


def test_opening_that_aborts_costs_its_slide_alone(slides, tmp_path, monkeypatch):
    """In a process of its own; one that is killed from outside is tried again."""
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    (slides / "a.svs").rename(slides / "killed.svs")
    (slides / "b.svs").rename(slides / "abort.svs")
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES, "--set", "processes=1")
    assert (code, said["slides"]["done"]) == (3, 2)
    (failure,) = said["failed"]
    assert failure["slide"] == "abort"
    assert "could not be opened and looked through" in failure["cause"]
    assert "SIGABRT" in failure["cause"]
    assert "GLib-ERROR: failed to allocate 480 GB" in failure["cause"]
    assert failure["mend"]


def test_a_bug_in_preparing_is_a_bug(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    (slides / "a.svs").rename(slides / "bug.svs")
    code, said = slidemil("extract", slides / "bug.svs", "-o", tmp_path / "job", *TILES, "--set", "processes=1")
    assert code == 1
    assert "a bug of ours" in said


def test_a_slide_that_cannot_be_used_says_the_same_from_another_process(slides, tmp_path):
    (slides / "b.svs").unlink()
    (slides / "d.svs").write_text("no slide")
    told = []
    for count in ("0", "1"):
        code, said = slidemil_json("extract", slides, "-o", tmp_path / count, *TILES, "--set", f"processes={count}")
        assert code == 3
        told.append(said["failed"])
    assert told[0] == told[1] != []


@pytest.mark.parametrize(
    ("processes", "workers", "count"), [("auto", 1, 1), ("auto", 16, 1), ("auto", 33, 3), ("0", 9, 0)]
)
def test_how_many_processes(processes, workers, count):
    """At least one that may be lost; no more than 16 threads in each."""
    assert reading_processes(ExtractSettings(processes=processes, workers=workers)) == count


@pytest.mark.parametrize("text", ["processes=-1", "processes=many", "read_timeout=0"])
def test_impossible_settings_are_refused(slides, tmp_path, text):
    code, said = slidemil("extract", slides, "-o", tmp_path / "job", "--set", text)
    assert code == 2
    assert text.partition("=")[0] in said
