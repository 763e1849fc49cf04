"""The features of a job as bags: which feature folder, which slides, made alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mil

from .errors import UsageError
from .features import FeatureFile, decisive, map_tiles, read_features, read_passport, same_passport
from .jobfolder import JobFolder
from .records import Record, read_record


@dataclass(frozen=True)
class FeatureSet:
    """All finished slides of one feature folder; features are read when they are asked for.

    Attributes:
        job: the job.
        folder: the folder, relative to the job.
        passport: how all of them were made.
        records: slide → the finished-record of its feature file.
        notes: in what the slides differ that does not forbid to mix them.
    """

    job: JobFolder
    folder: Path
    passport: dict[str, Any]
    records: dict[str, Record]
    notes: tuple[str, ...] = field(default=())

    def __contains__(self, slide_id: str) -> bool:
        """Tell whether a slide is finished."""
        return slide_id in self.records

    def n_tiles(self, slide_id: str) -> int:
        """Return the number of tiles of a slide."""
        return int(self.records[slide_id].facts.get("n_tiles", 0))

    def digest(self, slide_id: str) -> str:
        """Return the SHA-256 of a slide's feature file."""
        return self.records[slide_id].sha256

    def read(self, slide_id: str) -> FeatureFile:
        """Read the feature file of one slide."""
        return read_features(self.job.root / self.folder / f"{slide_id}.h5")

    def bag(self, slide_id: str) -> mil.Bag:
        """Return one slide as a bag of one; its features are mapped: read when they are used, they fill no memory."""
        return bag_in(self.job.root / self.folder / f"{slide_id}.h5", slide_id)

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
        wanted: what the user named, None for "the one there is".
        passport: of the model that is to be used; picks its folder among several.

    Raises:
        UsageError: there is none, several, or not the one wanted.
    """
    folders = feature_folders(job)
    if not folders:
        raise UsageError(f"{job.root}: no features yet. Make them: slidemil extract SLIDES -o {job.root}")
    listed = ", ".join(folders)
    if wanted is not None:
        found = [name for name in folders if wanted in (name, Path(name).name)]
        if len(found) != 1:
            raise UsageError(f"--features {wanted}: {len(found)} such folders; the job has {listed}.")
        return found[0]
    if len(folders) > 1 and passport is not None:
        alike = [name for name in folders if _passport_of(job, name) == decisive(passport)]
        folders = alike or folders
    if len(folders) > 1:
        raise UsageError(f"{job.root}: the job has several feature folders. Choose with --features: {listed}.")
    return folders[0]


def load_features(job: JobFolder, folder: str, slides: Sequence[str]) -> FeatureSet:
    """Find the finished slides of a feature folder.

    Raises:
        UsageError: no slide is finished.
        CheckFailedError: slides were made differently; the message names the fields.
    """
    records: dict[str, Record] = {}
    passports: list[dict[str, Any]] = []
    for slide_id in slides:
        path = job.root / folder / f"{slide_id}.h5"
        record = read_record(job, path)
        if record is None or not path.is_file():
            continue
        passports.append(read_passport(path))
        same_passport(passports[0], passports[-1], what=f"{folder}/{slide_id}.h5")
        records[slide_id] = record
    if not records:
        raise UsageError(
            f"{job.root / folder}: no slide has finished features. `slidemil status {job.root}` tells why."
        )
    return FeatureSet(job, Path(folder), passports[0], records, _differences(records, passports))


def _differences(records: dict[str, Record], passports: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Say in what slides of one set differ though they may be mixed."""
    notes = []
    shares = Counter(record.parts.get("tissue", {}).get("min_tissue") for record in records.values())
    if len(shares) > 1:
        listed = ", ".join(f"{share} ({count} slides)" for share, count in shares.most_common())
        notes.append(f"the slides were tiled with different --min-tissue: {listed}")
    for name in ("versions", "device"):
        kinds = {repr(passport.get(name)) for passport in passports}
        if len(kinds) > 1:
            notes.append(f"the features were made with different {name}: {'; '.join(sorted(kinds))[:300]}")
    return tuple(notes)


def _passport_of(job: JobFolder, folder: str) -> dict[str, Any] | None:
    first = next(iter(sorted((job.root / folder).glob("*.h5"))), None)
    return decisive(read_passport(first)) if first is not None else None
