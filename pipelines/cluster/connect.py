"""From what `--cluster` says to workers that wait for tasks; all of it is closed again at the end.

The settings of dask here are chosen for tasks of minutes that hand back some hundred bytes:

- `allowed-failures: 0`: a lost worker is told at once. Which slide is to blame, and what is done again, we decide
  ourselves, from the files (`lead`).
- `worker-saturation: 1`, and never more tasks under way than there are slots: no worker holds a task that it does not
  work on, so a lost worker takes no other task with it.
- `work-stealing: false`: so there is nothing to steal, and no message about it.
- no limits of memory: slides are read in processes that dask does not see; `--memory` bounds them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wsi
from pipelines.errors import EnvironmentFault, UsageError
from pipelines.signals import unchanged

from .spec import ClusterSpec, Local, Remote, Slurm

if TYPE_CHECKING:
    from distributed import Client

SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.tcp": "60s",
}
GPU = "GPU"
"""The resource that a worker with a GPU announces, e.g. `dask worker … --resources "GPU=1"`."""
_WORKER = ("--memory-limit", "0", "--no-dashboard", "--preload", "pipelines.cluster.worker")
_PAGE = "127.0.0.1:0"
"""Where dask serves its page of tasks: to nobody but this machine, at whatever port is free."""
_CLOSE_CLIENT, _CLOSE_CLUSTER = 2.0, 4.0  # together less than a run that is interrupted has to end
_ANSWER = 10.0


@dataclass
class Connection:
    """A client and what is known of the workers behind it.

    Attributes:
        client: of dask.
        spec: what was asked for.
        most: slots there may be at most, where workers come and go; 0 where they do not.
    """

    client: Client
    spec: ClusterSpec
    most: int = 0

    def workers(self) -> Mapping[str, Mapping[str, Any]]:
        """Return address → what the scheduler says of each worker."""
        found: Mapping[str, Mapping[str, Any]] = self.client.scheduler_info(n_workers=-1)["workers"]
        return found

    @property
    def alive(self) -> bool:
        """Whether the scheduler is there."""
        comm = self.client.scheduler_comm
        return self.client.status == "running" and comm is not None and not comm.comm.closed()

    def slots(self, workers: Mapping[str, Mapping[str, Any]], *, gpu: bool) -> int:
        """Return how many tasks can run at once."""
        return sum(slots_of(worker, gpu=gpu) for worker in workers.values())

    def again(self, seconds: float) -> None:
        """Find the scheduler again, where it runs apart.

        Raises:
            TimeoutError: it does not come back in time.
        """
        from distributed import Client

        if not isinstance(self.spec, Remote):
            raise TimeoutError
        with contextlib.suppress(Exception):
            self.client.close(timeout=_CLOSE_CLIENT)
        until = time.monotonic() + seconds
        while True:
            try:
                self.client = Client(self.spec.address, timeout=_ANSWER, set_as_default=False)
                return
            except OSError:
                if time.monotonic() > until:
                    raise TimeoutError from None
                time.sleep(0.5)


def slots_of(worker: Mapping[str, Any], *, gpu: bool) -> int:
    """Return how many tasks a worker can run at once."""
    threads = int(worker["nthreads"])
    return min(threads, int(worker.get("resources", {}).get(GPU, 0))) if gpu else threads


@contextlib.contextmanager
def connected(spec: ClusterSpec, logs: Path, say: Callable[[str], None]) -> Iterator[Connection]:
    """Reach or start the workers; what was started here is ended.

    Args:
        spec: what was asked for.
        logs: folder for what jobs print.
        say: is told what is being waited for.

    Raises:
        EnvironmentFault: dask is not installed; no scheduler answers.
    """
    try:
        import dask
        import distributed  # noqa: F401 - the extra is whole
    except ImportError:
        raise EnvironmentFault("--cluster needs dask: pip install 'slidemil[cluster]'") from None
    with dask.config.set(SETTINGS), _silent():
        if isinstance(spec, Local):
            yield from _local(spec)
        elif isinstance(spec, Remote):
            yield from _remote(spec)
        else:
            yield from _slurm(spec, logs, say)


def _local(spec: Local) -> Iterator[Connection]:
    from distributed import Client, LocalCluster

    gpus = _gpus()
    workers = spec.workers or gpus or max(2, wsi.available_cores() // 8)
    with tempfile.TemporaryDirectory(prefix="slidemil-") as scratch:
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=spec.threads,
                processes=True,
                host="127.0.0.1",
                dashboard_address=_PAGE,
                memory_limit=None,
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
                preload=["pipelines.cluster.worker"],
                **({"resources": {GPU: spec.threads}} if gpus else {}),
            )
        except (OSError, RuntimeError) as error:
            raise EnvironmentFault(f"--cluster local: the workers could not be started ({error})") from error
        yield from _ended(Client(cluster, set_as_default=False), spec, cluster=cluster)


def _gpus() -> int:
    """Return how many CUDA devices this process sees, without loading torch where there cannot be one."""
    if not Path("/proc/driver/nvidia").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _remote(spec: Remote) -> Iterator[Connection]:
    from distributed import Client

    try:
        client = Client(spec.address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"--cluster {spec.address}: no dask scheduler answers there ({type(error).__name__}). "
            "Start one (`dask scheduler`) and workers (`dask worker ADDRESS`), or write --cluster local."
        ) from None
    yield from _ended(client, spec)


def _slurm(spec: Slurm, logs: Path, say: Callable[[str], None]) -> Iterator[Connection]:
    from distributed import Client

    try:
        cluster = slurm_cluster(spec, logs)
    except ImportError:
        raise EnvironmentFault("SLURM jobs need dask-jobqueue: pip install 'slidemil[cluster]'") from None
    per_job = spec.processes
    try:
        if spec.adaptive:
            cluster.adapt(minimum_jobs=spec.min_jobs, maximum_jobs=spec.max_jobs, interval="10s", wait_count=6)
        else:
            cluster.scale(jobs=spec.max_jobs)
    except (OSError, RuntimeError) as error:
        cluster.close(timeout=_CLOSE_CLUSTER)
        raise EnvironmentFault(f"SLURM took no job ({error}). Try the job by hand: sbatch; docs/cluster.md.") from None
    say(f"{spec.min_jobs} to {spec.max_jobs} SLURM jobs, each {spec.cores} cores, {spec.memory}, {spec.walltime}")
    client = Client(cluster, set_as_default=False)
    yield from _ended(client, spec, cluster=cluster, most=per_job * spec.max_jobs)


def slurm_cluster(spec: Slurm, logs: Path, **more: Any) -> Any:
    """Return the cluster of dask-jobqueue, without jobs yet.

    Args:
        spec: of the jobs.
        logs: folder for what jobs print.
        more: for the cluster, e.g. where its scheduler listens.

    Raises:
        UsageError: dask-jobqueue refuses a value.
    """
    with unchanged():  # it has Ctrl-C end the process as if all were done
        from dask_jobqueue import SLURMCluster

    lifetime = _seconds(spec.walltime) - 300
    until = ["--lifetime", f"{lifetime}s", "--lifetime-stagger", "2m"] if lifetime >= 300 else []
    resources = ["--resources", f"{GPU}=1"] if spec.gpus else []
    try:
        return SLURMCluster(
            queue=spec.partition,
            account=spec.account,
            cores=spec.processes,  # one task at a time in each; the cores are for what reads and encodes
            job_cpu=spec.cores,
            memory=spec.memory,
            processes=spec.processes,
            walltime=spec.walltime,
            interface=spec.interface,
            python=spec.python or sys.executable,
            local_directory=spec.scratch,
            log_directory=str(spec.log_folder or logs / "slurm"),
            job_name="slidemil",
            job_extra_directives=[
                *([spec.gpu_directive.format(gpus=spec.gpus)] if spec.gpus else []),
                *spec.sbatch,
            ],
            job_script_prologue=list(spec.prologue),
            worker_extra_args=[*_WORKER, *resources, *until],
            **{"scheduler_options": {"dashboard_address": _PAGE}, **more},
        )
    except ValueError as error:
        raise UsageError(f"--cluster: {error}") from None


def _seconds(walltime: str) -> int:
    """Return a time limit as SLURM reads it: [days-]hours:minutes[:seconds], or minutes:seconds."""
    days, _, rest = walltime.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) == 2:
        parts = [*parts, 0] if days else [0, *parts]
    hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _ended(client: Client, spec: ClusterSpec, *, cluster: Any = None, most: int = 0) -> Iterator[Connection]:
    connection = Connection(client, spec, most)
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing left to say
            connection.client.close(timeout=_CLOSE_CLIENT)
        if cluster is not None:
            with contextlib.suppress(Exception):
                cluster.close(timeout=_CLOSE_CLUSTER)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep dask's own log off the screen: what matters of it is told in the run's words."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
