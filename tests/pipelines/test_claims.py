"""Claims: one run at a time works on a thing, and the dead hold nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines import claims as module
from pipelines.claims import STALE, Claims, all_claims, read_claim
from pipelines.errors import EnvironmentFault
from pipelines.jobfolder import JobFolder
from pipelines.processes import Process, _state_and_start, this_process

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def job(tmp_path):
    return JobFolder(tmp_path / "job")


def plant(job, owner: Process, *, age: float = 0.0, text: str | None = None) -> Path:
    """Put a claim of another process there, touched so many seconds ago."""
    path = job.claims / "slides" / "a"
    path.parent.mkdir(parents=True)
    path.write_text(text if text is not None else json.dumps({"id": "x", "owner": asdict(owner), "run": "r"}))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def ended() -> Process:
    """Return a process of this machine that is gone."""
    code = "import json, dataclasses, pipelines.processes as p; print(json.dumps(dataclasses.asdict(p.this_process())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return Process(**json.loads(done.stdout))


def elsewhere() -> Process:
    return Process("far", "another machine", 1, "1")


def test_one_of_two_has_it_until_it_is_given_up(job):
    with Claims(job, "slides") as one, Claims(job, "slides") as two:
        assert one.take("a")
        assert one.take("a"), "what a run holds it has"
        assert not two.take("a")
        assert two.holder("a").owner == this_process()
        assert one.holder("a") is None
        assert two.take("b")
        one.release("a")
        assert two.take("a")
    assert all_claims(job, "slides") == {}
    assert [path.name for path in (job.claims / "slides").iterdir()] == [], "no draft is left"


def test_a_claim_that_the_disk_does_not_let_go_of_keeps_nobody_waiting(job, monkeypatch):
    """Its owner lives, so nothing but this process can know that it was given up."""

    def fails(path, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with Claims(job, "slides") as one, Claims(job, "slides") as two:
        assert one.take("a")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fails)
            one.release("a")
        assert (job.claims / "slides" / "a").exists()
        assert two.holder("a") is None
        assert two.take("a")
        assert not one.take("a")


def test_what_the_dead_left_of_finished_things_is_swept_and_nothing_else(job):
    there = plant(job, ended())
    living = there.with_name("b")
    living.write_text(json.dumps({"id": "y", "owner": asdict(this_process()), "run": "r"}))
    unfinished = there.with_name("c")
    unfinished.write_bytes(there.read_bytes())
    with Claims(job, "slides") as claims:
        claims.sweep({"a", "b"})
    assert sorted(path.name for path in there.parent.iterdir()) == ["b", "c"]
    Claims(JobFolder(job.root / "none"), "slides").sweep({"a"})


def test_the_dead_of_this_machine_hold_nothing(job):
    plant(job, ended())
    told = []
    with Claims(job, "slides", took_over=lambda name, claim: told.append((name, claim.id))) as mine:
        assert mine.holder("a") is None
        assert mine.take("a")
    assert told == [("a", "x")]


def test_a_number_that_another_process_has_now_does_not_keep_a_claim_alive(job):
    plant(job, replace(this_process(), started="1"))
    with Claims(job, "slides") as mine:
        assert mine.take("a")


def test_a_killed_child_that_nobody_has_waited_for_is_dead(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    state, started = "", ""
    while not started:
        state, started = _state_and_start(child.pid)
    owner = replace(this_process(), pid=child.pid, started=started)
    assert owner.gone() is False, state
    child.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while not owner.gone() and time.monotonic() < until:
        time.sleep(0.01)
    assert owner.gone() is True
    child.wait()


@pytest.mark.parametrize(("age", "taken"), [(0, False), (STALE - 5, False), (STALE + 5, True)])
@pytest.mark.parametrize("owner", [elsewhere(), this_process()], ids=["elsewhere", "here, but it hangs"])
def test_a_claim_that_is_not_touched_grows_stale(job, owner, age, taken):
    plant(job, owner, age=age)
    with Claims(job, "slides") as mine:
        assert mine.take("a") is taken


def test_the_file_systems_clock_decides_not_this_machines(job, monkeypatch):
    plant(job, elsewhere(), age=5)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with Claims(job, "slides") as mine:
        assert not mine.take("a")


@pytest.mark.parametrize(("age", "taken"), [(0, False), (STALE + 5, True)])
def test_a_torn_claim_has_an_age_all_the_same(job, age, taken):
    plant(job, elsewhere(), age=age, text="{")
    with Claims(job, "slides") as mine:
        assert mine.take("a") is taken


def test_a_claim_is_touched_while_it_is_held(job, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    with Claims(job, "slides") as mine:
        mine.take("a")
        path = job.claims / "slides" / "a"
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert not read_claim(path).left


def test_what_another_run_took_over_is_neither_touched_nor_given_up(job, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    with Claims(job, "slides") as mine:
        mine.take("a")
        path = job.claims / "slides" / "a"
        other = json.loads(path.read_text()) | {"id": "theirs"}
        path.write_text(json.dumps(other))
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0
    assert read_claim(path).id == "theirs"


def test_of_many_that_want_a_stale_claim_one_gets_it(job):
    """Threads that start together; each round the claim of a dead process lies there."""
    dead = ended()
    for _ in range(100):
        path = job.claims / "slides" / "a"
        if path.parent.exists():
            path.write_text(json.dumps({"id": "x", "owner": asdict(dead), "run": "r"}))
        else:
            plant(job, dead)
        barrier, got = threading.Barrier(8), []
        runs = [Claims(job, "slides") for _ in range(8)]

        def want(run, barrier=barrier, got=got):
            barrier.wait()
            if run.take("a"):
                got.append(run)

        threads = [threading.Thread(target=want, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        for run in runs:
            run.close()


def test_a_death_in_the_gate_holds_up_nobody(job):
    path = plant(job, ended())
    path.with_name(".a.gate").write_bytes(path.read_bytes())
    with Claims(job, "slides") as mine:
        assert mine.take("a")


def test_where_there_are_no_links_one_of_two_has_it(job, monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with Claims(job, "slides") as one, Claims(job, "slides") as two:
        assert one.take("a")
        assert not two.take("a")
        one.release("a")
        assert two.take("a")


def test_a_folder_that_cannot_be_written_is_said(job, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with Claims(job, "slides") as mine, pytest.raises(EnvironmentFault, match=r"a: no room"):
        mine.take("a")


def test_holding_waits_and_says_once_for_whom(job):
    said, one = [], Claims(job, "models")
    assert one.take("m")
    threading.Timer(0.3, one.release, ["m"]).start()
    began = time.monotonic()
    with Claims(job, "models") as two, two.hold("m", waiting=said.append) as held:
        assert held
        assert 0.25 < time.monotonic() - began < 5
    assert [claim.owner for claim in said] == [this_process()]
    one.take("m")
    with Claims(job, "models") as two, two.hold("m", seconds=0.2) as held:
        assert not held
    one.close()
