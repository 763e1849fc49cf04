"""Verbs that exchange features with other tools: convert, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import Json, Quiet, SlideMpp, Verbose

Sources = Annotated[list[str], typer.Argument(help="Feature files, folders (searched recursively), or a .zarr store.")]
EncoderOf = Annotated[
    str | None, typer.Option("--encoder", help="What made the features, or which of several to take.")
]
Footprint = Annotated[int | None, typer.Option(help="Side of a tile in level-0 px, where no file says it.")]
TileSide = Annotated[int | None, typer.Option("--tile", help="Side of a tile in px as the encoder saw it.")]


@guarded
def convert(
    sources: Sources,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to write to; with --to zarr also an fsspec URL.")],
    to: Annotated[
        str,
        typer.Option(help="slidemil (a job to train on), trident, clam, stamp, slide2vec, atlaspatch, anndata, zarr."),
    ] = "slidemil",
    came_from: Annotated[
        str | None, typer.Option("--from", help="Format of the sources, where content misleads.")
    ] = None,
    slide_mpp: SlideMpp = None,
    slides: Annotated[
        Path | None, typer.Option(help="CSV with slide_id and mpp (and footprint) of each slide.")
    ] = None,
    encoder: EncoderOf = None,
    footprint: Footprint = None,
    tile: TileSide = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Features of TRIDENT, CLAM, STAMP, slide2vec and AtlasPatch to ours, and ours to theirs, AnnData or zarr.

    Example: slidemil convert CLAM-results/ -o job --slide-mpp 0.25
    """
    from pipelines import convert as stage
    from pipelines.formats.slide_features import Given

    given = Given(mpp=slide_mpp, footprint=footprint, tile=tile, encoder=encoder)
    result = stage.convert(sources, out, to, came_from=came_from, given=given, slides=slides)
    show(result, json_)
    return result.exit_code


@guarded
def check(sources: Sources, json_: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> int:
    """What feature files are, whether they are whole, and whether they may be mixed.

    Example: slidemil check features_uni/ other/a.h5
    """
    from pipelines import convert as stage

    result = stage.check(sources)
    show(result, json_)
    return result.exit_code
