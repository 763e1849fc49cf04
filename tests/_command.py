"""Run the command inside the tests' process, and compare job folders."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import typer.testing
from typer.testing import CliRunner

from pipelines.cli import app

APART = ("runs", "logs", ".state")

typer.testing._get_command = cache(typer.testing._get_command)  # else all verbs are built anew for every call


def slidemil(*arguments: object) -> tuple[int, str]:
    """Return the exit code and what was printed, results and errors together."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def slidemil_json(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the one object that `--json` prints on stdout."""
    done = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json", "-q"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert len(done.stdout.splitlines()) == 1, done.output
    return done.exit_code, json.loads(done.stdout)


def digests(job: Path) -> dict[str, str]:
    """Return path → SHA-256 of every file that must be the same bytes in every run."""
    return {
        path.relative_to(job).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.rglob("*"))
        if path.is_file() and path.relative_to(job).parts[0] not in APART
    }
