"""The installation, and the demo that shows it at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import Json, Quiet, SlideMpp, Verbose


@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Job folder of the demo.")] = Path("demo-job"),
    slide: Annotated[Path | None, typer.Option(help="A slide of your own: extraction and pictures of it.")] = None,
    slide_mpp: SlideMpp = None,
    seed: Annotated[int, typer.Option(help="Another seed, other slides.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """The whole job on a small real input: offline, on a CPU, in under 90 s.

    Example: slidemil demo
    """
    from pipelines import demo as stage

    if slide is not None:
        outcome = stage.demo_slide(slide, out, slide_mpp=slide_mpp, quiet=quiet)
        show(outcome, json_)
        return outcome.exit_code
    result = stage.demo(out, seed=seed, quiet=quiet)
    show(result, json_)
    return result.exit_code


@guarded
def doctor(json_: Json = False, verbose: Verbose = False) -> int:
    """Check the installation, and say how to mend it.

    Example: slidemil doctor
    """
    from pipelines.doctor import examine

    result = examine()
    show(result, json_)
    return result.exit_code
