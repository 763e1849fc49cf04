"""The tables of a training: labels, sites and clinical variables of each slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .config import LearnSettings
from .errors import UsageError
from .labels import Labels
from .manifest import SlideEntry
from .pseudonyms import labels_of


def training_table(
    labels: Path,
    slides: Sequence[SlideEntry],
    target: str,
    settings: LearnSettings,
    *,
    keyfile: Path | None = None,
    clinical: Path | None = None,
) -> Labels:
    """Read what is said of the slides.

    Args:
        labels: the table of labels.
        slides: of the job.
        target: the column, or columns, that are asked for.
        settings: which name further columns: site, confounders, clinical variables.
        keyfile: of made-up names.
        clinical: the table of the clinical variables; by default that of the labels.

    Raises:
        UsageError: a file or its columns do not fit, or a clinical table of which no column is named.
        NothingMatchedError: no row belongs to a slide.
    """
    if clinical is not None and not settings.variables:
        raise UsageError("--clinical-table: name its columns, too, e.g. --clinical age,stage.")
    more = {settings.site, *(settings.kept_out if settings.adapt != "none" else ())} - {""}
    table = labels_of(labels, slides, target, keyfile, sorted(more))
    if not settings.variables:
        return table
    joined = labels_of(clinical or labels, slides, ",".join(settings.variables), keyfile)
    return replace(table, clinical=joined.cells)
