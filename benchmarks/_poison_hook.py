"""A slide that kills the process that looks through it, for stress tests and tests: in every process of a command.

Python runs `sitecustomize` at its start wherever it finds it; ours wraps the function that prepares a slide. What a
poison does is told by its name: `poison-self…` kills the process it is in, `poison-runner…` also the one that a dask
worker gave the slides to, `poison-worker…` also the dask worker itself.
"""

from __future__ import annotations

import os
from pathlib import Path

_HOOK = """
import importlib.abc, importlib.util, os, signal, sys, time

LOG = {log!r}

def strike(name):
    with open(LOG, "a") as file:
        file.write(name + "\\n")
    time.sleep({wait})
    runner = os.getpid()
    while runner > 1 and "pipelines.cluster.runner" not in told(runner):
        runner = above(runner)
    if runner > 1 and name.startswith("poison-worker"):
        os.kill(above(runner), signal.SIGKILL)
    if runner > 1 and not name.startswith("poison-self"):
        os.kill(runner, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def told(pid):
    with open(f"/proc/{{pid}}/cmdline") as file:
        return file.read()

def above(pid):
    with open(f"/proc/{{pid}}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "pipelines.slide_work":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            really = module.prepare

            def prepare(entry, *given, **named):
                if entry.slide_id.startswith("poison"):
                    strike(entry.slide_id)
                return really(entry, *given, **named)

            module.prepare = prepare

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hook())
"""


def environment(folder: Path, *, wait: float = 0.3) -> tuple[dict[str, str], Path]:
    """Return the environment of a command in which poison slides kill, and the file with a line for each time.

    Args:
        folder: empty, for the hook.
        wait: seconds before it kills, so that other slides are under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "struck.txt"
    log.touch()
    (folder / "sitecustomize.py").write_text(_HOOK.format(log=str(log), wait=wait), encoding="utf-8")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return {**os.environ, "PYTHONPATH": path}, log
