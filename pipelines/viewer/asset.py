"""The one file of the page that is not ours: OpenSeadragon, put here by `make viewer`."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import EnvironmentFault

FOLDER = Path(__file__).parent / "asset"
SCRIPT = "openseadragon.min.js"


def check() -> None:
    """Refuse to serve a page that cannot work.

    Raises:
        EnvironmentFault: the file is not there, or the server's packages are not.
    """
    import importlib.util

    lacking = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        raise EnvironmentFault(f"serve needs {' and '.join(lacking)}: pip install 'slidemil[viewer]'.")
    if not (FOLDER / SCRIPT).is_file():
        raise EnvironmentFault(
            f"serve needs OpenSeadragon, which is not built into this installation ({FOLDER / SCRIPT}). "
            "In a checkout: make viewer (needs npm). Else install a wheel that was built after that."
        )
