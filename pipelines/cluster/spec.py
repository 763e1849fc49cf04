"""What `--cluster` says: `local`, the address of a scheduler, or a YAML file of SLURM jobs. Loads no dask."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError

_HELP = "Write local, local:4 (workers), local:2x4 (workers x slides at once in each), tcp://HOST:8786, or a YAML file."
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://.+")
_MEMORY = re.compile(r"\d+(\.\d+)? ?([kMGT]i?)?B?", re.IGNORECASE)
_WALLTIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){1,2}")


@dataclass(frozen=True)
class Local:
    """Workers on this machine.

    Attributes:
        workers: processes; 0 for one per GPU, else one per eight cores and at least two.
        threads: tasks at once in each.
    """

    workers: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Remote:
    """A dask scheduler that runs already.

    Attributes:
        address: e.g. `tcp://10.0.0.5:8786`.
    """

    address: str


@dataclass(frozen=True)
class Slurm:
    """SLURM jobs that are workers; each field is a key of the YAML file.

    Attributes:
        kind: what queues the jobs: `slurm`.
        cores: cores of a job.
        memory: memory of a job, e.g. `32G`.
        walltime: the longest a job may run, e.g. `08:00:00`; workers end by themselves some minutes before.
        max_jobs: the most jobs at once.
        min_jobs: jobs that are kept while there is work; the others come and go with the work that is left.
        gpus: GPUs of a job; with them, slides go to workers that have one.
        gpu_directive: how the site asks for them; `{gpus}` stands for the number.
        workers_per_job: worker processes that share a job; 0 for one per GPU, and one without.
        partition: partition (queue) of the jobs.
        account: account that is charged.
        sbatch: further directives, e.g. `["--qos=low", "--exclude=node7"]`.
        prologue: lines of shell before a worker starts, e.g. `["module load cuda"]`.
        interface: network interface over which workers and scheduler talk, e.g. `ib0`.
        python: Python of the workers; this one where it is left out.
        log_folder: where SLURM writes what the jobs print; `logs/slurm` of the job folder where it is left out.
        scratch: folder on each node for what dask keeps; nothing of ours lies there.
    """

    kind: str
    cores: int
    memory: str
    walltime: str
    max_jobs: int
    min_jobs: int = 0
    gpus: int = 0
    gpu_directive: str = "--gres=gpu:{gpus}"
    workers_per_job: int = 0
    partition: str | None = None
    account: str | None = None
    sbatch: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    python: str | None = None
    log_folder: str | None = None
    scratch: str = "/tmp"  # noqa: S108 - every node has one

    @property
    def processes(self) -> int:
        """Worker processes in a job."""
        return self.workers_per_job or max(1, self.gpus)

    @property
    def adaptive(self) -> bool:
        """Whether jobs come and go."""
        return self.min_jobs < self.max_jobs


ClusterSpec = Local | Remote | Slurm


def parse_cluster(text: str) -> ClusterSpec:
    """Return what `--cluster` asks for.

    Raises:
        UsageError: it is none of what can be asked for; of a file, all mistakes at once.
    """
    local = re.fullmatch(r"local(?::(\d+)(?:x(\d+))?)?", text)
    if local:
        workers, threads = int(local[1] or 0), int(local[2] or 1)
        if local[1] and not (workers and threads):
            raise UsageError(f"--cluster {text}: at least one worker is needed. {_HELP}")
        return Local(workers, threads)
    if _ADDRESS.fullmatch(text):
        return Remote(text)
    if text.endswith((".yaml", ".yml")):
        return read_slurm(Path(text))
    raise UsageError(f"--cluster {text}: what is this? {_HELP}")


def read_slurm(path: Path) -> Slurm:
    """Return the jobs that a YAML file describes.

    Raises:
        UsageError: lists every key that is unknown or missing and every value that does not fit.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--cluster {path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UsageError(f"--cluster {path}: expected `key: value` lines; docs/cluster.md has an example.")
    mistakes, given = _fitted(tree)
    fields = {field.name: field for field in dataclasses.fields(Slurm)}
    lacking = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in tree]
    mistakes += [f"`{name}` is missing: {said_of_fields()[name]}" for name in lacking]
    mistakes += _beyond_types(given)
    if mistakes:
        raise UsageError(f"--cluster {path} does not fit:\n  " + "\n  ".join(mistakes))
    return Slurm(**given)


def _fitted(tree: dict[Any, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return what is unknown or of another type, and the values that are right."""
    hints = typing.get_type_hints(Slurm)
    mistakes: list[str] = []
    given: dict[str, Any] = {}
    for key, value in tree.items():
        name = str(key)
        if name not in hints:
            near = difflib.get_close_matches(name, list(hints), n=1)
            tail = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(hints)}."
            mistakes.append(f"unknown key `{name}`. {tail}")
            continue
        fits, fitted = _fit(value, hints[name])
        if fits:
            given[name] = fitted
        else:
            mistakes.append(f"{name}: `{value}` is no {_KINDS[str(hints[name])]}")
    return mistakes, given


_KINDS = {
    "<class 'int'>": "whole number",
    "<class 'str'>": "text",
    "str | None": "text",
    "tuple[str, ...]": "list of texts",
}


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is str or isinstance(hint, types.UnionType):
        if isinstance(value, int) and not isinstance(value, bool):  # YAML 1.1 takes 08:00:00 for a number of seconds
            return True, str(value)
        return isinstance(value, str) or (value is None and hint is not str), value
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return fits, tuple(texts) if fits else ()


def _beyond_types(given: dict[str, Any]) -> list[str]:
    """Return what is of the right type and cannot be meant."""
    jobs, least = given.get("max_jobs", 1), given.get("min_jobs", 0)
    rules = {
        f"kind: `{given.get('kind')}` is not known; it is slurm": given.get("kind", "slurm") == "slurm",
        "cores must be at least 1": given.get("cores", 1) >= 1,
        f"memory: `{given.get('memory')}` is no size, e.g. 32G": bool(_MEMORY.fullmatch(given.get("memory", "1G"))),
        f'walltime: `{given.get("walltime")}` is no time; write "08:00:00", in quotation marks': bool(
            _WALLTIME.fullmatch(given.get("walltime", "1:00:00"))
        ),
        "max_jobs must be at least 1": jobs >= 1,
        f"min_jobs must be 0 to max_jobs ({jobs}), not {least}": 0 <= least <= max(jobs, 0),
        "gpus must be 0 or more": given.get("gpus", 0) >= 0,
        "workers_per_job must be 0 or more": given.get("workers_per_job", 0) >= 0,
        "gpu_directive must name {gpus}": "{gpus}" in given.get("gpu_directive", "{gpus}"),
    }
    wrong = [f"sbatch: `{text}` must start with --" for text in given.get("sbatch", ()) if not text.startswith("-")]
    return [rule for rule, kept in rules.items() if not kept] + wrong


def said_of_fields() -> dict[str, str]:
    """Return field → what `Slurm` says of it."""
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", inspect.getdoc(Slurm) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def slurm_table() -> str:
    """Return the keys of the YAML file as a table in Markdown."""
    said = said_of_fields()
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for field in dataclasses.fields(Slurm):
        needed = field.default is dataclasses.MISSING
        shown = "needed" if needed else "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `{field.name}` | {shown} | {said[field.name]} |")
    return "\n".join(lines) + "\n"
