"""DICOM slides through wsidicom: what OpenSlide refuses, and what it would show in wrong colours.

wsidicom says which frame lies where; JPEG frames are decoded here, because it believes the tag where the stream's own
markers name other colours.
"""

from __future__ import annotations

import threading
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi import mpp as pixel_size
from wsi.dicom_header import read_dicom_header
from wsi.dicom_series import series_files
from wsi.errors import NotBrightfieldError, SlideError, UnreadableSlideError
from wsi.geometry import downsample_of
from wsi.jpeg_header import read_header
from wsi.readers.base import Facts
from wsi.readers.mosaic import MosaicSlide
from wsi.readers.tiff import decode_jpeg
from wsi.slide import Level

_WHOLE_SERIES = "Copy the whole series again."
INSTALL = "Install the reader for it: pip install 'slidemil[dicom]'"
_BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
_YCBCR = "YBR_FULL"
_DECODED_TO_RGB = ("RGB", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations whose frames decoders give as RGB."""
_LOOKS = 5
"""Frames per axis that are looked at where tag and stream name different colours."""


class DicomSlide(MosaicSlide):
    """A DICOM series that wsidicom reads: sparse or full, in one file per level or in several.

    Of several focal planes the one that wsidicom takes for the middle is shown, and `reader` says so.

    Raises:
        UnreadableSlideError: wsidicom is not installed or does not take it, or its colours cannot be told.
        NotBrightfieldError: its channels are not red, green and blue.
    """

    def __init__(self, path: Path, *, slide_mpp: float | None = None, manifest_mpp: float | None = None) -> None:
        self._handle = _open(path)
        try:
            _check_files(self._handle, path)
            levels = _levels(self._handle, path.name)
            self._instances = [instance for instance, _ in levels]
            self._jpeg = [_is_jpeg(instance) for instance in self._instances]
            self._colour: Literal["rgb", "ycbcr"] = (
                _colour_of(self._instances[0], path.name) if self._jpeg[0] else "rgb"
            )
            super().__init__(
                _facts(path, levels, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp),
                tuple((i.tile_size.width, i.tile_size.height) for i in self._instances),
            )
        except BaseException as error:
            self._handle.close()
            if isinstance(error, SlideError) or not isinstance(error, Exception):
                raise
            raise _refused(path.name, error) from error.with_traceback(None)
        self._lock = threading.Lock()  # frames are fetched by a seek and a read

    def _load(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        instance = self._instances[level]
        if not self._jpeg[level]:
            with self._lock:
                pixels = _decoded(instance, column, row)
            return _rgb_of_ycbcr(pixels) if pixels is not None and _photometric(instance) == _YCBCR else pixels
        with self._lock:
            data = _encoded(instance, column, row)
        if data is None:
            return None
        tile = instance.tile_size
        return decode_jpeg(data, None, self._colour, tile.height, tile.width)

    def _close(self) -> None:
        with self._lock:
            self._handle.close()


def _facts(
    path: Path, levels: list[tuple[Any, Level]], *, slide_mpp: float | None, manifest_mpp: float | None
) -> Facts:
    first = levels[0][0]
    power, icc = _optics(first)
    spacing = first.pixel_spacing
    stated = (None, None) if spacing is None else (spacing.width * 1000, spacing.height * 1000)
    value, problem = pixel_size.resolve(
        stated, "dicom.PixelSpacing", power, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp
    )
    return Facts(
        path=path,
        name=path.name,
        reader=f"wsidicom {version('wsidicom')}{_plane_shown(first)}",
        levels=tuple(level for _, level in levels),
        vendor="dicom",
        mpp=value,
        mpp_problem=problem,
        objective_power=power,
        icc=icc,
    )


def _open(path: Path) -> Any:
    try:
        import wsidicom
    except ImportError:
        what = "OpenSlide refuses it or would show it in wrong colours, and wsidicom is not installed"
        raise UnreadableSlideError(path.name, what, INSTALL) from None
    from wsidicom.config import Settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return wsidicom.WsiDicom.open(series_files(path), settings=Settings(strict_tile_size_check=False))
        except Exception as error:  # the border: its own kinds, pydicom's, and whatever damage provokes
            raise _refused(path.name, error) from error.with_traceback(None)


def _check_files(handle: Any, path: Path) -> None:
    """Refuse a series of which files are missing or were passed over: their tiles would be taken for glass.

    Raises:
        UnreadableSlideError: says which.
    """
    used = {Path(str(file)).resolve() for file in handle.files or ()}
    for file in series_files(path):
        header = read_dicom_header(file)
        if header is not None and header.is_level and file.resolve() not in used:
            raise UnreadableSlideError(path.name, f"{file.name} of the same series cannot be read", _WHOLE_SERIES)
    for level in handle.pyramids:
        for group in level:
            _check_parts(group.default_instance, path.name)


def _check_parts(instance: Any, name: str) -> None:
    """Refuse a level that is cut into files (a concatenation) of which some are missing."""
    import pydicom

    tags = ["ConcatenationUID", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber", "NumberOfFrames"]
    parts, total = [], 1
    for file in instance.image_data.files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = pydicom.dcmread(str(file), stop_before_pixels=True, specific_tags=tags)
        if "ConcatenationUID" not in head:
            return
        parts.append((int(head.get("ConcatenationFrameOffsetNumber", 0)), int(head.NumberOfFrames)))
        total = int(head.get("InConcatenationTotalNumber") or total)
    parts.sort()
    begins = [begin for begin, _ in parts]
    ends = [begin + frames for begin, frames in parts]
    if len(parts) < total or begins != [0, *ends[:-1]]:
        what = f"a level is cut into several files, of which {len(parts)} are here and some are missing"
        raise UnreadableSlideError(name, what, _WHOLE_SERIES)


def _refused(name: str, error: Exception) -> UnreadableSlideError:
    return UnreadableSlideError(name, f"wsidicom cannot open it ({error or type(error).__name__})")


def _levels(handle: Any, name: str) -> list[tuple[Any, Level]]:
    """Return the images of the largest pyramid that show what its sharpest one shows, sharpest first."""
    pyramid = max(handle.pyramids, key=lambda one: one.base_level.size.width * one.base_level.size.height)
    first = pyramid.base_level
    levels = []
    for group in pyramid:
        size = group.size.width, group.size.height
        downsample = downsample_of((first.size.width, first.size.height), size)
        if downsample is not None:
            _check(group, name)
            levels.append((group.default_instance, Level(*size, downsample)))
    return levels


def _check(group: Any, name: str) -> None:
    image = group.default_instance.image_data
    if image.samples_per_pixel != 3 or image.bits != 8:
        what = f"it holds {image.samples_per_pixel} channels of {image.bits} bits, not red, green and blue of 8"
        raise NotBrightfieldError(
            name, what, "Leave it out: only stained slides scanned under white light can be used."
        )
    photometric = _photometric(group.default_instance)
    if not _is_jpeg(group.default_instance) and photometric not in (*_DECODED_TO_RGB, _YCBCR):
        what = f"its colours are stored as {photometric}, without JPEG, which no reader shows rightly"
        raise UnreadableSlideError(name, what, "Have it written anew by the scanner's software.")
    if len(group.optical_paths) > 1:
        raise several_paths(name, len(group.optical_paths))


def several_paths(name: str, count: int) -> UnreadableSlideError:
    """Return the refusal of a slide that was scanned in several ways, of which none is the one meant."""
    what = (
        f"it holds {count} optical paths (the same tissue under different light), and none is marked as the one to use"
    )
    return UnreadableSlideError(name, what, "Export the brightfield path alone as a DICOM series of its own.")


def _photometric(instance: Any) -> str:
    return str(instance.image_data.photometric_interpretation)


def _rgb_of_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB of full-range YCbCr: wsidicom hands frames out as they are stored. Source: DICOM PS3.3 C.7.6.3.1.2."""
    from PIL import Image

    height, width = pixels.shape[:2]
    return np.asarray(Image.frombytes("YCbCr", (width, height), pixels.tobytes()).convert("RGB"))


def _is_jpeg(instance: Any) -> bool:
    return str(instance.image_data.transfer_syntax) == _BASELINE_JPEG


def _optics(instance: Any) -> tuple[float | None, bytes | None]:
    """Return the objective's power and the colour profile, of which wsidicom's own face makes no use."""
    import pydicom

    file = str(instance.image_data.files[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["OpticalPathSequence"])
    path = (paths.get("OpticalPathSequence") or [{}])[0]
    profile = path.get("ICCProfile")
    return pixel_size.parse_number(path.get("ObjectiveLensPower")), bytes(profile) if profile else None


def _plane_shown(instance: Any) -> str:
    planes = list(instance.focal_planes)
    if len(planes) < 2:
        return ""
    return f" (focal plane {planes.index(instance.default_z) + 1} of {len(planes)})"


def _place(instance: Any, column: int, row: int) -> tuple[Any, float, str] | None:
    """Return where wsidicom keeps a tile, None where the slide has none there."""
    from wsidicom.geometry import Point

    where = Point(column, row), instance.default_z, instance.default_path
    return None if instance.image_data.is_sparse(*where) else where


def _encoded(instance: Any, column: int, row: int) -> bytes | None:
    where = _place(instance, column, row)
    return None if where is None else bytes(instance.image_data.get_encoded_tile(*where))


def _decoded(instance: Any, column: int, row: int) -> NDArray[np.uint8] | None:
    where = _place(instance, column, row)
    if where is None:
        return None
    pixels = np.asarray(instance.image_data.get_decoded_tile(*where, cache=False))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"the frame holds {pixels.dtype} of shape {pixels.shape}")
    return pixels


def _colour_of(instance: Any, name: str) -> Literal["rgb", "ycbcr"]:
    """Return the colours of JPEG frames that do not name them: what the tag says.

    Where the frames do name them, and the tag says otherwise, their pixels must bear them out.

    Raises:
        UnreadableSlideError: they do not.
    """
    tag: Literal["rgb", "ycbcr"] = "rgb" if _photometric(instance) == "RGB" else "ycbcr"
    size = instance.tiled_size
    spots = {
        (int(size.width * (i + 0.5) / _LOOKS), int(size.height * (j + 0.5) / _LOOKS))
        for i in range(_LOOKS)
        for j in range(_LOOKS)
    }
    frames = [data for data in (_encoded(instance, *spot) for spot in sorted(spots)) if data is not None]
    named = {read_header(data).colour for data in frames} - {None}
    if not named or named == {tag}:
        return tag
    looks = colours_seen(frames)
    if looks is None or named != {looks}:
        what = f"its tag says {tag.upper()}, its JPEG frames {' and '.join(sorted(map(str, named)))}, and the pixels"
        what += " fit neither" if looks is None else f" look like {looks}"
        raise UnreadableSlideError(
            name, what, "Its colours cannot be told: have it written anew by the scanner's software."
        )
    return tag


def colours_seen(frames: list[bytes]) -> str | None:
    """Return the colours that the channels of JPEG frames hold, `rgb` or `ycbcr`, None where that is unclear.

    Red, green and blue of a stained slide darken together; brightness and its two colour differences do not: a stain
    that darkens moves at least one of them the other way or not at all.
    """
    raw = [one for one in map(_undecided, frames) if one is not None]
    if not raw:
        return None
    channels = np.concatenate([one[::4, ::4].reshape(-1, 3) for one in raw]).T.astype(np.float32)
    if channels[0].std() < 4:
        return None
    with np.errstate(invalid="ignore"):
        correlation = np.asarray(np.corrcoef(channels))
    together = float(np.nan_to_num(correlation)[0, 1:].min())
    return "rgb" if together > 0.6 else "ycbcr" if together < 0.3 else None


def _undecided(data: bytes) -> NDArray[np.uint8] | None:
    """Return the channels of a JPEG as they are stored, None where it is damaged: that shows when it is read."""
    try:
        channels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data, colorspace="ycbcr", outcolorspace="ycbcr")
    except Exception:  # the border
        return None
    return channels
