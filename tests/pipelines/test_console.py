"""Errors end in one sentence and the right exit code; a traceback only with -v."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import mil
import wsi
from pipelines.console import guarded
from pipelines.errors import CheckFailedError, EnvironmentFault, NothingMatchedError, UsageError

TERMINATED = """
import os, signal, sys
import typer
from pipelines.console import guarded

@guarded
def verb(verbose=False):
    os.kill(os.getpid(), signal.SIGTERM)
    return 0

try:
    verb()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def fail_with(error):
    def verb(verbose: bool = False) -> int:
        raise error

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(guarded(verb))
    return app


CASES = [
    (UsageError("wrong"), 2),
    (NothingMatchedError("nothing"), 4),
    (EnvironmentFault("full"), 5),
    (mil.WeightsError("no weights"), 6),
    (CheckFailedError("differ"), 7),
    (mil.TrainingDataError("one class"), 2),
    (wsi.UnreadableSlideError("a.svs", "is cut", "Copy it."), 2),
    (KeyboardInterrupt(), 130),
    (ZeroDivisionError("oh"), 1),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda value: getattr(value, "__class__", value).__name__)
def test_every_error_has_its_exit_code_and_no_traceback(error, code):
    done = CliRunner().invoke(fail_with(error), [])
    assert done.exit_code == code
    assert "Traceback" not in done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_sigterm_has_its_exit_code_and_no_traceback():
    """In a process of its own: where it went wrong, it would take the tests along."""
    done = subprocess.run([sys.executable, "-c", TERMINATED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr.startswith("stopped by SIGTERM")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_bug_shows_its_traceback_only_when_asked():
    done = CliRunner().invoke(fail_with(ZeroDivisionError("oh")), ["--verbose"])
    assert "Traceback" in done.output
    assert "a bug: ZeroDivisionError" in done.output
