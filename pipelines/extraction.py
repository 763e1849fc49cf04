"""One run over many slides: which are to be done, what has become of each, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi

from . import portions, tissue_of_slide
from .augmenting import augmentation
from .beside import beside
from .claims import Claim, Claims
from .config import ExtractSettings
from .counting import size_of
from .features import decisive
from .jobfolder import JobFolder, Tiling, tiling_name
from .losable import StoppedError
from .manifest import SlideEntry
from .maps import Encoded, Maps, encode
from .outcome import Failure
from .passports import colors_of, passport_of
from .preparing import Preparer
from .progress import Progress
from .provenance import Run, known_sha256
from .reading import prepares_apart
from .records import (
    Record,
    changed_parts,
    current,
    forget,
    forget_failure,
    key_of,
    read_failure,
    read_record,
    write_failure,
)
from .slide_work import SlideWork, finish_slide, passport_name
from .staining import Change, Staining, whole
from .timing import StageClock
from .units import counted

if TYPE_CHECKING:
    from mil import Encoder


_LOOK_EVERY = 0.5
"""Seconds between two looks at slides that other runs work on."""
_LOOK_AT = 20
"""Slides that are looked at each time: a thousand runs that wait must not drown the file server."""
_STAGES = ("hash", "prepare", "stain", "encode", "write")


@dataclass
class Extraction:
    """One run over many slides: what it needs, and what it has found so far.

    Each slide is claimed before anything is done to it, and given up when it is finished or has failed. Slides that
    other runs work on are `held`: they are looked at again when all others are done.
    """

    job: JobFolder
    settings: ExtractSettings
    encoder: Encoder
    run: Run
    progress: Progress
    force: bool = False
    also: Sequence[Encoder] = ()
    slides: int = 0
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    clocks: dict[str, StageClock] = field(default_factory=lambda: {name: StageClock() for name in _STAGES})
    stopping: bool = False
    core_apart: float = 0.0
    hashed: int = 0
    tiles: int = 0
    held: list[SlideEntry] = field(default_factory=list)
    opened: int = 0
    _works: list[SlideWork | None] = field(default_factory=list)
    _asked: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _empty: int = 0

    def __post_init__(self) -> None:
        """Nothing is claimed so far."""
        self._augmentation = augmentation(self.settings.augment)
        self.claims = Claims(self.job, "slides", run=self.run.name, took_over=self._took_over)
        self.compute_with((self.encoder, *self.also))

    def compute_with(self, encoders: Sequence[Encoder]) -> None:
        """Take encoders, the first and those beside it, which decide what features count as done.

        What the passport says is asked once: it looks up versions, which takes longer than reading a record.
        """
        self.encoder, *self.also = encoders
        self._passport = passport_of(self.encoder, self.settings)
        dense = self.settings.dense
        self.maps = Maps(self.encoder, self.passport) if dense else None
        self.beside = beside(self.also, lambda encoder: passport_of(encoder, self.settings), dense=dense)
        self._staining = Staining(self._stain_of, () if self._augmentation else encoders)

    @property
    def tiling(self) -> Tiling:
        """The folder of this tile size and resolution."""
        s = self.settings
        return self.job.tiling(tiling_name(s.tile, s.mpp, s.overlap))

    @property
    def passport(self) -> dict[str, Any]:
        """How features are made here."""
        return self._passport

    def output(self, slide_id: str) -> Path:
        """The feature file of a slide."""
        return self.tiling.features(self.folder_name, slide_id)

    @property
    def folder_name(self) -> str:
        """What the encoder is called in the names of folders."""
        return passport_name(self.passport)

    def made(self, slide_id: str) -> list[str]:
        """Name the feature files of a slide, of all encoders, relative to the job folder."""
        made = [self.output(slide_id), *(one.output(self.tiling, slide_id) for one in self.beside)]
        made += [maps.store(self.tiling, slide_id) for maps in self._all_maps]
        return [path.relative_to(self.job.root).as_posix() for path in made]

    def pending(
        self, entries: Sequence[SlideEntry], digest_of: Callable[[SlideEntry], str]
    ) -> Iterator[tuple[SlideEntry, dict[str, Any]]]:
        """Yield the slides that are to be done, claimed, each with the parts that determine its features."""
        for entry in entries:
            if self.stopping:
                return
            if self._is_done(entry):
                continue
            if not self.claims.take(entry.slide_id):
                self.held.append(entry)
                continue
            parts = self._hashed(entry, digest_of)
            if parts is None:
                continue
            record = self.finished(entry, parts)  # looked at under the claim: another run may just have finished it
            if record is None:
                self._say_what_changed(entry, parts)
                self._asked[entry.slide_id] = parts
                forget(self.job, self.output(entry.slide_id))  # its pictures will be written first, and be others
                forget_failure(self.job, self.output(entry.slide_id))
                yield entry, parts
            else:
                self._skip(entry, record)

    def sources(self, entries: Sequence[SlideEntry]) -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
        """Open the pending slides one after the other, for the stream; failures are kept, not raised."""
        self._works = []
        apart = prepares_apart(self.settings)
        preparer = Preparer(self.job, self.tiling, self.settings, apart=apart, stop=lambda: self.stopping)
        with closing(preparer), suppress(StoppedError):
            yield from self._sources(entries, preparer)

    def _sources(self, entries: Sequence[SlideEntry], preparer: Preparer) -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
        for entry, parts in self.pending(entries, preparer.digest):
            try:
                with self.clocks["prepare"].of(1):
                    work = preparer(entry, parts)
            except wsi.SlideError as error:
                self.fail(entry, error)
                self._tell_total()
                continue
            self.core_apart = preparer.core
            self._bring(work)
            self.run.log("opened", slide=entry.slide_id, tiles=len(work.to_read), reader=work.slide.reader)
            if len(work.to_read) == 0:
                self._empty += 1
                self.close(work)
                self._tell_total()
                continue
            self.add(work)
            self._tell_total()
            yield work.slide, work.to_read
        self._tell_total()  # the last ones may have been done already

    def _bring(self, work: SlideWork) -> None:
        """Give a slide what workers of a cluster have encoded of it already."""
        if not self.force and self.splits:
            portions.take_in(self.job, self.as_each_has_it(work))

    @property
    def splits(self) -> bool:
        """Whether portions of a slide can be made apart: maps are written to one store, tile by tile."""
        return self.maps is None

    def as_each_has_it(self, work: SlideWork) -> list[SlideWork]:
        """Return a slide as each encoder has it, the first one first."""
        return [work, *(one.of(work) for one in self.beside)]

    def wait_for_others(self) -> list[SlideEntry]:
        """Wait until other runs have given up slides that they held, by finishing, by failing or by dying.

        Returns:
            What is left to be done of these; slides that another run could not make have failed here, too.
        """
        while True:
            looked, rest = self.held[:_LOOK_AT], self.held[_LOOK_AT:]
            busy = {entry.slide_id: other for entry in looked if (other := self.claims.holder(entry.slide_id))}
            self.held = [*rest, *(entry for entry in looked if entry.slide_id in busy)]
            free = [entry for entry in looked if entry.slide_id not in busy]
            if free:
                return [entry for entry in free if not self._failed_elsewhere(entry)]
            who = next(iter(busy.values())).who
            self.progress.advance(0, note=f"waiting for {counted(len(self.held), 'slide')} of another run ({who})")
            time.sleep(_LOOK_EVERY)

    def _is_done(self, entry: SlideEntry) -> bool:
        """Tell at little cost whether a slide needs no more work: no slide is read for it."""
        digest = known_sha256(self.job, entry.slide_id, entry.files)
        record = None if digest is None else self.finished(entry, self.parts(entry, digest))
        if record is not None:
            self._skip(entry, record)
        return record is not None

    def _hashed(self, entry: SlideEntry, digest_of: Callable[[SlideEntry], str]) -> dict[str, Any] | None:
        """Return the parts of a slide, None where it cannot be read."""
        try:
            with self.clocks["hash"].of(1):
                digest = digest_of(entry)
        except OSError as error:
            self._unreachable(entry, error)
            return None
        except wsi.SlideError as error:
            self.fail(entry, error)
            return None
        self.hashed += size_of(entry)
        return self.parts(entry, digest)

    def _failed_elsewhere(self, entry: SlideEntry) -> bool:
        """Tell whether another run found that a slide cannot be made, with the settings of this one."""
        digest = known_sha256(self.job, entry.slide_id, entry.files)
        failed = read_failure(self.job, self.output(entry.slide_id))
        if digest is None or failed is None or failed.key != key_of(self.parts(entry, digest)):
            return False
        self.failures[entry.slide_id] = Failure(entry.slide_id, failed.cause, failed.mend)
        return True

    def _took_over(self, slide_id: str, left: Claim) -> None:
        self.run.note("took over", slide=slide_id, run=left.run, owner=left.who)

    def _tell_total(self) -> None:
        self.progress.total(round(self.expected_tiles(self.slides)), exact=self.seen >= self.slides)

    def add(self, work: SlideWork) -> None:
        """Take a slide in: the next one that the stream reads."""
        self.tiles += len(work.to_read)
        self.opened += 1
        self._works.append(work)

    def take(self, batch: wsi.TileBatch) -> None:
        """Normalize and encode a batch, keep its rows, and finish the slides that it completes."""
        for error, ordinal, row in _errors(batch):
            work = self._work(ordinal)
            work.missing[int(work.rows(np.array(row)))] = error.what
            if isinstance(error, wsi.FetchError):
                work.unfetched = error
        good = np.flatnonzero(batch.ok)
        if len(good):
            pixels, change = self._pixels(batch, good)
            with self.clocks["encode"].of(len(good)):
                found = encode(self.encoder, pixels, self.maps, change)
                others = [encode(one.encoder, pixels, one.maps, change) for one in self.beside]
            for ordinal in np.unique(batch.slide[good]):
                mine = batch.slide[good] == ordinal
                work = self._work(int(ordinal))
                self._put(work, work.rows(batch.index[good][mine]), [one.of(mine) for one in (found, *others)])
        for ordinal in np.unique(batch.slide):
            self._finish_if_complete(int(ordinal))

    def _put(self, work: SlideWork, rows: NDArray[np.int64], found: Sequence[Encoded]) -> None:
        """Keep what all encoders gave for some tiles of a slide."""
        dtype = self.settings.dtype
        work.put(rows, found[0].values, dtype)
        if self.maps is not None and found[0].maps is not None:
            self.maps.put(work, self.tiling, rows, found[0].maps, dtype)
        for one, theirs in zip(self.beside, found[1:], strict=True):
            one.put(work, self.tiling, rows, theirs, dtype)

    @property
    def _all_maps(self) -> list[Maps]:
        return [maps for maps in (self.maps, *(one.maps for one in self.beside)) if maps is not None]

    def abandon(self) -> None:
        """Let go of every slide that is still open; what is not finished stays undone."""
        self.stopping = True
        for work in self._works:
            if work is not None:
                work.slide.close()
        for maps in self._all_maps:
            maps.close()
        self.claims.close()

    def close(self, work: SlideWork) -> None:
        """Write what a complete slide has become."""
        try:
            for one in self.beside:
                one.finish(work, self.job, self.tiling, self.settings)
            facts = finish_slide(work, self.job, self.tiling, self.settings, self.passport, self.encoder.dim)
            if self.maps is not None:
                self.maps.finish(work, self.job, self.tiling, self.settings.dtype)
        except wsi.SlideError as error:
            self.fail(work.entry, error)
            return
        finally:
            work.slide.close()
        name = work.entry.slide_id
        portions.drop(self.job, name)
        self.facts[name] = facts
        self.fresh.append(name)
        self.outputs += self.made(name)
        self.claims.release(name)
        self.run.log("done", slide=name, tiles=facts["n_tiles"], missing=facts["n_missing"])

    def fail(self, entry: SlideEntry, error: wsi.SlideError) -> None:
        """Keep a failure; the other slides go on. What an earlier run made of this slide no longer counts."""
        name = entry.slide_id
        failure = Failure.of(name, error)
        write_failure(self.job, self.output(name), self._asked.get(name), failure.cause, failure.mend)
        self.failures[name] = failure
        portions.drop(self.job, name)
        for one in self.beside:
            one.drop(name)
        if self.maps is not None:
            self.maps.drop(name)
        self.claims.release(name)
        self.run.log("failed", slide=name, cause=error.what, mend=error.mend)

    def _pixels(self, batch: wsi.TileBatch, good: NDArray[np.int64]) -> tuple[NDArray[Any], Change | None]:
        """Return the tiles that could be read, normalized where that is asked for, or how the encoder's device does."""
        if self.settings.stain == "none" and self._augmentation is None:
            return whole(batch, good), None
        with self.clocks["stain"].of(len(good)):
            plain = self.settings.stain == "none"
            pixels, change = (whole(batch, good), None) if plain else self._staining(batch, good)
            return (pixels, change) if self._augmentation is None else (self._augmented(pixels, batch, good), None)

    def _augmented(self, pixels: NDArray[np.uint8], batch: wsi.TileBatch, good: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the tiles with their colors changed by chance, each by its own slide and place."""
        assert self._augmentation is not None
        slides, out = batch.slide[good], np.empty_like(pixels)
        for ordinal in np.unique(slides):
            work, mine = self._work(int(ordinal)), slides == ordinal
            assert work.stains is not None, "no stains were fitted"
            xy = work.grid.xy[work.rows(batch.index[good][mine])]
            out[mine] = self._augmentation.change(pixels[mine], work.stains, str(work.parts["slide"]), xy)
        return out

    def _stain_of(self, ordinal: int) -> stain.StainParams:
        params = self._work(ordinal).stain
        assert params is not None, "no stain was fitted"
        return params

    @property
    def seen(self) -> int:
        """How many slides were looked at."""
        return self.opened + len(self.failures) + len(self.skipped) + self._empty

    def expected_tiles(self, slides: int) -> float:
        """Return the tiles of the slides opened so far, and as many for each other slide as these have on average."""
        return self.tiles + self.tiles / max(self.opened, 1) * max(0, slides - self.seen)

    def _work(self, ordinal: int) -> SlideWork:
        work = self._works[ordinal]
        assert work is not None, "a tile of a finished slide came again"
        return work

    def _finish_if_complete(self, ordinal: int) -> None:
        work = self._work(ordinal)
        if work.complete:
            self._works[ordinal] = None
            with self.clocks["write"].of(1):
                self.close(work)

    def finished(self, entry: SlideEntry, parts: Mapping[str, Any]) -> Record | None:
        """Return the record of a slide that needs no more work, None where there is work to do."""
        output = self.output(entry.slide_id)
        old = read_record(self.job, output)
        if self.force or old is None:
            return None
        parts = {**parts, "mpp": _as_it_mattered(parts["mpp"], old.parts.get("mpp", {}))}
        record = current(self.job, output, parts, old)
        done = (one.is_done(self.job, self.tiling, entry.slide_id, parts) for one in self.beside)
        mapped = self.maps is None or self.maps.is_done(self.job, self.tiling, entry.slide_id, parts)
        if record is None or not mapped or not all(done):
            return None
        total = record.facts.get("n_tiles", 0) + record.facts.get("n_missing", 0)
        return record if record.facts.get("n_missing", 0) <= self.settings.max_bad_tiles * total else None

    def _unreachable(self, entry: SlideEntry, error: OSError) -> None:
        """Keep finished features of a slide that cannot be read just now; any other has failed."""
        what = f"cannot be read ({error.strerror or error})"
        mend = getattr(error, "mend", "Check the path and its rights.")
        old = read_record(self.job, self.output(entry.slide_id))
        if old is not None and self.finished(entry, self.parts(entry, str(old.parts.get("slide")))):
            self._skip(entry, old)
            self.warnings.append(f"{entry.slide_id}: {what}; its finished features are kept")
            return
        self.fail(entry, wsi.UnreadableSlideError(entry.path.name, what, mend))

    def parts(self, entry: SlideEntry, digest: str) -> dict[str, Any]:
        """Return everything that determines the features of a slide, whose bytes have this hash."""
        s = self.settings
        return {
            "slide": digest,
            "mpp": {"manifest": entry.mpp, "slide_mpp": s.slide_mpp, "allow_upsampling": s.allow_upsampling},
            "tissue": {**tissue_of_slide.parts_of(entry, s), **colors_of(s)},
            "encoder": decisive(self.passport),
        }

    def _skip(self, entry: SlideEntry, record: Record) -> None:
        self.claims.release(entry.slide_id)
        self.facts[entry.slide_id] = dict(record.facts)
        self.skipped.append(entry.slide_id)

    def changed(self, entry: SlideEntry, parts: Mapping[str, Any]) -> list[str]:
        """Name what differs from the parts that the features lying there were made from; nothing where none lie."""
        old = read_record(self.job, self.output(entry.slide_id))
        changed = changed_parts(old, parts) if old else []
        return [name for name in changed if not name.startswith("mpp.")] or changed

    def _say_what_changed(self, entry: SlideEntry, parts: Mapping[str, Any]) -> None:
        changed = self.changed(entry, parts)
        if changed:
            self.run.note("redo", slide=entry.slide_id, changed=changed)
            note = f"made anew because this changed: {', '.join(changed[:4])}"
            if note not in self.warnings:
                self.warnings.append(note)


def _as_it_mattered(asked: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the asked µm/px without the options that an earlier run of the slide found to decide nothing."""
    return {
        "manifest": asked["manifest"],
        "slide_mpp": asked["slide_mpp"] if before.get("slide_mpp") is not None else None,
        "allow_upsampling": bool(asked["allow_upsampling"]) and bool(before.get("allow_upsampling")),
    }


def _errors(batch: wsi.TileBatch) -> Iterator[tuple[wsi.TileReadError, int, int]]:
    bad = np.flatnonzero(~batch.ok)
    for position, error in zip(bad, batch.errors, strict=True):
        yield error, int(batch.slide[position]), int(batch.index[position])
