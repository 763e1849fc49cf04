"""How a head is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .adaptation import ADAPTATIONS
from .errors import TrainingDataError
from .fusion import FUSIONS

_CHOICES = {
    "scaling": ("each", "common"),
    "precision": ("auto", "float32", "bfloat16"),
    "schedule": ("constant", "cosine"),
    "task_weights": ("equal", "uncertainty"),
    "surgery": ("none", "pcgrad"),
    "fusion": ("none", *FUSIONS),
    "adapt": ("none", *ADAPTATIONS),
}

_SHARES = ("ema", "feature_dropout", "dropout", "warmup", "clinical_dropout")


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained. The defaults serve 20 to 200 slides with features of any scale.

    Attributes:
        head: a key of `mil.HEADS`; some have a loss of their own beside that of the slide, see `mil.losses`.
        head_options: further arguments of the head, e.g. {"hidden": 128}.
        epochs: at most so many passes over the training slides.
        patience: stop after so many epochs without a lower validation loss.
        lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        schedule: "constant", or "cosine": the learning rate falls to 0 over `epochs`, along half a cosine.
        warmup: share of the steps over which the learning rate rises to `lr`; cosine only.
        clip: largest norm of a step's gradient, over all weights together; 0 for no limit.
        ema: share of the old weights that a step keeps in their moving average, e.g. 0.99; validation and the stored
            model then take the average. 0 for none.
        dropout: share of the hidden features of each tile that is switched off in training.
        feature_dropout: share of the input features that is switched off, the same ones for all tiles of a bag.
        mixup: bags are mixed with others of the batch's side: a share ~ Beta(mixup, mixup) of the tiles stays, the rest
            comes from another slide, whose label counts as much. 0 for none.
        scaling: "each" brings every input feature to unit spread (descriptors of mixed units); "common" divides all by
            one number (features of one unit, e.g. pixels).
        decorrelate: how far correlated input features are pulled apart before training, from 0 (only brought to one
            scale) to 1 (fully whitened). With few slides it is what makes a faint concept learnable. Features wider
            than 512 are left at 0. It is folded into the first layer: the stored model is an ordinary head.
        batch_size: slides in one step.
        class_weights: "balanced" (inverse to the class's number of slides), "none", or one number over 0 per class.
            A slide's loss is multiplied by the weight of its class, whatever else is in its batch; balanced weights
            average 1 over the training slides.
        task_weights: of several tasks: "equal", or "uncertainty" (learned, see `mil.task_balance`).
        surgery: of several tasks: "none", or "pcgrad": gradients that point against one another are projected.
        fusion: how clinical variables join the slide: "none", or one of `mil.fusion.FUSIONS`.
        clinical_dropout: share of the variables, and of whole rows, that training does not show; `fusion` other than
            "early", which takes what is missing for the mean.
        adapt: how confounders (`BagSet.confounders`) are kept out of the slides' embeddings: "none", or one of
            `mil.adaptation.ADAPTATIONS`.
        adapt_weight: what that weighs beside the loss of the slides.
        precision: of training: "float32", "bfloat16" (products; sums and the stored model stay float32), or "auto":
            bfloat16 for features of width 512 and more on hardware that has it. Descriptors are narrower.
        memory_gb: prepared features are kept in memory up to this; those beyond are read again in every epoch.
        seed: decides initial weights, order and dropout; the same seed gives the same bytes on a CPU.
        device: "cpu" or "cuda"; only the CPU promises the same bytes.
    """

    head: str = "gated_abmil"
    head_options: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 200
    patience: int = 40
    lr: float = 5e-4
    weight_decay: float = 1e-2
    schedule: str = "constant"
    warmup: float = 0.05
    clip: float = 0.0
    ema: float = 0.0
    dropout: float = 0.25
    feature_dropout: float = 0.0
    mixup: float = 0.0
    scaling: str = "each"
    decorrelate: float = 0.5
    batch_size: int = 1
    class_weights: str | tuple[float, ...] = "balanced"
    task_weights: str = "equal"
    surgery: str = "none"
    fusion: str = "none"
    clinical_dropout: float = 0.2
    adapt: str = "none"
    adapt_weight: float = 1.0
    precision: str = "auto"
    memory_gb: float = 4.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainingDataError(f"{name}={getattr(self, name)!r}: use {' or '.join(map(repr, choices))}.")
        shares = {name: getattr(self, name) for name in _SHARES}
        wrong = [f"{name}={value}" for name, value in shares.items() if not 0 <= value < 1]
        least = {"adapt_weight": 0, "epochs": 1, "batch_size": 1, "patience": 1, "clip": 0, "mixup": 0}
        wrong += [f"{name}={getattr(self, name)}" for name, low in least.items() if getattr(self, name) < low]
        if wrong:
            raise TrainingDataError(
                f"{', '.join(wrong)}: shares lie from 0 to under 1, epochs, batch_size and patience from 1."
            )
        if self.mixup and self.adapt != "none":
            raise TrainingDataError("mixup with adapt: a slide mixed of two sites has no site. Use one of the two.")
