"""Which reader opens a file: a look at what it is, then the readers in turn."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from wsi.dicom_header import PHOTOMETRIC as DICOM_PHOTOMETRIC
from wsi.dicom_header import read_dicom_header
from wsi.dicom_series import same_twice
from wsi.errors import (
    COPY_AGAIN,
    FetchError,
    NotBrightfieldError,
    OtherPictureError,
    SlideError,
    TileReadError,
    UnreadableSlideError,
    printable,
)
from wsi.geometry import downsample_of
from wsi.icc import CHOICES, to_srgb
from wsi.jpeg_header import read_header
from wsi.ranges import NoRangesError, RemoteError, RemoteFile
from wsi.readers.base import BaseSlide
from wsi.remote_path import RemotePath, path_of
from wsi.slide import Slide
from wsi.sources import RangeSource, fetch_error
from wsi.staging import Staging
from wsi.tiff_directory import (
    COMPRESSION,
    LONGEST_TEXT,
    PHOTOMETRIC,
    SOFTWARE,
    XMP,
    Directory,
    TiffFile,
    TiffProblemError,
)

SUFFIXES = frozenset(
    """.svs .svslide .tif .tiff .btf .ptif .qptiff .ndpi .ndpis .scn .mrxs .bif .vms .vmu .dcm .czi .avs
    .isyntax""".split()  # noqa: SIM905  # quicker to read than 18 quoted lines
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COPY = "Copy or download it again."
_JPEG, _RGB, _YCBCR = 7, 2, 6
_GREY = {0, 1}
NOT_ALONE = {".mrxs", ".vms", ".vmu", ".ndpis", ".dcm"}
"""Slides that may be several files."""

_PROBED = ((0.5, 0.5), (0.2, 0.2), (0.8, 0.8), (0.2, 0.8), (0.8, 0.2))
"""Places of the smallest level that are tried in turn, shares of its width and height."""

Open = Callable[..., BaseSlide]


def open_slide(
    path: str | Path,
    *,
    slide_mpp: float | None = None,
    manifest_mpp: float | None = None,
    icc: str = "none",
    low_band: bool = False,
) -> Slide:
    """Open a slide with the reader that can read it, chosen by the file's content.

    OpenSlide serves what it fully supports. OME-TIFF, whose levels it does not see, and TIFF that it refuses (untiled,
    other compressions) are read with tifffile; DICOM that it refuses or would show in wrong colours with wsidicom. A
    TIFF's directories are checked before any pixel is asked for. Tiles that can be taken straight from the file are
    compared with what the reader shows; where they differ, a third decides.

    Args:
        path: the file, or its address (`https://…`, `s3://…`; see `wsi.address`). Only regular files are opened.
        slide_mpp: µm/px, used only where the file's own value is missing or refused.
        manifest_mpp: µm/px of this very slide; used always.
        icc: `srgb` turns tiles and thumbnails into sRGB by the file's colour profile, where it has one; `none` leaves
            them alone.
        low_band: let the stream reduce JPEG 2000 by leaving out its finer bands. About twice as fast, but no area
            mean: sharper, and half a pixel of the full size off.

    Returns:
        The slide. A missing pixel size is no error here: `mpp` is None and `mpp_problem` says why.

    Raises:
        UnreadableSlideError: not a slide, cut short, damaged, or of a kind that no reader takes.
        NotBrightfieldError: one grey channel, or several that are not RGB.
        ValueError: `icc` is neither.
    """
    if icc not in CHOICES:
        raise ValueError(f"icc must be one of {', '.join(CHOICES)}, not {icc}")
    path = path_of(path) if isinstance(path, str) else path
    opened = _open_address if isinstance(path, RemotePath) else _open
    slide = opened(path, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp, low_band=low_band)  # type: ignore[arg-type]
    if icc == "srgb" and slide.profile is not None:
        try:
            slide.convert = to_srgb(slide.profile, slide.name)
        except SlideError:
            slide.close()
            raise
    return slide


def _open(path: Path, *, slide_mpp: float | None, manifest_mpp: float | None, low_band: bool) -> BaseSlide:
    head = _head_of_regular_file(path)
    failures: list[SlideError] = []
    readers = _readers(path, head)
    for reader in readers:
        try:
            slide = reader(path, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
        except (NotBrightfieldError, OtherPictureError):
            raise
        except SlideError as error:
            failures.append(error)
            continue
        try:
            _probe(slide)
        except SlideError as error:
            slide.close()
            failures.append(error)
        else:
            if not head.startswith(_TIFF):
                return slide
            return _with_native_tiles(slide, low_band=low_band, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
    if head.startswith(_TIFF) and len(readers) > 1 and not any(isinstance(f, TileReadError) for f in failures):
        return _last_resort(path, head, failures, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
    raise _no_reader(path, head, failures)


def _open_address(
    path: RemotePath, *, slide_mpp: float | None, manifest_mpp: float | None, low_band: bool
) -> BaseSlide:
    """Open a slide that lies elsewhere: in pieces where its tiles can be taken straight from it, else as a copy."""
    if path.suffix.lower() in NOT_ALONE:
        what = f"a {path.suffix} slide may be several files, and is not read over the network"
        raise UnreadableSlideError(path.name, what, "Copy the whole of it to this disk.")
    try:
        try:
            source = RangeSource(path)
            if source.read(0, 4).startswith(_TIFF):
                slide = _piece_by_piece(source, low_band=low_band, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
                if slide is not None:
                    return slide
        except NoRangesError:
            pass
        copy = Staging.of_user().copy(path, RemoteFile.of(path).state())
    except RemoteError as error:
        raise fetch_error(error) from None
    slide = _open(copy.path, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp, low_band=low_band)
    slide.held = copy
    return slide


def _piece_by_piece(source: RangeSource, *, low_band: bool, **given: float | None) -> BaseSlide | None:
    """Open a slide of which every level's tiles can be taken straight from the file, None for any other."""
    from wsi.readers.tiff import TiffSlide

    try:
        with TiffFile(source) as tiff:
            if TiffSlide not in _choose_tiff_readers(source.path, tiff) or _by_rules_of_a_maker(tiff):
                return None
            levels = sum(directory.tiled and _is_level(directory, _largest(tiff)) for directory in tiff.every())
        slide: BaseSlide = TiffSlide(source, **given)
    except TiffProblemError as error:
        raise UnreadableSlideError(source.path.name, f"this TIFF is damaged: {error}", _COPY) from None
    except (FetchError, NotBrightfieldError):
        raise
    except SlideError:
        return None  # a reader on this disk may know it
    if len(slide.levels) == levels:
        slide = _with_native_tiles(slide, low_band=low_band)
        if slide.native is not None and all(slide.native.levels):
            return slide
    slide.close()
    return None


def _is_level(directory: Directory, largest: Directory) -> bool:
    return downsample_of((largest.width, largest.height), (directory.width, directory.height)) is not None


def _by_rules_of_a_maker(tiff: TiffFile) -> bool:
    """Say whether more than the TIFF tags says what the picture is: then only OpenSlide knows."""
    software = tiff.directories[0].numbers(SOFTWARE).tobytes()
    return tiff.is_ndpi or any(maker in software for maker in (b"Philips", b"MedScan", b"Hamamatsu"))


def _with_native_tiles(slide: BaseSlide, *, low_band: bool, **given: float | None) -> BaseSlide:
    """Let a slide's tiles be read straight from the file, where that shows the same pixels.

    Returns:
        The slide, or the same file with another reader if that one and our tiles agree against the slide's reader.
    """
    from wsi.readers.native_levels import find_native_tiles
    from wsi.readers.vote import settle

    native = find_native_tiles(slide, low_band=low_band)
    if native is None:
        return slide
    try:
        winner = settle(native, slide, lambda: _another_reader(slide, **given))
        if winner is not None:
            native.close()
            slide.close()
            slide, native = winner, find_native_tiles(winner, low_band=low_band)
            if native is not None:
                settle(native, slide, lambda: None)
    except SlideError:
        slide.close()
        raise
    if native is not None and any(native.levels):
        slide.native = native
    return slide


def _another_reader(slide: BaseSlide, **given: float | None) -> BaseSlide | None:
    """Open the file of a slide with a reader of another kind, None where no other takes it."""
    if isinstance(slide.path, RemotePath):
        return None  # the others need a file on this disk
    from wsi.readers.openslide import OpenSlideSlide
    from wsi.readers.tiff import TiffSlide
    from wsi.readers.tiffslide import TiffslideSlide

    for reader in (TiffSlide, OpenSlideSlide, TiffslideSlide):
        if not isinstance(slide, reader):
            try:
                return reader(slide.path, **given)
            except SlideError:
                continue
    return None


def _last_resort(
    path: Path, head: bytes, failures: list[SlideError], *, slide_mpp: float | None, manifest_mpp: float | None
) -> BaseSlide:
    """Ask tiffslide, which takes more kinds, only where no other reader knows the kind.

    Never after a failed read: it would show a damaged tile without a word.
    """
    from wsi.readers.tiffslide import TiffslideSlide

    try:
        return TiffslideSlide(path, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)
    except SlideError as error:
        failures.append(error)
    raise _no_reader(path, head, failures)


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: pipes and devices are never opened, for they may never answer.

    An address is neither, and every question to it has a time limit.

    Raises:
        UnreadableSlideError: it is none, or cannot be looked at.
    """
    if isinstance(path, RemotePath):
        return
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        raise _unopened(path, error) from error
    if stat.S_ISDIR(mode):
        raise UnreadableSlideError(path.name, "this is a folder, not a slide file", "Name the files in it.")
    if not stat.S_ISREG(mode):
        raise UnreadableSlideError(path.name, "this is no regular file (a pipe or a device)", "Name a slide file.")


def _unopened(path: Path, error: OSError) -> UnreadableSlideError:
    reason = error.strerror or type(error).__name__
    mend = "Check the path." if isinstance(error, FileNotFoundError) else "Check the path and your permissions."
    return UnreadableSlideError(path.name, f"the file cannot be opened ({reason})", mend)


def _head_of_regular_file(path: Path) -> bytes:
    """Return the first bytes of a regular file."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise _unopened(path, error) from error
    if not head:
        raise UnreadableSlideError(path.name, "the file is empty (0 bytes)", _COPY)
    return head


def _readers(path: Path, head: bytes) -> list[Open]:
    """Return the readers to be tried, best first.

    Raises:
        UnreadableSlideError: the file is of no kind that any reader takes, or its TIFF directories are broken.
        NotBrightfieldError: its channels are not red, green and blue.
    """
    if head.startswith(_TIFF):
        return _tiff_readers(path)
    from wsi.readers.openslide import OpenSlideSlide

    if _is_dicom(head):
        return _dicom_readers(path)
    data = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not data.is_dir():
        mend = f"Put the folder {data.name} beside it."
        raise UnreadableSlideError(
            path.name, f"the folder {data.name} that holds a MIRAX slide's data is missing", mend
        )
    what = _kind_of(head)
    if what is not None and path.suffix.lower() != ".mrxs":  # a MIRAX slide is a small JPEG beside its folder
        raise UnreadableSlideError(path.name, f"this is {what}, not a slide", _COPY)
    return [OpenSlideSlide]


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _dicom_readers(path: Path) -> list[Open]:
    from wsi.readers.dicom import DicomSlide, several_paths
    from wsi.readers.openslide import OpenSlideSlide

    header = read_dicom_header(path)
    if header is None or not header.is_slide:
        return [OpenSlideSlide]  # it says best what is wrong
    if header.optical_paths > 1:
        raise several_paths(path.name, header.optical_paths)
    if twice := same_twice(path):
        what = f"{' and '.join(twice)} are the same picture of its series"
        raise OtherPictureError(path.name, what, "Take one of them out of the folder.")
    stream = read_header(header.frame).colour
    if stream is not None and (stream == "rgb") != (header.text.get(DICOM_PHOTOMETRIC) == "RGB"):
        return [DicomSlide]  # OpenSlide believes the tag; the decoder needs what the stream says
    return [OpenSlideSlide, DicomSlide]


def _tiff_readers(path: Path) -> list[Open]:
    try:
        with TiffFile(path) as tiff:
            return _choose_tiff_readers(path, tiff)
    except TiffProblemError as error:
        raise UnreadableSlideError(path.name, f"this TIFF is damaged: {error}", _COPY) from None
    except OSError as error:
        raise UnreadableSlideError(path.name, f"the file cannot be read ({error.strerror})", _COPY) from error


def _choose_tiff_readers(path: Path, tiff: TiffFile) -> list[Open]:
    from wsi.readers.openslide import OpenSlideSlide
    from wsi.readers.tiff import TiffSlide

    _check_channels(path, tiff)
    first = tiff.directories[0]
    if any(sign in first.description for sign in ("<!DOCTYPE", "<!ENTITY")):
        what = "its XML description defines entities, which no scanner writes"
        raise UnreadableSlideError(path.name, what, "Export it anew from the scanner's software.")
    if "<OME" in first.description[:4096] or any(one.children for one in tiff.directories):
        return [TiffSlide, OpenSlideSlide]
    if any(_stitched(directory) for directory in tiff.directories):
        return [OpenSlideSlide]
    if _colours_contradict(_largest(tiff)):
        return [TiffSlide]  # OpenSlide believes the tag; the decoder needs what the stream says
    return [OpenSlideSlide, TiffSlide]


def _stitched(directory: Directory) -> bool:
    """Say whether a Leica or Ventana scanner wrote it: several parts or overlapping tiles make up their pictures.

    Only OpenSlide knows how; any other reader would show one part, or the overlaps twice, without a word.
    """
    if "leica-microsystems.com/scn" in directory.description[:4096]:
        return True
    notes = directory.tags.get(XMP)
    return notes is not None and notes.size <= LONGEST_TEXT and b"<iScan" in directory.numbers(XMP).tobytes()


def _largest(tiff: TiffFile) -> Directory:
    return max(tiff.every(), key=lambda d: d.width * d.height)


def _check_channels(path: Path, tiff: TiffFile) -> None:
    """Refuse what holds no red, green and blue: masks, fluorescence, multispectral pictures."""
    largest = _largest(tiff)
    if largest.samples == 1 and largest.number(PHOTOMETRIC, 1) in _GREY:
        planes = sum((d.width, d.height, d.samples) == (largest.width, largest.height, 1) for d in tiff.every())
        what = f"{planes} separate grey channels: a fluorescence or multispectral picture"
        if planes == 1:
            what = "one grey channel: a label mask or a fluorescence picture"
        raise NotBrightfieldError(path.name, f"it holds {what}, not a stained slide", _brightfield_mend())
    if largest.samples == 2 or largest.samples > 4:
        what = f"it holds {largest.samples} channels per pixel, not red, green and blue"
        raise NotBrightfieldError(path.name, what, _brightfield_mend())


def _brightfield_mend() -> str:
    return "Leave it out: only stained slides scanned under white light can be used."


def _colours_contradict(directory: Directory) -> bool:
    """Say whether the first JPEG tile names other colours than the TIFF tag does."""
    if directory.number(COMPRESSION, 1) != _JPEG:
        return False
    offsets, counts = directory.places
    full = counts.nonzero()[0]
    if not len(full):
        return False
    data = directory.file.read(int(offsets[full[0]]), min(int(counts[full[0]]), 65536))
    colour = read_header(data).colour
    tag = directory.number(PHOTOMETRIC, _RGB)
    return (colour == "ycbcr" and tag == _RGB) or (colour == "rgb" and tag == _YCBCR)


def _probe(slide: Slide) -> None:
    """Read a little of the smallest level: some files open and have no readable pixel. A damaged tile says nothing."""
    level = len(slide.levels) - 1
    last = slide.levels[level]
    width, height = min(64, last.width), min(64, last.height)
    problem: TileReadError | None = None
    for right, down in _PROBED:
        x, y = (last.width - width) * right * last.downsample[0], (last.height - height) * down * last.downsample[1]
        try:
            slide.read(int(x), int(y), width, height, level=level)
        except FetchError:
            raise
        except TileReadError as error:
            problem = problem or error
        else:
            return
    if problem is not None:
        raise problem


def _no_reader(path: Path, head: bytes, failures: list[SlideError]) -> UnreadableSlideError:
    dicom = _is_dicom(head)
    kind = "a TIFF" if head.startswith(_TIFF) else "a DICOM file" if dicom else "a file of unknown kind"
    whats = dict.fromkeys(printable(_plain(f.what, path), limit=130) for f in failures)
    again = "Copy it again, or write it anew as a standard DICOM slide." if dicom else _COPY
    mends = [f.mend for f in failures if f.mend not in ("", COPY_AGAIN)] or [again]
    error = UnreadableSlideError(path.name, f"{kind} that no reader takes: {'; '.join(whats)}", mends[0])
    error.__cause__ = failures[0] if failures else None
    return error


def _plain(what: str, path: Path) -> str:
    """Return a library's words without the folder of the file, and without objects of Python."""
    for folder in (os.path.realpath(path.parent), os.path.abspath(path.parent), str(path.parent)):  # noqa: PTH100
        what = what.replace(f"{folder}{os.sep}", "")
    return re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", "…", what)


def _kind_of(head: bytes) -> str | None:
    """Name what the file is where it is surely no slide, None where a reader may know it."""
    signs = (
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"%PDF", "a PDF document"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x00\x05\x16\x07", "the note that macOS leaves beside a copied file"),
        (b"version https://git-lfs", "a Git LFS pointer (the slide itself was not fetched: run `git lfs pull`)"),
    )
    for sign, what in signs:
        if head.startswith(sign):
            return what
    if head[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if not any(head):
        return "a file that begins with zeros"
    return None


def is_slide_file(path: str | Path) -> bool:
    """Say whether a search through a folder should take this file for a slide: a cheap look, no pixels.

    True for regular files with a slide's extension (also damaged ones: they deserve an error, not silence) and for
    TIFF and DICOM content without extension. False for hidden files and for pictures. Of a DICOM slide every file
    counts; `wsi.series_uid` tells which of them are one slide.
    """
    path = Path(path)
    if path.name.startswith("."):
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return False
    except OSError:
        return path.is_symlink() and path.suffix.lower() in SUFFIXES  # a dangling link deserves its error
    suffix = path.suffix.lower()
    if suffix:
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError:
        return False
    return head.startswith(_TIFF) or _is_dicom(head)
