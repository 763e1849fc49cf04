"""Where training stands after an epoch, as bytes: continued from there, it ends in the same bytes as without a stop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .errors import ModelError

_FORMAT = "slidemil-training"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name, and what JSON can hold.

    Attributes:
        tensors: weights, their best and average, the optimizer's moments, the random state.
        facts: settings, history and counters.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return safetensors with the facts in its header: nothing in it is executed when it is read."""
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, metadata={"format": _FORMAT, "facts": json.dumps(self.facts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises:
            ModelError: the bytes are damaged or something else.
        """
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])["__metadata__"]
            facts = json.loads(header["facts"])
            tensors = safetensors.torch.load(data)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ModelError(f"the checkpoint cannot be read ({error}). Delete it; training begins anew.") from error
        if header.get("format") != _FORMAT:
            raise ModelError("this is no checkpoint of a training.")
        return cls(tensors, facts)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with `prefix.`, without it."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(prefix + ".")}


def grouped(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counterpart of `Checkpoint.group`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
