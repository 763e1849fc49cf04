"""Verbs of stain normalization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import Json, Limit, Outside, Quiet, SlideMpp, Slides, Verbose


@guarded
def fit(
    slides: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file that --stain-reference takes.")],
    method: Annotated[str, typer.Option(help="macenko, vahadane or reinhard.")] = "macenko",
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles that are looked at.")] = 0.5,
    slide_mpp: SlideMpp = None,
    limit: Limit = None,
    allow_outside: Outside = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """One reference from many slides or images: the middle of their stains, odd ones without weight.

    Example: slidemil stain fit slides/ -o reference.json --method macenko
    """
    from pipelines.manifest import Sources
    from pipelines.stain_reference import fit_cohort

    result = fit_cohort(
        Sources(tuple(slides), allow_outside), out, method, mpp=mpp, slide_mpp=slide_mpp, limit=limit, quiet=quiet
    )
    show(result, json_)
    return result.exit_code
