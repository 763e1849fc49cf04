"""The features of a job as bags: which feature folder, which slides, made alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mil

from .errors import UsageError
from .features import FeatureFile, read_features, same_passport
from .jobfolder import JobFolder
from .records import read_record


@dataclass(frozen=True)
class FeatureSet:
    """All finished slides of one feature folder.

    Attributes:
        folder: the folder, relative to the job.
        passport: how all of them were made.
        files: slide → what its feature file holds.
        hashes: slide → SHA-256 of its feature file.
    """

    folder: Path
    passport: dict[str, Any]
    files: dict[str, FeatureFile]
    hashes: dict[str, str]

    def bag(self, slide_id: str) -> mil.Bag:
        """Return one slide as a bag of one."""
        file = self.files[slide_id]
        features = file.features if len(file.xy) else np.zeros((0, self.dim), np.float32)
        return mil.Bag.from_list([features], xy=[file.xy], ids=[slide_id])

    @property
    def dim(self) -> int:
        """Width of the features."""
        widths = [file.features.shape[1] for file in self.files.values() if file.features.ndim == 2]
        return int(max(widths, default=0))

    @property
    def tile(self) -> dict[str, Any]:
        """Size, resolution and overlap of the tiles."""
        return dict(self.passport.get("tile", {}))


def feature_folders(job: JobFolder) -> list[str]:
    """Name the feature folders of a job, relative to it."""
    return sorted(
        folder.relative_to(job.root).as_posix() for folder in job.root.glob("*/features_*") if folder.is_dir()
    )


def choose_folder(job: JobFolder, wanted: str | None, passport: dict[str, Any] | None = None) -> str:
    """Return the feature folder to use.

    Args:
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
        alike = [name for name in folders if _passport_of(job, name) == passport]
        folders = alike or folders
    if len(folders) > 1:
        raise UsageError(f"{job.root}: the job has several feature folders. Choose with --features: {listed}.")
    return folders[0]


def load_features(job: JobFolder, folder: str, slides: Sequence[str]) -> FeatureSet:
    """Load the finished slides of a feature folder.

    Raises:
        UsageError: no slide is finished.
        CheckFailedError: slides were made differently; the message names the fields.
    """
    files: dict[str, FeatureFile] = {}
    hashes: dict[str, str] = {}
    passport: dict[str, Any] | None = None
    for slide_id in slides:
        path = job.root / folder / f"{slide_id}.h5"
        record = read_record(job, path)
        if record is None or not path.is_file():
            continue
        file = read_features(path)
        passport = file.passport if passport is None else passport
        same_passport(passport, file.passport, what=f"{folder}/{slide_id}.h5")
        files[slide_id], hashes[slide_id] = file, record.sha256
    if passport is None:
        raise UsageError(f"{job.root / folder}: no slide has finished features. Run `slidemil extract` first.")
    return FeatureSet(Path(folder), passport, files, hashes)


def _passport_of(job: JobFolder, folder: str) -> dict[str, Any] | None:
    first = next(iter(sorted((job.root / folder).glob("*.h5"))), None)
    return read_features(first).passport if first is not None else None
