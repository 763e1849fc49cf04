"""Feature files of other tools: which one is it, what does it hold, and how would they write ours.

One adapter per format; `NAMES` lists them. What a file is follows from its content, in the order of formats.md §2.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pipelines.errors import CheckFailedError, UsageError
from pipelines.files import open_h5

from .slide_features import Given, SlideFeatures

_READERS = ("stamp", "atlaspatch", "trident", "clam")
NAMES = {
    "slidemil": "trident",
    "trident": "trident",
    "clam": "clam",
    "stamp": "stamp",
    "slide2vec": "slide2vec",
    "atlaspatch": "atlaspatch",
    "anndata": "anndata_out",
}
"""Format → module; what slidemil writes, TRIDENT reads."""


def adapter(name: str) -> Any:
    """Return the module of a format.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in NAMES:
        raise UsageError(f"no format {name!r}: there are {', '.join(NAMES)}, and zarr.")
    return importlib.import_module(f".{NAMES[name]}", __name__)


def kind_of(path: Path) -> str:
    """Return the format of a file.

    Raises:
        CheckFailedError: it is none of the known ones, or cannot be opened.
    """
    if adapter("slide2vec").looks(path):
        return "slide2vec"
    if path.suffix == ".pt":
        return "clam"
    if path.suffix in (".pkl", ".pickle"):
        raise CheckFailedError(f"{path}: pickles could run code when read, and are refused.")
    try:
        with open_h5(path) as file:
            found = next((name for name in _READERS if adapter(name).looks(file)), None)
            content = ", ".join(sorted(file)[:6])
            ours = "encoder_passport" in file.attrs
    except OSError as error:
        raise CheckFailedError(f"{path}: not a whole HDF5 file ({str(error)[:100]}).") from error
    if found is None:
        what = (
            "coordinates without features"
            if content == "coords"
            else f"no features of tiles that are known ({content})"
        )
        raise CheckFailedError(f"{path}: {what}.")
    return "slidemil" if found == "trident" and ours else found


def read(path: Path, given: Given, *, kind: str | None = None) -> SlideFeatures:
    """Read the features of one slide from any known format.

    Raises:
        CheckFailedError: says what is wrong with the file, or what has to be told.
    """
    kind = kind or kind_of(path)
    try:
        found: SlideFeatures = adapter(kind).read(path, given)
    except (OSError, KeyError, ValueError, RuntimeError, IndexError, TypeError) as error:
        raise CheckFailedError(
            f"{path}: not what {kind} writes ({type(error).__name__}: {str(error)[:120]})."
        ) from error
    return found
