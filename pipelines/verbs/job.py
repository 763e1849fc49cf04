"""Verbs that make a job: extract, run."""

from __future__ import annotations

from pipelines.console import guarded, show

from .options import (
    Assign,
    BatchSize,
    ClusterOption,
    CommercialOnly,
    Config,
    Dense,
    EncoderDevice,
    EncoderName,
    Epochs,
    Force,
    Head,
    Json,
    Limit,
    Masks,
    MaxBad,
    MaybeLabels,
    MaybeModel,
    Memory,
    MinTissue,
    Mpp,
    Name,
    Offline,
    Out,
    Outside,
    Overlap,
    Precision,
    Pseudonymize,
    Quiet,
    Seed,
    Select,
    ShardOption,
    SlideMpp,
    Slides,
    Stain,
    StainReference,
    Store,
    Target,
    Tile,
    Upsampling,
    Verbose,
    Weights,
    Workers,
    extract_options,
    settings_from,
    snake,
)


@guarded
def extract(
    slides: Slides,
    out: Out,
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
    store: Store = None,
    dense: Dense = False,
    select: Select = None,
    limit: Limit = None,
    shard: ShardOption = None,
    allow_outside: Outside = False,
    pseudonymize: Pseudonymize = None,
    cluster: ClusterOption = None,
    force: Force = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Slides to features: tissue, tiles, stain, encoder. Run again to resume.

    Example: slidemil extract slides/ -o job --mpp 0.5 --encoder resnet18 --weights resnet18.safetensors
    """
    from pipelines import stages
    from pipelines.manifest import Sources

    settings = settings_from(config, set_, extract_options(locals()))
    sources = Sources(tuple(slides), allow_outside, pseudonymize, select)
    outcome = stages.extract(
        sources,
        out,
        settings,
        limit=limit,
        shard=shard,
        cluster=cluster,
        force=force,
        offline=offline,
        quiet=quiet,
    )
    show(outcome, json_)
    return outcome.exit_code


@guarded
def run(
    slides: Slides,
    out: Out,
    labels: MaybeLabels = None,
    model: MaybeModel = None,
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
    store: Store = None,
    dense: Dense = False,
    head: Head = None,
    name: Name = None,
    target: Target = "label",
    epochs: Epochs = None,
    seed: Seed = None,
    select: Select = None,
    limit: Limit = None,
    shard: ShardOption = None,
    allow_outside: Outside = False,
    pseudonymize: Pseudonymize = None,
    cluster: ClusterOption = None,
    force: Force = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Everything in one resumable go: features, then training (with labels) or prediction (with a model).

    Example: slidemil run slides/ -o job -l labels.csv
    """
    from pipelines import stages
    from pipelines.manifest import Sources

    options = extract_options(locals()) | {"head": snake(head), "epochs": epochs, "seed": seed}
    settings = settings_from(config, set_, options)
    outcome = stages.run(
        Sources(tuple(slides), allow_outside, pseudonymize, select),
        out,
        settings,
        labels=labels,
        model=model,
        name=name,
        target=target,
        limit=limit,
        shard=shard,
        cluster=cluster,
        force=force,
        offline=offline,
        quiet=quiet,
    )
    show(outcome, json_)
    return outcome.exit_code
