"""`slidemil stain validate`: what a normalizer or a transfer does to held-out tiles, and whether that is harmless."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stain
from stain.errors import unknown
from stain.measures import Pixels
from stain.validate import KINDS, Back, Transfer, Validation, normalizer, validate

from .errors import ExitCode, UsageError
from .files import write_bytes, write_json
from .manifest import Sources
from .outcome import Said
from .progress import progress
from .stain_target import reference_named
from .stain_training import load_transfer, seen_in_training
from .targets import check_json
from .tissue_images import (
    Sampling,
    TissueImage,
    check_enough,
    crops_of,
    find_images,
    left_out_lines,
    read_tissue_images,
)
from .verdict_page import Shown, render

JSON = "validation.json"
PAGE = "validation.html"


@dataclass(frozen=True)
class Asked:
    """What is judged, and how.

    Attributes:
        method: a normalizer, None where `model` is given.
        reference: what it normalizes to; none: the middle of the target.
        model: folder of a trained transfer.
        backwards: from the model's second stain to its first.
        predictor: folder of a MIL model, whose predictions must stay.
        weights: of its encoder.
        thresholds: other lines than the usual, by measure.
        tile: side of the tiles that are compared.
        each: at most so many of an image or slide.
        device: where models compute.
        seed: of the resampling.
    """

    method: str | None = None
    reference: str | None = None
    model: Path | None = None
    backwards: bool = False
    predictor: Path | None = None
    weights: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    tile: int = 256
    each: int = 16
    device: str = "auto"
    seed: int = 0


def validate_stain(
    tiles: Sources,
    target: Path,
    out: Path,
    asked: Asked,
    sampling: Sampling,
    *,
    limit: int | None = None,
    quiet: bool = False,
) -> Said:
    """Run the protocol, and write `validation.json` and `validation.html`.

    Raises:
        NothingMatchedError: no images.
        UsageError: the options do not fit.
        stain.StainError: the transfer or a threshold does not serve.
    """
    if (asked.method is None) == (asked.model is None):
        raise UsageError("give either --method (macenko, vahadane, reinhard) or --model FOLDER.")
    check_json(out / JSON, "-o", "stain validation", ("go", "measures"))
    found = find_images(tiles, slide_mpp=sampling.slide_mpp)
    wanted = find_images([target], among="--target", slide_mpp=sampling.slide_mpp)
    left: tuple[dict[str, str], dict[str, str]] = ({}, {})
    with progress("read", "files", quiet=quiet) as bar:
        bar.total(sum(len((*one.images, *one.slides)[:limit]) for one in (found, wanted)))
        images = read_tissue_images(found, sampling, limit=limit, bar=bar, left_out=left[0])
        others = read_tissue_images(wanted, sampling, limit=limit, bar=bar, left_out=left[1])
    for what, some, without in (("the tiles", found, left[0]), ("--target", wanted, left[1])):
        check_enough(what, len((*some.images, *some.slides)[:limit]), without)
    before, names = crops_of(images, asked.tile, asked.each)
    aim, target_names = crops_of(others, asked.tile, asked.each)
    subject = _subject(asked, _slides(aim, target_names), (*images, *others))
    predict = None if asked.predictor is None else _predictor(asked.predictor, asked.weights, asked.device)
    made = validate(
        before,
        subject.transfer,
        target=aim,
        groups=names,
        target_groups=target_names,
        back=subject.back,
        predict=predict,
        thresholds=asked.thresholds,
        identity=subject.identity,
        seed=asked.seed,
    )
    go = made.go and not subject.seen
    shown = {"tiles": Shown(before, made.after, names), "target": Shown(aim, made.target_after, target_names)}
    data = {
        **made.to_json(),
        "go": go,
        "of": subject.told,
        "images": len(set(names)),
        "target": {"images": len(set(target_names)), "tiles": len(aim)},
        "tile": {"size": asked.tile, "mpp": sampling.mpp},
        "seen_in_training": subject.seen,
        "left_out": [{"file": name, "cause": cause} for one in left for name, cause in one.items()],
        "predictor": None if asked.predictor is None else asked.predictor.name,
        "worst": {one.name: [shown[one.of].name(row) for row in one.worst(4)] for one in made.measures},
    }
    write_json(out / JSON, data)
    write_bytes(out / PAGE, render(data, made.measures, shown))
    return _said(out, data, made, subject.seen)


def thresholds_of(assignments: Sequence[str]) -> dict[str, float]:
    """Read lines such as `dice=0.9`.

    Raises:
        UsageError: one is no such line.
    """
    lines: dict[str, float] = {}
    for text in assignments:
        name, _, value = text.partition("=")
        try:
            line = float(value)
        except ValueError:
            raise UsageError(f"--threshold {text}: write NAME=NUMBER, with one of {', '.join(KINDS)}.") from None
        if not (math.isfinite(line) and line >= 0):
            raise UsageError(f"--threshold {text}: a line is a number from 0 upwards.")
        if name.strip() not in KINDS:
            raise UsageError(f"--threshold {text}: {unknown('measure', name.strip(), KINDS)}")
        lines[name.strip()] = line
    return lines


@dataclass(frozen=True)
class _Subject:
    """What is judged.

    Attributes:
        transfer: the way there.
        back: the way back, where there is one.
        identity: whether it takes tiles of its target domain.
        told: what it is.
        seen: images here that it was trained on.
    """

    transfer: Transfer
    back: Back | None
    identity: bool
    told: dict[str, Any]
    seen: list[str]


def _slides(tiles: Pixels, names: Sequence[str]) -> list[Pixels]:
    """Return the tiles of each image or slide."""
    own = np.asarray(names)
    return [tiles[own == name] for name in dict.fromkeys(names)]


def _middle(method: str, slides: Sequence[Pixels]) -> stain.CohortReference:
    """Return the middle of the target's slides, each fitted by itself.

    Raises:
        stain.StainError: no such method, or none of them can be fitted.
    """
    found = [stain.measure(method, tiles)[:2] for tiles in slides]
    left_out = Counter(status for source, status in found if source is None)
    return stain.combine(method, [source for source, _ in found if source is not None], left_out)


def _subject(asked: Asked, aim: Sequence[Pixels], images: Sequence[TissueImage]) -> _Subject:
    if asked.method is not None:
        if asked.backwards:
            raise UsageError("--backwards is for --model: a normalizer is given another reference instead.")
        reference = (
            _middle(asked.method, aim) if asked.reference is None else reference_named(asked.reference, asked.method)
        )
        there, back = normalizer(asked.method, reference)
        words: dict[str, Any] = {"method": asked.method, "reference": asked.reference or "the middle of the target"}
        return _Subject(there, back, True, words, [])
    assert asked.model is not None
    model = load_transfer(asked.model, asked.device)
    if asked.backwards and model.back is None:
        raise UsageError(f"--model {asked.model}: it was trained on pairs and knows no way back.")
    told: dict[str, Any] = {
        "model": asked.model.name,
        "backwards": asked.backwards,
        **{name: value for name, value in model.config.items() if name not in ("trained_on", "images", "left_out")},
    }

    def there_(tiles: Pixels) -> Pixels:
        made: Pixels = model.apply(tiles, backwards=asked.backwards)
        return made

    def back_(after: Pixels, _: Pixels) -> Pixels:
        made: Pixels = model.apply(after, backwards=not asked.backwards)
        return made

    paired = model.back is None
    return _Subject(there_, None if paired else back_, not paired, told, seen_in_training(model.config, images))


def _predictor(folder: Path, weights: str | None, device: str) -> Callable[[Pixels], NDArray[np.float64]]:
    """Return a MIL model's probabilities of single tiles, each as a bag of its own.

    Raises:
        UsageError: the model does not say its encoder, or its features were made of normalized tiles.
    """
    import mil

    from .encoding import check_device

    check_device(device)
    try:
        model = mil.load_model(folder)
    except OSError as error:
        raise UsageError(f"--predictor {folder}: no such model ({error.strerror}).") from error
    passport = model.config.get("encoder") or {}
    if "id" not in passport:
        raise UsageError(f"--predictor {folder}: the model does not say by which encoder its features were made.")
    if passport.get("stain", "none") != "none":
        raise UsageError(
            f"--predictor {folder}: its features were made of tiles normalized by {passport['stain']}, so that what it "
            "says of tiles as they are, before, means nothing. Give a model of features made with --stain none."
        )
    encoder = mil.create_encoder(str(passport["id"]), weights=weights, device=device)
    mine = encoder.passport()
    if mine.get("weights_sha256") != passport.get("weights_sha256"):
        raise UsageError(
            f"--predictor {folder}: its encoder {passport['id']} had other weights. Give them with --weights."
        )

    def predict(tiles: Pixels) -> NDArray[np.float64]:
        features = encoder(tiles)
        bags = mil.Bag.from_list([features[row : row + 1] for row in range(len(features))])
        return np.stack([one.probabilities for one in mil.predict(model, bags)])

    return predict


def _said(out: Path, data: Mapping[str, Any], made: Validation, seen: Sequence[str]) -> Said:
    lines = [f"{'GO' if data['go'] else 'NO-GO'}: {data['tiles']} tiles of {data['images']} images"]
    for one in made.measures:
        kind = KINDS[one.name]
        if one.verdict == "not measured":
            why = one.note if one.good else f"{one.note}: no evidence, hence no go"
            lines.append(f"  {one.verdict:12}  {kind.title}: {why}")
            continue
        low, high = one.interval
        lines.append(
            f"  {one.verdict:12}  {kind.title}: {one.value:.3f} [{low:.3f}, {high:.3f}] {kind.unit}".rstrip()
            + f", line {kind.sense} {one.threshold:g}"
        )
    if made.unchanged:
        some = f"{len(made.unchanged)} of {data['images']}"
        lines.append(f"  unchanged     {some} images came out as they were, e.g. {made.unchanged[0]}")
    lines += left_out_lines(data["left_out"], str(out / JSON))
    if seen:
        lines.append(f"  no evidence   {len(seen)} of the images were trained on, e.g. {seen[0]}: hold images out")
    lines.append(f"intervals over {made.resampled}; the worst tiles: {out / PAGE}")
    code = ExitCode.DONE if data["go"] else ExitCode.CHECK_FAILED
    return Said(tuple(lines), {"status": "go" if data["go"] else "no-go", **data, "outputs": [JSON, PAGE]}, code)
