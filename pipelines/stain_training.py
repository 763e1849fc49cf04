"""`slidemil stain train`: images in two stains → a transfer between them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoding import check_device
from .errors import ExitCode, UsageError
from .files import csv_bytes, write_bytes
from .outcome import Said
from .progress import progress
from .targets import check_json
from .tissue_images import (
    Sampling,
    TissueImage,
    check_enough,
    find_images,
    left_out_lines,
    read_pairs,
    read_tissue_images,
)

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.csv"
PREVIEW = "preview.jpg"

_SHOWN = 6
_EVERY = 20


def train_transfer(
    first: Path,
    second: Path,
    out: Path,
    options: Mapping[str, Any],
    *,
    sampling: Sampling,
    device: str = "auto",
    keep_every: int = 500,
    limit: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    """Train a transfer from the first stain to the second, or go on where an earlier run stopped.

    Args:
        first: folder of images or slides in the first stain.
        second: the same in the second.
        out: folder of the model.
        options: fields of `stain.transfer.TrainSettings`.
        sampling: of slides.
        device: "auto", "cpu", "cuda" …
        keep_every: steps between checkpoints.
        limit: only the first so many files of each.
        force: start anew where a run was begun.
        quiet: no progress.

    Raises:
        NothingMatchedError: no images.
        UsageError: `out` holds something else, or pairs do not fit.
        stain.StainError: settings or images do not serve, or a checkpoint is of another run.
    """
    import torch

    from stain.transfer import Crops, TrainSettings, train

    settings = TrainSettings(**options)
    check_json(out / "config.json", "-o", "stain transfer", ("kind", "paired", "steps"))
    check_device(device)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    images, left_out = _read((first, second), settings.paired, sampling, limit, quiet)
    crops = Crops([one.pixels for one in images[0]], [one.pixels for one in images[1]])
    rows: list[dict[str, float]] = []
    kept = None if force or not (out / CHECKPOINT).is_file() else (out / CHECKPOINT).read_bytes()
    with progress("stain train", "steps", quiet=quiet) as bar:
        bar.total(settings.steps)

        def tell(step: int, losses: Mapping[str, float]) -> None:
            bar.advance(1 if rows else step, ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
            if not rows or step % _EVERY == 0 or step == settings.steps:
                rows.append({"step": step, **losses})

        model = train(
            crops,
            settings,
            device=where,
            checkpoint=kept,
            keep=lambda data: write_bytes(out / CHECKPOINT, data),
            keep_every=keep_every,
            tell=tell,
            config={
                "mpp": sampling.mpp,
                "stains": [first.name, second.name],
                "trained_on": [[_named(one) for one in _files(some)] for some in images],
                "left_out": left_out,
            },
        )
    for name, data in model.files().items():
        write_bytes(out / name, data)
    if rows:
        write_bytes(out / LOSSES, csv_bytes(list(rows[-1]), rows))
    write_bytes(out / PREVIEW, _preview(model, images, settings.crop))
    last = rows[-1] if rows else {}
    begun = "went on to" if kept is not None else "trained"
    lines = (
        f"{out}: {begun} {settings.steps} steps on {where}, {len(images[0])} and {len(images[1])} images",
        *left_out_lines(left_out, str(out / "config.json")),
        f"look at {out / PREVIEW} (before above, after below); a good picture proves nothing, so ask next:",
        f"  slidemil stain validate HELD_OUT --target OTHER_STAIN --model {out} -o verdict",
    )
    told = {"model": str(out), "device": where, "losses": last, "settings": options, "left_out": left_out}
    if left_out:
        return Said(lines, {"status": "partial", **told}, ExitCode.SOME_FAILED)
    return Said(lines, {"status": "done", **told})


def _read(
    folders: tuple[Path, Path], paired: bool, sampling: Sampling, limit: int | None, quiet: bool
) -> tuple[tuple[list[TissueImage], list[TissueImage]], list[dict[str, str]]]:
    """Read the images of both stains, and say which files cannot be read.

    Raises:
        NothingMatchedError: no images.
        UsageError: pairs do not fit, or more than half of the files of a stain cannot be read.
    """
    found = [find_images([one], among=str(one), slide_mpp=sampling.slide_mpp) for one in folders]
    counts = [len(one.images[:limit]) + len(one.slides[:limit]) for one in found]
    left: tuple[dict[str, str], dict[str, str]] = ({}, {})
    with progress("read", "files", quiet=quiet) as bar:
        bar.total(counts[0] if paired else sum(counts))
        if paired:
            images = read_pairs(found[0], found[1], sampling, limit=limit, bar=bar, left_out=left[0])
        else:
            mine, theirs = (
                read_tissue_images(one, sampling, limit=limit, bar=bar, left_out=without)
                for one, without in zip(found, left, strict=True)
            )
            images = mine, theirs
    for folder, count, without in zip(folders, counts, left, strict=True):
        check_enough(str(folder), count, without)
    return images, [{"file": name, "cause": cause} for without in left for name, cause in without.items()]


def _files(images: Sequence[TissueImage]) -> list[TissueImage]:
    """Return one image of each file."""
    return list({(one.name, one.size): one for one in images}.values())


def _named(image: TissueImage) -> dict[str, Any]:
    return {"name": image.name, "bytes": image.size}


def _preview(model: Any, images: tuple[list[TissueImage], list[TissueImage]], side: int) -> bytes:
    """Return a picture of a few crops before and after, as JPEG."""
    from PIL import Image

    shown: list[NDArray[np.uint8]] = []
    for some, backwards in zip(images, (False, True), strict=True):
        if backwards and model.back is None:
            continue
        crops = np.stack([one.pixels[:side, :side] for one in some[:_SHOWN]])
        shown += [np.concatenate(list(row), axis=1) for row in (crops, model.apply(crops, backwards=backwards))]
    widest = max(row.shape[1] for row in shown)
    rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in shown]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(out, "JPEG", quality=90)
    return out.getvalue()


def load_transfer(folder: Path, device: str = "auto") -> Any:
    """Return a trained transfer.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    import torch

    import stain
    from stain.transfer import load
    from stain.transfer.model import FILES

    check_device(device)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return load({name: (folder / name).read_bytes() for name in FILES}, where)
    except OSError as error:
        unfinished = " Its training has not ended: run the same `slidemil stain train` again."
        hint = unfinished if (folder / CHECKPOINT).is_file() else " Train one: slidemil stain train A B -o MODEL"
        raise UsageError(f"--model {folder}: {error.strerror} ({Path(str(error.filename)).name}).{hint}") from error
    except stain.ParametersError as error:
        raise UsageError(f"--model {folder}: {error}") from error


def seen_in_training(config: Mapping[str, Any], images: Sequence[TissueImage]) -> list[str]:
    """Return the names of images that the transfer was trained on, from whatever folder they were read."""
    try:
        known = {(PurePath(one["name"]).name, one["bytes"]) for some in config["trained_on"] for one in some}
    except (KeyError, TypeError):
        return []
    return sorted({image.name for image in images if (PurePath(image.name).name, image.size) in known})
