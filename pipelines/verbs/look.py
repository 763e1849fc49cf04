"""Verbs that show what a job holds: heatmap, report, status, why, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import Features, Force, Job, Json, Limit, Model, Offline, Quiet, Select, Verbose, Weights


@guarded
def heatmap(
    job: Job,
    model: Model,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="attention (default), lrp, perturbation, integrated-gradients, gradient-input, smoothgrad, gradcam, "
            "rollout, attention-raw, or all that head and encoder support; may be repeated."
        ),
    ] = None,
    slide: Annotated[list[str] | None, typer.Option(help="Only this slide; may be repeated.")] = None,
    select: Select = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="Class to explain (default: the positive, or the predicted one).")
    ] = None,
    scale: Annotated[str, typer.Option(help="How attention is colored: log-ratio, rank or raw.")] = "log-ratio",
    zarr: Annotated[bool, typer.Option("--zarr", help="Write an OME-Zarr beside the OME-TIFF.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Rank the methods: deletion, insertion, stability, sanity, truth.")
    ] = False,
    truth: Annotated[
        Path | None, typer.Option(help="Folder of SLIDE.geojson with true regions, for --compare (default: JOB/truth).")
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option(help="Folder with a folder of example tiles for each concept (TCAV).")
    ] = None,
    weights: Weights = None,
    offline: Offline = False,
    features: Features = None,
    limit: Limit = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Draw why the model says what it says: pictures, raw scores, QuPath GeoJSON, OME-TIFF, top and bottom tiles.

    Example: slidemil heatmap job --model gated_abmil --method all --compare
    """
    from pipelines import heatmap_stage

    result = heatmap_stage.heatmap(
        job,
        model,
        methods=method or ("attention",),
        slides=slide or (),
        select=select,
        target=class_,
        scale=scale,
        zarr=zarr,
        compare=compare,
        truth=truth,
        concepts=concepts,
        weights=weights,
        features=features,
        limit=limit,
        force=force,
        offline=offline,
        quiet=quiet,
    )
    show(result, json_)
    return result.exit_code


@guarded
def report(job: Job, json_: Json = False, verbose: Verbose = False) -> int:
    """Write one HTML file that tells what the job did, and how good it is.

    Example: slidemil report job
    """
    from pipelines import stages

    result = stages.report(job)
    show(result, json_)
    return result.exit_code


@guarded
def status(job: Job, json_: Json = False, verbose: Verbose = False) -> int:
    """How far each slide of a job is, and why some failed.

    Example: slidemil status job
    """
    from pipelines import stages

    result = stages.status(job)
    show(result, json_)
    return result.exit_code


@guarded
def why(
    job: Job,
    slide: Annotated[str, typer.Argument(help="Name of the slide, or of its file.")],
    json_: Json = False,
    verbose: Verbose = False,
) -> int:
    """What became of one slide, in plain words, and the command that mends it.

    Example: slidemil why job slide-17
    """
    from pipelines import stages

    result = stages.why(job, slide)
    show(result, json_)
    return result.exit_code


@guarded
def verify(
    job: Job,
    slides: Annotated[bool, typer.Option(help="Hash the slides, too: about a second per GB.")] = True,
    redo: Annotated[bool, typer.Option("--redo", help="Let the next run make anew what is found wrong.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Hash slides, settings, outputs, models, records and ledgers again; exit code 7 where something differs.

    Example: slidemil verify job
    """
    from pipelines import stages

    result = stages.verify(job, slides=slides, redo=redo, quiet=quiet)
    show(result, json_)
    return result.exit_code
