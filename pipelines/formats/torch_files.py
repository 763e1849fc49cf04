"""Tensors in torch's files: read without running anything that lies in them."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckFailedError


def read_tensor(path: Path) -> NDArray[Any]:
    """Return the one tensor of a file.

    Raises:
        CheckFailedError: it holds anything else, or is damaged.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud about foreign pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckFailedError(
            f"{path}: refused, for it holds more than a tensor and could run code when read. TRIDENT's .pt files are "
            "of this kind: convert its .h5 files instead."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckFailedError(f"{path}: no whole torch file ({str(error).splitlines()[0][:120]}).") from error
    if not isinstance(content, torch.Tensor):
        raise CheckFailedError(f"{path}: holds a {type(content).__name__}, not one tensor of features.")
    if content.dtype == torch.bfloat16:
        content = content.float()
    values: NDArray[Any] = content.numpy()
    return values


def tensor_bytes(values: NDArray[np.float32]) -> bytes:
    """Return a torch file with one tensor."""
    import torch

    out = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(values)), out)
    return out.getvalue()
