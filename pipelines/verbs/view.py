"""The verb that shows a job in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, say

from .options import Json, Verbose, Weights

Folder = Annotated[Path, typer.Argument(help="Job folder, or a folder of TRIDENT, CLAM or STAMP (with --slides).")]


@guarded
def serve(
    job: Folder,
    slides: Annotated[
        list[Path] | None, typer.Option(help="Where the slides lie, if not where the job says; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which a proxy (Jupyter …) asks; may be repeated.")
    ] = None,
    review: Annotated[Path | None, typer.Option(help="Table of decisions (default: JOB/review.csv).")] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="µm per pixel, where slides do not say.")] = None,
    footprint: Annotated[int | None, typer.Option(help="Side of a tile in level-0 pixels (CLAM).")] = None,
    weights: Weights = None,
    json_: Json = False,
    verbose: Verbose = False,
) -> int:
    """Look at slides, scores and reviews in a browser: one port of this machine, until Ctrl-C.

    Example: slidemil serve job
    """
    import json

    from pipelines.formats.slide_features import Given
    from pipelines.viewer import server

    wish = server.Wish(
        slides=tuple(slides or ()),
        host=host,
        port=port,
        allow_hosts=tuple(allow_host or ()),
        review=review,
        given=Given(mpp=slide_mpp, footprint=footprint),
        weights=weights,
    )

    ready = server.Server(job, wish)
    if json_:
        say(json.dumps({"status": "serving", "url": ready.url, "slides": ready.slides}))
    else:
        for line in server.spoken(ready.url, ready.slides, host):
            say(line)
    ready.run()
    return 0
