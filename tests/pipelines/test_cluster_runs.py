"""Runs with real dask workers: the same bytes as without, stopped in good order, and a scheduler that is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from _command import digests
from _slides import smooth_picture, write_aperio

pytestmark = pytest.mark.slow

TILES = ("--tile", "64", "--set", "min_tissue=0", "--set", "quality=false")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(slides: Path, job: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "extract", str(slides), "-o", str(job), *TILES, *more]


def ran(slides: Path, job: Path, *more: str) -> tuple[int, dict]:
    done = subprocess.run(
        [*command(slides, job, *more), "--json", "-q"], capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def events(job: Path, kind: str) -> Counter:
    """Return slide → how often the logs of the run and its workers say so."""
    lines = (line for path in job.glob("logs/*.jsonl") for line in path.read_text().splitlines() if line.endswith("}"))
    return Counter(event.get("slide") for event in map(json.loads, lines) if event["event"] == kind)


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed in range(5):
        write_aperio(folder / f"s{seed}.svs", smooth_picture(512 + 64 * seed, 512, seed))
    return folder


def test_the_same_bytes_with_and_without_workers(slides, tmp_path):
    """Also of a slide that fails; and what is done is done, whoever did it."""
    (slides / "torn.svs").write_bytes((slides / "s0.svs").read_bytes()[:20_000])
    code, alone = ran(slides, tmp_path / "alone")
    assert code == 3
    code, said = ran(slides, tmp_path / "many", "--cluster", "local:2")
    assert (code, said["slides"]) == (3, alone["slides"]), said
    assert said["failed"] == alone["failed"]
    assert set(alone["rates"]) <= set(said["rates"])
    assert said["outputs"] == alone["outputs"]
    assert digests(tmp_path / "alone") == digests(tmp_path / "many")
    (slides / "torn.svs").unlink()
    code, said = ran(slides, tmp_path / "alone", "--cluster", "local:2")
    assert (code, said["slides"]) == (0, {"found": 5, "done": 0, "failed": 0, "skipped": 5})
    assert not list((tmp_path / "many" / ".state" / "flights").iterdir()), "books of a run that ended"


def test_a_large_slide_is_done_in_portions_by_both_workers(tmp_path):
    """Such a slide would be too large for a test, so a portion may be as small as can be here."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_aperio(folder / "big.svs", smooth_picture(1024, 768, 1))
    assert ran(folder, tmp_path / "alone")[0] == 0
    patched = "import pipelines.cluster.batches as b; b._LEAST_PORTION = 1e4; from pipelines.cli import app; app()"
    words = [*command(folder, tmp_path / "many", "--cluster", "local:2")[3:], "-q"]
    done = subprocess.run([sys.executable, "-c", patched, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert events(tmp_path / "many", "portion") == {"big": 2}
    assert digests(tmp_path / "alone") == digests(tmp_path / "many")


@contextmanager
def started(*words: str):
    process = subprocess.Popen(
        words, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(what, seconds: float = 120.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return
        time.sleep(0.1)
    pytest.fail("it took too long")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_workers_in_good_order(tmp_path, sign, code):
    """Ctrl-C reaches the workers, too, and must leave the orderly end to the command; no process stays behind."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed in range(3):
        write_aperio(folder / f"s{seed}.svs", smooth_picture(1400, 1400, seed))
    job = tmp_path / "job"
    with started(*command(folder, job, "--cluster", "local:2")) as process:
        wait_for(lambda: events(job, "opened") or process.poll() is not None)
        began = time.monotonic()
        os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert time.monotonic() - began < 20, "10 s on a machine that is not shared with other tests"
        assert "Traceback" not in said
        assert "run the same command again" in said
        wait_for(lambda: not _group(process.pid), 10)
    assert not list((job / ".state" / "claims" / "slides").iterdir()), "claims were given up"
    code, said = ran(folder, job)
    assert (code, said["slides"]["failed"]) == (0, 0)
    assert max(events(job, "done").values()) == 1


def _group(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def test_a_scheduler_that_is_lost_costs_nothing_that_is_done(slides, tmp_path):
    """It is killed after the first slide, comes back at the same address with other workers, and the run goes on."""
    for seed in range(5, 12):
        write_aperio(slides / f"s{seed}.svs", smooth_picture(512, 512, seed))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = (sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
    scheduler += ("--no-dashboard",)
    options = ("--nthreads", "1", "--no-dashboard", "--memory-limit", "0", "--death-timeout", "60")
    worker = (sys.executable, "-m", "distributed.cli.dask_worker", address, *options)
    worker += ("--local-directory", str(tmp_path / "scratch"), "--host", "127.0.0.1")
    job = tmp_path / "job"
    with ExitStack() as stack:
        first = [stack.enter_context(started(*words)) for words in (scheduler, worker)]
        run = stack.enter_context(started(*command(slides, job, "--cluster", address)))
        wait_for(lambda: events(job, "done") or run.poll() is not None)
        for process in first:
            os.killpg(process.pid, signal.SIGKILL)
        for words in (scheduler, worker):
            stack.enter_context(started(*words))
        _, said = run.communicate(timeout=240)
        assert run.returncode == 0, said
        assert "the scheduler is back" in said
    done = events(job, "done")
    assert set(done) == {f"s{seed}" for seed in range(12)}
    assert max(done.values()) == 1
