"""Another run works on the same job just now: may this one join it? Only where both make the same features.

Two runs that differ in what decides about features would each make the other's anew, slide by slide, and leave a mix.
"""

from __future__ import annotations

from dataclasses import fields

from .claims import all_claims
from .config import ExtractSettings, load_settings
from .errors import UsageError
from .jobfolder import JobFolder

_OF_SLIDES = ("masks", "mask_origin", "quality", "exclude", "icc", "jpeg2000")
"""Settings that decide what is found on a slide, and so the pictures that all its features share."""
_FOLDER = ("tile", "mpp", "more_mpp", "overlap", "encoder")
"""Settings that name the folder of features; where they differ, two runs do not meet there."""
_OF_WORK = (
    *("batch_size", "device", "compile", "workers", "processes", "memory_gb", "read_timeout", "slide_timeout"),
    *("max_bad_tiles", "commercial_only", "dense", "store"),
)
"""Settings of how the work is done, and of what is made beside. All others decide the features in a folder."""


def check_company(job: JobFolder, settings: ExtractSettings) -> None:
    """Refuse to work beside a run that makes other features of the same slides.

    Raises:
        UsageError: one does; says who, and in what it differs.
    """
    who = next((claim.who for claim in all_claims(job, "slides").values() if not claim.left), None)
    if who is None or not job.settings.is_file():
        return
    try:
        theirs = load_settings(job.settings).extract
    except UsageError:  # of another version, or edited by hand
        return
    meet = _values(theirs, _FOLDER) == _values(settings, _FOLDER)
    names = _OF_SLIDES if not meet else [one.name for one in fields(settings) if one.name not in _OF_WORK]
    differ = [name for name in names if getattr(theirs, name) != getattr(settings, name)]
    if differ:
        listed = ", ".join(f"{name} is {getattr(theirs, name)}, not {getattr(settings, name)}" for name in differ[:3])
        raise UsageError(
            f"{job.root}: {who} works on this job just now, and makes other features ({listed}): each run would make "
            "the other's anew. Let it end first (after a kill, three minutes from another machine), or give -o "
            "another folder."
        )


def _values(settings: ExtractSettings, names: tuple[str, ...]) -> list[object]:
    return [getattr(settings, name) for name in names]
