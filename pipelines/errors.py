"""The errors of a job, and the exit code each one ends the command with.

JobError
├── UsageError            2   wrong option, wrong config, labels that do not fit
│   ├── NoAttentionError      a heatmap of attention was asked for, the head has none
│   ├── NoColumnError         a table lacks a column that is to be predicted
│   └── NotUtf8Error          a table is written in another encoding
├── SomeSlidesFailed      3   carried by the outcome, not raised
├── NothingMatchedError   4   no slide found, no label matched
├── EnvironmentFault      5   the installation or the disk lacks something
├── WeightsRefusedError   6   encoder weights missing or refused
└── CheckFailedError      7   two things that must agree do not
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command tells the shell."""

    DONE = 0
    BUG = 1
    USAGE = 2
    SOME_FAILED = 3
    NOTHING_MATCHED = 4
    ENVIRONMENT = 5
    WEIGHTS = 6
    CHECK_FAILED = 7
    PREEMPTED = 75
    INTERRUPTED = 130


class JobError(Exception):
    """Base of all errors of a job: says what, why, and the command that helps."""

    exit_code = ExitCode.USAGE


class UsageError(JobError):
    """An option, a config file or a table of the user's does not fit."""


class NoAttentionError(UsageError):
    """A heatmap of attention was asked for, and the head weighs all tiles alike."""


class NoColumnError(UsageError):
    """A table of labels lacks a column that is to be predicted."""


class NotUtf8Error(UsageError, ValueError):
    """A table is not written in UTF-8."""


class NothingMatchedError(JobError):
    """No slide was found, or no label belongs to a slide."""

    exit_code = ExitCode.NOTHING_MATCHED


class EnvironmentFault(JobError):  # noqa: N818 - EnvironmentError is a builtin
    """The installation, the disk or the machine lacks something."""

    exit_code = ExitCode.ENVIRONMENT


class WeightsRefusedError(JobError):
    """Encoder weights are missing, or were refused."""

    exit_code = ExitCode.WEIGHTS


class CheckFailedError(JobError):
    """Two things that must agree do not."""

    exit_code = ExitCode.CHECK_FAILED
