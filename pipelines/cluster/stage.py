"""Slides → features on a cluster: connect, lead, and tell from the files of the job what has become of each slide."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipelines.claims import all_claims
from pipelines.encoding import OPENVINO
from pipelines.errors import UsageError
from pipelines.extraction import Extraction
from pipelines.manifest import Manifest, SlideEntry
from pipelines.outcome import Failure, Outcome
from pipelines.provenance import known_sha256
from pipelines.records import Failed, Record, read_failure, read_record

from .connect import GPU, Connection, connected
from .flight import DONE
from .lead import Lead
from .spec import ClusterSpec, Local, Slurm
from .task import Answer
from .workforce import Workforce

if TYPE_CHECKING:
    from mil import Encoder

Found = TypeVar("Found")

_LOOKS = 16
"""Slides whose records are looked at at once."""
_CHUNK = 1000
_EARLIER = "an earlier run was lost while it worked on it"


def extract_on(
    spec: ClusterSpec,
    extraction: Extraction,
    manifest: Manifest,
    *,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Have the workers do all slides that are not done.

    Args:
        spec: what `--cluster` asks for.
        extraction: the run as the client sees it; nothing is read or encoded here.
        manifest: its slides.
        offline: open no connection for weights.
        say: prints one line for people.

    Raises:
        EnvironmentFault: no worker can work, or the scheduler is gone for good.
        UsageError: a GPU is asked for, and no worker has one.
    """
    began = time.monotonic()
    todo = _undone(extraction, manifest.entries)
    extraction.progress.total(len(todo))
    if not todo:
        return _outcome(extraction, manifest, [], time.monotonic() - began)
    claims = all_claims(extraction.job, "slides").items()
    left = [name for name, claim in claims if claim.left and not extraction.job.portions(name).is_dir()]
    with connected(spec, extraction.job.logs, say) as connection:
        gpu, gpus = _gpu(connection, extraction.settings.device, say)
        asked = extraction.settings.device
        settings = replace(extraction.settings, device="cuda" if gpu else OPENVINO if asked == OPENVINO else "cpu")
        lead = Lead(Workforce(connection, gpu=gpu, say=say), extraction, settings, offline=offline, gpus=gpus)
        lead.lost |= {name: [_EARLIER] for name in left}
        try:
            extraction.compute_with(cast("Sequence[Encoder]", lead.ask()))
            todo = _undone(extraction, todo)
            lead(todo)
        finally:
            lead.stop()
            _collect(extraction, todo, lead.states)
            lead.tidy()
    _tell(extraction, lead)
    return _outcome(extraction, manifest, lead.answers, time.monotonic() - began)


def _undone(extraction: Extraction, entries: Sequence[SlideEntry]) -> list[SlideEntry]:
    """Return the slides that are not done, told at little cost; where a hash is not known, a worker finds out."""

    def look(entry: SlideEntry) -> Record | None:
        digest = known_sha256(extraction.job, entry.slide_id, entry.files)
        return None if digest is None else extraction.finished(entry, extraction.parts(entry, digest))

    undone = []
    for entry, record in _side_by_side(look, entries):
        if record is None:
            undone.append(entry)
        else:
            extraction.facts[entry.slide_id] = dict(record.facts)
            extraction.skipped.append(entry.slide_id)
    return undone


def _side_by_side(
    look: Callable[[SlideEntry], Found], entries: Sequence[SlideEntry]
) -> Iterator[tuple[SlideEntry, Found]]:
    """Look at the files of many slides at once: a network file system lets each look wait, not the machine work."""
    with ThreadPoolExecutor(_LOOKS, thread_name_prefix="look") as pool:
        for first in range(0, len(entries), _CHUNK):
            some = entries[first : first + _CHUNK]
            yield from zip(some, pool.map(look, some), strict=True)


def _gpu(connection: Connection, device: str, say: Callable[[str], None]) -> tuple[bool, int]:
    """Return whether tasks go to GPUs, and how many of this machine the workers share out.

    With `auto` all slides are done on the same kind of device: on GPUs where a worker has one.

    Raises:
        UsageError: a GPU is asked for, and no worker has one.
    """
    if device in ("cpu", OPENVINO):
        return False, 0
    if isinstance(connection.spec, Slurm):
        there = connection.spec.gpus > 0
    else:
        there = any(GPU in worker.get("resources", {}) for worker in _first_workers(connection, say).values())
    if device != "auto" and not there:
        raise UsageError(
            f"--device {device}: no worker announces a GPU. In a YAML file write gpus: 1; start other workers with "
            '`dask worker ADDRESS --resources "GPU=1"`.'
        )
    if not (there and isinstance(connection.spec, Local)):
        return there, 0
    import torch

    return True, torch.cuda.device_count()


def _first_workers(connection: Connection, say: Callable[[str], None]) -> Mapping[str, Mapping[str, Any]]:
    """Wait for the first worker."""
    workforce = Workforce(connection, gpu=False, say=say)
    while not (workers := connection.workers()):
        workforce.look()
        time.sleep(0.1)
    return workers


def _collect(extraction: Extraction, entries: Sequence[SlideEntry], states: Mapping[str, str]) -> None:
    """Read from the job's files what has become of the slides."""
    extraction.force = False  # what was made anew is done

    def look(entry: SlideEntry) -> tuple[Record | None, Failed | None]:
        output = extraction.output(entry.slide_id)
        old = read_record(extraction.job, output)
        done = None if old is None else extraction.finished(entry, extraction.parts(entry, str(old.parts.get("slide"))))
        return done, read_failure(extraction.job, output)

    known = {*extraction.failures}
    for entry, (record, failed) in _side_by_side(look, [one for one in entries if one.slide_id not in known]):
        name = entry.slide_id
        if record is not None and (states.get(name) or not failed):
            extraction.facts[name] = dict(record.facts)
            (extraction.fresh if states.get(name) == DONE else extraction.skipped).append(name)
            if states.get(name) == DONE:
                extraction.outputs += extraction.made(name)
        elif failed is not None and states.get(name):
            extraction.failures[name] = Failure(name, failed.cause, failed.mend)


def _tell(extraction: Extraction, lead: Lead) -> None:
    """Put what is worth knowing of the workers into the record of the run."""
    again = sorted(name for name in lead.lost if name in extraction.facts and name in lead.states)
    if again:
        listed = ", ".join(again[:5]) + (" …" if len(again) > 5 else "")
        extraction.warnings.append(f"done at the second try, after the process that worked on them was lost: {listed}")
    if lead.whole:
        whole = [*dict.fromkeys(lead.whole)]
        listed, why = ", ".join(whole[:5]) + (" …" if len(whole) > 5 else ""), "--dense makes maps of whole slides"
        extraction.warnings.append(f"large, but done by one worker each, for {why}: {listed}")
    mend = "slides and job folder must lie under the same paths on all machines"
    extraction.warnings += [
        f"no slides were given to {host}: {why}; {mend}" for host, why in lead.workforce.troubles.items()
    ]
    told = (text for answer in lead.answers for text in answer.warnings)
    extraction.warnings += [text for text in dict.fromkeys(told) if text not in extraction.warnings]
    extraction.run.facts["cluster"] = {
        "workers": len(lead.workforce.seen),
        "hosts": sorted(lead.workforce.hosts_seen),
        "tasks": lead.tasks,
        "lost": dict(sorted(lead.lost.items())),
    }


def _outcome(extraction: Extraction, manifest: Manifest, answers: Sequence[Answer], seconds: float) -> Outcome:
    rates = merged([answer.rates for answer in answers if answer.rates])
    extraction.run.facts |= {"rates": rates, "seconds_extract": round(seconds, 3)}
    return Outcome(
        found=len(manifest.entries),
        done=tuple(sorted(extraction.fresh)),
        skipped=tuple(sorted(extraction.skipped)),
        failed=tuple(extraction.failures[name] for name in sorted(extraction.failures)),
        outputs=tuple(sorted(extraction.outputs)),
        warnings=tuple(extraction.warnings),
        rates=rates,
        bottleneck=bottleneck(answers),
    )


def merged(all_rates: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return per stage what one slot did on average, from the rates of the tasks; the worst for `W_p99`."""
    by_stage: dict[str, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    for rates in all_rates:
        for stage, rate in rates.items():
            by_stage[stage].append((float(rate.get("things", rate.get("tiles", 0))), rate))
    found: dict[str, dict[str, Any]] = {}
    for stage, weighed in by_stage.items():
        things = sum(weight for weight, _ in weighed)
        if not things:
            continue
        busy = sum(weight / rate["lambda"] for weight, rate in weighed if rate["lambda"])
        mean = {
            key: round(sum(weight * float(rate[key]) for weight, rate in weighed) / things, 6)
            for key in ("W_mean", "L", "wait")
        }
        found[stage] = {
            "lambda": round(things / busy, 3) if busy else 0.0,
            "W_mean": mean["W_mean"],
            "W_p99": max(float(rate["W_p99"]) for _, rate in weighed),
            "L": mean["L"],
            "wait": mean["wait"],
            "tiles" if stage == "read" else "things": int(things),
        }
    return found


def bottleneck(answers: Sequence[Answer]) -> str:
    """Return what limited the workers for most of their time, in the words of the task it limited longest."""
    seconds: dict[str, float] = defaultdict(float)
    longest: dict[str, Answer] = {}
    for answer in answers:
        limit = str(answer.verdict.get("limit", ""))
        if limit and limit != "nothing":
            seconds[limit] += answer.seconds
            if limit not in longest or answer.seconds > longest[limit].seconds:
                longest[limit] = answer
    if not seconds:
        return "nothing was read"
    limit = max(seconds, key=lambda name: seconds[name])
    share = seconds[limit] / sum(seconds.values())
    return f"{longest[limit].verdict['text']} (so for {share:.0%} of the workers' time)"
