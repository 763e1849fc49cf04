"""What `--cluster` takes, the jobs that come of it, and the page that documents them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from _command import slidemil

from pipelines.cluster.connect import slurm_cluster
from pipelines.cluster.spec import Local, Remote, Slurm, parse_cluster, slurm_table
from pipelines.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
WHOLE = """
kind: slurm
partition: gpu
account: path-42
cores: 16
memory: 64G
gpus: 2
walltime: "1-08:00:00"
min_jobs: 0
max_jobs: 12
sbatch: ["--qos=low", "--exclude=node7"]
prologue: ["module load cuda", "export X=1"]
python: /opt/env/bin/python
scratch: /scratch
"""


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("local", Local(0, 1)),
        ("local:4", Local(4, 1)),
        ("local:2x4", Local(2, 4)),
        ("tcp://10.0.0.5:8786", Remote("tcp://10.0.0.5:8786")),
        ("tls://node:1", Remote("tls://node:1")),
    ],
)
def test_what_is_taken(text, spec):
    assert parse_cluster(text) == spec


@pytest.mark.parametrize("text", ["", "locl", "local:", "local:0", "local:2x0", "local:-1", "10.0.0.5:8786", "tcp://"])
def test_what_is_not_taken_is_told_what_is(text):
    with pytest.raises(UsageError, match=r"--cluster.*local:4.*tcp://"):
        parse_cluster(text)


def written(folder: Path, text: str) -> str:
    path = folder / "jobs.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    text = "kind: pbs\ncorse: 8\nmemory: lots\nwalltime: 10:00:00\nmax_jobs: 2\nmin_jobs: 3\n"
    text += "sbatch: [qos=low]\nprologue: 3\n"
    with pytest.raises(UsageError) as told:
        parse_cluster(written(tmp_path, text))
    lines = str(told.value).splitlines()[1:]
    assert len(lines) == 8, lines
    for part in ("`pbs`", "Did you mean `cores`", "`lots`", "quotation marks", "0 to max_jobs (2)", "qos=low", "`3`"):
        assert any(part in line for line in lines), part
    assert any("`cores` is missing" in line for line in lines)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "\x00"])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="--cluster"):
        parse_cluster(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused_before_any_work(tmp_path):
    code, said = slidemil("extract", tmp_path, "-o", tmp_path / "job", "--cluster", tmp_path / "no.yaml")
    assert code == 2
    assert "no.yaml" in said


@pytest.fixture
def job_script():
    """Return the script that dask-jobqueue would hand to sbatch; no SLURM is needed for that."""
    clusters = []

    def script(spec: Slurm) -> str:
        cluster = slurm_cluster(
            spec, Path("/job/logs"), scheduler_options={"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
        )
        clusters.append(cluster)
        return str(cluster.job_script())

    yield script
    for cluster in clusters:
        cluster.close(timeout=5)


def test_queueing_jobs_leaves_ctrl_c_to_the_run():
    """dask-jobqueue, once loaded, has Ctrl-C end the process with exit code 0."""
    code = """
import signal
from pathlib import Path
from pipelines.cluster.connect import slurm_cluster
from pipelines.cluster.spec import Slurm
before = signal.getsignal(signal.SIGINT)
spec = Slurm(kind="slurm", cores=1, memory="1G", walltime="01:00:00", max_jobs=1)
slurm_cluster(spec, Path("logs"), scheduler_options={"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}).close()
assert signal.getsignal(signal.SIGINT) is before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_the_job_asks_slurm_for_what_the_file_says(tmp_path, job_script):
    spec = parse_cluster(written(tmp_path, WHOLE))
    assert isinstance(spec, Slurm)
    lines = job_script(spec).splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {
        "-p gpu",
        "-A path-42",
        "-n 1",
        "--cpus-per-task=16",
        "--mem=60G",  # dask-jobqueue counts 64 G as 64 × 10⁹ bytes
        "-t 1-08:00:00",
        "--gres=gpu:2",
        "--qos=low",
        "--exclude=node7",
        "-e /job/logs/slurm/slidemil-%J.err",
    } <= directives, directives
    command = lines[-1]
    assert lines.index("module load cuda") < lines.index(command)
    assert command.startswith("/opt/env/bin/python -m distributed.cli.dask_worker tcp://")
    for option in (
        "--nthreads 1",
        "--nworkers 2",
        "--resources GPU=1",
        "--lifetime 114900s",
        "--local-directory /scratch",
        "--preload pipelines.cluster.worker",
    ):
        assert option in command, (option, command)
    assert command.rindex("--memory-limit 0") > command.index("--memory-limit")


def test_a_small_job_without_gpu(job_script):
    """One worker that has all cores of its job, and no resource to ask for; so short a job ends by its time limit."""
    script = job_script(Slurm("slurm", cores=4, memory="8GiB", walltime="08:00", max_jobs=1))
    assert "--cpus-per-task=4" in script
    assert "--mem=8G" in script
    for text in ("GPU", "gres", "lifetime", "--nworkers"):
        assert text not in script, text


def test_the_page_has_every_key_of_the_file():
    assert slurm_table() in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
