"""Whatever happens while a slide is hashed, opened and looked through costs that slide alone, from the first one on."""

from __future__ import annotations

import os
import time

import pytest
from _command import slidemil, slidemil_json
from _prepare_badly import hashed_slowly, prepared_badly
from _slides import smooth_picture, write_aperio

from pipelines import losable, preparing, reading
from pipelines.claims import all_claims
from pipelines.config import ExtractSettings
from pipelines.extraction import Extraction
from pipelines.jobfolder import JobFolder

TILES = ("--tile", 64, "--set", "min_tissue=0", "--set", "quality=false")


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate("ac"):
        write_aperio(folder / f"{name}.svs", smooth_picture(512, 512, seed))
    return folder


def test_a_single_slide_that_aborts_does_not_take_the_command_along(slides, tmp_path, monkeypatch, apart):
    """With no setting at all: what the command does for two slides it does for thousands."""
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    (slides / "a.svs").rename(slides / "abort.svs")
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES)
    assert (code, said["slides"]["done"]) == (3, 1)
    assert "(SIGABRT): GLib-ERROR: failed to allocate 480 GB" in said["failed"][0]["cause"]


def test_a_pipe_that_is_named_is_refused_and_not_waited_for(slides, tmp_path, apart):
    pipe = slides / "pipe.svs"
    os.mkfifo(pipe)
    began = time.monotonic()
    code, said = slidemil_json("extract", pipe, slides / "a.svs", "-o", tmp_path / "job", *TILES)
    assert time.monotonic() - began < 30
    assert (code, said["slides"]["done"]) == (3, 1)
    assert "no regular file" in said["failed"][0]["cause"]


@pytest.mark.parametrize("name", [pytest.param("slow", marks=pytest.mark.slow), "greedy"])
def test_a_slide_that_takes_too_long_or_too_much_fails_and_says_what_would_help(slides, tmp_path, monkeypatch, name):
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    (slides / "a.svs").rename(slides / f"{name}.svs")
    limits = ("--set", "slide_timeout=9", "--memory", 1, "--set", "processes=1")
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES, *limits)
    assert (code, said["slides"]["done"]) == (3, 1)
    (failure,) = said["failed"]
    assert {"slow": "took longer than 9 s", "greedy": "more than 1 GB of memory"}[name] in failure["cause"]
    assert {"slow": "check the storage", "greedy": "--memory"}[name] in failure["mend"]


@pytest.mark.slow
def test_hashing_that_hangs_costs_its_slide_alone(slides, tmp_path, monkeypatch):
    """Storage that does not answer: the bytes of a slide never come."""
    monkeypatch.setattr(preparing, "hashed", hashed_slowly)
    (slides / "a.svs").rename(slides / "slow.svs")
    limits = ("--set", "slide_timeout=9", "--set", "processes=1")
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES, *limits)
    assert (code, said["slides"]["done"]) == (3, 1)
    assert "it could not be read whole: it took longer than 9 s" in said["failed"][0]["cause"]


def test_a_run_that_is_stopped_does_not_wait_for_a_slide_that_is_being_looked_through(
    slides, tmp_path, monkeypatch, apart
):
    """Ctrl-C comes with the first tiles, while the next slide takes a minute: nothing stays claimed."""
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    (slides / "c.svs").rename(slides / "slow.svs")
    stopped = []

    def take(*_):
        stopped.append(time.monotonic())
        raise KeyboardInterrupt

    monkeypatch.setattr(Extraction, "take", take)
    code, said = slidemil("extract", slides, "-o", tmp_path / "job", *TILES, "-q")
    assert time.monotonic() - stopped[0] < 5
    assert (code, "same command again" in said) == (130, True)
    assert not all_claims(JobFolder(tmp_path / "job"), "slides")


def test_a_remembered_hash_starts_no_process(slides, tmp_path, monkeypatch, apart):
    """A resume over thousands of finished slides is a matter of looking at them."""
    slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES)
    monkeypatch.setattr(losable, "_Worker", lambda _: pytest.fail("a process was started"))
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job", *TILES)
    assert (code, said["slides"]["skipped"]) == (0, 2)


def test_the_command_prepares_apart_unless_told_otherwise(apart):
    assert reading.prepares_apart(ExtractSettings())
    assert reading.prepares_apart(ExtractSettings(processes="2"))
    assert not reading.prepares_apart(ExtractSettings(processes="0"))
