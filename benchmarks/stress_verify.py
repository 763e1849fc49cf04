"""Does `slidemil verify` find every changed byte?    python benchmarks/stress_verify.py [--quick]

One byte of an output changes: in fifty files of all kinds, one after the other and then all at once. Each must be
found, and no other file be named. Then the ledgers, line by line: a byte changes, the line goes, it changes places with
the next, it is there twice, or it says something else and its hash is made anew. What none can find is counted apart:
the last line of the newest ledger, which no later run vouches for, when it is taken away or forged with its hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from _stress import begin, small_slides, words
from _summary import line, summary

KINDS = (
    "thumbnails/*.jpg",
    "contours/*.jpg",
    "contours_geojson/*.geojson",
    "*/visualization/*.jpg",
    "*/patches/*.h5",
    "*/features_*/*.h5",
    ".done/*/features_*/*.json",
    "runs/*Z-????????.json",
    "*.csv",
    "job.yaml",
    "report.html",
)
VOUCHING = ".done/"
"""A changed record vouches for nothing more, so not all can change at once."""
SLIDES = 8
GOALS: dict[str, tuple[str, float]] = {
    "flips_not_found": ("<=", 0),
    "edits_not_found": ("<=", 0),
    "not_found_together": ("<=", 0),
    "others_named": ("<=", 0),
    "found_in_a_whole_job": ("<=", 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 slides, 12 outputs instead of 50, every fifth line")
    args = parser.parse_args()
    rng, counts = random.Random(0), Counter(dict.fromkeys(GOALS, 0))
    with tempfile.TemporaryDirectory() as folder:
        job = make(Path(folder), 2 if args.quick else SLIDES)
        counts["found_in_a_whole_job"] = len(verify(job))
        chosen = outputs(job, 12 if args.quick else 50, rng)
        flips(job, chosen, rng, counts)
        ledgers(job, rng, counts, every=5 if args.quick else 1)
        assert not verify(job), "what was changed is as it was"
    goals = {**GOALS, "outputs": (">=", 12 if args.quick else 50)}
    summary("stress_verify", dict(counts), goals, {"python": sys.version.split()[0]})


def make(root: Path, slides: int) -> Path:
    """Make a job in two runs and a third that reports."""
    folder, job = small_slides(root / "slides", slides), root / "job"
    for verb in ("extract", "run"):
        assert begin([verb, *words(folder, job, "--set", "processes=0")[1:]], alone=False) == 0
    assert begin(["report", str(job)], alone=False) == 0
    return job


def verify(job: Path) -> set[str]:
    """Return what is found wrong."""
    from pipelines import stages

    return {row["path"] for row in stages.verify(job, quiet=True).data["findings"]}


def outputs(job: Path, count: int, rng: random.Random) -> list[Path]:
    """Choose outputs, of each kind as many as there are or as the others have."""
    kinds = [rng.sample(there, len(there)) for kind in KINDS if (there := sorted(job.glob(kind)))]
    assert len(kinds) == len(KINDS), "a kind of output is not there"
    chosen: list[Path] = []
    while len(chosen) < count and any(kinds):
        chosen += [kind.pop() for kind in kinds if kind][: count - len(chosen)]
    return chosen


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change one byte."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(changed)


def flips(job: Path, chosen: list[Path], rng: random.Random, counts: Counter[str]) -> None:
    """Change a byte in each output, then in all at once."""
    kept = {path: path.read_bytes() for path in chosen}
    names = {path: path.relative_to(job).as_posix() for path in chosen}
    for path, data in kept.items():
        path.write_bytes(flip(data, rng))
        found = verify(job)
        path.write_bytes(data)
        counts["outputs"] += 1
        counts["flips_not_found"] += names[path] not in found
        counts["others_named"] += len(found - {names[path]})
        if found != {names[path]}:
            line(flipped=names[path], found=sorted(found))
    together = [path for path in chosen if not names[path].startswith(VOUCHING)]
    for path in together:
        path.write_bytes(flip(kept[path], rng))
    found = verify(job)
    for path in together:
        path.write_bytes(kept[path])
    counts["together"] = len(together)
    counts["not_found_together"] += len({names[path] for path in together} - found)
    counts["others_named"] += len(found - {names[path] for path in together})
    line(step="outputs", **counts)


def ledgers(job: Path, rng: random.Random, counts: Counter[str], every: int) -> None:
    """Edit each line of each ledger in each way."""
    paths = sorted((job / "runs").glob("*.ledger.jsonl"), key=began)  # names tell the second only
    for path in paths:
        data = path.read_bytes()
        lines = data.splitlines(keepends=True)
        for number in range(0, len(lines), every):
            unknowable = path == paths[-1] and number == len(lines) - 1
            for way, edited in edits(lines, number, rng):
                path.write_bytes(b"".join(edited))
                found = any(name.startswith(f"runs/{path.name}") for name in verify(job))
                counts["edits"] += 1
                if unknowable and way in ("gone", "forged"):
                    counts["last_line_edits"] += 1
                    counts["last_line_found"] += found
                elif not found:
                    counts["edits_not_found"] += 1
                    line(ledger=path.name, line=number, way=way, text=lines[number].decode()[:200])
        path.write_bytes(data)
        line(step=path.name, lines=len(lines), **counts)


def began(path: Path) -> str:
    with path.open() as file:
        return str(json.loads(file.readline())["t"])


def edits(lines: list[bytes], number: int, rng: random.Random) -> Iterator[tuple[str, list[bytes]]]:
    """Yield each way to edit one line, and all lines afterwards."""
    before, it, after = lines[:number], lines[number], lines[number + 1 :]
    yield "byte", [*before, flip(it, rng), *after]
    yield "gone", [*before, *after]
    yield "twice", [*before, it, it, *after]
    yield "forged", [*before, forged(it), *after]
    if after:
        yield "moved", [*before, after[0], it, *after[1:]]


def forged(it: bytes) -> bytes:
    """Have a line say another time, with a hash that fits."""
    body = {**json.loads(it), "t": "2001-01-01T00:00:00.000Z"}
    del body["hash"]
    body["hash"] = hashlib.sha256(canonical(body)).hexdigest()
    return canonical(body) + b"\n"


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


if __name__ == "__main__":
    main()
