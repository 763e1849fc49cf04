"""The ledger: a torn last line is tolerated, any other change is found."""

from __future__ import annotations

import json
import os
import threading

import pytest

from pipelines.errors import EnvironmentFault
from pipelines.jobfolder import JobFolder
from pipelines.ledger import Ledger, lines_with, newest_first, read_ledger, read_ledgers
from pipelines.provenance import Run


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "runs" / "1.ledger.jsonl", verb="extract")
    for number in range(5):
        made.add("wrote", path=f"a/{number}.h5", sha256="ab" * 32, record="cd" * 32)
    made.add("ended", status="done", record="")
    made.close()
    return made.path


def test_an_untouched_ledger_holds(ledger):
    account = read_ledger(ledger)
    assert (account.faults, account.torn, account.ended) == ((), False, "done")
    assert [line["event"] for line in account.lines] == ["began", *["wrote"] * 5, "ended"]


def test_every_line_edited_once_is_found(ledger):
    """One byte at each place in turn, in all lines: 100 %."""
    whole = ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    places = [
        sum(map(len, lines[:number])) + offset for number, line in enumerate(lines) for offset in range(0, len(line), 7)
    ]
    assert len(places) > 200
    for place in [*places, len(whole) - 1]:
        ledger.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_ledger(ledger).faults, (place, whole[place - 20 : place + 20])


def test_a_line_that_is_consistent_in_itself_but_another_is_found(ledger):
    """Somebody who knows the format writes the hash of the changed line anew."""
    from pipelines.ledger import _line

    lines = ledger.read_bytes().splitlines(keepends=True)
    body = {key: value for key, value in json.loads(lines[2]).items() if key != "hash"}
    lines[2] = _line({**body, "path": "b.h5"})[0]
    ledger.write_bytes(b"".join(lines))
    assert read_ledger(ledger).faults == (
        "line 4 does not follow the one before it: lines were left out, added or moved",
    )


@pytest.mark.parametrize("change", ["left out", "doubled", "swapped"])
def test_lines_left_out_doubled_or_swapped_are_found(ledger, change):
    lines = ledger.read_bytes().splitlines(keepends=True)
    new = {
        "left out": [*lines[:3], *lines[4:]],
        "doubled": [*lines[:3], lines[2], *lines[3:]],
        "swapped": [*lines[:2], lines[3], lines[2], *lines[4:]],
    }[change]
    ledger.write_bytes(b"".join(new))
    assert read_ledger(ledger).faults


def test_a_torn_last_line_is_tolerated_at_every_length(ledger):
    whole = ledger.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last):
        ledger.write_bytes(whole[:-cut])
        account = read_ledger(ledger)
        assert (account.faults, account.torn, len(account.lines), account.ended) == ((), True, 6, None)


def test_a_cut_ledger_is_found_by_the_next_run_that_saw_it_whole(ledger):
    Ledger(ledger.with_name("2.ledger.jsonl"), verb="extract").close()
    books = read_ledgers(ledger.parent)
    assert books.heads_that_fail() == []
    whole = ledger.read_bytes()
    ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert [path for path, _ in read_ledgers(ledger.parent).heads_that_fail()] == [ledger]
    ledger.unlink()
    ((path, what),) = read_ledgers(ledger.parent).heads_that_fail()
    assert (path, what.split(";")[0]) == (ledger, "is gone")


def test_quick_looks_find_what_reading_all_finds(ledger):
    """First and last lines of the newest first; lines in which a text stands, also where JSON escapes it."""
    second = Ledger(ledger.with_name("2.ledger.jsonl"), verb="train")
    second.add("failed", path='a/b"ü\n.h5', cause="a/3.h5 is its twin")
    second.close()
    with second.path.open("ab") as file:
        file.write(b'{"torn": "a/3.h5')
    whole = [(one.run, one.lines) for one in read_ledgers(ledger.parent).accounts]
    assert [(one.run, one.lines) for one in newest_first(ledger.parent)] == [
        (run, (lines[0], lines[-1])) for run, lines in reversed(whole)
    ]
    for text, count in (("a/3.h5", 2), ('b"ü\n', 1), ("nowhere", 0)):
        found = [(account.run, line) for account, line in lines_with(ledger.parent, text)]
        assert found == [
            (run, line)
            for run, lines in whole
            for line in lines
            if text in str(line.get("path")) + str(line.get("cause"))
        ]
        assert len(found) == count


def test_threads_write_whole_lines_in_one_chain(tmp_path):
    made = Ledger(tmp_path / "1.ledger.jsonl")
    threads = [threading.Thread(target=lambda n=n: [made.add("wrote", who=n) for _ in range(20)]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    assert len(read_ledger(made.path).lines) == 161
    assert not read_ledger(made.path).faults


def test_a_full_disk_is_one_clear_error_and_ends_the_ledger(tmp_path, monkeypatch):
    made = Ledger(tmp_path / "1.ledger.jsonl")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match=r"1\.ledger\.jsonl: no room"):
            made.add("wrote")
    made.add("wrote")  # left out: what comes after a hole would not follow
    assert len(read_ledger(made.path).lines) <= 2
    assert not read_ledger(made.path).faults


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "done"), (KeyboardInterrupt(), "interrupted"), (ValueError("x"), "stopped: ValueError: x")],
)
def test_a_run_tells_how_it_ended(tmp_path, error, status):
    def go():
        with Run(JobFolder(tmp_path), "extract", {"a": 1}) as run:
            assert run.job.ledger is not None
            if error is not None:
                raise error

    if error is None:
        go()
    else:
        with pytest.raises(type(error)):
            go()
    (account,) = read_ledgers(tmp_path / "runs").accounts
    assert account.ended == status
    (record,) = (tmp_path / "runs").glob("*.json")
    assert json.loads(record.read_text())["status"] == status


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, None), (EnvironmentFault("no room"), "EnvironmentFault: no room"), (KeyboardInterrupt(), "interrupted")],
)
def test_status_tells_why_the_last_run_did_not_go_through(tmp_path, error, told):
    from pipelines.manifest import Manifest
    from pipelines.status import describe

    job = JobFolder(tmp_path)
    try:
        with Run(job, "extract", {}):
            if error is not None:
                raise error
    except type(error or EnvironmentFault("")):
        pass
    with Run(job, "report", {}):
        pass
    said = describe(job, Manifest(()), [])
    assert (said.data["stopped"], said.data["killed"]) == (told, None)
    assert (told or "0 slides") in "\n".join(said.text)


def test_a_job_goes_to_another_process_without_its_ledger(tmp_path):
    import pickle

    with Run(JobFolder(tmp_path), "extract", {}) as run:
        there = pickle.loads(pickle.dumps(run.job))
    assert there == JobFolder(tmp_path)
    assert there.ledger is None


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_line_after_which_a_signal_raises_is_followed_by_the_next(tmp_path, monkeypatch, name):
    """The handler of Ctrl-C raises between a line's last system call and whatever comes after it."""
    ledger = Ledger(tmp_path / "runs" / "one.ledger.jsonl", verb="extract")
    really = getattr(os, name)

    def interrupted(*given):
        really(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.add("wrote", path="a")
    monkeypatch.undo()
    ledger.add("ended", status="interrupted")
    ledger.close()
    (account,) = read_ledgers(tmp_path / "runs").accounts
    assert [line["event"] for line in account.lines] == ["began", "wrote", "ended"]
    assert not account.faults
