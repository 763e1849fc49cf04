"""`slidemil stain audit`: how well site or scanner can be told from the features of a job, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stain.batch_effect import Probe, difference_p, probe

from . import tables_of_job as tables
from .errors import UsageError
from .feature_sets import FeatureSet, choose_folder, load_features
from .files import write_json
from .jobfolder import JobFolder
from .labels import read_labels
from .manifest import SlideEntry
from .outcome import Said
from .targets import check_json

FOLDER = "folder"


@dataclass(frozen=True)
class Question:
    """What is asked of the features.

    Attributes:
        table: CSV with slide_id and the column; none: the folder that a slide lies in is its site.
        site: the column.
        stratum: a column, e.g. the diagnosis, whose own share is not to count.
        features: feature folder where a job has several.
        permutations: of the test.
        seed: of folds and permutations.
    """

    table: Path | None = None
    site: str = FOLDER
    stratum: str | None = None
    features: str | None = None
    permutations: int = 999
    seed: int = 0


def audit(jobs: Sequence[Path], question: Question, out: Path | None = None) -> Said:
    """Probe the features of each job, the first one being "before".

    All jobs are asked about the same slides: those that every one of them has, and whose site is known.

    Raises:
        UsageError: too few slides, no such column, or jobs without a slide in common.
        stain.StainError: fewer than two sites, or a site with one patient.
    """
    if out is not None:
        check_json(out, "-o", "batch-effect audit", ("site", "jobs"))
    manifests = [tables.read_manifest(JobFolder(job)) for job in jobs]
    sets = [_features(JobFolder(job), question.features, manifest.entries)
            for job, manifest in zip(jobs, manifests, strict=True)]  # fmt: skip
    sites, cases, strata, notes = _sites(manifests[0].entries, question)
    slides = [name for name in sites if all(name in one and one.n_tiles(name) for one in sets)]
    slides, left_out = _enough(slides, sites, cases)
    notes += left_out
    if not slides:
        raise UsageError("no site has slides of two patients with features. Look at `slidemil status JOB`.")
    asked = ([sites[name] for name in slides], [cases[name] for name in slides])
    within = None if strata is None else [strata[name] for name in slides]
    probes: list[Probe] = []
    rows: list[dict[str, Any]] = []
    for job, features in zip(jobs, sets, strict=True):
        found = probe(
            _means(features, slides), *asked, strata=within, permutations=question.permutations, seed=question.seed
        )
        rows.append({"job": str(job), "stain": features.passport.get("stain", "none"),
                     "encoder": features.passport.get("id"), **found.to_json()})  # fmt: skip
        if probes:
            rows[-1]["p_difference"] = round(difference_p(probes[0], found, asked[1], seed=question.seed), 4)
        probes.append(found)
    counts = dict(sorted(Counter(asked[0]).items()))
    data = {
        "site": question.site,
        "slides": len(slides),
        "patients": len(set(asked[1])),
        "sites": counts,
        "within": question.stratum,
        "permutations": question.permutations,
        "jobs": rows,
        "notes": notes,
    }
    if out is not None:
        write_json(out, data)
    return Said(tuple(_lines(data, out)), {"status": "done", **data})


def _features(job: JobFolder, wanted: str | None, entries: Sequence[SlideEntry]) -> FeatureSet:
    return load_features(job, choose_folder(job, wanted), [entry.slide_id for entry in entries])


def _sites(
    entries: Sequence[SlideEntry], question: Question
) -> tuple[dict[str, str], dict[str, str], dict[str, str] | None, list[str]]:
    """Return the site, the patient and the stratum of each slide."""
    if question.table is None:
        if question.site != FOLDER or question.stratum is not None:
            raise UsageError(f"--site {question.site}: give the table that has this column with -l TABLE.csv.")
        sites = {entry.slide_id: entry.path.parent.name for entry in entries}
        return sites, {entry.slide_id: entry.case_id or entry.slide_id for entry in entries}, None, []
    table = read_labels(question.table, entries, column=question.site)
    sites = dict(table.label)
    cases = {name: table.case.get(name) or name for name in sites}
    strata = None
    if question.stratum is not None:
        known = read_labels(question.table, entries, column=question.stratum).label
        sites = {name: site for name, site in sites.items() if name in known}
        strata = dict(known)
    return sites, cases, strata, list(table.notes)


def _enough(slides: list[str], sites: dict[str, str], cases: dict[str, str]) -> tuple[list[str], list[str]]:
    """Leave out sites with one patient: nothing could be learned from it and asked of it."""
    patients: dict[str, set[str]] = {}
    for name in slides:
        patients.setdefault(sites[name], set()).add(cases[name])
    few = sorted(site for site, some in patients.items() if len(some) < 2)
    notes = [f"left out, one patient only: {', '.join(few)}"] if few else []
    return [name for name in slides if sites[name] not in few], notes


def _means(features: FeatureSet, slides: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean feature of each slide: (N, D)."""
    return np.stack([features.read(name).features.astype(np.float64).mean(axis=0) for name in slides])


def _lines(data: dict[str, Any], out: Path | None) -> list[str]:
    names = ", ".join(f"{site} ({count})" for site, count in data["sites"].items())
    lines = [
        f"can {data['site']} be told from the mean features of {data['slides']} slides of {data['patients']} patients?",
        f"  {len(data['sites'])} sites: {names}",
    ]
    for row in data["jobs"]:
        low, high = row["interval"]
        step = f", against the first job p = {row['p_difference']:.3f}" if "p_difference" in row else ""
        lines.append(
            f"  {row['job']} (stain {row['stain']}): balanced accuracy {row['balanced_accuracy']:.2f} "
            f"[{low:.2f}, {high:.2f}], chance {row['chance']:.2f}, p = {row['p']:.3f}{step}"
        )
    lines += [f"  note  {note}" for note in data["notes"]]
    lines.append(
        "a small p: the features know the site, and a model may learn it in place of the disease"
        + (f" ({out})" if out is not None else "")
    )
    return lines
