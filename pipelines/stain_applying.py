"""`slidemil stain apply`: images and slides → the same ones, normalized or transferred."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi

from .augmenting import Augmentation
from .errors import ExitCode, UsageError
from .files import write_bytes, write_json
from .manifest import SlideEntry, Sources
from .outcome import Said
from .progress import progress
from .recoloring import Recolor, Recoloring
from .slide_regions import STEP, SlideImage, at_resolution, write_slide
from .slide_work import pooled_pixels
from .stain_target import read_image, reference_named
from .targets import check_json
from .tissue_images import find_images

Pixels = NDArray[np.uint8]

RECORD = "stain.json"

_CORE = 4 * STEP


@dataclass(frozen=True)
class How:
    """What is done to pixels.

    Attributes:
        method: a normalizer, None where `model` is given.
        reference: what it normalizes to, as `--stain-reference` takes it.
        model: folder of a trained transfer.
        backwards: from the model's second stain to its first.
        device: where the model computes.
        pool: images of one folder are tiles of one slide, fitted together.
        mpp: µm per pixel that slides are written at.
        slide_mpp: of slides that do not state it.
        quality: of the JPEG that slides are written in.
        augment: how colors are changed by chance, after `method` where that is given.
    """

    method: str | None = None
    reference: str | None = None
    model: Path | None = None
    backwards: bool = False
    device: str = "auto"
    pool: bool = False
    mpp: float = 0.5
    slide_mpp: float | None = None
    quality: int = 92
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: nothing, or too much, is to be done.
        """
        if (self.method is None) == (self.model is None) and (self.augment is None or self.method is not None):
            raise UsageError("give either --method (macenko, vahadane, reinhard) or --model FOLDER.")
        if self.augment is not None and self.model is not None:
            raise UsageError("--augment goes alone or with --method, not with --model.")
        if self.augment is not None and self.augment.per_tile:
            raise UsageError(f"--augment {self.augment}: each image has its own colors anyway. Leave :tile out.")
        if self.backwards and self.model is None:
            raise UsageError("--backwards is for --model: a normalizer is given another reference instead.")


@dataclass
class _Applied:
    outputs: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def apply_stain(sources: Sources, out: Path, how: How, *, limit: int | None = None, quiet: bool = False) -> Said:
    """Write every image as PNG and every slide as OME-TIFF, and with what parameters in `stain.json`.

    Raises:
        NothingMatchedError: no image and no slide.
        UsageError: `out` holds something else, or the options do not fit.
        stain.StainError: no such method, or the reference cannot serve.
    """
    check_json(out / RECORD, "-o", "record of `stain apply`", ("applied", "files"))
    found = find_images(sources, slide_mpp=how.slide_mpp)
    if out.resolve() in {path.resolve() for path in sources.given}:
        raise UsageError(f"-o {out}: the sources lie there, and would be overwritten. Name another folder.")
    done = _Applied()
    groups = _groups(found.images[:limit], how.pool)
    slides = found.slides[:limit]
    recoloring = None if how.augment is None else Recoloring(how.augment, _some_of_each(groups, slides, how))
    work = _transfer(how) if how.model is not None else _normalizer(how, recoloring)
    names = _names(sources.given, found.images[:limit])
    with progress("stain apply", "files", quiet=quiet) as bar:
        bar.total(sum(map(len, groups)) + len(slides))
        for paths in groups:
            _images(paths, names, out, work, done)
            bar.advance(len(paths))
        for entry in slides:
            _slide(entry, out, how, work, done)
            bar.advance(1)
    write_json(out / RECORD, {"applied": work.told, "files": done.records})
    return _said(out, done, how)


@dataclass(frozen=True)
class _Work:
    """How one slide is changed.

    Attributes:
        told: what is done, for the record.
        fit: pixels of a slide → its change, what is told of it, and the margin that the change needs. The change
            takes pieces (B, H, W, 3), and the name of what they are of.
    """

    told: dict[str, Any]
    fit: Callable[[Pixels], tuple[Recolor, dict[str, Any], int]]


def _normalizer(how: How, recoloring: Recoloring | None) -> _Work:
    """Return a normalizer, or colors changed by chance, or one after the other."""
    method = how.method
    reference = None if method is None else reference_named(how.reference, method)
    told: dict[str, Any] = {}
    if method is not None:
        stain.fit(method, np.zeros((0, 3), np.uint8), reference=reference)  # says at once what cannot serve
        told = {"method": method, "reference": how.reference or stain.DEFAULT_REFERENCE}

    def fit(pixels: Pixels) -> tuple[Recolor, dict[str, Any], int]:
        params = None if method is None else stain.fit(method, pixels, reference=reference)
        record = {} if params is None else params.to_json()
        recolor, more = (None, {}) if recoloring is None else recoloring.of(pixels, params)

        def change(pieces: Pixels, name: str) -> Pixels:
            pieces = pieces if params is None else np.asarray(params.apply(pieces))
            return pieces if recolor is None else recolor(pieces, name)

        return change, {**record, **more}, 0

    return _Work({**told, **({} if how.augment is None else {"augment": str(how.augment)})}, fit)


def _transfer(how: How) -> _Work:
    from stain.transfer.model import run

    from .stain_training import load_transfer

    assert how.model is not None
    model = load_transfer(how.model, how.device)
    network = model.back if how.backwards else model.there
    if network is None:
        raise UsageError(f"--model {how.model}: it was trained on pairs and knows no way back.")

    def fit(_: Pixels) -> tuple[Recolor, dict[str, Any], int]:
        def change(pieces: Pixels, name: str) -> Pixels:  # noqa: ARG001 - it changes all alike
            made: Pixels = run(network, pieces)
            return made

        return change, {"status": "ok"}, network.margin

    return _Work({"model": how.model.name, "backwards": how.backwards, "stains": model.config.get("stains")}, fit)


def _images(paths: Sequence[Path], names: dict[Path, str], out: Path, work: _Work, done: _Applied) -> None:
    """Fit images together, and write each."""
    images = []
    for path in paths:
        try:
            images.append((path, read_image(path)))
        except UsageError as error:
            done.failed.append({"slide": names[path], "cause": str(error), "mend": ""})
    if not images:
        return
    change, told, margin = work.fit(_pooled([image for _, image in images]))
    for path, image in images:
        made = _whole(partial(change, name=names[path]), image, margin)
        target = out / f"{names[path]}.png"
        write_bytes(target, _png(made))
        done.outputs.append(target.relative_to(out).as_posix())
        done.records.append({"file": names[path], "output": done.outputs[-1], **told})


def _slide(entry: SlideEntry, out: Path, how: How, work: _Work, done: _Applied) -> None:
    """Write one slide, piece by piece; its failure is its own."""
    try:
        with wsi.open_slide(entry.path, slide_mpp=how.slide_mpp, manifest_mpp=entry.mpp) as slide:
            image = at_resolution(slide, how.mpp)
            change, told, margin = work.fit(_some_of_slide(slide, how.mpp))
            target = out / f"{entry.slide_id}.ome.tif"
            pieces = _pieces(partial(change, name=entry.slide_id), image, margin)
            write_slide(target, image, pieces, _CORE, how.quality)
    except wsi.SlideError as error:
        done.failed.append({"slide": entry.slide_id, "cause": error.what, "mend": error.mend})
        return
    done.outputs.append(target.name)
    done.records.append({"file": entry.slide_id, "output": target.name, "mpp": list(image.mpp), **told})


def _pieces(change: Callable[[Pixels], Pixels], image: SlideImage, margin: int) -> Iterator[Pixels]:
    if not margin:
        for y in range(0, image.height, _CORE):
            for x in range(0, image.width, _CORE):
                pixels = image.read(x, y, min(_CORE, image.width - x), min(_CORE, image.height - y))
                yield change(pixels[None])[0]
        return
    from stain.transfer import stream

    aligned = -(-margin // STEP) * STEP
    pieces = stream(change, image.read, image.width, image.height, aligned, _CORE)
    yield from (piece for _, piece in pieces)


def _whole(change: Callable[[Pixels], Pixels], image: Pixels, margin: int) -> Pixels:
    if margin:
        from stain.transfer import transfer_image

        return transfer_image(change, image, margin)
    made: Pixels = change(image[None])[0]
    return made


def _some_of_each(groups: Sequence[Sequence[Path]], slides: Sequence[SlideEntry], how: How) -> Iterator[Pixels]:
    """Yield pixels of each image and slide that can be read; what cannot is told when it is its turn."""
    for path in (path for paths in groups for path in paths):
        with contextlib.suppress(UsageError):
            yield stain.sample_pixels(read_image(path))
    for entry in slides:
        with (
            contextlib.suppress(wsi.SlideError),
            wsi.open_slide(entry.path, slide_mpp=how.slide_mpp, manifest_mpp=entry.mpp) as slide,
        ):
            yield _some_of_slide(slide, how.mpp)


def _some_of_slide(slide: wsi.Slide, mpp: float) -> Pixels:
    grid = wsi.tile_grid(slide, wsi.find_tissue(slide), wsi.TileSpec(size=224, mpp=mpp))
    return pooled_pixels(slide, grid)


def _pooled(images: Sequence[Pixels]) -> Pixels:
    """Return pixels of all images alike, for one fit: (N, 3)."""
    each = max(1, stain.FIT_PIXELS // len(images))
    return np.concatenate([stain.sample_pixels(image, each) for image in images])


def _groups(paths: Sequence[Path], pool: bool) -> list[list[Path]]:
    if not pool:
        return [[path] for path in paths]
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    return list(folders.values())


def _names(sources: Sequence[Path], paths: Sequence[Path]) -> dict[Path, str]:
    """Return the name of each output, without ending: the path inside the folder that was given."""
    names: dict[Path, str] = {}
    for path in paths:
        root = next((source for source in sources if source.is_dir() and path.is_relative_to(source)), path.parent)
        names[path] = path.relative_to(root).with_suffix("").as_posix()
    taken: dict[str, Path] = {}
    for path, name in names.items():
        if name in taken:
            raise UsageError(f"{taken[name]} and {path} would both become {name}.png. Apply them one after the other.")
        taken[name] = path
    return names


def _png(image: Pixels) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _said(out: Path, done: _Applied, how: How) -> Said:
    left = [record for record in done.records if record["status"] != "ok"]
    lines = [f"{out}: {len(done.outputs)} written, their parameters in {out / RECORD}"]
    lines += [f"  as it was  {record['file']}: {record['status']}" for record in left]
    lines += [f"  failed     {one['slide']}: {one['cause'].rstrip('.')}. {one['mend']}".rstrip() for one in done.failed]
    alone = [record for record in done.records if record["output"].endswith(".png")]
    if how.method is not None and not how.pool and len(alone) > 1:
        lines.append("each image was fitted alone; where the images of a folder are tiles of one slide, give --pool")
    code = ExitCode.SOME_FAILED if done.failed else ExitCode.DONE
    status = "done" if not done.failed else ("partial" if done.outputs else "failed")
    data = {"status": status, "outputs": done.outputs, "unchanged": [r["file"] for r in left], "failed": done.failed}
    return Said(tuple(lines), data, code)
