"""The command `slidemil`: verbs that parse, call a stage, and print. No science here.

Nothing heavy is imported before a verb needs it: `slidemil --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import guarded, say, show

app = typer.Typer(
    name="slidemil",
    help="From a folder of whole-slide images to slide-level predictions and heatmaps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Slides = Annotated[list[Path], typer.Argument(help="A folder (searched recursively), slides, or a CSV manifest.")]
Job = Annotated[Path, typer.Argument(help="Job folder.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Job folder; run again on it to resume.")]
MaybeOut = Annotated[Path | None, typer.Option("--out", "-o", help="Job folder that the run would go to.")]
LabelsFile = Annotated[Path, typer.Option("--labels", "-l", help="CSV with slide_id, label and best case_id.")]
MaybeLabels = Annotated[Path | None, typer.Option("--labels", "-l", help="CSV with slide_id, label and best case_id.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of a model of the job, or a model folder.")]
MaybeModel = Annotated[str | None, typer.Option("--model", "-m", help="Name of a model of the job, or a model folder.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.")]


def _list_settings(assignments: list[str] | None) -> list[str] | None:
    """Print all settings where `--set help` asks for them."""
    if "help" in (assignments or ()):
        from .config import settings_table

        say(settings_table())
        raise typer.Exit
    return assignments


Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        callback=_list_settings,
        help="One setting, key=value; may be repeated. All: --set help, or docs/settings.md.",
    ),
]
Mpp = Annotated[float | None, typer.Option(help="µm per pixel of the tiles (default 0.5).")]
Tile = Annotated[int | None, typer.Option(help="Side of a tile in pixels (default 224).")]
Overlap = Annotated[int | None, typer.Option(help="Pixels shared by neighboring tiles (default 0).")]
MinTissue = Annotated[float | None, typer.Option(help="Least share of tissue in a tile (default 0.25).")]
SlideMpp = Annotated[float | None, typer.Option(help="µm per pixel of slides whose own value is missing or refused.")]
Masks = Annotated[str | None, typer.Option(help="Folder of SLIDE.geojson: tissue drawn by hand instead of detected.")]
Upsampling = Annotated[bool | None, typer.Option("--allow-upsampling", help="Take slides coarser than --mpp, too.")]
EncoderName = Annotated[str | None, typer.Option("--encoder", help="Encoder: descriptors, or any timm name.")]
Weights = Annotated[str | None, typer.Option(help="Weights of the encoder: a file, or local-dir:FOLDER.")]
Stain = Annotated[str | None, typer.Option(help="Stain normalization: none (default), macenko, vahadane, reinhard.")]
StainReference = Annotated[
    str | None, typer.Option(help="What to normalize to: a name, a JSON of `slidemil stain fit`, or an image.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Workers = Annotated[str | None, typer.Option(help="Reading threads, or auto.")]
Memory = Annotated[str | None, typer.Option(help="Cap on pixels under way, e.g. 8G or 500M (default 2G).")]
BatchSize = Annotated[int | None, typer.Option(help="Tiles per call of the encoder (default 64).")]
MaxBad = Annotated[float | None, typer.Option(help="Share of unreadable tiles over which a slide fails (0.01).")]
Head = Annotated[str | None, typer.Option(help="gated-abmil (default), mean, max, transmil … (README: Heads).")]
Name = Annotated[str | None, typer.Option(help="Name of the model (default: the head's).")]
Target = Annotated[str, typer.Option(help="Column of the labels that is to be predicted.")]
Epochs = Annotated[int | None, typer.Option(help="At most so many epochs.")]
Seed = Annotated[int | None, typer.Option(help="Seed of split, initial weights and order.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N slides.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again even where it is done.")]
Features = Annotated[str | None, typer.Option(help="Feature folder inside the job, where it has several.")]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection: weights come from disk alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


@app.command()
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
    from . import demo as stage

    if slide is not None:
        outcome = stage.demo_slide(slide, out, slide_mpp=slide_mpp, quiet=quiet)
        show(outcome, json_)
        return outcome.exit_code
    result = stage.demo(out, seed=seed, quiet=quiet)
    show(result, json_)
    return result.exit_code


@app.command()
@guarded
def doctor(json_: Json = False, verbose: Verbose = False) -> int:
    """Check the installation, and say how to mend it.

    Example: slidemil doctor
    """
    from .doctor import examine

    result = examine()
    show(result, json_)
    return result.exit_code


@app.command()
@guarded
def info(slides: Slides, slide_mpp: SlideMpp = None, json_: Json = False, verbose: Verbose = False) -> int:
    """What a slide is: reader, size, levels, µm per pixel and where it comes from.

    Example: slidemil info slides/a.svs
    """
    from .info import look

    result = look(slides, slide_mpp=slide_mpp)
    show(result, json_)
    return result.exit_code


@app.command()
@guarded
def scan(
    slides: Slides,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV to write the inventory to.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV to write that `slidemil run` takes, with a column mpp to fill in.")
    ] = None,
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles that a job would cut.")] = 0.5,
    tile: Annotated[int, typer.Option(help="Side of these tiles in pixels.")] = 224,
    slide_mpp: SlideMpp = None,
    allow_upsampling: Annotated[bool, typer.Option("--allow-upsampling", help="Take coarser slides, too.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every tile of every slide: sure, and slow.")] = False,
    quality: Annotated[bool, typer.Option(help="Look for blur, pen, folds, bubbles and edges.")] = True,
    limit: Limit = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """An inventory of slides: what each is, what is odd about it, and whether a job would run.

    Example: slidemil scan slides/ -o inventory.csv --manifest manifest.csv
    """
    from . import scan as stage
    from .config import load_settings
    from .scan_slide import ScanSettings

    asked = {"mpp": mpp, "tile": tile, "slide_mpp": slide_mpp, "allow_upsampling": allow_upsampling}
    job = load_settings(options=asked).extract  # refuses what a job refuses
    settings = ScanSettings(
        mpp=job.mpp,
        tile=job.tile,
        slide_mpp=job.slide_mpp,
        allow_upsampling=job.allow_upsampling,
        max_bad_tiles=job.max_bad_tiles,
        deep=deep,
        quality=quality,
    )
    result = stage.scan(slides, settings, out=out, manifest=manifest, limit=limit, quiet=quiet)
    show(result, json_)
    return result.exit_code


@app.command()
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
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    batch_size: BatchSize = None,
    max_bad_tiles: MaxBad = None,
    limit: Limit = None,
    force: Force = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Slides to features: tissue, tiles, stain, encoder. Run again to resume.

    Example: slidemil extract slides/ -o job --mpp 0.5 --encoder resnet18 --weights resnet18.safetensors
    """
    from . import stages

    settings = _settings(config, set_, _extract_options(locals()))
    outcome = stages.extract(slides, out, settings, limit=limit, force=force, offline=offline, quiet=quiet)
    show(outcome, json_)
    return outcome.exit_code


@app.command()
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
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    batch_size: BatchSize = None,
    max_bad_tiles: MaxBad = None,
    probe: Annotated[float, typer.Option(min=1, help="Seconds to measure and count at most.")] = 20,
    limit: Limit = None,
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
    from . import stages

    settings = _settings(config, set_, _extract_options(locals()))
    result = stages.plan(slides, out, settings, seconds=probe, limit=limit, force=force, offline=offline, quiet=quiet)
    show(result, json_)
    return result.exit_code


@app.command()
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
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    batch_size: BatchSize = None,
    max_bad_tiles: MaxBad = None,
    head: Head = None,
    name: Name = None,
    target: Target = "label",
    epochs: Epochs = None,
    seed: Seed = None,
    limit: Limit = None,
    force: Force = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Everything in one resumable go: features, then training (with labels) or prediction (with a model).

    Example: slidemil run slides/ -o job -l labels.csv
    """
    from . import stages

    options = _extract_options(locals()) | {"head": _snake(head), "epochs": epochs, "seed": seed}
    settings = _settings(config, set_, options)
    outcome = stages.run(
        slides,
        out,
        settings,
        labels=labels,
        model=model,
        name=name,
        target=target,
        limit=limit,
        force=force,
        offline=offline,
        quiet=quiet,
    )
    show(outcome, json_)
    return outcome.exit_code


@app.command()
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
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a head on the features of a job; patients held out say how good it is.

    Example: slidemil train job -l labels.csv --head gated-abmil
    """
    from . import stages

    settings = _settings(config, set_, {"head": _snake(head), "epochs": epochs, "seed": seed})
    result = stages.train(job, labels, settings, name=name, target=target, features=features, force=force, quiet=quiet)
    show(result, json_)
    return result.exit_code


@app.command()
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
    from . import stages

    result = stages.predict(job, model, features=features)
    show(result, json_)
    return result.exit_code


@app.command()
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
    from . import stages

    result = stages.heatmap(
        job, model, method=method, slides=slide or (), features=features, limit=limit, force=force, quiet=quiet
    )
    show(result, json_)
    return result.exit_code


@app.command()
@guarded
def report(job: Job, json_: Json = False, verbose: Verbose = False) -> int:
    """Write one HTML file that tells what the job did, and how good it is.

    Example: slidemil report job
    """
    from . import stages

    result = stages.report(job)
    show(result, json_)
    return result.exit_code


@app.command()
@guarded
def status(job: Job, json_: Json = False, verbose: Verbose = False) -> int:
    """How far each slide of a job is, and why some failed.

    Example: slidemil status job
    """
    from . import stages

    result = stages.status(job)
    show(result, json_)
    return result.exit_code


stain_app = typer.Typer(
    help="Normalizers and what they normalize to, e.g. slidemil stain fit slides/ -o reference.json",
    no_args_is_help=True,
)
app.add_typer(stain_app, name="stain")


@stain_app.command("fit")
@guarded
def stain_fit(
    slides: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file that --stain-reference takes.")],
    method: Annotated[str, typer.Option(help="macenko, vahadane or reinhard.")] = "macenko",
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles that are looked at.")] = 0.5,
    slide_mpp: SlideMpp = None,
    limit: Limit = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """One reference from many slides or images: the middle of their stains, odd ones without weight.

    Example: slidemil stain fit slides/ -o reference.json --method macenko
    """
    from .stain_reference import fit_cohort

    result = fit_cohort(slides, out, method, mpp=mpp, slide_mpp=slide_mpp, limit=limit, quiet=quiet)
    show(result, json_)
    return result.exit_code


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from . import __version__

        say(f"slidemil {__version__}")
        raise typer.Exit


def _extract_options(given: dict[str, Any]) -> dict[str, Any]:
    """Pick the options that are settings of the extraction, in the units of the settings."""
    from .units import gigabytes, worker_count

    same = (
        "mpp tile overlap min_tissue slide_mpp masks allow_upsampling "
        "encoder weights stain stain_reference device batch_size max_bad_tiles"
    )
    options = {name: given[name] for name in same.split()}
    options["workers"] = None if given["workers"] is None else worker_count(given["workers"])
    options["memory_gb"] = None if given["memory"] is None else gigabytes(given["memory"])
    return options


def _settings(config: Path | None, assignments: list[str] | None, options: dict[str, Any]) -> Any:
    from .config import load_settings

    return load_settings(config, assignments or (), options)


def _snake(name: str | None) -> str | None:
    return None if name is None else name.replace("-", "_")


if __name__ == "__main__":
    app()
