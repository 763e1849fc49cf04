"""A job of very many slides that was never run: the files of one real slide under many names."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from pipelines.jobfolder import JobFolder
from pipelines.manifest import Manifest, SlideEntry
from pipelines.provenance import FileState
from pipelines.records import parse_record, record_bytes
from pipelines.tables_of_job import read_manifest, write_manifest


def made_up(like: Path, job: Path, slides: Path, count: int) -> None:
    """Write a job in which `count` slides are done: outputs are links to those of the first slide of `like`.

    Args:
        like: a real job.
        job: the folder that comes to be.
        slides: the folder of its slides, empty files.
        count: how many.
    """
    old, new = JobFolder(like), JobFolder(job)
    first = read_manifest(old).entries[0].slide_id
    (record_file,) = (like / ".done").glob(f"*/features_*/{first}.h5.json")
    record = parse_record(record_file.read_bytes())
    output = (like / record_file.relative_to(like / ".done")).with_suffix("")
    files = [output.relative_to(like), *map(Path, record.companions)]
    shutil.copytree(like / "runs", new.runs)
    shutil.copy(old.settings, new.settings)
    for folder in {slides, new.hashes, *(job / file.parent for file in files), new.record(job / files[0]).parent}:
        folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(count):
        name = f"slide-{number:07d}"
        slide = slides / f"{name}.svs"
        slide.touch()
        entries.append(SlideEntry(name, slide, name))
        state = FileState.of(slide)
        stamp = {"stamp": [state.size, state.mtime_ns, state.inode], "sha256": record.parts["slide"]}
        (new.hashes / f"{name}.json").write_text(json.dumps(stamp))
        for file in files:
            _link(like / file, job / _called(file, first, name), number)
        beside = {_called(Path(file), first, name).as_posix(): told for file, told in record.companions.items()}
        mine = job / _called(files[0], first, name)
        new.record(mine).write_bytes(record_bytes(replace(record, companions=beside)))
    write_manifest(new, Manifest(tuple(entries)))
    new.slides.write_bytes(b"")


def _called(file: Path, first: str, name: str) -> Path:
    return file.with_name(file.name.replace(first, name))


def _link(file: Path, name: Path, number: int) -> None:
    """Give a file one more name; file systems allow some ten thousand of them, so that it is copied now and then."""
    home = name.with_name(f".{number // 5000}{file.suffix}")
    if not home.exists():
        shutil.copy(file, home)
    os.link(home, name)
