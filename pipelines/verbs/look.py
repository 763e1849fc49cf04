"""Verbs that show what a job holds: heatmap, report, status."""

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
