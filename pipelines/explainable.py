"""What explanations of one job need beside features and head: which methods, which class, the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.explain import METHODS, NotDifferentiableError, methods_of
from mil.explain.backbone import Backbone
from mil.tasks import Classification, MultiLabel, MultiTask, Ordinal

from .config import ExtractSettings, load_settings
from .encoding import encoder_of, settled
from .errors import CheckFailedError, NoAttentionError, UsageError
from .feature_sets import FeatureSet
from .features import same_passport
from .jobfolder import JobFolder
from .passports import passport_of
from .predictions import NamedModel

ALL = "all"


@dataclass(frozen=True)
class Means:
    """What the methods may use.

    Attributes:
        encoder: that made the features; None where it could not be had, and `lack` says why.
        lack: why there is none.
    """

    encoder: Any = None
    lack: str = ""

    @property
    def differentiable(self) -> bool:
        """Whether derivatives reach pixels."""
        try:
            Backbone.of(self.encoder)
        except NotDifferentiableError:
            return False
        return True


def choose_methods(wanted: Sequence[str], named: NamedModel, means: Means) -> tuple[str, ...]:
    """Return the methods to run, in the order of `METHODS`; `all` is whatever head and encoder support.

    Raises:
        UsageError: no such method, or not for this head or encoder.
    """
    head = named.model.head
    supported = methods_of(head)
    names = [name.strip().replace("-", "_") for text in wanted for name in text.split(",") if name.strip()]
    strangers = [name for name in names if name != ALL and name not in METHODS]
    if strangers or not names:
        hint = mil.errors.did_you_mean(strangers[0], METHODS) if strangers else ""
        raise UsageError(f"--method {strangers[0] if strangers else ''}:{hint} There are {', '.join(METHODS)}, all.")
    for name in names:
        if name != ALL and name not in supported:
            _refuse(name, named, supported)
        if name != ALL and METHODS[name].pixels and not means.differentiable:
            raise UsageError(_no_pixels(name, means))
    if ALL in names:
        names += [name for name in supported if means.differentiable or not METHODS[name].pixels]
    return tuple(name for name in METHODS if name in names)


def needs_encoder(methods: Sequence[str]) -> bool:
    """Tell whether a method asks for the encoder: for its derivative, or for what white looks like."""
    asked = {name.strip().replace("-", "_") for text in methods for name in text.split(",")}
    return bool(asked & {ALL, "gradcam", "integrated_gradients"})


def means_of(job: JobFolder, features: FeatureSet, weights: str | None, *, offline: bool) -> Means:
    """Return the encoder that made the features of a job, built anew as `job.yaml` says.

    Args:
        job: the job.
        features: whose encoder is wanted.
        weights: its weights, where they lie elsewhere now.
        offline: open no connection.

    Raises:
        CheckFailedError: weights were given, and are not those that made the features.
    """
    if features.beside:
        return Means(lack="its features are joined of several: methods that reach pixels need those of one")
    try:
        settings = _extraction(job, features, weights)
        encoder = encoder_of(settings, offline=offline)
        made = passport_of(encoder, settled(settings, encoder))
        same_passport(features.passport, made, what=f"{features.folder} and the encoder")
    except CheckFailedError as error:
        if weights is not None:
            raise
        return Means(lack=str(error))
    except (mil.MilError, UsageError) as error:
        if weights is not None:
            raise
        return Means(lack=str(error))
    return Means(encoder)


def _extraction(job: JobFolder, features: FeatureSet, weights: str | None) -> ExtractSettings:
    """Return the settings of the extraction for the one encoder that made these features."""
    settings = load_settings(job.settings if job.settings.is_file() else None).extract
    if features.tile.get("mpp") in settings.scales:
        settings = replace(settings, mpp=features.tile["mpp"], more_mpp="")
    names = [name.strip() for name in settings.encoder.split(",")]
    files = [one.strip() or None for one in (settings.weights or "").split(",")]
    made = str(features.passport.get("id", ""))
    if len(names) == 1:
        return replace(settings, weights=weights or settings.weights)
    at = names.index(made) if made in names else -1
    mine = files[at] if at >= 0 and len(files) == len(names) else None
    return replace(settings, encoder=made, weights=weights or mine)


def outputs_of(named: NamedModel) -> tuple[str, ...]:
    """Name what may be explained: classes, labels, the steps between grades, a number, a risk."""
    return named.model.task.output_names


def target_of(named: NamedModel, wanted: str | None, answer: NDArray[Any]) -> int:
    """Return the output that is explained: the one wanted; else of two classes the positive, of more the predicted.

    Of several labels it is the most probable, of grades the last step up to the predicted one, else the first output;
    of several questions it is that of the first.

    Args:
        named: the model.
        wanted: a name of `outputs_of`, or None.
        answer: what the model says of the slide, (P,).
    """
    task = named.model.task
    if wanted is not None:
        return outputs_of(named).index(wanted)
    while isinstance(task, MultiTask):
        task = next(iter(task.tasks.values()))
    answer = answer[: len(task.columns)]
    if isinstance(task, Classification):
        return 1 if len(task.classes) == 2 else int(np.argmax(answer))
    if isinstance(task, MultiLabel):
        return int(np.argmax(answer))
    return max(0, int(np.argmax(answer)) - 1) if isinstance(task, Ordinal) else 0


def check_class(named: NamedModel, wanted: str | None) -> None:
    """Refuse a class, or another output, that the model does not know."""
    known = outputs_of(named)
    if wanted is not None and wanted not in known:
        what = "classes" if named.model.classes else "outputs"
        raise UsageError(f"--class {wanted}: the model {named.name} has the {what} {', '.join(known)}.")


def check_prediction(
    named: NamedModel, slide_id: str, answer: Sequence[float] | NDArray[Any], stored: Mapping[str, Any] | None
) -> None:
    """Refuse to draw what the stored prediction does not say.

    Raises:
        CheckFailedError: names slide, column and both numbers.
    """
    if stored is None:
        return
    for name, value in zip(named.model.task.columns, answer, strict=True):
        kept = stored.get(name)
        if kept and not _same(float(kept), float(value)):
            raise CheckFailedError(
                f"{slide_id}: the model gives {name} = {value:.9g}, its stored prediction says {float(kept):.9g}. "
                "Predict anew: slidemil predict JOB --model " + named.name
            )


_SAME_LOGIT = 1e-3
"""Threads and vector units move the last digits of float32."""
_SAME_NUMBER = 1e-4
_TABLE = 1e-8
"""Tables keep nine digits: near 0 and 1 the logit is lost in them."""


def _same(stored: float, found: float) -> bool:
    """Tell whether two probabilities have the same logit; other numbers, whether they are the same to 1e-4."""
    if abs(stored - found) <= _TABLE:
        return True
    if not (0 <= stored <= 1 and 0 <= found <= 1):
        return abs(stored - found) <= _SAME_NUMBER * max(1.0, abs(stored))
    if not (0 < stored < 1 and 0 < found < 1):
        return False
    return abs(float(np.log(stored / (1 - stored)) - np.log(found / (1 - found)))) <= _SAME_LOGIT


def _refuse(name: str, named: NamedModel, supported: Sequence[str]) -> None:
    head = named.model.head.name
    if name.startswith("attention"):
        raise NoAttentionError(
            f"no heatmaps: the head {head} of model {named.name} weighs all tiles alike. Train one "
            "with attention, e.g. `slidemil train JOB -l labels.csv --head gated-abmil`, or ask for "
            f"--method {'lrp' if 'lrp' in supported else 'perturbation'}."
        )
    raise UsageError(f"--method {name}: the head {head} does not support it. It supports {', '.join(supported)}.")


def _no_pixels(name: str, means: Means) -> str:
    if means.encoder is None:
        return (
            f"--method {name} reaches pixels and needs the encoder, which could not be had: {means.lack} "
            "Give its weights with --weights."
        )
    return (
        f"--method {name} reaches pixels: the encoder ({means.encoder.id}) has to be a network. Extract with one, e.g. "
        "`slidemil extract SLIDES -o JOB --encoder slidemil-compact`, or take lrp, perturbation or "
        "integrated_gradients, which stay with the features."
    )
