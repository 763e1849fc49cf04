"""SIGINT and SIGTERM stop a run within ten seconds, whatever it is doing, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.ledger import read_ledgers
from pipelines.signals import GRACE

ROOT = Path(__file__).resolve().parent.parent.parent
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
STATUS = {signal.SIGINT: "interrupted", signal.SIGTERM: "pre-empted"}

CHILD = """
import sys, time
from pathlib import Path
from pipelines import signals
from pipelines.console import guarded
from pipelines.jobfolder import JobFolder
from pipelines.provenance import Run

signals.GRACE = {grace}

@guarded
def verb(verbose=False):
    with Run(JobFolder(Path(sys.argv[1])), "extract", {{}}):
        print("ready", flush=True)
        {work}
    return 0

import typer
try:
    verb()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def start(folder: Path, work: str, grace: float = GRACE) -> subprocess.Popen:
    code = CHILD.format(work=work, grace=grace)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout.readline() == "ready\n", child.stderr.read()
    time.sleep(0.3)  # what comes after the word is under way
    return child


def ended(folder: Path) -> str | None:
    (account,) = read_ledgers(folder / "runs").accounts
    assert not account.faults
    return account.ended


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_ends_the_run_with_its_code_and_closes_the_ledger(tmp_path, number):
    child = start(tmp_path, "time.sleep(60)")
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == CODES[number]
    assert "run the same command again" in said
    assert ended(tmp_path) == STATUS[number]


SLEEPS = (
    "import signal, threading; mine = next(t for t in threading.enumerate() if t.name == 'signals'); "
    "threading.Timer(0.5, signal.pthread_kill, (mine.ident, signal.{name})).start(); threading.Event().wait()"
)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_that_wakes_another_thread_ends_a_run_that_waits(tmp_path, number):
    """The main thread waits for a lock; the system is free to give a signal to any thread."""
    child = start(tmp_path, SLEEPS.format(name=number.name))
    _, said = child.communicate(timeout=30)
    assert child.returncode == CODES[number]
    assert "run the same command again" in said
    assert ended(tmp_path) == STATUS[number]


HANGS = "exec('try:\\n  time.sleep(60)\\nfinally:\\n  time.sleep(60)')"
COMPUTES = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 300_000_000)"


@pytest.mark.parametrize("work", [HANGS, COMPUTES], ids=["the clean-up hangs", "a library computes"])
def test_what_does_not_come_back_is_left(tmp_path, work):
    """The main thread cannot run the handler while a library computes; the process ends all the same."""
    child = start(tmp_path, work, grace=1.0)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 75
    assert time.monotonic() - began < 10
    assert "something did not come back" in said
    assert ended(tmp_path) == "ended after 1 s: something did not come back"


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    child = start(tmp_path, HANGS)
    child.send_signal(signal.SIGINT)
    time.sleep(0.6)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.monotonic() - began < 2
    assert ended(tmp_path) == "ended at once: Ctrl-C came twice"


def test_the_same_ctrl_c_passed_on_twice_counts_once(tmp_path):
    child = start(tmp_path, "time.sleep(60)")
    for _ in range(3):
        child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130
    assert ended(tmp_path) == "interrupted"


def test_handlers_are_put_back():
    from pipelines.signals import stoppable

    before = [signal.getsignal(number) for number in CODES]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with stoppable():
            assert [signal.getsignal(number) for number in CODES] != before
    assert [signal.getsignal(number) for number in CODES] == before
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
