"""What stains are normalized to: a built-in name, a reference file, or an image."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stain

from .config import ExtractSettings
from .errors import UsageError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")

Reference = str | stain.StainParams | stain.CohortReference | NDArray[np.uint8]


def reference_of(settings: ExtractSettings) -> Reference | None:
    """Return what `stain.fit` takes; None for its own default.

    Raises:
        UsageError: neither a name nor a file that can serve.
    """
    return reference_named(settings.stain_reference, settings.stain)


def reference_named(asked: str | None, method: str) -> Reference | None:
    """Return what `stain.fit` takes for `--reference`: a name, a JSON, or an image.

    Raises:
        UsageError: neither a name nor a file that can serve.
    """
    return asked if asked is None or asked in stain.REFERENCES else _read(asked, method)[0]


def reference_identity(settings: ExtractSettings) -> str | None:
    """Return what tells references apart: a name, or the hash of a file's bytes; None for the default."""
    asked = settings.stain_reference
    if asked is None or asked == stain.DEFAULT_REFERENCE:
        return None
    return asked if asked in stain.REFERENCES else f"sha256:{_read(asked, settings.stain)[1]}"


def check_reference(settings: ExtractSettings) -> None:
    """Refuse a reference that cannot serve before any slide is opened.

    Raises:
        UsageError: neither a name nor a file that can serve.
    """
    if settings.stain == "none" or settings.stain_reference is None:
        return
    try:
        stain.fit(settings.stain, np.zeros((0, 3), np.uint8), reference=reference_of(settings))
    except stain.StainError as error:
        raise UsageError(
            f"--stain-reference {settings.stain_reference}: {error} "
            f"On the command line: slidemil stain fit FOLDER -o reference.json --method {settings.stain}"
        ) from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) RGB; what is transparent shows white, as glass does.

    Raises:
        UsageError: it cannot be read as one, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with _large_ones(), Image.open(path) as opened:
            image: Image.Image = opened
            if image.mode.startswith(("I", "F")):  # converted, all above 255 would be white
                raise UsageError(
                    f"{path.name}: gray of more than 8 bits (mode {image.mode}). Stains need color: give RGB of 8 bits."
                )
            if image.has_transparency_data:
                tile = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", tile.size, (255, 255, 255, 255)), tile)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        raise UsageError(
            f"{path.name}: an image of more than {2e-6 * (Image.MAX_IMAGE_PIXELS or 0):.0f} megapixels is not read "
            "whole. Cut it into tiles, or make a slide of it: a tiled TIFF that states its µm/px."
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"{path.name}: cannot be read as an image ({error}). Give a PNG or JPEG.") from error


@contextmanager
def _large_ones() -> Iterator[None]:
    """Keep Pillow's warning of large images from the user: its limit, twice as high, is told as an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@lru_cache(maxsize=8)
def _read(asked: str, method: str) -> tuple[Reference, str]:
    """Return a file's reference and its hash: read once, so that a run has one reference."""
    path = Path(asked)
    try:
        data = path.read_bytes()
    except OSError as error:
        names = ", ".join(stain.REFERENCES)
        raise UsageError(
            f"--stain-reference {asked}: no built-in reference (there are: {names}), and no file that can be read "
            f"({error.strerror}). Make one: slidemil stain fit FOLDER -o reference.json"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix.lower() != ".json":
        # Fitted once here: each slide would fit the image anew.
        params = stain.fit(method, read_image(path))
        return params, digest
    try:
        tree: Any = json.loads(data)
        if isinstance(tree, dict) and tree.get("kind") is None:
            return stain.StainParams.from_json(tree), digest
        return stain.CohortReference.from_json(tree), digest
    except (ValueError, stain.StainError) as error:
        raise UsageError(f"--stain-reference {asked}: {error}") from error
