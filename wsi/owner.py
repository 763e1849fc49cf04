"""The process that started this one, and what becomes of this one without it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_SIGNAL_AT_PARENTS_DEATH = 1


def end_with(owner: int) -> None:
    """End with the owner, also where a library holds this process fast, and with the owner's thread that started it."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, int(signal.SIGKILL))
    if os.getppid() != owner:
        os._exit(0)
