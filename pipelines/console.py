"""What the command says: results on stdout, everything else on stderr; errors without tracebacks."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import typer

from .errors import ExitCode, JobError
from .signals import Preempted, stoppable

_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
)


class Result(Protocol):
    """What a verb gives back: an object for `--json`, lines for people, and an exit code."""

    @property
    def exit_code(self) -> int:
        """What the shell is told."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""

    def lines(self) -> list[str]:
        """Return what people read."""


def say(text: str) -> None:
    """Print one line of a result."""
    print(harmless(text), flush=True)


def warn(text: str) -> None:
    """Print one line that is no result."""
    print(harmless(text), file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Return text that no terminal obeys: signs of control and of direction, and halves of signs, are written out.

    Written as JSON writes them, so an object of `--json` stays the same object.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign in "\n\t" or sign.isprintable() else _written_out(sign) for sign in text)


def _written_out(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def show(result: Result, as_json: bool) -> None:
    """Print a result, for a program or for people."""
    if as_json:
        say(json.dumps(result.to_json(), ensure_ascii=False, default=_plain))
    else:
        for line in result.lines():
            say(line)


def guarded(verb: Callable[..., int]) -> Callable[..., None]:
    """Turn a verb's return value and errors into exit codes, and errors into one clear sentence."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> None:
        verbose = bool(kwargs.get("verbose"))
        try:
            with stoppable():
                code = int(verb(*args, **kwargs))
        except KeyboardInterrupt:
            warn("interrupted; what is finished is kept, run the same command again to go on")
            code = ExitCode.INTERRUPTED
        except Preempted:
            warn("stopped by SIGTERM; what is finished is kept, run the same command again to go on")
            code = ExitCode.PREEMPTED
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # whoever read the result has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.DONE
        except Exception as error:
            code = _explain(error, verbose)
        raise typer.Exit(code)

    return call


def _explain(error: Exception, verbose: bool) -> int:
    code = exit_code_of(error)
    if verbose:
        traceback.print_exception(error)
    if code is not None:
        warn(f"slidemil: {_of_the_disk(error) if isinstance(error, OSError) else error}")
        return code
    last = traceback.extract_tb(error.__traceback__)[-1]
    warn(
        f"slidemil: a bug: {type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno}). "
        "Run again with -v for the traceback, and report it."
    )
    return ExitCode.BUG


def _of_the_disk(error: OSError) -> str:
    """Say what a disk, or a file server, did not do: which file, why, and what helps."""
    mend = "Check the disk and its rights, then run the same command again: it goes on where it stopped."
    return f"{error.filename or 'a file'}: {error.strerror}. {mend}"


def exit_code_of(error: Exception) -> int | None:
    """Return the exit code of an error of ours, None for a bug.

    The packages' own errors are known only where the packages are loaded: this must load nothing.
    """
    if isinstance(error, JobError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return ExitCode.ENVIRONMENT
    mil = sys.modules.get("mil.errors")
    if mil is not None and isinstance(error, mil.WeightsError):
        return ExitCode.WEIGHTS
    for name, base in (
        ("mil.errors", "MilError"),
        ("wsi.errors", "SlideError"),
        ("stain.errors", "StainError"),
    ):
        module = sys.modules.get(name)
        if module is not None and isinstance(error, getattr(module, base)):
            return ExitCode.USAGE
    return None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
