"""The models that teach a head: those named, as far as they have seen none of the slides that it is judged by."""

from __future__ import annotations

from collections.abc import Callable

from mil.tasks import Classification

from .config import LearnSettings
from .errors import UsageError
from .feature_sets import FeatureSet
from .jobfolder import JobFolder
from .learn import Teachers, masked
from .predictions import check_fits, digest_of, find_model, members_of, read_cohort
from .sides import Sides


def teaching(job: JobFolder, settings: LearnSettings, features: FeatureSet) -> Callable[[Sides], Teachers]:
    """Return what finds the teachers of a training by its sides.

    Of a cross-validation with the same folds these are the models of just that fold.

    Raises:
        UsageError: from what is returned: all teachers know slides that are held out, or answer another question.
        CheckFailedError: a teacher reads other features.
    """

    def found(sides: Sides) -> Teachers:
        models, digests = [], []
        for name in settings.teachers:
            named = find_model(job, name)
            check_fits(named, features)
            _check_question(name, named.model.task.columns, sides)
            folders = [named.folder.parent / one for one in members_of(named.folder) or [named.folder.name]]
            apart = [i for i, folder in enumerate(folders) if not _knows(read_cohort(folder), sides)]
            if not apart:
                raise UsageError(
                    f"teacher {name}: it was made with slides that are held out here, and would tell what they are. "
                    "Train it on the same split: the same labels and seed, and the same --folds."
                )
            members = named.members or (named.model,)
            models += [members[i] for i in apart]
            digests += [digest_of(folders[i]) for i in apart]
        if any(model.variables is not None for model in models):
            raise UsageError("a teacher takes clinical variables: name teachers of the slides alone.")
        return Teachers(tuple(models), tuple(digests))

    return found


def _check_question(name: str, columns: tuple[str, ...], sides: Sides) -> None:
    """Refuse a teacher of another question."""
    if not isinstance(sides.task, Classification):
        raise UsageError(f"teacher {name}: only classes can be taught, not {sides.task.kind}.")
    if columns != sides.task.columns:
        raise UsageError(f"teacher {name} tells {', '.join(columns)}, the labels {', '.join(sides.task.columns)}.")


def _knows(cohort: dict[str, dict[str, str]], sides: Sides) -> bool:
    """Say whether a model has seen a held-out slide, or another of its patient; one that does not say might."""
    if not cohort["slides"]:
        return True
    seen = ("train", "val")
    return any(
        cohort["slides"].get(masked(sides.slides[row])) in seen
        or cohort["cases"].get(masked(sides.patients[row])) in seen
        for row in sides.split.test
    )
