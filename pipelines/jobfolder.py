"""What lies where in a job folder. Paths only: nothing here reads or writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ledger import Ledger


@dataclass(frozen=True)
class JobFolder:
    """The tree of one job; relocatable, and a superset of the tree that TRIDENT writes.

    Attributes:
        root: the folder.
        ledger: of the run that works on it, where one does; it stays behind when this goes to another process.
    """

    root: Path
    ledger: Ledger | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return JobFolder, (self.root,)

    def note(self, event: str, **facts: Any) -> None:
        """Put a line into the ledger of the run that works on the job, if one does."""
        if self.ledger is not None:
            self.ledger.add(event, **facts)

    @property
    def settings(self) -> Path:
        """The settings the job was last run with."""
        return self.root / "job.yaml"

    @property
    def manifest(self) -> Path:
        """The slides of the job, paths relative to the job folder."""
        return self.root / "manifest.csv"

    @property
    def slides(self) -> Path:
        """One row per slide: how far it came, counts, warnings, cause."""
        return self.root / "slides.csv"

    @property
    def report(self) -> Path:
        """The one-file report."""
        return self.root / "report.html"

    @property
    def runs(self) -> Path:
        """One JSON file per run of a command."""
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        """One JSONL file per run of a command."""
        return self.root / "logs"

    @property
    def truth(self) -> Path:
        """Known truth of the demo's slides."""
        return self.root / "truth"

    def thumbnail(self, slide: str) -> Path:
        """A small picture of the slide."""
        return self.root / "thumbnails" / f"{slide}.jpg"

    def contour(self, slide: str) -> Path:
        """The thumbnail with the tissue outline drawn in."""
        return self.root / "contours" / f"{slide}.jpg"

    def quality(self, slide: str) -> Path:
        """The thumbnail with what is wrong with the tissue drawn in."""
        return self.root / "quality" / f"{slide}.jpg"

    def contour_geojson(self, slide: str) -> Path:
        """The tissue outline, level-0 pixels."""
        return self.root / "contours_geojson" / f"{slide}.geojson"

    def tiling(self, name: str) -> Tiling:
        """The folder of one tile size and resolution, e.g. `20x_224px_0px_overlap`."""
        return Tiling(self.root / name)

    def model(self, name: str) -> Path:
        """The folder of one trained head."""
        return self.root / "models" / name

    def predictions(self, name: str) -> Path:
        """The folder of one model's predictions."""
        return self.root / "predictions" / name

    def heatmaps(self, name: str) -> Path:
        """The folder of one model's heatmaps."""
        return self.root / "heatmaps" / name

    def record(self, output: Path) -> Path:
        """The finished-record of `output`: `.done/` mirrors the tree of the outputs."""
        return self.root / ".done" / output.relative_to(self.root).with_name(output.name + ".json")

    def failure(self, output: Path) -> Path:
        """Why `output` could not be made: `.failed/` mirrors the tree of the outputs."""
        return self.root / ".failed" / output.relative_to(self.root).with_name(output.name + ".json")

    @property
    def claims(self) -> Path:
        """Who works on what; safe to delete when nothing runs."""
        return self.root / ".state" / "claims"

    @property
    def hashes(self) -> Path:
        """SHA-256 of slides already hashed; safe to delete, they are then hashed again."""
        return self.root / ".state" / "hashes"

    @property
    def kept_tissue(self) -> Path:
        """Tissue kept from one µm/px to the next, while a run takes several; safe to delete, it is found again."""
        return self.root / ".state" / "tissue"

    def flight(self, run: str, task: str) -> Path:
        """What one task of a run on a cluster has begun and ended."""
        return self.root / ".state" / "flights" / run / f"{task}.json"

    def portions(self, slide: str) -> Path:
        """What several workers have encoded of one large slide; where deleted, it is encoded again."""
        return self.root / ".state" / "portions" / slide

    def deal(self, count: int) -> Path:
        """Which slide belongs to which of `count` shards; where deleted, they are dealt out again."""
        return self.root / ".state" / "shards" / f"{count}.json"


@dataclass(frozen=True)
class Tiling:
    """The outputs of one tile size and resolution."""

    root: Path

    def patches(self, slide: str) -> Path:
        """Tile coordinates of one slide."""
        return self.root / "patches" / f"{slide}_patches.h5"

    def picture(self, slide: str) -> Path:
        """The thumbnail with the tile grid drawn in."""
        return self.root / "visualization" / f"{slide}.jpg"

    def features(self, encoder: str, slide: str) -> Path:
        """Features of one slide."""
        return self.root / f"features_{encoder}" / f"{slide}.h5"

    def maps(self, encoder: str, slide: str) -> Path:
        """Feature maps of the tiles of one slide: a zarr group."""
        return self.root / f"dense_{encoder}" / f"{slide}.zarr"


def tiling_name(size: int, mpp: float, overlap: int) -> str:
    """Return the folder name of a tiling.

    The magnification in it is derived from the resolution (10 / µm per pixel), never the other way round.
    """
    return f"{10 / mpp:g}x_{size}px_{overlap}px_overlap"
