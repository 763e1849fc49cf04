"""Every error that leaves this package; a batch catches `SlideError` per slide, anything else is a bug.

SlideError
├── UnreadableSlideError     not a slide, truncated, damaged, or of a kind no reader knows
│   └── OtherPictureError    readers would show another picture than the slide
├── NotBrightfieldError      fluorescence, a label mask, several channels, or a wrong colour model
├── MppError
│   ├── MissingMppError      the file does not state its pixel size
│   └── ImplausibleMppError  the stated pixel size cannot be true
├── MaskError                an outline of tissue that was drawn by hand cannot be used
├── TooCoarseError           the slide is coarser than the asked µm/px
├── GridError                no grid of whole pixels is near enough to the asked tile width
└── TileReadError            one region could not be read
    └── FetchError           the network did not give its bytes: nothing says that they are damaged
"""

from __future__ import annotations

_LONGEST = 300
"""Signs of an error as people see it: name, what was found, and the mend."""
_LONGEST_NAME, _LONGEST_MEND = 80, 130
COPY_AGAIN = "Copy or download the slide again."
"""What helps against bytes that no decoder takes."""


def printable(text: str, *, limit: int = 300) -> str:
    """Return `text` on one line: control and direction marks escaped, the middle cut beyond `limit`."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(safe) <= limit:
        return safe
    half = (limit - 1) // 2
    return f"{safe[:half]}…{safe[-half:]}"


class SlideError(Exception):
    """Something about one slide; its text is the name, what was found, and what to do.

    Attributes:
        slide: the file name, unescaped.
        what: what was found and why it is a problem, without a full stop.
        mend: what the user can do, as whole sentences; may be empty.
    """

    def __init__(self, slide: str, what: str, mend: str = "") -> None:
        super().__init__(slide, what, mend)
        self.slide = slide
        self.what = what.rstrip(". ")
        self.mend = mend

    def fitted(self) -> tuple[str, str, str]:
        """Return name, what and mend, printable, each cut in its middle where all three would be over 300 signs."""
        name, mend = printable(self.slide, limit=_LONGEST_NAME), printable(self.mend, limit=_LONGEST_MEND)
        return name, printable(self.what, limit=_LONGEST - len(f"{name}: . {mend}")), mend

    def __str__(self) -> str:
        name, what, mend = self.fitted()
        return f"{name}: {what}. {mend}".rstrip()


class UnreadableSlideError(SlideError):
    """The file cannot be opened, is no slide, is cut short, or no reader can take it."""


class OtherPictureError(UnreadableSlideError):
    """Any other reader would show another picture of the file than its largest: none is asked."""


class NotBrightfieldError(SlideError):
    """The picture is not stained tissue under white light, or its colours are not RGB."""


class MppError(SlideError):
    """The width of a pixel in µm is not known well enough to cut tiles of a physical size."""


class MissingMppError(MppError):
    """The file does not state its pixel size."""


class ImplausibleMppError(MppError):
    """The stated pixel size cannot be true."""


class MaskError(SlideError):
    """An outline of tissue that was drawn by hand cannot be used for this slide."""


class TooCoarseError(SlideError):
    """The slide is coarser than the asked µm/px, and upsampling was not allowed."""


class GridError(SlideError):
    """No tile of whole pixels is within 1 % of the asked width."""


class TileReadError(SlideError):
    """One region could not be read; the slide may still serve others."""


class FetchError(TileReadError):
    """The network did not give the bytes of a region, however often it was asked; they may be whole."""
