"""Ways to keep site and scanner out of a model while it is trained: one per file. See `TrainSettings.adapt`."""

from __future__ import annotations

from .base import Adaptation, coded
from .coral import Coral
from .covariance import Covariance
from .reversal import Reversal

__all__ = ["ADAPTATIONS", "Adaptation", "coded"]

ADAPTATIONS: dict[str, type[Adaptation]] = {kind.kind: kind for kind in (Coral, Reversal, Covariance)}
