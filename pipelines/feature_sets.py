"""The features of a job as bags: which feature folder, which slides, made alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil

from .errors import JobError, UsageError
from .features import FeatureFile, decisive, map_tiles, read_features, read_passport, same_passport
from .files import sha256_json
from .jobfolder import JobFolder
from .joined import joined, joined_passport
from .records import Record, read_record

_SEPARATOR = ","


@dataclass(frozen=True)
class FeatureSet:
    """All finished slides of one feature folder; features are read when they are asked for.

    Attributes:
        job: the job.
        folder: the folder, relative to the job.
        passport: how all of them were made.
        records: slide → the finished-record of its feature file.
        notes: in what the slides differ that does not forbid to mix them.
        beside: sets whose features are put behind these, tile by tile.
    """

    job: JobFolder
    folder: Path
    passport: dict[str, Any]
    records: dict[str, Record]
    notes: tuple[str, ...] = field(default=())
    beside: tuple[FeatureSet, ...] = field(default=())

    def __contains__(self, slide_id: str) -> bool:
        """Tell whether a slide is finished."""
        return slide_id in self.records

    def n_tiles(self, slide_id: str) -> int:
        """Return the number of tiles of a slide."""
        return int(self.records[slide_id].facts.get("n_tiles", 0))

    def digest(self, slide_id: str) -> str:
        """Return the SHA-256 of a slide's feature file; of joined ones, of the list of these."""
        own = self.records[slide_id].sha256
        return sha256_json([own, *(other.digest(slide_id) for other in self.beside)]) if self.beside else own

    def read(self, slide_id: str) -> FeatureFile:
        """Read the feature file of one slide."""
        file = read_features(self.job.root / self.folder / f"{slide_id}.h5")
        return replace(file, features=self._joined(file)) if self.beside else file

    def bag(self, slide_id: str) -> mil.Bag:
        """Return one slide as a bag of one; its features are mapped: read when they are used, they fill no memory."""
        if self.beside:
            return bag_of(self.read(slide_id))
        return bag_in(self.job.root / self.folder / f"{slide_id}.h5", slide_id)

    def _joined(self, file: FeatureFile) -> NDArray[Any]:
        return joined(file, [other.read(file.slide_id) for other in self.beside])

    def bags(self, slide_ids: Sequence[str]) -> Sequence[mil.Bag]:
        """Return slides as bags of one each, read when they are asked for."""
        return _Bags(self, tuple(slide_ids))

    @property
    def tile(self) -> dict[str, Any]:
        """Size, resolution and overlap of the tiles."""
        return dict(self.passport.get("tile", {}))


def bag_in(path: Path, slide_id: str) -> mil.Bag:
    """Return a feature file as a bag of one whose features are mapped."""
    import torch

    features, xy = map_tiles(path)
    if features.ndim != 2:
        features = np.zeros((0, 0), np.float32)
    return mil.Bag(torch.from_numpy(features), torch.tensor([0, len(features)]), torch.from_numpy(xy), (slide_id,))


class _Bags(Sequence[mil.Bag]):
    """Bags on disk: the training keeps of them what its memory holds."""

    def __init__(self, features: FeatureSet, slide_ids: tuple[str, ...]) -> None:
        self._features, self._slide_ids = features, slide_ids

    def __len__(self) -> int:
        return len(self._slide_ids)

    def __getitem__(self, i: Any) -> Any:
        return self._features.bag(self._slide_ids[i])


def bag_of(file: FeatureFile) -> mil.Bag:
    """Return the features of one slide as a bag of one."""
    features = file.features if file.features.ndim == 2 else np.zeros((0, 0), np.float32)
    return mil.Bag.from_list([features], xy=[file.xy], ids=[file.slide_id])


def feature_folders(job: JobFolder) -> list[str]:
    """Name the feature folders of a job, relative to it."""
    folders = (folder for folder in job.root.glob("*/features_*") if folder.is_dir() and folder.suffix != ".zarr")
    return sorted(folder.relative_to(job.root).as_posix() for folder in folders)


def choose_folder(job: JobFolder, wanted: str | None, passport: dict[str, Any] | None = None) -> str:
    """Return the feature folder to use.

    Args:
        job: the job.
        wanted: what the user named, None for "the one there is"; several with commas are joined.
        passport: of the model that is to be used; picks its folder among several.

    Raises:
        UsageError: there is none, several, or not the one wanted.
    """
    folders = feature_folders(job)
    if not folders:
        raise UsageError(f"{job.root}: no features yet. Make them: slidemil extract SLIDES -o {job.root}")
    listed = ", ".join(folders)
    if wanted is not None:
        names = [name.strip() for name in wanted.split(",")]
        found = [[folder for folder in folders if name in (folder, Path(folder).name)] for name in names]
        for name, some in zip(names, found, strict=True):
            if len(some) != 1:
                raise UsageError(f"--features {name}: {len(some)} such folders; the job has {listed}.")
        return _SEPARATOR.join(some[0] for some in found)
    if passport is not None and "joined" in passport:
        return _SEPARATOR.join(_made_alike(job, folders, dict(one)) for one in passport["joined"])
    if len(folders) > 1 and passport is not None:
        alike = [name for name in folders if _passport_of(job, name) == decisive(passport)]
        folders = alike or folders
    if len(folders) > 1:
        raise UsageError(
            f"{job.root}: the job has several feature folders. Choose with --features, or join some with commas: "
            f"{listed}."
        )
    return folders[0]


def load_features(
    job: JobFolder, folder: str, slides: Sequence[str], *, damaged: dict[str, JobError] | None = None
) -> FeatureSet:
    """Find the finished slides of a feature folder; of several with commas, joined, those finished in all.

    Args:
        job: the job.
        folder: relative to the job.
        slides: their names.
        damaged: takes slide → error where a feature file cannot be read; without, the first such file is raised.

    Raises:
        UsageError: no slide is finished.
        JobError: a file is damaged, or each one is.
        CheckFailedError: slides were made differently; the message names the fields.
    """
    first, *others = (_load(job, name, slides, damaged) for name in folder.split(_SEPARATOR))
    return _join(first, tuple(others)) if others else first


def _load(job: JobFolder, folder: str, slides: Sequence[str], damaged: dict[str, JobError] | None) -> FeatureSet:
    records: dict[str, Record] = {}
    passports: list[dict[str, Any]] = []
    for slide_id in slides:
        path = job.root / folder / f"{slide_id}.h5"
        record = read_record(job, path)
        if record is None or not path.is_file():
            continue
        try:
            passports.append(read_passport(path))
        except JobError as error:
            if damaged is None:
                raise
            damaged[slide_id] = error
            continue
        same_passport(passports[0], passports[-1], what=f"{folder}/{slide_id}.h5")
        records[slide_id] = record
    if not records and damaged:
        raise next(iter(damaged.values()))
    if not records:
        raise UsageError(
            f"{job.root / folder}: no slide has finished features. `slidemil status {job.root}` tells why."
        )
    return FeatureSet(job, Path(folder), passports[0], records, _differences(records, passports))


def _join(first: FeatureSet, others: tuple[FeatureSet, ...]) -> FeatureSet:
    """Put further sets behind the first; slides that lack features or tiles in one of them are left out, and told."""
    with_all = {
        name: record
        for name, record in first.records.items()
        if all(name in other and (other.n_tiles(name) or not first.n_tiles(name)) for other in others)
    }
    folders = ", ".join(one.folder.as_posix() for one in (first, *others))
    if not with_all:
        raise UsageError(f"{first.job.root}: no slide has tiles in all of {folders}.")
    left = [name for name in first.records if name not in with_all]
    told = f"{len(left)} slides lack features or tiles in one of {folders}, e.g. {left[0]}" if left else ""
    notes = (*(note for one in (first, *others) for note in one.notes), *([told] if told else []))
    passport = joined_passport([one.passport for one in (first, *others)])
    return replace(first, passport=passport, records=with_all, notes=tuple(dict.fromkeys(notes)), beside=others)


def _made_alike(job: JobFolder, folders: Sequence[str], passport: dict[str, Any]) -> str:
    """Return the folder whose features were made so."""
    alike = [name for name in folders if _passport_of(job, name) == decisive(passport)]
    if len(alike) != 1:
        tile = passport.get("tile", {})
        raise UsageError(
            f"{job.root}: the model joins features of {passport.get('id')}, tiles of {tile.get('size')} px at "
            f"{tile.get('mpp')} µm/px, and {len(alike)} folders of the job have them. Name all in the model's order: "
            f"--features A,B. The job has {', '.join(folders)}."
        )
    return alike[0]


def _differences(records: dict[str, Record], passports: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Say in what slides of one set differ though they may be mixed."""
    notes = []
    shares = Counter(record.parts.get("tissue", {}).get("min_tissue") for record in records.values())
    if len(shares) > 1:
        listed = ", ".join(f"{share} ({count} slides)" for share, count in shares.most_common())
        notes.append(f"the slides were tiled with different --min-tissue: {listed}")
    augment = passports[0].get("augment")
    if augment is not None:
        notes.append(f"the features are of tiles whose colors were changed by chance ({augment})")
    for name in ("versions", "device"):
        kinds = {repr(passport.get(name)) for passport in passports}
        if len(kinds) > 1:
            notes.append(f"the features were made with different {name}: {'; '.join(sorted(kinds))[:300]}")
    return tuple(notes)


def _passport_of(job: JobFolder, folder: str) -> dict[str, Any] | None:
    first = next(iter(sorted((job.root / folder).glob("*.h5"))), None)
    return decisive(read_passport(first)) if first is not None else None
