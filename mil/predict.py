"""A trained model and bags → predictions, one code path for tables and heatmaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .bag import Bag
from .errors import BagError, ModelError
from .heads import Head, MILOutput
from .model import TrainedModel
from .tasks import said

CHUNK = 2048  # tiles that a streamed prediction holds at a time: 12 MB in float32 for features of width 1536


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one bag.

    Attributes:
        id: of the bag.
        logits: shape (C,), float32.
        answer: what they mean, shape (P,), float64, one number per `task.columns`; of a classification probabilities.
        pred: class name; in a two-class task by the model's stored threshold. Of other tasks see `mil.tasks.said`.
        attention: weight of each tile, shape (N,), float32, summing to 1; for several branches their mean.
        scores: raw score of each tile, shape (N,), float32.
        n_tiles: N.
    """

    id: str
    logits: NDArray[np.float32]
    answer: NDArray[np.float64]
    pred: str
    attention: NDArray[np.float32]
    scores: NDArray[np.float32]
    n_tiles: int

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """`answer`, by the name it has in a classification."""
        return self.answer


@torch.inference_mode()
def predict(model: TrainedModel, bag: Bag) -> list[Prediction]:
    """Predict every bag by itself, so that its numbers do not depend on what else was asked for.

    Args:
        model: from `mil.train` or `mil.load_model`.
        bag: one or several bags, float16 or float32.

    Raises:
        ModelError: the features are of another width than the model's, or the bag does not serve its head.
    """
    if bag.dim != model.head.in_dim:
        made = (model.config.get("encoder") or {}).get("id", "an encoder that was not recorded")
        raise ModelError(
            f"the model takes features of width {model.head.in_dim} (encoder: {made}), these have {bag.dim}. "
            "Extract the slides with the encoder of the model."
        )
    try:
        return [_predict_one(model, one) for one in bag.split()]
    except BagError as error:
        raise ModelError(str(error)) from error


@torch.inference_mode()
def infer(head: Head, bag: Bag) -> MILOutput:
    """Output of a head in evaluation for one bag; a large bag goes through in chunks where the head allows it."""
    if head.contract.streams and bag.n_tiles > CHUNK:
        return head.eval().stream(bag.chunks(CHUNK))
    out: MILOutput = head.eval()(bag)
    return out


def _predict_one(model: TrainedModel, bag: Bag) -> Prediction:
    """Predict one bag."""
    out = infer(model.head, bag)
    logits = out.logits[0]
    answer = model.task.answer(logits.double().cpu().numpy()[None])[0]
    return Prediction(
        id=bag.ids[0],
        logits=logits.float().cpu().numpy(),
        answer=answer,
        pred=model.classes[decide(answer, model.threshold)] if model.classes else said(model.task, answer),
        attention=out.weights.float().mean(dim=1).cpu().numpy(),
        scores=out.scores.float().mean(dim=1).cpu().numpy(),
        n_tiles=bag.n_tiles,
    )


def decide(probabilities: NDArray[np.float64], threshold: float | None) -> int:
    """Class number: by the threshold of the second class where there is one, else the most probable."""
    if threshold is None:
        return int(probabilities.argmax())
    return int(probabilities[1] >= threshold)
