"""Verbs on the features of a job: train, predict."""

from __future__ import annotations

from pipelines.console import guarded, show

from .options import (
    Against,
    Assign,
    By,
    Clinical,
    ClinicalTable,
    Config,
    Epochs,
    Features,
    Folds,
    Force,
    FusionKind,
    Head,
    Job,
    Json,
    LabelsFile,
    MaybeLabels,
    MaybeTarget,
    Model,
    Name,
    Pseudonymize,
    Quiet,
    Repeats,
    Search,
    Seed,
    Select,
    Site,
    Splits,
    Target,
    TaskKind,
    Teacher,
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
    task: TaskKind = None,
    folds: Folds = None,
    repeats: Repeats = None,
    splits: Splits = None,
    site: Site = None,
    search: Search = None,
    teacher: Teacher = None,
    clinical: Clinical = None,
    clinical_table: ClinicalTable = None,
    fusion: FusionKind = None,
    features: Features = None,
    select: Select = None,
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

    options = {"head": snake(head), "epochs": epochs, "seed": seed}
    options |= {"task": snake(task), "folds": folds, "repeats": repeats, "site": site}
    options |= {"search": search, "teacher": teacher, "clinical": clinical, "fusion": snake(fusion)}
    settings = settings_from(config, set_, options)
    result = stages.train(
        job,
        labels,
        settings,
        name=name,
        target=target,
        features=features,
        select=select,
        splits=splits,
        clinical=clinical_table,
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
    labels: MaybeLabels = None,
    target: MaybeTarget = None,
    clinical_table: ClinicalTable = None,
    features: Features = None,
    select: Select = None,
    pseudonymize: Pseudonymize = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Predict every slide of a job, or those selected; labels are written beside the predictions, for `evaluate`.

    Example: slidemil predict other-job --model job/models/gated_abmil -l other.csv
    """
    from pipelines import stages

    result = stages.predict(
        job,
        model,
        features=features,
        select=select,
        clinical=clinical_table,
        labels=labels,
        target=target,
        keyfile=pseudonymize,
    )
    show(result, json_)
    return result.exit_code


@guarded
def evaluate(
    job: Job,
    model: Model,
    against: Against = None,
    labels: MaybeLabels = None,
    by: By = None,
    target: MaybeTarget = None,
    features: Features = None,
    pseudonymize: Pseudonymize = None,
    select: Select = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say how good a model is on slides it was not made with: figures with intervals, curves, leaks.

    Example: slidemil evaluate job --model gated_abmil --against mean
    """
    from pipelines import stages

    columns = [name.strip() for name in by.split(",")] if by else []
    result = stages.evaluate(
        job,
        model,
        against=against,
        labels=labels,
        by=columns,
        target=target,
        features=features,
        keyfile=pseudonymize,
        select=select,
    )
    show(result, json_)
    return result.exit_code
