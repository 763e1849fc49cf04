"""What if the n-th operation on the job folder fails?    python benchmarks/stress_faults.py [--quick]

Every operation of a small `slidemil run` fails once with EIO, once with ENOSPC, and once the process dies at it; files
are cut off at twenty sizes by RLIMIT_FSIZE, and, where this user may mount one, a small file system is full. Then
nothing that is not whole lies there, the error names file and cause, and the next run ends with the bytes of a calm
one.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _faults import DEATH, Faults
from _stress import begin, corrupt, differ, leftovers, small_slides, tree, words
from _summary import line, summary

KINDS = ("EIO", "ENOSPC", "death")
GOALS = ("bugs", "hangs", "corrupt", "different", "unnamed", "left_over", "verify_findings", "signals")
NAMED = {"EIO": "Input/output error", "ENOSPC": "No space left on device", "EFBIG": "File too large"}
LANES = 2
LONGEST = 30
"""Seconds that one run may take; undisturbed, it takes half of one."""
MEASURED = "report.html"
"""It shows rates that the run measured, so no two are the same."""
SMALLEST = 600
"""Bytes that a file may have at least: below, not even the error could be written."""
FULL = (0.1, 0.3, 0.5, 0.7, 0.9)
HANGS = "Timeout (0:00:"
"""What `faulthandler` says after that time."""
UNVERIFIED = 50
"""Exit code where a run ended well and `verify` finds something all the same."""


@dataclass(frozen=True)
class Ended:
    """How a command ended in a child: its exit code (negative: a signal), what it said, what failed, how many steps."""

    code: int
    said: str
    failed: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Trial:
    """One way to fail: the job's name, the error, the number of the operation (or the most bytes of a file)."""

    name: str
    kind: str
    number: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every 53rd operation, 3 sizes, one small file system")
    args = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
    with tempfile.TemporaryDirectory() as folder:
        how = Faulty(Path(folder)).run(counts, quick=args.quick)
    summary("stress_faults", dict(counts), dict.fromkeys(GOALS, ("<=", 0)), {**how, "python": sys.version.split()[0]})


class Faulty:
    """A slide, and what a calm run makes of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.slides = root, small_slides(root / "slides", 1)
        calm = root / "calm"
        assert begin(self._words(calm), alone=False) == 0  # loads here all that its children need
        assert verify(calm) == 0
        assert threading.active_count() == 1, "a process with threads must not be forked"
        self.wanted = self._tree(calm)
        sizes = [path.stat().st_size for path in calm.rglob("*") if path.is_file()]
        self.largest, self.size = max(sizes), sum(sizes)

    def run(self, counts: Counter[str], *, quick: bool) -> dict[str, object]:
        """Try all ways to fail; return what was tried."""
        never = Trial("count", "EIO", -1)
        steps = in_child(lambda: self._run(never.name), self.root / never.name, self._faults(never)).steps
        for kind in KINDS:
            chosen = range(0, steps + 2, 53 if quick else 1)
            self._all([Trial(f"{kind}{number}", kind, number) for number in chosen], counts)
            line(kind=kind, operations=steps, **counts)
        sizes = 3 if quick else 20
        limits = [int(SMALLEST * (self.largest / SMALLEST) ** (number / (sizes - 1))) for number in range(sizes)]
        self._all([Trial(f"limit{size}", "EFBIG", size) for size in limits], counts)
        line(kind="limit", largest=self.largest, **counts)
        mounted = all(self._full(share, counts) for share in (FULL[2:3] if quick else FULL))
        small = "tmpfs" if mounted else "not allowed to mount one"
        return {"operations": steps, "sizes": sizes, "small_file_system": small}

    def _all(self, trials: Sequence[Trial], counts: Counter[str]) -> None:
        """Go through ways to fail in several processes, and add up what they count."""
        lanes = {}
        for number in range(LANES):
            told = self.root / f"lane{number}.json"
            pid = os.fork()
            if not pid:
                self._lane(trials[number::LANES], told)
            lanes[pid] = told
        for pid, told in lanes.items():
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0, "a lane ended with a bug"
            counts.update(json.loads(told.read_text()))

    def _lane(self, trials: Sequence[Trial], told: Path) -> None:
        """Go through ways to fail one after the other; does not return."""
        code = 1
        try:
            counts: Counter[str] = Counter()
            for trial in trials:
                self._judge(trial, self._fail(trial), counts)
            told.write_text(json.dumps(counts))
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _fail(self, trial: Trial) -> Ended:
        if trial.kind != "EFBIG":
            return in_child(lambda: self._run(trial.name), self.root / trial.name, self._faults(trial))

        def limited() -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (trial.number, resource.RLIM_INFINITY))
            return self._run(trial.name)

        return in_child(limited, self.root / trial.name)

    def _judge(self, trial: Trial, ended: Ended, counts: Counter[str]) -> None:
        """Look at what a failed run left, resume it, and look again."""
        job, kind, before = self.root / trial.name, trial.kind, dict(counts)
        counts["runs"] += 1
        counts["signals"] += ended.code < 0
        counts["hangs"] += HANGS in ended.said
        counts["bugs"] += ended.code not in ((DEATH, 0) if kind == "death" else (0, 3, 5))
        if ended.code in (3, 5):
            counts["unnamed"] += trial.name not in ended.said or NAMED[kind] not in ended.said
            counts["unnamed"] += "Traceback" in ended.said
        counts["stopped"] += ended.code == 5
        counts["slide_failed"] += ended.code == 3
        counts["went_on"] += ended.code == 0
        if ended.code == 0:  # it says that all went well
            counts["different"] += differ(self.wanted, self._tree(job))
        if kind != "death" and not ended.failed.startswith("unlink"):
            counts["left_over"] += len(leftovers(job))
        resumed = self._resume(trial.name, job, counts)
        if any(counts[key] != before.get(key, 0) for key in GOALS):
            line(run=trial.name, failed=ended.failed, code=ended.code, said=ended.said[-700:], resumed=resumed[-400:])
        subprocess.run(["rm", "-rf", str(job)], check=True)

    def _resume(self, name: str, job: Path, counts: Counter[str]) -> str:
        """Hold what lies there against its records, run again, and hold the end against the calm run."""
        counts["corrupt"] += len(corrupt(job))
        again = in_child(lambda: self._run(name) or UNVERIFIED * (verify(job) > 0), job)
        counts["hangs"] += HANGS in again.said
        counts["bugs"] += again.code not in (0, UNVERIFIED)
        counts["verify_findings"] += again.code == UNVERIFIED
        counts["different"] += differ(self.wanted, self._tree(job))
        counts["left_over"] += len(leftovers(job))
        return again.said

    def _full(self, share: float, counts: Counter[str]) -> bool:
        """Run in a file system that has a share of the room; give it room; tell whether one may be mounted."""
        job = self.root / f"full{share}"
        job.mkdir()
        size = f"size={max(16384, int(share * self.size))}"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(job)]
        try:
            if subprocess.run(mount, capture_output=True).returncode:
                return False
        except FileNotFoundError:
            return False
        try:
            ended = in_child(lambda: self._run(job.name), job)
            counts["full_disks"] += 1
            counts["bugs"] += ended.code != 5
            counts["unnamed"] += "No space left on device" not in ended.said or "are needed" not in ended.said
            counts["left_over"] += len(leftovers(job))
            subprocess.run(["mount", "-o", "remount,size=64m", str(job)], check=True)
            self._resume(job.name, job, counts)
            line(share=share, code=ended.code, said=ended.said[-300:], **counts)
        finally:
            subprocess.run(["umount", str(job)], check=True)
        return True

    def _words(self, job: Path) -> list[str]:
        return ["run", *words(self.slides, job, "--workers", "1", "--set", "processes=0")[1:]]

    def _run(self, name: str) -> int:
        return begin(self._words(self.root / name))

    def _faults(self, trial: Trial) -> Faults:
        return Faults(self.root / trial.name, trial.number, trial.kind)

    def _tree(self, job: Path) -> dict[str, str]:
        return {name: digest for name, digest in tree(job).items() if name != MEASURED}


def verify(job: Path) -> int:
    """Return how much `slidemil verify` finds."""
    from pipelines import stages

    return len(stages.verify(job, quiet=True).data["findings"])


def in_child(work: Callable[[], int], job: Path, faults: Faults | None = None) -> Ended:
    """Call a function in a fork of this process, whose files may fail; what it says is kept beside the job."""
    said, told = job.with_name(f"{job.name}.said"), job.with_name(f"{job.name}.told")
    pid = os.fork()
    if not pid:
        _child(work, said, told, faults)
    _, status = os.waitpid(pid, 0)
    failed, steps = json.loads(told.read_text()) if told.exists() and told.stat().st_size else ("", 0)
    ended = Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), failed, steps)
    said.unlink()
    told.unlink(missing_ok=True)
    return ended


def _child(work: Callable[[], int], said: Path, told: Path, faults: Faults | None) -> None:
    code, keep = 1, os.open(told, os.O_WRONLY | os.O_CREAT) if faults is not None else -1
    write = os.write
    try:
        mouth = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(mouth, 1)
        os.dup2(mouth, 2)
        faulthandler.dump_traceback_later(LONGEST, exit=True, file=2)
        if faults is not None:
            faults.install(dying=lambda: write(keep, json.dumps([faults.failed, faults.count]).encode()))
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if faults is not None:
            write(keep, json.dumps([faults.failed, faults.count]).encode())
        os._exit(code)


if __name__ == "__main__":
    main()
