"""The examples of docs/examples run as they stand, each where its tool is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _slides import smooth_picture, write_aperio

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
MORE = "--tile 64 --set min_tissue=0 --set quality=false --set processes=0"
SCRIPTS = ("array.sbatch", "submit.sh")


def tool(name: str) -> str:
    """Return the path of a tool that is no dependency of ours; SLIDEMIL_SNAKEMAKE and the like say where it is."""
    path = os.environ.get(f"SLIDEMIL_{name.upper()}") or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not here")
    return path


@pytest.fixture
def place(tmp_path):
    """Return the environment in which `slidemil` is found, with SLIDES and JOB."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for seed, name in enumerate("abc"):
        write_aperio(slides / f"{name}.svs", smooth_picture(256, 256, seed))
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = tmp_path / "job"
    return {**os.environ, "PATH": path, "SLIDES": str(slides), "JOB": str(job), "MORE": MORE, "OMP_NUM_THREADS": "1"}


def status(place: dict[str, str]) -> list[str]:
    rows = (Path(place["JOB"]) / "slides.csv").read_text().splitlines()[1:]
    return [row.split(",")[3] for row in rows]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name):
    assert subprocess.run(["bash", "-n", EXAMPLES / name]).returncode == 0
    done = subprocess.run([tool("shellcheck"), EXAMPLES / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_array_does_all_slides(place):
    """Each task with the variables that SLURM gives it; bash ignores the directives, which are comments."""
    for task in (10, 11):
        variables = {"ID": task, "MIN": 10, "MAX": 11, "COUNT": 2}
        slurm = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in variables.items()}
        done = subprocess.run(
            ["bash", EXAMPLES / "array.sbatch"], env={**place, **slurm}, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert "SLURM_ARRAY_TASK_ID" in done.stdout
    assert status(place) == ["done"] * 3


def faked(place: dict[str, str], name: str, script: str) -> None:
    path = Path(place["PATH"].partition(os.pathsep)[0]) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_a_task_that_is_stopped_in_time_is_queued_again(place, tmp_path):
    """A minute before the time limit SLURM sends SIGTERM to the script alone; slidemil ends with 75."""
    faked(place, "slidemil", 'trap "exit 75" TERM; touch "$JOB.begun"; while :; do sleep 0.05; done')
    faked(place, "scontrol", 'echo "$@" > "$JOB.requeued"')
    with subprocess.Popen(["bash", EXAMPLES / "array.sbatch"], env={**place, "SLURM_JOB_ID": "77"}) as script:
        while not Path(f"{place['JOB']}.begun").exists():
            assert script.poll() is None
        script.terminate()
        assert script.wait(20) == 75
    assert (tmp_path / "job.requeued").read_text() == "requeue 77\n"


@pytest.mark.parametrize(("code", "told"), [(0, 0), (3, 0), (5, 5)])
def test_the_array_tells_slurm_what_the_command_told(place, code, told):
    faked(place, "slidemil", f"exit {code}")
    assert subprocess.run(["bash", EXAMPLES / "array.sbatch"], env=place).returncode == told


def test_the_last_step_waits_for_the_array(place, tmp_path):
    faked(place, "sbatch", f'printf "%s|" "$@" >> {tmp_path}/asked; echo >> {tmp_path}/asked; echo "123;cluster"')
    done = subprocess.run(["bash", EXAMPLES / "submit.sh"], env={**place, "LABELS": "l.csv", "PARTS": "7"})
    assert done.returncode == 0
    array, model = (tmp_path / "asked").read_text().splitlines()
    assert "--array=0-6|" in array
    assert array.endswith("array.sbatch|")
    assert "--dependency=afterany:123|" in model
    assert f"slidemil run '{place['SLIDES']}' -o '{place['JOB']}' -l 'l.csv'" in model


@pytest.mark.slow
def test_snakemake_makes_the_job(place, tmp_path):
    asked = [f"slides={place['SLIDES']}", f"job={place['JOB']}", "parts=2", f"more={MORE}"]
    done = subprocess.run(
        [tool("snakemake"), "-s", EXAMPLES / "Snakefile", "--cores", "2", "--config", *asked],
        env=place,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert status(place) == ["done"] * 3
    assert (tmp_path / "job" / "report.html").exists()


@pytest.mark.slow
def test_nextflow_makes_the_job(place, tmp_path):
    asked = ["--slides", place["SLIDES"], "--job", place["JOB"], "--parts", "2", "--more", MORE]
    done = subprocess.run(
        [tool("nextflow"), "run", EXAMPLES / "main.nf", *asked],
        env={**place, "NXF_OFFLINE": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(place) == ["done"] * 3
