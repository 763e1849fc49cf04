"""Folders of TRIDENT, CLAM and STAMP: features of slides that lie elsewhere, and what these tools say of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines import formats
from pipelines.convert import Found
from pipelines.convert import find as find_features
from pipelines.errors import CheckFailedError, NothingMatchedError, UsageError
from pipelines.files import open_h5, read_csv
from pipelines.formats.slide_features import Given
from pipelines.manifest import SlideEntry, slide_stem

from .holdings import Card, Kept, outlines_in, picture_in
from .packed import Placed
from .pool import SlideGoneError
from .slides import Slides

BLOCKS = "_blockmap"
"""End of the names of CLAM's maps of attention."""
_MOST_KEPT = 32
_ONCE = float("inf")
"""Other tools' folders are looked through once: each file has to be opened to know whose it is."""


class ForeignHoldings:
    """Results of another tool.

    Args:
        root: the folder.
        slides: where they lie, by name.
        given: what files do not say.
        pixels: tells µm/px of slides, where coordinates are in µm.
    """

    def __init__(self, root: Path, slides: Mapping[str, SlideEntry], given: Given, pixels: Slides) -> None:
        self.root = root
        self._slides, self._given, self._pixels = slides, given, pixels
        self._files = Kept(self._find, _ONCE)
        self._blocks = Kept(
            lambda: {p.stem.removesuffix(BLOCKS): p for p in sorted(root.rglob(f"*{BLOCKS}.h5"))}, _ONCE
        )
        self._said = Kept(lambda: predictions_in(root), _ONCE)
        self._read: dict[tuple[Path, int], Placed] = {}
        self._lock = threading.Lock()
        kinds = sorted({one.kind for one in self._files.get().values()})
        self.kind = ", ".join(kinds)

    def cards(self) -> Sequence[Card]:
        """Return what the list of slides says."""
        said = self._said.get()
        names = sorted({*self._files.get(), *self._blocks.get()})
        return [self._card(name, said.get(name, [])) for name in names]

    def entry(self, slide_id: str) -> SlideEntry | None:
        """Return where a slide lies, None also for one that has no features here."""
        if slide_id not in self._files.get() and slide_id not in self._blocks.get():
            return None
        return self._slides.get(slide_id)

    def grid(self, slide_id: str) -> Placed | None:
        """Return the tiles of a slide.

        Raises:
            CheckFailedError: its file does not say where they lie.
        """
        found = self._files.get().get(slide_id)
        if found is None:
            return None
        key = found.path, found.path.stat().st_mtime_ns
        with self._lock:
            kept = self._read.get(key)
        if kept is not None:
            return kept
        read = formats.read(found.path, self._with_mpp(slide_id), kind=found.kind)
        placed = Placed(read.xy, read.footprint)
        with self._lock:
            self._read[key] = placed
            while len(self._read) > _MOST_KEPT:
                self._read.pop(next(iter(self._read)))
        return placed

    def layers(self, slide_id: str) -> list[dict[str, Any]]:
        """Return CLAM's block maps, those that are whole."""
        path = self._blocks.get().get(slide_id)
        try:
            if path is None or not len(read_blocks(path)[0]):
                return []
        except CheckFailedError:
            return []  # who asks for its values is told
        return [{"model": "CLAM", "methods": ["attention_scores"], "target": "", "logit": None}]

    def unshown(self, slide_id: str) -> list[dict[str, Any]]:
        """Return a block map of CLAM that is damaged; nothing tells of which model one is."""
        path = self._blocks.get().get(slide_id)
        try:
            if path is not None:
                read_blocks(path)
        except CheckFailedError as error:
            return [{"model": "CLAM", "methods": ["attention_scores"], "why": str(error), "mend": ""}]
        return []

    def scores(self, slide_id: str, model: str, method: str) -> tuple[Placed, NDArray[np.float32]] | None:
        """Return tiles and values of a block map; how large a tile is, is known from the features or is the step.

        Raises:
            CheckFailedError: the map is damaged, or nobody says how large its tiles are.
        """
        path = self._blocks.get().get(slide_id)
        if path is None or (model, method) != ("CLAM", "attention_scores"):
            return None
        xy, values = read_blocks(path)
        known = self.grid(slide_id) if slide_id in self._files.get() else None
        side = self._given.footprint or 0
        bare = Placed(xy, (side, side))
        footprint = known.footprint if known is not None else bare.footprint if side else bare.step
        if min(footprint) <= 0:
            raise CheckFailedError(f"{path}: nobody says how large its tiles are. Give it: --footprint 512.")
        return Placed(xy, footprint), values

    def picture(self, slide_id: str, kind: str) -> Path | None:
        """Return one of TRIDENT's pictures, or CLAM's mask for the outline."""
        own = picture_in(self.root, slide_id, kind)
        mask = self.root / "masks" / f"{slide_id}.jpg"
        return own or (mask if kind == "contour" and mask.is_file() else None)

    def outlines(self, slide_id: str, kind: str) -> list[list[list[list[int]]]]:
        """Return TRIDENT's outlines of tissue."""
        return outlines_in(self.root, slide_id, kind)

    def _find(self) -> dict[str, Found]:
        try:
            found = find_features([str(self.root)])
        except NothingMatchedError:
            return {}
        known = [one for one in found if one.kind != "unknown" and not _is_block_map(one.path)]
        return {one.path.stem: one for one in known}

    def _card(self, name: str, said: list[dict[str, Any]]) -> Card:
        there = name in self._slides
        lost = (
            {}
            if there
            else {
                "cause": "the slide was not found in --slides",
                "mend": "Give the folder that holds it: --slides FOLDER",
            }
        )
        return {
            "slide_id": name,
            "case_id": name,
            "status": "done" if there else "failed",
            "predictions": said,
            "shares": {},
            **lost,
        }

    def _with_mpp(self, slide_id: str) -> Given:
        entry = self._slides.get(slide_id)
        if entry is None or self._given.mpp is not None:
            return self._given
        if entry.mpp is not None:
            return replace(self._given, mpp=entry.mpp)
        try:
            mpp = self._pixels.facts(entry)["mpp"]
        except SlideGoneError:
            return self._given
        return self._given if mpp is None else replace(self._given, mpp=mpp[0])


def slides_by_name(slides: Sequence[SlideEntry]) -> dict[str, SlideEntry]:
    """Return slides by their names, and by what other tools would call them."""
    return {slide_stem(Path(str(entry.path))): entry for entry in slides} | {entry.slide_id: entry for entry in slides}


def read_blocks(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return corners (N, 2) and values (N,) of one of CLAM's block maps.

    Raises:
        CheckFailedError: it is damaged.
    """
    try:
        with open_h5(path) as file:
            xy = file["coords"][()].astype(np.int64).reshape(-1, 2)
            values = file["attention_scores"][()].astype(np.float32).ravel()
        if len(xy) != len(values):
            raise ValueError(f"{len(values)} values for {len(xy)} tiles")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckFailedError(
            f"{path}: no whole map of attention ({str(error)[:100]}). Let CLAM's create_heatmaps.py write it again."
        ) from error
    return xy, values


def predictions_in(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what CLAM's evaluation tables say of slides: `fold_K.csv` with slide_id, Y, Y_hat, p_0 …."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(root.rglob("fold_*.csv")):
        try:
            rows = read_csv(path)
        except (OSError, ValueError, UsageError):
            continue
        for row in rows:
            if {"slide_id", "Y_hat"} <= set(row):
                numbers = {key[2:]: value for key, value in row.items() if key.startswith("p_")}
                told = {"model": path.stem, "pred": row["Y_hat"], "label": row.get("Y", ""), "split": "", "p": numbers}
                found.setdefault(row["slide_id"], []).append(told)
    return found


def _is_block_map(path: Path) -> bool:
    if not path.stem.endswith(BLOCKS):
        return False
    try:
        with open_h5(path) as file:
            return isinstance(file.get("attention_scores"), h5py.Dataset)
    except OSError:
        return False
