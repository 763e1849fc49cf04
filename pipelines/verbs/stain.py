"""Verbs of stain normalization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import (
    Device,
    Features,
    Force,
    Json,
    Limit,
    Outside,
    Quiet,
    Seed,
    SlideMpp,
    Slides,
    StainReference,
    Verbose,
)

Method = Annotated[str | None, typer.Option(help="A normalizer: macenko, vahadane or reinhard.")]
Transfer = Annotated[Path | None, typer.Option("--model", "-m", help="Folder that `slidemil stain train` wrote.")]
Backwards = Annotated[bool, typer.Option("--backwards", help="From the model's second stain to its first.")]
Mpp = Annotated[float, typer.Option(help="µm per pixel at which slides are read.")]
PerSlide = Annotated[int, typer.Option(min=1, help="Tiles of a slide, evenly spread over its tissue.")]


@guarded
def fit(
    slides: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file that --stain-reference takes.")],
    method: Annotated[str, typer.Option(help="macenko, vahadane or reinhard.")] = "macenko",
    mpp: Annotated[float, typer.Option(help="µm per pixel of the tiles that are looked at.")] = 0.5,
    slide_mpp: SlideMpp = None,
    limit: Limit = None,
    allow_outside: Outside = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """One reference from many slides or images: the middle of their stains, odd ones without weight.

    Example: slidemil stain fit slides/ -o reference.json --method macenko
    """
    from pipelines.manifest import Sources
    from pipelines.stain_reference import fit_cohort

    result = fit_cohort(
        Sources(tuple(slides), allow_outside), out, method, mpp=mpp, slide_mpp=slide_mpp, limit=limit, quiet=quiet
    )
    show(result, json_)
    return result.exit_code


@guarded
def apply(
    sources: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    method: Method = None,
    model: Transfer = None,
    stain_reference: StainReference = None,
    backwards: Backwards = False,
    pool: Annotated[bool, typer.Option("--pool", help="Images of a folder are tiles of one slide: one fit.")] = False,
    mpp: Annotated[float, typer.Option(help="µm per pixel that slides are written at.")] = 0.5,
    slide_mpp: SlideMpp = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of slides.")] = 92,
    augment: Annotated[
        str, typer.Option(help="Change colors by chance, too: hed:STRENGTH:SEED, or rand:STRENGTH:SEED (RandStainNA).")
    ] = "none",
    device: Device = None,
    limit: Limit = None,
    allow_outside: Outside = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write images as PNG and slides as OME-TIFF, normalized, transferred or in other colors, without seams.

    Example: slidemil stain apply tiles/ -o normalized --method macenko --pool
    Example: slidemil stain apply tiles/ -o seen_elsewhere --augment hed:0.2:7
    """
    from pipelines.augmenting import option_augment
    from pipelines.manifest import Sources
    from pipelines.stain_applying import How, apply_stain

    recolored = option_augment(augment)
    how = How(method, stain_reference, model, backwards, device or "auto", pool, mpp, slide_mpp, quality, recolored)
    result = apply_stain(Sources(tuple(sources), allow_outside), out, how, limit=limit, quiet=quiet)
    show(result, json_)
    return result.exit_code


@guarded
def train(
    first: Annotated[Path, typer.Argument(help="Folder of images or slides in the first stain.")],
    second: Annotated[Path, typer.Argument(help="The same in the second stain.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model; run again to go on.")],
    paired: Annotated[bool, typer.Option("--paired", help="Files of the same name show the same tissue.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Batches to train on.")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops of each stain in a batch.")] = 1,
    crop: Annotated[int, typer.Option(help="Side of a crop in pixels.")] = 256,
    width: Annotated[int, typer.Option(min=1, help="Channels of the generator.")] = 32,
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks of the generator.")] = 6,
    rate: Annotated[float, typer.Option(help="Learning rate at the start.")] = 2e-4,
    seed: Seed = None,
    mpp: Mpp = 0.5,
    slide_mpp: SlideMpp = None,
    tile: Annotated[int, typer.Option(help="Side of the tiles taken from slides, in pixels.")] = 512,
    per_slide: PerSlide = 32,
    keep_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    device: Device = None,
    limit: Limit = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Train a transfer between two stains: CycleGAN, or on registered pairs. Validate it before you use it.

    Example: slidemil stain train lab_a/ lab_b/ -o a_to_b --steps 10000
    """
    from pipelines.stain_training import train_transfer
    from pipelines.tissue_images import Sampling

    options = {"paired": paired, "steps": steps, "batch": batch, "crop": crop, "width": width, "blocks": blocks}
    result = train_transfer(
        first,
        second,
        out,
        {**options, "rate": rate, "seed": seed or 0},
        sampling=Sampling(max(tile, crop), mpp, slide_mpp, per_slide),
        device=device or "auto",
        keep_every=keep_every,
        limit=limit,
        force=force,
        quiet=quiet,
    )
    show(result, json_)
    return result.exit_code


@guarded
def validate(
    tiles: Slides,
    target: Annotated[Path, typer.Option("--target", "-t", help="Images or slides of the target domain.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for validation.json and validation.html.")],
    method: Method = None,
    model: Transfer = None,
    stain_reference: StainReference = None,
    backwards: Backwards = False,
    predictor: Annotated[Path | None, typer.Option(help="MIL model folder whose predictions must stay.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the predictor's encoder.")] = None,
    threshold: Annotated[list[str] | None, typer.Option(help="Another line, e.g. dice=0.9; may be repeated.")] = None,
    tile: Annotated[int, typer.Option(min=32, help="Side of the tiles that are compared.")] = 256,
    per_slide: PerSlide = 16,
    mpp: Mpp = 0.5,
    slide_mpp: SlideMpp = None,
    seed: Seed = None,
    device: Device = None,
    limit: Limit = None,
    allow_outside: Outside = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Prove on held-out tiles that a change of stain leaves the tissue as it is; exit 7 where it does not.

    Example: slidemil stain validate held_out/ --target lab_b/ --model a_to_b -o verdict
    """
    from pipelines.manifest import Sources
    from pipelines.stain_validation import Asked, thresholds_of, validate_stain
    from pipelines.tissue_images import Sampling

    lines = thresholds_of(threshold or ())
    asked = Asked(
        method,
        stain_reference,
        model,
        backwards,
        predictor,
        weights,
        lines,
        tile,
        per_slide,
        device or "auto",
        seed or 0,
    )
    sampling = Sampling(tile, mpp, slide_mpp, per_slide)
    result = validate_stain(
        Sources(tuple(tiles), allow_outside), target, out, asked, sampling, limit=limit, quiet=quiet
    )
    show(result, json_)
    return result.exit_code


@guarded
def audit(
    jobs: Annotated[list[Path], typer.Argument(help="Job folders: before, then after normalization.")],
    table: Annotated[Path | None, typer.Option("--labels", "-l", help="CSV with slide_id and the site.")] = None,
    site: Annotated[
        str, typer.Option(help="Column that names site or scanner; folder: where the slide lies.")
    ] = "folder",
    within: Annotated[str | None, typer.Option(help="Column whose own share is not to count, e.g. label.")] = None,
    features: Features = None,
    permutations: Annotated[int, typer.Option(min=99, help="Permutations of the test.")] = 999,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the findings.")] = None,
    seed: Seed = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """How well the features of a job give the site or scanner away, before and after normalization.

    Example: slidemil stain audit job job_macenko -l slides.csv --site scanner
    """
    from pipelines import stain_audit

    question = stain_audit.Question(table, site, within, features, permutations, seed or 0)
    result = stain_audit.audit(jobs, question, out)
    show(result, json_)
    return result.exit_code
