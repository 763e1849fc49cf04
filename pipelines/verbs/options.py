"""Options that mean the same in every verb, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.console import say
from wsi.remote_path import path_of

Slides = Annotated[
    list[Path],
    typer.Argument(
        parser=path_of,
        metavar="SLIDES...",
        help="A folder (searched recursively), slides, a CSV manifest, or addresses of these (https://…, s3://…).",
    ),
]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="Take slides that a CSV manifest names outside its own folder.")
]
Pseudonymize = Annotated[
    Path | None,
    typer.Option(
        metavar="KEYFILE",
        help="Call slides and cases by made-up names in all output; KEYFILE, outside the job, says who is who.",
    ),
]
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
        from pipelines.config import settings_table

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
Mpp = Annotated[str | None, typer.Option(help="µm per pixel of the tiles (default 0.5); several with commas.")]
Tile = Annotated[int | None, typer.Option(help="Side of a tile in pixels (default 224).")]
Overlap = Annotated[int | None, typer.Option(help="Pixels shared by neighboring tiles (default 0).")]
MinTissue = Annotated[float | None, typer.Option(help="Least share of tissue in a tile (default 0.25).")]
SlideMpp = Annotated[float | None, typer.Option(help="µm per pixel of slides whose own value is missing or refused.")]
Masks = Annotated[str | None, typer.Option(help="Folder of SLIDE.geojson: tissue drawn by hand instead of detected.")]
Upsampling = Annotated[bool | None, typer.Option("--allow-upsampling", help="Take slides coarser than --mpp, too.")]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="descriptors, a name of `slidemil encoders list`, or any timm name.")
]
CommercialOnly = Annotated[
    bool, typer.Option("--commercial-only", help="Only encoders whose licence permits commercial use.")
]
Weights = Annotated[str | None, typer.Option(help="Weights of the encoder: a file, or local-dir:FOLDER.")]
Stain = Annotated[str | None, typer.Option(help="Stain normalization: none (default), macenko, vahadane, reinhard.")]
StainReference = Annotated[
    str | None, typer.Option(help="What to normalize to: a name, a JSON of `slidemil stain fit`, or an image.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …; several with commas, or all.")]
EncoderDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, openvino, cuda, cuda:1 …; several with commas, or all.")
]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16, fp16, or auto: fp32 on a CPU (default).")]
Store = Annotated[
    str | None, typer.Option(help="Also one zarr store of all slides: zarr, or a URL that ends in .zarr.")
]
Dense = Annotated[bool, typer.Option("--dense", help="Also the feature map of each tile, as zarr.")]
Workers = Annotated[str | None, typer.Option(help="Reading threads, or auto.")]
Memory = Annotated[str | None, typer.Option(help="Cap on pixels under way, e.g. 8G or 500M (default 2G).")]
BatchSize = Annotated[int | None, typer.Option(help="Tiles per call of the encoder (default 64; 0: what fits).")]
MaxBad = Annotated[float | None, typer.Option(help="Share of unreadable tiles over which a slide fails (0.01).")]
Head = Annotated[
    str | None,
    typer.Option(help="gated-abmil (default), mean, transmil …; its own options: --set head_options=hidden=256."),
]
Name = Annotated[str | None, typer.Option(help="Name of the model (default: the head's).")]
Target = Annotated[str, typer.Option(help="Column of the labels that is to be predicted.")]
MaybeTarget = Annotated[
    str | None, typer.Option("--target", help="Column of the labels (default: the one that the model was trained on).")
]
TaskKind = Annotated[
    str | None,
    typer.Option("--task", help="classification (default), multilabel, ordinal, regression, cox, discrete-hazard."),
]
Folds = Annotated[int | None, typer.Option(help="Cross-validation: a model for each of so many folds.")]
Repeats = Annotated[int | None, typer.Option(help="How often the folds are dealt anew.")]
Splits = Annotated[
    Path | None,
    typer.Option(help="Folds of another tool: a table with fold_0 …, STAMP's splits.json, CLAM's folder or CSV."),
]
Site = Annotated[str | None, typer.Option(help="Column of the labels: slides of one site stay on one side of a fold.")]
Search = Annotated[
    int | None, typer.Option(help="Search settings in so many trials, on inner folds of the training patients.")
]
Teacher = Annotated[
    str | None, typer.Option(help="Models of the job that teach this one, joined by commas; e.g. of the same folds.")
]
Clinical = Annotated[
    str | None, typer.Option(help="Columns of clinical variables that join the slide, e.g. age,stage.")
]
ClinicalTable = Annotated[
    Path | None, typer.Option(help="CSV with slide_id and the clinical variables (default in training: --labels).")
]
FusionKind = Annotated[
    str | None, typer.Option("--fusion", help="How they join: late (default), middle, cross-attention, early.")
]
Against = Annotated[str | None, typer.Option(help="Another model, compared on the same slides.")]
By = Annotated[str | None, typer.Option(help="Columns of --labels, joined by commas: figures for each value.")]
Epochs = Annotated[int | None, typer.Option(help="At most so many epochs.")]
Seed = Annotated[int | None, typer.Option(help="Seed of split, initial weights and order.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N slides.")]
Select = Annotated[
    str | None,
    typer.Option(help="Only slides accepted in a table: review.csv, review.csv:flag,reject, review.csv:not-reject."),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", help="Only part i of n, e.g. 0/8; in a SLURM job array taken from its variables."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="Workers: local, local:4, tcp://HOST:8786, or a YAML file of SLURM jobs."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even where it is done.")]
Features = Annotated[
    str | None, typer.Option(help="Feature folder inside the job, where it has several; some with commas are joined.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection: weights come from disk alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


def extract_options(given: dict[str, Any]) -> dict[str, Any]:
    """Pick the options that are settings of the extraction, in the units of the settings."""
    from pipelines.units import gigabytes, worker_count

    same = (
        "mpp tile overlap min_tissue slide_mpp masks allow_upsampling "
        "encoder weights stain stain_reference device precision batch_size max_bad_tiles store"
    )
    options = {name: given.get(name) for name in same.split()}
    options["dense"] = given.get("dense") or None
    options["commercial_only"] = given["commercial_only"] or None
    options["workers"] = None if given["workers"] is None else worker_count(given["workers"])
    options["memory_gb"] = None if given["memory"] is None else gigabytes(given["memory"])
    return options


def settings_from(config: Path | None, assignments: list[str] | None, options: dict[str, Any]) -> Any:
    """Return the settings of a file, of `--set` and of options; the later ones win."""
    from pipelines.config import load_settings

    return load_settings(config, assignments or (), options)


def snake(name: str | None) -> str | None:
    """Return a name as Python spells it."""
    return None if name is None else name.replace("-", "_")
