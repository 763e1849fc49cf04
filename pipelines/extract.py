"""Slides → one feature file each: many slides share one stream, one slide's failure is a row in `slides.csv`."""

from __future__ import annotations

import wsi

from .extraction import Extraction
from .manifest import Manifest
from .outcome import Outcome
from .reading import stream_of
from .watch import Watch


def extract(extraction: Extraction, manifest: Manifest) -> Outcome:
    """Run all pending slides through one stream; then those that other runs held and did not finish.

    Slides are given up before the wait for those of others begins: two runs never wait for each other.

    Raises:
        EnvironmentFault: the job folder cannot be written.
    """
    extraction.slides = len(manifest.entries)
    try:
        stream = stream_of(extraction.sources(manifest.entries), extraction.settings)
        watch = Watch(extraction, stream, manifest)
        _take_all(extraction, stream, watch)
        found = watch.end()
        while extraction.held:
            entries = extraction.wait_for_others()
            if entries:
                _take_all(extraction, stream_of(extraction.sources(entries), extraction.settings))
    finally:
        extraction.abandon()
    extraction.claims.sweep({*extraction.fresh, *extraction.skipped})
    extraction.run.facts |= found.facts
    return Outcome(
        found=len(manifest.entries),
        done=tuple(extraction.fresh),
        skipped=tuple(extraction.skipped),
        failed=tuple(extraction.failures[name] for name in sorted(extraction.failures)),
        outputs=tuple(sorted(extraction.outputs)),
        warnings=(*extraction.warnings, *getattr(extraction.encoder, "notes", ())),
        rates=found.rates,
        bottleneck=found.verdict.text,
        text=found.text,
        more=found.more,
    )


def _take_all(extraction: Extraction, stream: wsi.TileStream, watch: Watch | None = None) -> None:
    try:
        for batch in stream:
            extraction.take(batch)
            extraction.progress.advance(len(batch.ok), note=watch.note() if watch else None)
    except BaseException:
        extraction.stopping = True
        raise
    finally:
        stream.close()
