"""`slidemil verify`: everything that a job's records and ledgers vouch for is read and hashed again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi.errors import SlideError

from .errors import ExitCode
from .files import sha256_file, sha256_json
from .jobfolder import JobFolder
from .ledger import Account, Books, read_ledgers
from .manifest import Manifest, SlideEntry
from .outcome import Said
from .progress import Progress
from .provenance import hashed_again
from .records import Companion, Record, forget, is_sealed, key_of, parse_record


@dataclass
class _Findings:
    """What does not hold: one sentence for each file, the first that was found."""

    lines: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, what: str) -> None:
        self.lines.setdefault(name, what)


@dataclass
class Verification:
    """One look through a job.

    Attributes:
        job: the job folder.
        manifest: its slides.
        slides: whether the slides themselves are hashed, too.
        progress: told of each file.
    """

    job: JobFolder
    manifest: Manifest
    slides: bool
    progress: Progress
    found: _Findings = field(default_factory=_Findings)
    checked: int = 0
    _records: dict[str, Record] = field(default_factory=dict)
    _known: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def take_back(self, job: JobFolder) -> list[str]:
        """Take back that outputs are done to which a finding belongs; return them. The next run makes them anew."""
        back: set[str] = set()
        for name in self.found.lines:
            back |= self._known.get(name, set())
            for tree in (".done/", ".failed/"):
                if name.startswith(tree):
                    (job.root / name).unlink(missing_ok=True)
                    back.add(name.removeprefix(tree).removesuffix(".json"))
        for name in sorted(back):
            forget(job, job.root / name)
        return sorted(back)

    def run(self) -> Said:
        """Check all, and say what was found."""
        records = sorted((self.job.root / ".done").rglob("*.json"))
        self.progress.total(len(records) + (len(self.manifest.entries) if self.slides else 0))
        books = read_ledgers(self.job.runs)
        for path in records:
            self._record(path)
            self.progress.advance(1)
        self._ledgers(books)
        self._strangers()
        if self.slides:
            made = self._made_from()
            for entry in self.manifest.entries:
                self._slide(entry, made.get(entry.slide_id, {}))
                self.progress.advance(1)
        return self._said(books)

    # ------------------------------------------------------------------ outputs

    def _record(self, path: Path) -> None:
        """Check a record, and all files that it vouches for."""
        name = path.relative_to(self.job.root / ".done").as_posix().removesuffix(".json")
        own = path.relative_to(self.job.root).as_posix()
        data = self._bytes(path, own)
        if data is None:
            return
        try:
            record = parse_record(data)
        except ValueError:
            self.found.add(own, "is no record any more: it was changed, or the disk damaged it")
            return
        self._known[own].add(name)
        if is_sealed(data) is False:
            self.found.add(own, "was changed: its seal does not fit")
            return  # what it says of other files means nothing
        self._records[name] = record
        if key_of(record.parts) != record.key:
            self.found.add(own, "was written by another version: its key does not fit its parts")
        for beside, wanted in {name: Companion(record.size, record.sha256), **record.companions}.items():
            self._known[beside].add(name)
            self._file(beside, wanted)

    def _file(self, name: str, wanted: Companion) -> None:
        path = self.job.root / name
        try:
            size = path.stat().st_size
            if size != wanted.size:
                self.found.add(name, f"has {size} bytes, not the {wanted.size} that were written")
            elif not wanted.sha256:
                self.found.notes.append(f"{name}: an older version kept no hash of it; only its size was compared")
            elif self._digest(path) != wanted.sha256:
                self.found.add(name, "was changed after it was written, or the disk damaged it")
        except FileNotFoundError:
            self.found.add(name, "is gone")
        except OSError as error:
            self.found.add(name, f"cannot be read ({error.strerror or error})")

    def _digest(self, path: Path) -> str:
        self.checked += 1
        return sha256_file(path)

    def _bytes(self, path: Path, name: str) -> bytes | None:
        self.checked += 1
        try:
            return path.read_bytes()
        except OSError as error:
            self.found.add(name, f"cannot be read ({error.strerror or error})")
            return None

    def _strangers(self) -> None:
        """Count what no record vouches for, and what was never finished."""
        unknown = [
            path.relative_to(self.job.root).as_posix()
            for path in self.job.root.glob("*/features_*/*.h5")
            if path.relative_to(self.job.root).as_posix() not in self._known
        ]
        if unknown:
            self.found.notes.append(
                f"{len(unknown)} feature files have no record and are not used, e.g. {sorted(unknown)[0]}: "
                "a run stopped there, or another program wrote them"
            )

    # ------------------------------------------------------------------ ledgers

    def _ledgers(self, books: Books) -> None:
        for account in books.accounts:
            self.checked += 1
            name = account.path.relative_to(self.job.root).as_posix()
            for fault in account.faults:
                self.found.add(f"{name}:{fault.split()[1]}" if fault.startswith("line") else name, fault)
            if account.torn:
                self.found.notes.append(f"{name}: its last line is torn: the run was killed while it wrote")
            self._run_record(account)
        for path, what in books.heads_that_fail():
            self.found.add(path.relative_to(self.job.root).as_posix(), what)
        if books.accounts:
            self._against(books)

    def _run_record(self, account: Account) -> None:
        """Hold the record of a run against the last line of its ledger."""
        last = account.lines[-1] if account.lines else {}
        if last.get("event") == "ended" and last.get("record"):
            path = self.job.runs / f"{account.run}.json"
            name = path.relative_to(self.job.root).as_posix()
            data = self._bytes(path, name) if path.exists() else None
            if data is None:
                self.found.add(name, "is gone")
            elif hashlib.sha256(data).hexdigest() != last.get("record"):
                self.found.add(name, "was changed after the run had ended")

    def _against(self, books: Books) -> None:
        """Hold records, failures and pages against what the ledgers say was written."""
        whole = not any(account.faults for account in books.accounts)
        written: dict[str, set[str]] = defaultdict(set)
        pages: dict[str, set[str]] = defaultdict(set)
        failed: dict[str, set[str]] = defaultdict(set)
        for _, line in books.of("wrote"):
            (written if line["record"] else pages)[line["path"]].add(line["record"] or line["sha256"])
        for _, line in books.of("failed"):
            failed[line["path"]].add(line["record"])
        for name, hashes in written.items():
            self._one_of(self.job.record(self.job.root / name), hashes, whole=whole)
        for name, hashes in failed.items():
            self._one_of(self.job.failure(self.job.root / name), hashes, whole=whole)
        for name, hashes in pages.items():
            self._one_of(self.job.root / name, hashes, whole=whole)
        for name in _still_there(books):
            if name not in self._records and not self.job.record(self.job.root / name).exists():
                self.found.add(name, "was made, and is gone with its record; the next run makes it again")
        silent = [name for name in self._records if name not in written]
        if silent:
            self.found.notes.append(f"{len(silent)} records stand in no ledger, e.g. {sorted(silent)[0]}")

    def _one_of(self, path: Path, hashes: set[str], *, whole: bool) -> None:
        """Check that a file is one that a ledger tells of; where ledgers were changed, that is told already."""
        name = path.relative_to(self.job.root).as_posix()
        data = self._bytes(path, name) if path.exists() else None
        if data is not None and whole and hashlib.sha256(data).hexdigest() not in hashes:
            self.found.add(name, "is not what any run's ledger says was written")

    # ------------------------------------------------------------------ inputs

    def _made_from(self) -> Mapping[str, Mapping[str, str]]:
        """Return slide → feature file → the hash of the slide that it was made from."""
        made: dict[str, dict[str, str]] = defaultdict(dict)
        for name, record in self._records.items():
            if name.endswith(".h5") and "/features_" in name and "slide" in record.parts:
                made[name.rpartition("/")[2].removesuffix(".h5")][name] = str(record.parts["slide"])
        return made

    def _slide(self, entry: SlideEntry, wanted: Mapping[str, str]) -> None:
        """Hash a slide again, and compare with what each of its feature files was made from."""
        if not wanted:
            return
        try:
            self.checked += len(entry.files)
            parts = [hashed_again(path) for path in entry.files]
        except OSError as error:
            self.found.notes.append(f"{entry.slide_id}: the slide is out of reach ({error.strerror or error})")
            return
        except SlideError as error:  # there is no room for a copy of it
            self.found.notes.append(f"{entry.slide_id}: the slide is out of reach ({error.what})")
            return
        digest = parts[0] if len(parts) == 1 else sha256_json(parts)
        for name, known in wanted.items():
            if known != digest:
                what = f"is not the file that {name} was made from; run again to make it anew"
                self.found.add(f"slide {entry.slide_id}", what)

    # ------------------------------------------------------------------ what is said

    def _said(self, books: Books) -> Said:
        lost = self.found.lines
        head = f"{self.checked} files hashed again, {len(books.accounts)} ledgers read: "
        told = f"{len(lost)} findings" if lost else "all is as it was written"
        mend = (
            "  mend    restore these files from a copy; or let the next run make them anew: "
            f"slidemil verify {self.job.root} --redo, then run the same command again. A ledger cannot be mended."
        )
        lines = [
            head + told,
            *(f"  wrong   {name}: {what}" for name, what in sorted(lost.items())),
            *(f"  note    {text}" for text in self.found.notes),
            *([mend] if lost else []),
        ]
        data = {
            "status": "failed" if lost else "done",
            "checked": self.checked,
            "findings": [{"path": name, "what": what} for name, what in sorted(lost.items())],
            "notes": self.found.notes,
        }
        return Said(tuple(lines), data, ExitCode.CHECK_FAILED if lost else ExitCode.DONE)


def _still_there(books: Books) -> Iterator[str]:
    """Yield outputs of which the last that any ledger tells is that they were written."""
    last: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for account in books.accounts:
        for line in account.lines:
            if "path" in line and (line["event"] != "wrote" or line["record"]):
                stamp = f"{line['t']} {account.run} {line['n']:09d}"
                if line["path"] not in last or last[line["path"]][0] < stamp:
                    last[line["path"]] = stamp, line
    yield from sorted(name for name, (_, line) in last.items() if line["event"] == "wrote")
