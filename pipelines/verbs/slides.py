"""Verbs that look at slides: info, scan, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import (
    Assign,
    BatchSize,
    CommercialOnly,
    Config,
    Dense,
    EncoderDevice,
    EncoderName,
    Force,
    Json,
    Limit,
    Masks,
    MaxBad,
    MaybeOut,
    Memory,
    MinTissue,
    Mpp,
    Offline,
    Outside,
    Overlap,
    Precision,
    Pseudonymize,
    Quiet,
    SlideMpp,
    Slides,
    Stain,
    StainReference,
    Tile,
    Upsampling,
    Verbose,
    Weights,
    Workers,
    extract_options,
    settings_from,
)


@guarded
def info(
    slides: Slides,
    slide_mpp: SlideMpp = None,
    allow_outside: Outside = False,
    json_: Json = False,
    verbose: Verbose = False,
) -> int:
    """What a slide is: reader, size, levels, µm per pixel and where it comes from.

    Example: slidemil info slides/a.svs
    """
    from pipelines.config import load_settings
    from pipelines.info import look
    from pipelines.manifest import Sources

    job = load_settings(options={"slide_mpp": slide_mpp}).extract  # refuses what a job refuses
    result = look(Sources(tuple(slides), allow_outside), slide_mpp=job.slide_mpp)
    show(result, json_)
    return result.exit_code


@guarded
def scan(
    slides: Slides,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV to write the inventory to.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV to write that `slidemil run` takes, with a column mpp to fill in.")
    ] = None,
    mpp: Mpp = None,
    tile: Tile = None,
    slide_mpp: SlideMpp = None,
    allow_upsampling: Annotated[bool, typer.Option("--allow-upsampling", help="Take coarser slides, too.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every tile of every slide: sure, and slow.")] = False,
    quality: Annotated[bool, typer.Option(help="Look for blur, pen, folds, bubbles and edges.")] = True,
    limit: Limit = None,
    allow_outside: Outside = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """An inventory of slides: what each is, what is odd about it, and whether a job would run.

    Example: slidemil scan slides/ -o inventory.csv --manifest manifest.csv
    """
    from pipelines import scan as stage
    from pipelines.config import load_settings
    from pipelines.manifest import Sources
    from pipelines.scan_slide import ScanSettings

    asked = {"mpp": mpp, "tile": tile, "slide_mpp": slide_mpp, "allow_upsampling": allow_upsampling}
    job = load_settings(options=asked).extract  # refuses what a job refuses
    settings = ScanSettings(
        mpp=min(job.scales),  # what is fine enough for the finest tiles is so for all
        tile=job.tile,
        slide_mpp=job.slide_mpp,
        allow_upsampling=job.allow_upsampling,
        max_bad_tiles=job.max_bad_tiles,
        deep=deep,
        quality=quality,
    )
    sources = Sources(tuple(slides), allow_outside)
    result = stage.scan(sources, settings, out=out, manifest=manifest, limit=limit, quiet=quiet)
    show(result, json_)
    return result.exit_code


@guarded
def plan(
    slides: Slides,
    out: MaybeOut = None,
    config: Config = None,
    set_: Assign = None,
    mpp: Mpp = None,
    tile: Tile = None,
    overlap: Overlap = None,
    min_tissue: MinTissue = None,
    slide_mpp: SlideMpp = None,
    masks: Masks = None,
    allow_upsampling: Upsampling = None,
    encoder: EncoderName = None,
    weights: Weights = None,
    stain: Stain = None,
    stain_reference: StainReference = None,
    device: EncoderDevice = None,
    precision: Precision = None,
    commercial_only: CommercialOnly = False,
    workers: Workers = None,
    memory: Memory = None,
    batch_size: BatchSize = None,
    max_bad_tiles: MaxBad = None,
    dense: Dense = False,
    probe: Annotated[
        float,
        typer.Option(min=1, help="Seconds to measure and count; three times that (at least 30) where things are slow."),
    ] = 20,
    limit: Limit = None,
    allow_outside: Outside = False,
    pseudonymize: Pseudonymize = None,
    force: Force = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Dry run of extract: tiles, GB, workers, memory, hours, and the bottleneck, from a short probe.

    With -o it counts only what that job lacks, says what would be done again and why, and leaves a record that the
    run is held against.

    Example: slidemil plan slides/ -o job --encoder resnet18 --weights resnet18.safetensors
    """
    from pipelines import stages
    from pipelines.manifest import Sources

    settings = settings_from(config, set_, extract_options(locals()))
    sources = Sources(tuple(slides), allow_outside, pseudonymize)
    result = stages.plan(sources, out, settings, seconds=probe, limit=limit, force=force, offline=offline, quiet=quiet)
    show(result, json_)
    return result.exit_code
