"""Grad-CAM of one tile that somebody clicked: the model, as it is now, and the encoder stay loaded after the first."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import UsageError
from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now
from pipelines.manifest import SlideEntry

from .slides import Slides

if TYPE_CHECKING:
    from pipelines.explainable import Means
    from pipelines.feature_sets import FeatureSet
    from pipelines.predictions import NamedModel


@dataclass(frozen=True)
class _Ready:
    """What a model needs to look back into pixels."""

    named: NamedModel
    features: FeatureSet
    means: Means


@dataclass
class TileCam:
    """Grad-CAM maps of single tiles of a job.

    Attributes:
        job: the job.
        pixels: what slides show.
        weights: of the encoder, where they lie elsewhere now.
    """

    job: JobFolder
    pixels: Slides
    weights: str | None = None
    _ready: dict[str, _Ready] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def of(self, entry: SlideEntry, model: str, place: tuple[int, int], wanted: str | None) -> dict[str, Any]:
        """Return the map of the tile at a place, signed, on the scale of the whole bag.

        Args:
            entry: the slide, read where it lies now.
            model: a name of the job's.
            place: (x, y) of the tile, level-0 px.
            wanted: class to explain, None for the one that the model says.

        Raises:
            UsageError: there is no such tile or class; or the encoder does not reach pixels.
            SlideGoneError: the slide cannot be read.
        """
        from mil.explain import Reach
        from pipelines.explainable import check_class, outputs_of, target_of
        from pipelines.feature_sets import bag_of
        from pipelines.members import maps_of
        from pipelines.reread import SlideTiles

        with self._lock:  # one at a time: a graph through the encoder takes all cores by itself
            ready = self._get(model)
            check_class(ready.named, wanted)
            if entry.slide_id not in ready.features:
                raise UsageError(f"{entry.slide_id}: it has no features yet, so no tile of it can be explained.")
            file = ready.features.read(entry.slide_id)
            rows = np.flatnonzero((file.xy == np.array(place)).all(axis=1))
            if not len(rows):
                raise UsageError(f"{entry.slide_id}: no tile at {place[0]}, {place[1]}.")
            row, bag = int(rows[0]), bag_of(file)
            target = target_of(ready.named, wanted, ready.named.answer(bag))
            tiles = self.pixels.encoded(SlideTiles(entry, file, [row]))
            (found,) = maps_of(ready.named, bag, target, [row], Reach(ready.means.encoder, tiles))
        return {
            "rows": found.shape[0],
            "columns": found.shape[1],
            "values": [float(value) for value in found.ravel()],
            "class": outputs_of(ready.named)[target],
            "footprint": list(file.footprint),
        }

    def _get(self, model: str) -> _Ready:
        from pipelines import tables_of_job as tables
        from pipelines.explainable import choose_methods, means_of
        from pipelines.feature_sets import choose_folder, load_features
        from pipelines.predictions import check_fits, find_model

        slides = [entry.slide_id for entry in tables.read_manifest(self.job).entries]
        known = self._ready.get(model)
        if known is not None and known.named.sha256 == digest_now(self.job, model):  # slides may have come since
            return replace(known, features=load_features(self.job, known.features.folder.as_posix(), slides))
        if not self.job.model(model).is_dir():
            raise UsageError(f"the model {model} is not in this job: its tiles cannot be explained anew.")
        named = find_model(self.job, model)
        features = load_features(self.job, choose_folder(self.job, None, named.model.config.get("encoder")), slides)
        check_fits(named, features)
        means = means_of(self.job, features, self.weights, offline=True)
        choose_methods(["gradcam"], named, means)  # says what is lacking, and the mend
        self._ready[model] = _Ready(named, features, means)
        return self._ready[model]
