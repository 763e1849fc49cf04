"""Slides → one feature file each: many slides share one stream, one slide's failure is a row in `slides.csv`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wsi

from .config import ExtractSettings
from .features import same_passport
from .jobfolder import JobFolder, Tiling, tiling_name
from .manifest import Manifest, SlideEntry
from .outcome import Failure, Outcome
from .progress import Progress
from .provenance import Run, series_sha256
from .records import Record, changed_parts, current, read_record
from .slide_work import SlideWork, finish_slide, passport_name, prepare
from .timing import StageClock, bottleneck

if TYPE_CHECKING:
    from mil import Encoder


@dataclass
class Extraction:
    """One run over many slides: what it needs, and what it has found so far."""

    job: JobFolder
    settings: ExtractSettings
    encoder: Encoder
    run: Run
    progress: Progress
    force: bool = False
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    preparing: StageClock = field(default_factory=StageClock)
    _works: list[SlideWork | None] = field(default_factory=list)
    _tiles: int = 0
    _empty: int = 0

    @property
    def tiling(self) -> Tiling:
        """The folder of this tile size and resolution."""
        s = self.settings
        return self.job.tiling(tiling_name(s.tile, s.mpp, s.overlap))

    @property
    def passport(self) -> dict[str, Any]:
        """How features are made here: the encoder's passport, the tile and the stain normalization."""
        s = self.settings
        return {
            **self.encoder.passport(),
            "stain": s.stain,
            "tile": {"size": s.tile, "mpp": s.mpp, "overlap": s.overlap},
            "stored_dtype": s.dtype,
        }

    def output(self, slide_id: str) -> Path:
        """The feature file of a slide."""
        return self.tiling.features(passport_name(self.passport), slide_id)

    def pending(self, manifest: Manifest) -> Iterator[tuple[SlideEntry, dict[str, Any]]]:
        """Yield the slides that are not done, each with the parts that determine its features."""
        for entry in manifest.entries:
            try:
                parts = self._parts(entry)
            except OSError as error:
                what = f"cannot be read ({error.strerror or error})"
                self.fail(entry, wsi.UnreadableSlideError(entry.path.name, what, "Check the path and its rights."))
                continue
            record = None if self.force else current(self.job, self.output(entry.slide_id), parts)
            if record is None:
                self._say_what_changed(entry, parts)
                yield entry, parts
            else:
                self._skip(entry, record)

    def sources(self, manifest: Manifest) -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
        """Open the pending slides one after the other, for the stream; failures are kept, not raised."""
        for entry, parts in self.pending(manifest):
            try:
                with self.preparing.of(1):
                    work = prepare(entry, self.job, self.tiling, self.settings, parts)
            except wsi.SlideError as error:
                self.fail(entry, error)
                continue
            self.run.log("opened", slide=entry.slide_id, tiles=len(work.grid.xy), reader=work.slide.reader)
            if len(work.grid.xy) == 0:
                self._empty += 1
                self.close(work)
                continue
            self._tiles += len(work.grid.xy)
            self._works.append(work)
            self.progress.total(self._expected_tiles(len(manifest.entries)))
            yield work.slide, work.grid

    def take(self, batch: wsi.TileBatch, clocks: Mapping[str, StageClock]) -> None:
        """Normalize and encode a batch, keep its rows, and finish the slides that it completes."""
        for error, ordinal, row in _errors(batch):
            work = self._work(ordinal)
            work.missing[row] = error
        good = np.flatnonzero(batch.ok)
        if len(good):
            pixels = self._normalize(batch, good, clocks["stain"])
            with clocks["encode"].of(len(good)):
                values = self.encoder(pixels)
            for ordinal in np.unique(batch.slide[good]):
                mine = batch.slide[good] == ordinal
                self._work(int(ordinal)).put(batch.index[good][mine], values[mine], self.settings.dtype)
        for ordinal in np.unique(batch.slide):
            self._finish_if_complete(int(ordinal))

    def close(self, work: SlideWork) -> None:
        """Write what a complete slide has become."""
        try:
            facts = finish_slide(work, self.job, self.tiling, self.settings, self.passport, self.encoder.dim)
        except wsi.SlideError as error:
            self.fail(work.entry, error)
            return
        finally:
            work.slide.close()
        name = work.entry.slide_id
        self.facts[name] = facts
        self.fresh.append(name)
        self.outputs.append(str(self.output(name).relative_to(self.job.root)))
        self.run.log("done", slide=name, tiles=facts["n_tiles"], missing=facts["n_missing"])

    def fail(self, entry: SlideEntry, error: wsi.SlideError) -> None:
        """Keep a failure; the other slides go on."""
        self.failures[entry.slide_id] = Failure(entry.slide_id, f"{error.slide}: {error.what}", error.mend)
        self.run.log("failed", slide=entry.slide_id, cause=error.what, mend=error.mend)

    def _normalize(self, batch: wsi.TileBatch, good: np.ndarray[Any, Any], clock: StageClock) -> Any:
        pixels = batch.pixels if len(good) == len(batch.ok) else batch.pixels[good]
        if self.settings.stain == "none":
            return pixels
        with clock.of(len(good)):
            out = np.empty_like(pixels)
            for ordinal in np.unique(batch.slide[good]):
                mine = batch.slide[good] == ordinal
                params = self._work(int(ordinal)).stain
                out[mine] = pixels[mine] if params is None else params.apply(pixels[mine])
        return out

    def _expected_tiles(self, slides: int) -> int:
        """Return the tiles of the slides opened so far, and as many for each other slide as these have on average."""
        opened = len(self._works)
        seen = opened + len(self.failures) + len(self.skipped) + self._empty
        return self._tiles + round(self._tiles / opened * max(0, slides - seen))

    def _work(self, ordinal: int) -> SlideWork:
        work = self._works[ordinal]
        assert work is not None, "a tile of a finished slide came again"
        return work

    def _finish_if_complete(self, ordinal: int) -> None:
        work = self._work(ordinal)
        if work.complete:
            self._works[ordinal] = None
            self.close(work)

    def _parts(self, entry: SlideEntry) -> dict[str, Any]:
        s = self.settings
        return {
            "slide": series_sha256(self.job, entry.slide_id, entry.files),
            "mpp": {"manifest": entry.mpp, "slide_mpp": s.slide_mpp, "allow_upsampling": s.allow_upsampling},
            "tissue": {**dataclasses.asdict(wsi.TissueSettings()), "min_tissue": s.min_tissue},
            "max_bad_tiles": s.max_bad_tiles,
            "encoder": self.passport,
        }

    def _skip(self, entry: SlideEntry, record: Record) -> None:
        self.facts[entry.slide_id] = dict(record.facts)
        self.skipped.append(entry.slide_id)

    def _say_what_changed(self, entry: SlideEntry, parts: Mapping[str, Any]) -> None:
        old = read_record(self.job, self.output(entry.slide_id))
        changed = changed_parts(old, parts) if old else []
        if changed:
            self.run.log("redo", slide=entry.slide_id, changed=changed)
            note = f"made anew because this changed: {', '.join(changed[:4])}"
            if note not in self.warnings:
                self.warnings.append(note)


def extract(extraction: Extraction, manifest: Manifest) -> Outcome:
    """Run all pending slides through one stream.

    Raises:
        EnvironmentFault: the job folder cannot be written.
    """
    clocks = {"stain": StageClock(), "encode": StageClock()}
    s = extraction.settings
    began = time.monotonic()
    with wsi.stream(
        extraction.sources(manifest),
        batch_size=s.batch_size,
        workers=s.workers or None,
        memory=int(s.memory_gb * 1e9),
    ) as stream:
        for batch in stream:
            extraction.take(batch, clocks)
            extraction.progress.advance(len(batch.ok), note=f"encoder waits {stream.record().wait:.0%}")
        record = stream.record()
    clocks["prepare"] = extraction.preparing
    rates = {"read": record.to_dict()} if record.tiles else {}
    rates |= {name: clock.to_dict() for name, clock in clocks.items() if clock.things}
    extraction.run.facts |= {"rates": rates, "seconds_extract": round(time.monotonic() - began, 3)}
    return Outcome(
        found=len(manifest.entries),
        done=tuple(extraction.fresh),
        skipped=tuple(extraction.skipped),
        failed=tuple(extraction.failures[name] for name in sorted(extraction.failures)),
        outputs=tuple(sorted(extraction.outputs)),
        warnings=tuple(extraction.warnings),
        rates=rates,
        bottleneck=bottleneck(rates),
    )


def check_same_features(job: JobFolder, extraction: Extraction, names: Sequence[str]) -> None:
    """Refuse a feature folder that holds features of another passport beside those of this run."""
    for name in names:
        record = read_record(job, extraction.output(name))
        if record is not None:
            same_passport(extraction.passport, record.parts["encoder"], what=name)


def _errors(batch: wsi.TileBatch) -> Iterator[tuple[str, int, int]]:
    bad = np.flatnonzero(~batch.ok)
    for position, error in zip(bad, batch.errors, strict=True):
        yield error.what, int(batch.slide[position]), int(batch.index[position])
