"""One small cohort and one finished job, shared by the tests of the pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from _command import slidemil
from _once import once

from pipelines import extraction, losable, probe
from pipelines.demo import write_truth
from pipelines.demo_cohort import Cohort, compose_cohort
from pipelines.jobfolder import JobFolder


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test here can cut the power; where a disk fails, tests say so themselves. 30 waits for each small job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def apart() -> None:
    """Slides are prepared in a process of their own, as the command does it."""


@pytest.fixture(autouse=True)
def prepared_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides are prepared in this process, into which tests can reach, unless a test asks for `apart` or processes."""
    if "apart" not in request.fixturenames:
        for module in (extraction, probe):
            monkeypatch.setattr(module, "prepares_apart", lambda settings: settings.processes not in ("auto", "0"))


@pytest.fixture
def looked_at_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`scan` looks at slides in this process: two processes take longer to start than most tests to run."""
    monkeypatch.setattr(losable, "each", lambda look, items, **_: ((one, losable.Done(look(one))) for one in items))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Twelve slides of six patients, composed once."""
    folder, made = once(
        tmp_path_factory, "cohort", lambda folder: compose_cohort(folder / "slides", patients=6, size=(2016, 2016))
    )
    return replace(made, slides=tuple(replace(one, path=folder / "slides" / one.path.name) for one in made.slides))


@pytest.fixture(scope="session")
def labels(cohort: Cohort) -> Path:
    """The labels of the cohort, with a split by patient."""
    folder = cohort.slides[0].path.parent.parent
    write_truth(JobFolder(folder), cohort)
    return folder / "truth" / "labels.csv"


@pytest.fixture(scope="session")
def finished(cohort: Cohort, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that ran to its end; tests that change it copy it first."""

    def run(folder: Path) -> None:
        code, said = slidemil("run", cohort.slides[0].path.parent, "-o", folder / "job", "-l", labels, "-q")
        assert code == 0, said

    return once(tmp_path_factory, "finished", run)[0] / "job"


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished job."""
    return Path(shutil.copytree(finished, tmp_path / "job"))
