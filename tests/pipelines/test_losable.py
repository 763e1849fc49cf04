"""Processes that may be lost: a death, a hang or an error costs its own item, and nothing stays behind."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.losable import Done, Lost, StoppedError, each

ROOT = Path(__file__).resolve().parents[2]


def run(function, items, **options):
    return dict(each(function, items, **{"workers": 2, "seconds": 30, **options}))


def children() -> set[str]:
    mine = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(mine.read_text().split())


def test_each_item_has_its_result():
    assert run(operator.neg, range(20)) == {n: Done(-n) for n in range(20)}


def test_items_are_taken_as_processes_become_free():
    taken = []

    def source():
        for n in range(100):
            taken.append(n)
            yield n

    results = each(operator.neg, source(), workers=2, seconds=30)
    next(results)
    assert len(taken) <= 4
    results.close()


def test_an_answer_that_is_no_longer_wanted_is_not_waited_for():
    """A slide may take minutes to be looked through; a signal wants an end in seconds."""
    before, began = children(), time.monotonic()
    with pytest.raises(StoppedError):
        list(each(time.sleep, [60], workers=1, seconds=90, stop=lambda: time.monotonic() > began + 0.5))
    assert time.monotonic() - began < 10
    assert children() == before


def test_a_death_costs_its_own_item():
    signals = [0, signal.SIGKILL, 0, signal.SIGSEGV, 0, signal.SIGABRT, 0]
    found = list(each(signal.raise_signal, [s for s in signals if s] + [signal.SIGCONT] * 4, workers=2, seconds=30))
    assert len(found) == 7
    for item, answer in found:
        if item == signal.SIGCONT:
            assert answer == Done(None)
        else:
            assert isinstance(answer, Lost)
            assert answer.kind == "died"
            assert signal.Signals(item).name in answer.what


def test_a_process_that_leaves_names_its_exit_code():
    (answer,) = run(os._exit, [7]).values()
    assert answer == Lost("died", "the process that worked on it ended (exit code 7)")


def test_the_last_words_of_a_library_are_told():
    (answer,) = run(os.system, ["echo 'first line' >&2; echo 'GLib: no memory' >&2; kill -ABRT $PPID"]).values()
    assert isinstance(answer, Lost)
    assert answer.what.endswith("(SIGABRT): GLib: no memory")


def test_what_hangs_is_ended_and_the_others_go_on():
    began = time.monotonic()
    found = run(time.sleep, [60, 0.01, 0.02, 0.03], seconds=lambda n: 2.0)
    assert time.monotonic() - began < 15
    assert found[60] == Lost("late", "it took longer than 2 s")
    assert [found[n] for n in (0.01, 0.02, 0.03)] == [Done(None)] * 3


def test_an_error_is_told_with_its_traceback_and_the_process_goes_on():
    found = run(int, ["1", "x", "2"], workers=1)
    assert (found["1"], found["2"]) == (Done(1), Done(2))
    lost = found["x"]
    assert isinstance(lost, Lost)
    assert (lost.kind, lost.what[:11]) == ("raised", "ValueError:")
    assert "Traceback" in lost.trace


def test_a_result_that_cannot_be_sent_is_an_error_of_its_item():
    found = run(open, [os.devnull])
    assert found[os.devnull].kind == "raised"


def test_a_process_may_have_less_memory_than_is_asked_for():
    """As under `ulimit -d`, or in a batch system: what it allows is the most, and no error."""
    code = (
        "import operator, resource\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "from pipelines.losable import each\n"
        "print(dict(each(operator.neg, [1, 2], workers=1, seconds=30, memory=8 << 30)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "{1: Done(value=-1), 2: Done(value=-2)}", done.stderr


def test_a_process_has_no_more_memory_than_it_may():
    found = run(np.zeros, [10, 2_000_000_000], memory=1_500_000_000)
    assert len(found[10].value) == 10
    assert found[2_000_000_000].kind in ("raised", "died")


def test_nothing_stays_behind():
    before = children()
    results = each(time.sleep, [0.01, 60, 60], workers=2, seconds=90)
    next(results)
    assert len(children() - before) == 2
    results.close()
    assert children() <= before


def test_the_processes_end_with_their_parent():
    code = (
        "import os, time\n"
        "from pipelines.losable import each\n"
        "for item, answer in each(time.sleep, [0.01, 0.02], workers=2, seconds=5):\n"
        "    print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    left = done.stdout.split()
    assert left
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid)]


def state_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("workers", [1, 3])
def test_no_items_no_processes(workers):
    before = children()
    assert run(operator.neg, [], workers=workers) == {}
    assert children() == before
