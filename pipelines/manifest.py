"""SLIDES → the slides of a job: a folder searched recursively, files, or a CSV manifest.

Slide names are the stem of the file, or the folder's name where a DICOM series fills it; on a collision that
+ `__` + a short hash of the relative path.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi.address import is_url
from wsi.ranges import RemoteError
from wsi.remote_path import RemotePath, path_of

from .errors import NothingMatchedError, UsageError
from .files import read_csv
from .tables import ALIASES, first_of, number_of

_LONGEST_NAME = 180  # bytes; leaves room for suffixes under the 255 that file systems take
_LONGEST_NOTE = 4096
_HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff/\\:*?\"<>|]+")
"""Signs of control and of direction, halves of signs, and what a file system or shell takes for more than a letter."""
_TWO_PART_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr")


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a job.

    Attributes:
        slide_id: name of the slide in every output.
        path: the file to open (of a DICOM series, its first file).
        case_id: patient or case; the slide's own name where nothing says otherwise.
        mpp: µm per pixel given by the manifest, which overrides the file's.
        columns: the manifest's other columns, e.g. `label`, `split`, `site`.
        series: all files of a DICOM series; empty for a slide in one file.
    """

    slide_id: str
    path: Path
    case_id: str
    mpp: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    series: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the slide is made of."""
        import wsi

        return self.series or wsi.files_of(self.path)


@dataclass(frozen=True)
class Manifest:
    """The slides of a job and what is worth saying about how they were found."""

    entries: tuple[SlideEntry, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """The SLIDES argument, and how it is to be taken.

    Attributes:
        given: folders, slide files, or CSV manifests.
        outside: whether a manifest may name slides that do not lie below its own folder.
        keyfile: the key of `pipelines.pseudonyms`, None where slides keep their names.
        select: the table of `pipelines.selection` that says which slides are taken, by the names they have in the job.
    """

    given: tuple[Path, ...]
    outside: bool = False
    keyfile: Path | None = None
    select: str | None = None

    @property
    def names(self) -> list[str]:
        """What a record of the run says of them."""
        return [source.name for source in self.given] if self.keyfile is None else []

    @classmethod
    def of(cls, slides: Sequence[Path] | Sources) -> Sources:
        """Return what is meant where nothing more is said."""
        return slides if isinstance(slides, Sources) else cls(tuple(slides))


def find_slides(slides: Sequence[Path] | Sources) -> Manifest:
    """Turn the SLIDES argument into slides, sorted by name.

    Raises:
        UsageError: a source does not exist, or a manifest's cells do not fit (all mistakes at once).
        NothingMatchedError: no slide was found; the message shows examples of what was seen.
    """
    found: list[SlideEntry] = []
    files: list[Path] = []
    seen: list[Path] = []
    notes: list[str] = []
    series = Series()
    sources, outside = Sources.of(slides).given, Sources.of(slides).outside
    for source in sources:
        if isinstance(source, RemotePath):
            found += _from_address(source, notes, series, outside=outside)
        elif source.is_dir():
            found += _from_folder(source, seen, notes, series)
        elif not source.exists():
            raise UsageError(f"{source}: no such file or folder. Give a folder, slide files, or a CSV manifest.")
        elif source.suffix.lower() == ".csv":
            found += _from_csv(source, series, outside=outside)
        else:
            files.append(source)
    joined = _join_series(files, series)
    found += [replace(entry, series=()) for entry in joined]  # what is opened is the series, whichever files were named
    if not found:
        raise NothingMatchedError(_nothing(sources, seen))
    entries, renamed = _name_apart(_drop_repeats(found, notes, series), _common_folder(sources))
    told = tuple(one_line(note) for note in (*notes, *renamed))
    return Manifest(tuple(sorted(entries, key=lambda entry: entry.slide_id)), told)


def slide_stem(path: Path) -> str:
    """Return the file name without its extension; `.ome.tif` and its kin count as one."""
    for suffix in _TWO_PART_SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.stem or path.name


def safe_name(name: str) -> str:
    """Return a name that is one harmless path component on any file system.

    Names that are harmless already come back unchanged; any other gets a short hash of the original, so
    that two different names never become one.
    """
    clean = _HARMFUL.sub("_", unicodedata.normalize("NFC", name))
    clean = re.sub(r"\s+", " ", clean).rstrip(" .")
    clean = clean.lstrip("=+-@ .")  # a spreadsheet would take these for a formula, a shell for an option
    while len(clean.encode()) > _LONGEST_NAME:
        clean = clean[:-1]
    return clean if clean == name else f"{clean or 'slide'}__{_short_hash(name)}"


def _from_address(source: RemotePath, notes: list[str], series: Series, *, outside: bool) -> list[SlideEntry]:
    """Return the slide at an address, those that a list there names, or those below it."""
    from .remote_folder import slides_below

    try:
        if source.suffix.lower() == ".csv":
            return _from_csv(source, series, outside=outside)
        if is_slide_name(source):
            return [_entry(source)]
        slides, passed = slides_below(source)
    except RemoteError as error:
        raise UsageError(f"{source}: {error.strerror}. {error.mend}") from None
    if passed:
        notes.append(f"{source}: {passed} files are no slides that are read over the network, and were passed over")
    return [_entry(slide) for slide in slides]


def is_slide_name(path: Path) -> bool:
    """Say whether a file is called like a slide."""
    from wsi.opening import SUFFIXES

    return path.suffix.lower() in SUFFIXES


def _from_folder(folder: Path, seen: list[Path], notes: list[str], series: Series) -> list[SlideEntry]:
    import wsi

    files = _search(folder, notes)
    seen += files
    slides = [path for path in files if wsi.is_slide_file(path)]
    passed = len(files) - len(slides)
    if passed:
        kinds = Counter(path.suffix.lower() or "no extension" for path in files)
        kinds.subtract(Counter(path.suffix.lower() or "no extension" for path in slides))
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4) if count > 0)
        what = "1 file is no slide and was" if passed == 1 else f"{passed} files are no slides and were"
        notes.append(f"{folder}: {what} passed over ({listed})")
    return _join_series(slides, series)


def _search(folder: Path, notes: list[str]) -> list[Path]:
    """Return the files of a folder and those below it; what was not looked at is noted."""

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename}: this folder cannot be read ({error.strerror}); slides in it are not seen")

    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(root)
        folders.sort()
        if "heatmaps" in folders and ".done" in folders:  # of a job that lies among the slides: its pyramids are none
            folders.remove("heatmaps")
        links = [name for name in folders if (here / name).is_symlink()]
        notes += [f"{here / name}: a link to a folder is not followed; give that folder itself" for name in links]
        notes += [f"{here / name}: hidden, and passed over" for name in sorted(names) if _hidden_slide(name)]
        files += [here / name for name in sorted(names) if not name.startswith(".")]
    return files


def _hidden_slide(name: str) -> bool:
    """Say whether a hidden file is called like a slide; what macOS leaves beside a copied file is none."""
    from wsi.opening import SUFFIXES

    return name.startswith(".") and not name.startswith("._") and Path(name).suffix.lower() in SUFFIXES


class Series:
    """Which DICOM files are one slide, as they lie on the disk: each header is read once."""

    def __init__(self) -> None:
        self._uids: dict[Path, str | None] = {}
        self._slides: dict[Path, list[Path]] = {}

    def uid(self, path: Path) -> str | None:
        """Return the series of a DICOM slide file, None for any other file."""
        if path not in self._uids:
            import wsi

            here = not isinstance(path, RemotePath) and path.is_file()
            self._uids[path] = wsi.series_uid(path) if here else None  # a pipe would never answer
        return self._uids[path]

    def key(self, path: Path) -> str:
        """Return what is equal for two paths exactly where they are one slide."""
        if isinstance(path, RemotePath):
            return str(path)
        real = os.path.realpath(path)
        uid = self.uid(path)
        return real if uid is None else f"{Path(real).parent}|{uid}"

    def name(self, path: Path) -> str:
        """Return the name of a file's slide, the same whichever of its files is named.

        A series of several files that fills its folder is called like the folder, any other like its first file.
        """
        uid = self.uid(path)
        if uid is None:
            return slide_stem(path)
        slides = self._slides_in(path.parent)
        mine = [file for file in slides if self.uid(file) == uid] or [path]
        folder = Path(os.path.abspath(path.parent)).name  # noqa: PTH100 - a link keeps the name it was given
        return folder if folder and 1 < len(mine) == len(slides) else slide_stem(mine[0])

    def _slides_in(self, folder: Path) -> list[Path]:
        if folder not in self._slides:
            import wsi

            try:
                self._slides[folder] = [path for path in sorted(folder.iterdir()) if wsi.is_slide_file(path)]
            except OSError:  # it may be entered, and not be listed
                self._slides[folder] = []
        return self._slides[folder]


def _join_series(paths: Iterable[Path], series: Series) -> list[SlideEntry]:
    """Make one slide of each DICOM series."""
    entries: list[SlideEntry] = []
    joined: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in paths:
        uid = series.uid(path)
        if uid is None:
            entries.append(_entry(path))
        else:
            joined[path.parent, uid].append(path)
    named = (replace(_entry(files[0], series.name(files[0])), series=tuple(files)) for files in joined.values())
    return [*entries, *named]


def _entry(path: Path, name: str | None = None) -> SlideEntry:
    stem = safe_name(name or slide_stem(path))
    return SlideEntry(stem, path, stem)


def read_table(path: Path) -> list[SlideEntry]:
    """Return the slides that a CSV manifest names, in its order.

    Raises:
        UsageError: its columns or cells do not fit.
    """
    return _from_csv(path, Series(), outside=True)


def _from_csv(path: Path, series: Series, *, outside: bool) -> list[SlideEntry]:
    rows = read_csv(path, errors="surrogateescape")  # names of files need not be text
    if not rows:
        return []
    columns = set(rows[0])
    path_column = first_of(columns, "path")
    if path_column is None:
        raise UsageError(
            f"{path}: no column says where the slides lie (found: {', '.join(sorted(columns))}). "
            f"Name it `path`; also taken: {', '.join(ALIASES['path'])}."
        )
    mistakes: list[str] = []
    entries = [_csv_entry(row, number, path, path_column, mistakes, series) for number, row in enumerate(rows, start=2)]
    if not outside:
        mistakes += _outside(entries, path)
    if mistakes:
        raise UsageError(f"{path}: {len(mistakes)} rows do not fit:\n  " + "\n  ".join(mistakes[:10]))
    return entries


def _outside(entries: Sequence[SlideEntry], table: Path) -> list[str]:
    """Say which rows lead out of the folder of their table: a list from a stranger must not name any file it likes."""
    rows = [(number, entry.path) for number, entry in enumerate(entries, start=2)]
    return [
        f"line {number}: {one_line(str(path))} lies outside the folder of the table. Where you trust it, "
        "add --allow-outside"
        for number, path in rows
        if not _lies_below(table, path)
    ]


def _lies_below(table: Path, path: Path) -> bool:
    """Say whether a path lies below the folder of a table, as it is written: where links lead is the folder's affair.

    An address in a table on this disk names no file of this disk, and is taken.
    """
    if isinstance(table, RemotePath):
        return isinstance(path, RemotePath) and path.is_below(table)
    if isinstance(path, RemotePath):
        return True
    folder = os.path.abspath(table.parent)  # noqa: PTH100
    return os.path.commonpath([folder, os.path.abspath(path)]) == folder  # noqa: PTH100


def _csv_entry(
    row: dict[str, str], number: int, table: Path, path_column: str, mistakes: list[str], series: Series
) -> SlideEntry:
    names = {kind: first_of(row, kind) for kind in ("slide_id", "case_id", "mpp")}
    cells = {kind: row.get(column, "") if column else "" for kind, column in names.items()}
    if not row.get(path_column):
        mistakes.append(f"line {number}: `{path_column}` is empty")
    slide = _named_by(table, row.get(path_column, ""))
    slide_id = safe_name(cells["slide_id"] or series.name(slide))
    used = {path_column, *(column for column in names.values() if column)}
    extra = {key: value for key, value in row.items() if key and key not in used}
    return SlideEntry(
        slide_id=slide_id,
        path=slide,
        case_id=cells["case_id"] or slide_id,
        mpp=_manifest_mpp(cells["mpp"], number, mistakes),
        columns=extra,
    )


def _named_by(table: Path, text: str) -> Path:
    """Return what a cell of a table means: an address, a path, or what lies there as seen from the table."""
    if is_url(text):
        return path_of(text)
    if isinstance(table, RemotePath):
        return table.beside(text)
    return table.parent / text


def _manifest_mpp(cell: str, number: int, mistakes: list[str]) -> float | None:
    if not cell:
        return None
    value = number_of(cell)
    if not 0.02 <= value <= 10:
        mistakes.append(f"line {number}: mpp `{cell}` is no number of µm per pixel between 0.02 and 10")
        return None
    return value


def _drop_repeats(entries: list[SlideEntry], notes: list[str], series: Series) -> list[SlideEntry]:
    first: dict[str, SlideEntry] = {}
    for entry in sorted(entries, key=lambda entry: entry.path.is_symlink()):  # the file itself before links to it
        same = first.setdefault(series.key(entry.path), entry)
        if same is not entry:
            one, kept = ((e.slide_id if series.uid(e.path) else e.path.name) for e in (entry, same))
            other = "" if one == kept else f", as {kept}"
            notes.append(f"{one} was given more than once and is taken once{other}")
    return list(first.values())


def _common_folder(sources: Sequence[Path]) -> Path:
    """Return the folder that holds all sources: what paths are told apart by, wherever it is moved to."""
    here = [source for source in sources if not isinstance(source, RemotePath)]
    folders = [source if source.is_dir() else source.parent for source in here] or [Path()]
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _name_apart(entries: list[SlideEntry], base: Path) -> tuple[list[SlideEntry], list[str]]:
    """Give slides of one stem different names; names that differ by case or accent form alone collide too."""
    groups: dict[str, list[SlideEntry]] = defaultdict(list)
    for entry in entries:
        groups[same_name(entry.slide_id)].append(entry)
    taken = {name for name, group in groups.items() if len(group) == 1}
    named: list[SlideEntry] = []
    notes: list[str] = []
    for group in groups.values():
        if len(group) == 1:
            named.append(group[0])
            continue
        for entry in group:
            named.append(name_after_path(entry, base, taken))
            taken.add(same_name(named[-1].slide_id))
        notes.append(
            f"{len(group)} slides are called {group[0].slide_id}: "
            + ", ".join(entry.slide_id for entry in named[-len(group) :])
        )
    return named, notes


def same_name(name: str) -> str:
    """Return what two names share that a file system without case or accent forms would take for one."""
    return unicodedata.normalize("NFKC", name).casefold()


def name_after_path(entry: SlideEntry, base: Path, taken: Collection[str]) -> SlideEntry:
    """Return the slide with a short hash of its path in its name: relative to `base`, absolute where that is taken."""
    if isinstance(entry.path, RemotePath):
        texts = [str(entry.path)]
    else:
        path = os.path.abspath(entry.path)  # noqa: PTH100 - a link keeps the name it was given
        texts = [Path(os.path.relpath(path, base)).as_posix(), path]
    for text in texts:
        slide_id = f"{entry.slide_id}__{_short_hash(text)}"
        if same_name(slide_id) not in taken:
            break
    case_id = slide_id if entry.case_id == entry.slide_id else entry.case_id
    return replace(entry, slide_id=slide_id, case_id=case_id)


def one_line(text: str) -> str:
    """Return text in which a name may stand, on one line that no terminal obeys."""
    from wsi.errors import printable

    return printable(text, limit=_LONGEST_NOTE)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _nothing(sources: Sequence[Path], seen: list[Path]) -> str:
    where = ", ".join(str(source) for source in sources)
    if not seen:
        return f"{where}: no slide found, and no other file either. Give the folder that holds the slides."
    examples = ", ".join(one_line(path.name) for path in seen[:3])
    return (
        f"{where}: no slide among {len(seen)} files (e.g. {examples}). "
        "Slides are .svs, .tif, .tiff, .ndpi, .mrxs, .scn, .bif, .vms, .dcm, .qptiff …; "
        "give the folder that holds them, or a CSV with a column `path`."
    )
