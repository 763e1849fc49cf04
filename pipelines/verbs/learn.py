"""Verbs on the features of a job: train, predict."""

from __future__ import annotations

from pipelines.console import guarded, show

from .options import (
    Assign,
    Config,
    Epochs,
    Features,
    Force,
    Head,
    Job,
    Json,
    LabelsFile,
    Model,
    Name,
    Pseudonymize,
    Quiet,
    Seed,
    Target,
    Verbose,
    settings_from,
    snake,
)


@guarded
def train(
    job: Job,
    labels: LabelsFile,
    head: Head = None,
    name: Name = None,
    target: Target = "label",
    features: Features = None,
    epochs: Epochs = None,
    seed: Seed = None,
    config: Config = None,
    set_: Assign = None,
    pseudonymize: Pseudonymize = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a head on the features of a job; patients held out say how good it is.

    Example: slidemil train job -l labels.csv --head gated-abmil
    """
    from pipelines import stages

    settings = settings_from(config, set_, {"head": snake(head), "epochs": epochs, "seed": seed})
    result = stages.train(
        job,
        labels,
        settings,
        name=name,
        target=target,
        features=features,
        keyfile=pseudonymize,
        force=force,
        quiet=quiet,
    )
    show(result, json_)
    return result.exit_code


@guarded
def predict(
    job: Job,
    model: Model,
    features: Features = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Predict every slide of a job.

    Example: slidemil predict job --model gated_abmil
    """
    from pipelines import stages

    result = stages.predict(job, model, features=features)
    show(result, json_)
    return result.exit_code
