"""Verbs that show what a job holds: heatmap, report, status, why, verify."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import Features, Force, Job, Json, Limit, Model, Quiet, Verbose


@guarded
def heatmap(
    job: Job,
    model: Model,
    method: Annotated[str, typer.Option(help="attention")] = "attention",
    slide: Annotated[list[str] | None, typer.Option(help="Only this slide; may be repeated.")] = None,
    features: Features = None,
    limit: Limit = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Draw where the model looks: picture, raw scores, QuPath GeoJSON, top tiles.

    Example: slidemil heatmap job --model gated_abmil
    """
    from pipelines import stages

    result = stages.heatmap(
        job, model, method=method, slides=slide or (), features=features, limit=limit, force=force, quiet=quiet
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
