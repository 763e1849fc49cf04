"""`--pseudonymize KEYFILE`: slides and cases go by made-up names in all that a job writes.

A name is a keyed hash (HMAC-SHA256) of the true one: without the key nobody can tell whose it is, not even by trying
names; with the key file, which holds the key and who is who, the same slide has the same name in every run. Slides are
opened through links beside the key file, called by the made-up names: so a path in a table, a record or an error of any
library tells nothing, and the job finds its slides again as long as the links are there.

Not hidden: what the pixels show, how large a slide is, its hash (whoever has the slide can tell that it is this one),
and the folder of the key file, to which the paths in `manifest.csv` lead.

Source: HMAC: RFC 2104.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi.remote_path import RemotePath, path_of

from .errors import EnvironmentFault, UsageError
from .files import json_bytes, sync_folder, write_json
from .jobfolder import JobFolder
from .labels import Labels, read_labels
from .manifest import Manifest, SlideEntry, Sources, find_slides
from .selection import read_selection
from .tables import ALIASES

_KIND = "slidemil pseudonyms"
_DIGITS = 16
"""Of a name, hexadecimal: a chance of one in 10⁹ that two of 200,000 slides share one; it is checked, too."""
_KEPT = {"label", *ALIASES["split"]}
"""Columns of a manifest that are taken over; any other may tell who it is."""
_ONE_ANOTHER = {".vms", ".vmu", ".ndpis"}
"""Slides whose files name one another: under other names they cannot be opened."""


def slides_of(slides: Sequence[Path] | Sources, job: JobFolder | None) -> Manifest:
    """Find slides, under made-up names where that is asked.

    Raises:
        UsageError: the key file lies in the job folder, or the job's names were made otherwise.
        NothingMatchedError: no slide was found.
    """
    sources = Sources.of(slides)
    check(job, sources.keyfile)
    found = find_slides(sources)
    named = found if sources.keyfile is None else _renamed(found, sources.keyfile, job)
    return named if sources.select is None else replace(named, entries=read_selection(sources.select).of(named.entries))


def check(job: JobFolder | None, keyfile: Path | None) -> None:
    """Refuse to mix true names with made-up ones, or those of two keys, or to keep the key where the names are.

    Raises:
        UsageError: says which.
    """
    if job is None:
        return
    made_with = _key_of_job(job)
    if keyfile is None:
        if made_with is not None:
            raise UsageError(
                f"{job.root}: its slides go by made-up names; true ones must not come in. "
                "Add --pseudonymize KEYFILE, with the key file it was begun with."
            )
        return
    root = os.path.realpath(job.root)
    if os.path.commonpath([root, os.path.realpath(keyfile)]) == root:
        raise UsageError(
            f"--pseudonymize {keyfile}: the key says who is who, and lies in the job folder. "
            "Name a file elsewhere, best where only you can read."
        )
    if made_with is None and job.manifest.exists():
        raise UsageError(
            f"{job.root}: this job was begun with true names, which stay in its tables and logs. "
            "Give -o a new folder for one with made-up names."
        )
    if made_with is not None and made_with != _fingerprint(_read(keyfile)["key"] if keyfile.exists() else ""):
        raise UsageError(f"--pseudonymize {keyfile}: the names of {job.root} were made with another key file.")


def labels_of(
    table: Path, slides: Sequence[SlideEntry], column: str, keyfile: Path | None, more: Sequence[str] = ()
) -> Labels:
    """Read a label table that calls slides and cases by their true names; see `labels.read_labels`."""
    if keyfile is None:
        return read_labels(table, slides, column=column, more=more)
    with _held(keyfile):
        keyring = Keyring(**_read(keyfile))
        true = {one.slide_id: keyring.true_entry(one.slide_id) for one in slides if one.slide_id in keyring.slides}
        made_up = {entry.slide_id: name for name, entry in true.items()}
        known = read_labels(table, list(true.values()), column=column, more=more)
        cases = {made_up[name]: keyring.case_of(made_up[name], case) for name, case in known.case.items()}
        keyring.write(keyfile)
    notes = (f"{_count(len(known.notes), 'note')} on the labels name slides, and are left out",) if known.notes else ()
    return Labels(
        label={made_up[name]: label for name, label in known.label.items()},
        case=cases,
        split={made_up[name]: split for name, split in known.split.items()},
        notes=notes,
        target=known.target,
        cells={made_up[name]: cells for name, cells in known.cells.items()},
        clinical={made_up[name]: cells for name, cells in known.clinical.items()},
    )


@dataclass
class Keyring:
    """What the key file holds.

    Attributes:
        key: 32 random bytes, hexadecimal.
        slides: made-up name → `slide_id`, `path` and `case_id`, as they truly are.
        cases: made-up name → true one.
    """

    key: str
    slides: dict[str, dict[str, str]] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)

    def slide(self, entry: SlideEntry) -> str:
        """Return the made-up name of a slide: the one it has, by its path, else one made of its true name."""
        path = _place_of(entry)
        has = next((name for name, known in self.slides.items() if known["path"] == path), None)
        name = has or self._named("slide", "s", entry.slide_id)
        if not has and name in self.slides and path_of(self.slides[name]["path"]).exists():
            name = self._named("slide", "s", f"{entry.slide_id}\0{path}")  # two slides of one name, given one by one
        self.slides[name] = {"slide_id": entry.slide_id, "path": path, "case_id": entry.case_id}
        return name

    def case_of(self, slide: str, case_id: str) -> str:
        """Return the made-up name of a slide's case; where that is called like the slide, it still is."""
        if case_id == self.slides[slide]["slide_id"]:
            return slide
        name = self._named("case", "c", case_id)
        self.cases[name] = case_id
        return name

    def true_entry(self, name: str) -> SlideEntry:
        """Return a slide as it is truly called."""
        known = self.slides[name]
        return SlideEntry(known["slide_id"], path_of(known["path"]), known["case_id"])

    def write(self, path: Path) -> None:
        """Write the key file whole; only its owner may read it."""
        content = {"kind": _KIND, "key": self.key, "slides": self.slides, "cases": self.cases}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.touch(mode=0o600)
            with temporary.open("wb") as file:
                file.write(json_bytes(content))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise EnvironmentFault(f"{path}: the key file cannot be written ({error.strerror}).") from error

    def _named(self, kind: str, letter: str, true: str) -> str:
        digest = hmac.new(bytes.fromhex(self.key), f"{kind}\0{true}".encode("utf-8", "surrogateescape"), hashlib.sha256)
        return letter + digest.hexdigest()[:_DIGITS]


def _renamed(found: Manifest, keyfile: Path, job: JobFolder | None) -> Manifest:
    with _held(keyfile):
        keyring = Keyring(**_read(keyfile)) if keyfile.exists() else Keyring(secrets.token_hex(32))
        entries = [_entry(entry, keyring, keyfile) for entry in found.entries]
        keyring.write(keyfile)
    if job is not None:
        write_json(_mark(job), {"pseudonyms": _fingerprint(keyring.key)})
    left = sorted({name for entry in found.entries for name in entry.columns if name not in _KEPT})
    notes = [f"{_count(len(found.notes), 'note')} on how slides were found name files: `slidemil scan` shows them"]
    if left:
        notes.append(f"{_count(len(left), 'column')} of the manifest may tell who it is and are left out")
    told = tuple(notes if found.notes else notes[1:])
    return Manifest(tuple(sorted(entries, key=lambda entry: entry.slide_id)), told)


def _entry(entry: SlideEntry, keyring: Keyring, keyfile: Path) -> SlideEntry:
    name = keyring.slide(entry)
    path, series = _linked(entry, name, keyfile.with_name(f"{keyfile.name}.slides") / name)
    return SlideEntry(
        slide_id=name,
        path=path,
        case_id=keyring.case_of(name, entry.case_id),
        mpp=entry.mpp,
        columns={key: value for key, value in entry.columns.items() if key in _KEPT},
        series=series,
    )


def _linked(entry: SlideEntry, name: str, folder: Path) -> tuple[Path, tuple[Path, ...]]:
    """Make links that are called by the made-up name; return that of the slide, and all of a series."""
    suffix = entry.path.suffix.lower()
    if isinstance(entry.path, RemotePath):
        return RemotePath(entry.path.url, called=f"{name}{suffix}"), ()
    if suffix in _ONE_ANOTHER:
        raise UsageError(
            f"{entry.path.name}: its files name one another, and cannot be opened under made-up names. "
            "Convert it to one file first, e.g. `vips tiffsave IN OUT --tile --pyramid --compression jpeg`."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(entry.files) > 1 and suffix != ".mrxs":
            links = [_link(folder / f"{name}.{n:04d}{p.suffix.lower()}", p) for n, p in enumerate(entry.files)]
            return links[0], tuple(links) if entry.series else ()
        if suffix == ".mrxs":
            _link(folder / name, entry.path.with_suffix(""))
        return _link(folder / f"{name}{suffix}", entry.path), ()
    except OSError as error:
        raise EnvironmentFault(f"{folder.parent}: links to the slides cannot be made ({error.strerror}).") from error


def _place_of(entry: SlideEntry) -> str:
    if isinstance(entry.path, RemotePath):
        return str(entry.path)
    return os.path.abspath(entry.path)  # noqa: PTH100 - a link keeps the name it was given


def _link(link: Path, target: Path) -> Path:
    there = os.path.abspath(target)  # noqa: PTH100 - a link keeps the name it was given
    if not (link.is_symlink() and os.readlink(link) == there):  # noqa: PTH115 - as it is written
        temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(there)
        temporary.replace(link)
    return link


def _read(keyfile: Path) -> dict[str, Any]:
    try:
        content = json.loads(keyfile.read_text(encoding="utf-8"))
        if content.pop("kind") != _KIND or len(bytes.fromhex(content["key"])) != 32:
            raise ValueError
        return {name: content[name] for name in ("key", "slides", "cases")}
    except OSError as error:
        raise UsageError(f"--pseudonymize {keyfile}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UsageError(f"--pseudonymize {keyfile}: this file is no key file. Name a new file to make one.") from None


@contextmanager
def _held(keyfile: Path) -> Iterator[None]:
    """Let no other run write the key file meanwhile."""
    try:
        keyfile.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(keyfile.with_name(f".{keyfile.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EnvironmentFault(f"{keyfile}: the key file cannot be written ({error.strerror}).") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _mark(job: JobFolder) -> Path:
    return job.root / "pseudonyms.json"


def _key_of_job(job: JobFolder) -> str | None:
    try:
        return str(json.loads(_mark(job).read_text(encoding="utf-8"))["pseudonyms"])
    except (OSError, ValueError, KeyError):
        return None


def _fingerprint(key: str) -> str:
    """Return what tells keys apart and gives none away."""
    return hashlib.sha256(f"{_KIND}\0{key}".encode()).hexdigest()[:_DIGITS]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
