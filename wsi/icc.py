"""ICC profiles: what a scanner says its colours mean, and pixels turned into sRGB by it.

By default a profile is told and not applied: encoders were trained on pixels as the scanners wrote them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UnreadableSlideError, printable

CHOICES = ("none", "srgb")
"""What may be done about a profile: leave the pixels alone, or turn them into sRGB."""
_LARGEST = 64 * 2**20
_HEADER = 128


@dataclass(frozen=True)
class ColorProfile:
    """The profile of a slide.

    Attributes:
        data: its bytes, as they stand in the file.
        description: what it calls itself, "" where it does not say or is damaged.
        problem: why it cannot be used, None where it can.
    """

    data: bytes
    description: str
    problem: str | None


def profile_of(data: bytes | None) -> ColorProfile | None:
    """Return the profile that these bytes are, None where there are none. Damage is told, not raised."""
    if not data:
        return None
    try:
        transform = ToSrgb(data)
    except Exception as error:  # the border: the library's own kind, and whatever damage provokes
        return ColorProfile(data, "", printable(str(error) or type(error).__name__, limit=80))
    return ColorProfile(data, transform.description, None)


def to_srgb(profile: ColorProfile, name: str) -> ToSrgb:
    """Return what turns a slide's pixels into sRGB.

    Raises:
        UnreadableSlideError: the profile cannot be used.
    """
    if profile.problem is not None:
        what = f"its colour profile cannot be used ({profile.problem})"
        raise UnreadableSlideError(name, what, "Take its pixels as they are: --set icc=none")
    return ToSrgb(profile.data)


class ToSrgb:
    """Pixels as a scanner wrote them → sRGB, with the intent that the profile asks for. Threads may share it.

    Args:
        data: the profile.

    Raises:
        ValueError: it is no profile of red, green and blue.
    """

    def __init__(self, data: bytes) -> None:
        from PIL import ImageCms

        _check(data)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        self._data = data
        self.description = printable((ImageCms.getProfileDescription(profile) or "").strip(), limit=80)
        self._transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)

    def __reduce__(self) -> tuple[type[ToSrgb], tuple[bytes]]:
        """Travel to another process as the profile."""
        return ToSrgb, (self._data,)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return sRGB (H, W, 3) of RGB (H, W, 3) as read."""
        from PIL import Image, ImageCms

        image = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels)), self._transform)
        return np.asarray(image)


def _check(data: bytes) -> None:
    """Look at the header before a library does. Source: ICC.1:2010 §7.2."""
    if not _HEADER < len(data) <= _LARGEST or data[36:40] != b"acsp":
        raise ValueError("it is no ICC profile")
    if int.from_bytes(data[:4], "big") > len(data):
        raise ValueError(f"it is cut short: {len(data):,} of {int.from_bytes(data[:4], 'big'):,} bytes")
    space = data[16:20].decode("ascii", "replace").strip()
    if space != "RGB":
        raise ValueError(f"it is for {space} colours, not RGB")
