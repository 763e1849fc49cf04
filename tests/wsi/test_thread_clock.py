"""The clock of a thread against the system's own accounts, and in situations whose answer is known."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path

import pytest

from wsi.thread_clock import Spent, ThreadClock

SCHEDSTAT = Path("/proc/thread-self/schedstat")


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def spin(seconds):
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def test_core_seconds_are_those_of_getrusage():
    with ThreadClock() as clock:
        before, usage = clock.read(), resource.getrusage(resource.RUSAGE_THREAD)
        spin(0.1)
        spent, now = clock.read().since(before), resource.getrusage(resource.RUSAGE_THREAD)
    assert spent.core == pytest.approx(now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime, abs=0.02)
    assert spent.core >= 0.1


def test_sleep_is_neither_core_nor_queue():
    with ThreadClock() as clock:
        before = clock.read()
        time.sleep(0.2)
        spent = clock.read().since(before)
    assert spent.core < 0.02
    assert spent.queued < 0.1


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="this system does not tell")
def test_a_thread_that_shares_its_core_waits_for_it():
    """Two processes on one core: wall time is core time and waiting in the queue, and nothing else."""
    cores = os.sched_getaffinity(0)
    one = {min(cores)}
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, one)
        spin(1.0)
        os._exit(0)
    found = {}

    def work():
        os.sched_setaffinity(0, one)
        with ThreadClock() as clock:
            before, began = clock.read(), time.perf_counter()
            spin(0.2)
            found["spent"], found["wall"] = clock.read().since(before), time.perf_counter() - began

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os.waitpid(child, 0)
    assert found["spent"].queued > 0.05
    assert sum(found["spent"]) == pytest.approx(found["wall"], rel=0.1)


def test_a_closed_clock_still_tells_core_seconds():
    found = []

    def work():  # a thread of its own: what others spent for this one stays with it
        clock = ThreadClock()
        clock.close()
        clock.close()
        found.append(clock.read())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].queued == 0
    assert found[0].core > 0
    assert Spent(3, 2).since(Spent(1, 2)) == Spent(2, 0)


def test_no_file_stays_open():
    before = open_files()
    for _ in range(20):
        with ThreadClock() as clock:
            clock.read()
    assert open_files() == before
