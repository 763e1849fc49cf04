"""What a viewer shows: the protocol of a folder of results, and the one of our own job folders.

Names of slides, models and methods come from listing what is there; nothing that a browser sends becomes a path.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines import tables_of_job as tables
from pipelines.config import ARTIFACTS
from pipelines.files import open_h5, read_csv
from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now, why_older
from pipelines.manifest import SlideEntry

from .packed import Placed

_FRESH = 2.0
"""Seconds for which a list is not made anew: a job may go on while it is looked at."""
PICTURES = {"thumbnail": "thumbnails", "contour": "contours", "quality": "quality"}
OUTLINES = {"tissue": "contours_geojson", "truth": "truth"}
_SHARES = ("tissue_share", *(f"{name}_share" for name in ARTIFACTS))
_TOLD = ("slide_id", "case_id", "status", "n_tiles", "warning", "cause", "mend")

Card = dict[str, Any]


class Holdings(Protocol):
    """A folder of results, ours or another tool's."""

    kind: str
    root: Path

    def cards(self) -> Sequence[Card]:
        """Return what the list of slides says of each: `slide_id` and what else is known."""

    def entry(self, slide_id: str) -> SlideEntry | None:
        """Return where a slide lies, None where there is no such slide."""

    def grid(self, slide_id: str) -> Placed | None:
        """Return the tiles of a slide, None where there are none yet."""

    def layers(self, slide_id: str) -> list[dict[str, Any]]:
        """Return the scores there are: `model`, `methods`, and of what class."""

    def unshown(self, slide_id: str) -> list[dict[str, Any]]:
        """Return the scores that lie there and are no layers: `model`, `methods`, `why`, and `mend`, a command."""

    def scores(self, slide_id: str, model: str, method: str) -> tuple[Placed, NDArray[np.float32]] | None:
        """Return tiles and values of one of the layers."""

    def picture(self, slide_id: str, kind: str) -> Path | None:
        """Return one of `PICTURES`."""

    def outlines(self, slide_id: str, kind: str) -> list[list[list[list[int]]]]:
        """Return one of `OUTLINES`: polygons of rings of points (x, y) in level-0 pixels."""


class Kept:
    """A list that is made anew when it is asked for and too old; one thread makes it.

    Args:
        make: makes it.
        fresh: seconds for which it is not made anew.
    """

    def __init__(self, make: Any, fresh: float = _FRESH) -> None:
        self._make = make
        self._fresh = fresh
        self._lock = threading.Lock()
        self._until = 0.0
        self._value: Any = None

    def get(self) -> Any:
        """Return the list."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._value = self._make()
                self._until = time.monotonic() + self._fresh
            return self._value


class JobHoldings:
    """A job folder of ours, finished or under way."""

    kind = "slidemil"

    def __init__(self, job: JobFolder, elsewhere: Mapping[str, SlideEntry] | None = None) -> None:
        self.job = job
        self.root = job.root
        self._elsewhere = dict(elsewhere or {})
        self._entries = Kept(self._read_entries)
        self._cards = Kept(self._read_cards)

    def cards(self) -> Sequence[Card]:
        """Return what the list of slides says."""
        found: Sequence[Card] = self._cards.get()
        return found

    def entry(self, slide_id: str) -> SlideEntry | None:
        """Return where a slide lies."""
        found: SlideEntry | None = self._entries.get().get(slide_id)
        return found

    def grid(self, slide_id: str) -> Placed | None:
        """Return the tiles of a slide, in the finest tiling there is."""
        for path in sorted(self.root.glob(f"*/patches/{_literal(slide_id)}_patches.h5")):
            placed = read_placed(path)
            if placed is not None:
                return placed
        return None

    def layers(self, slide_id: str) -> list[dict[str, Any]]:
        """Return models and methods of the scores there are."""
        return [told for told, why in self._scores(slide_id) if not why]

    def unshown(self, slide_id: str) -> list[dict[str, Any]]:
        """Return the scores of a model or of features that are no more, and damaged ones, with what draws them anew."""
        found = []
        for told, why in self._scores(slide_id):
            if why:
                how = ["--method", ",".join(told["methods"])] if told["methods"] else ["--force"]
                command = ["slidemil", "heatmap", str(self.root), "--model", told["model"], *how]
                found.append({**told, "why": why, "mend": shlex.join(command)})
        return found

    def _scores(self, slide_id: str) -> list[tuple[dict[str, Any], str]]:
        """Return what each file of scores of a slide says of itself, and why it is not shown ("" where it is)."""
        found = []
        for path in sorted(self.root.glob(f"heatmaps/*/{_literal(slide_id)}.scores.h5")):
            model = path.parent.name
            why = why_older(self.job, path.with_name(f"{slide_id}.png"), digest_now(self.job, model))
            told: dict[str, Any] = {"model": model, "methods": [], "target": "", "logit": None}
            try:
                with open_h5(path) as file:
                    a = file["coords"].attrs
                    logit = float(a.get("logit", "nan"))
                    told |= {"methods": [name for name in file if name != "coords"], "target": str(a.get("target", ""))}
                    told["logit"] = logit if np.isfinite(logit) else None
            except (OSError, KeyError, ValueError, RuntimeError):
                why = why or "the file is damaged"  # half of a model's scores are no reason to show none
            found.append((told, why))
        return found

    def scores(self, slide_id: str, model: str, method: str) -> tuple[Placed, NDArray[np.float32]] | None:
        """Return tiles and values of one of the layers."""
        if not any(one["model"] == model and method in one["methods"] for one in self.layers(slide_id)):
            return None
        path = self.job.heatmaps(model) / f"{slide_id}.scores.h5"
        placed = read_placed(path)
        if placed is None:
            return None
        with open_h5(path) as file:
            return placed, file[method][()].astype(np.float32)

    def picture(self, slide_id: str, kind: str) -> Path | None:
        """Return one of the small pictures."""
        return picture_in(self.root, slide_id, kind)

    def outlines(self, slide_id: str, kind: str) -> list[list[list[list[int]]]]:
        """Return outlines of tissue, or of the truth of the demo's slides."""
        return outlines_in(self.root, slide_id, kind)

    def _read_entries(self) -> dict[str, SlideEntry]:
        there = {entry.slide_id: entry for entry in tables.read_manifest(self.job).entries}
        return there | {name: entry for name, entry in self._elsewhere.items() if name in there}

    def _read_cards(self) -> list[Card]:
        predictions = self._predictions()
        cards = []
        for row in tables.rows_by_records(self.job):
            name = row["slide_id"]
            card: Card = {key: row.get(key, "") for key in _TOLD}
            card["shares"] = {key.removesuffix("_share"): row[key] for key in _SHARES if row.get(key)}
            mine = ((model, rows[name]) for model, rows in predictions.items() if name in rows)
            card["predictions"] = [{"model": model, **row} for model, row in mine]
            cards.append(card)
        return cards

    def _predictions(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return model → slide → what was predicted."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for path in sorted(self.root.glob("predictions/*/slides.csv")):
            try:
                rows = read_csv(path, strip=False)
            except (OSError, ValueError):
                continue
            found[path.parent.name] = {row["slide_id"]: _prediction(row) for row in rows if row.get("slide_id")}
        return found


def _prediction(row: Mapping[str, str]) -> dict[str, Any]:
    numbers = {key[2:]: value for key, value in row.items() if key.startswith("p_") and value}
    return {"pred": row.get("pred", ""), "label": row.get("label", ""), "split": row.get("split", ""), "p": numbers}


def read_placed(path: Path) -> Placed | None:
    """Return the tiles of a file in the layout of TRIDENT and ours, None where it is not there or not whole yet."""
    try:
        with open_h5(path) as file:
            coords = file["coords"]
            side = int(float(coords.attrs.get("patch_size_level0", 0)))
            footprint = int(coords.attrs.get("footprint_x", side)), int(coords.attrs.get("footprint_y", side))
            xy = coords[()].astype(np.int64).reshape(-1, 2)
    except (OSError, KeyError, ValueError, RuntimeError):
        return None
    return Placed(xy, footprint) if min(footprint) > 0 else None


def picture_in(root: Path, slide_id: str, kind: str) -> Path | None:
    """Return a small picture in a folder laid out like a job."""
    path = root / PICTURES[kind] / f"{slide_id}.jpg"
    return path if path.is_file() else None


def outlines_in(root: Path, slide_id: str, kind: str) -> list[list[list[list[int]]]]:
    """Return the polygons of a GeoJSON in a folder laid out like a job."""
    try:
        told = json.loads((root / OUTLINES[kind] / f"{slide_id}.geojson").read_text(encoding="utf-8"))
        polygons: list[Any] = []
        for feature in told["features"]:
            geometry = feature["geometry"]
            inside = geometry["coordinates"]
            polygons += [inside] if geometry["type"] == "Polygon" else inside
        return [[[[int(x), int(y)] for x, y, *_ in ring] for ring in polygon] for polygon in polygons]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _literal(name: str) -> str:
    """Return a name as a pattern that finds just that name."""
    import glob

    return glob.escape(name)
