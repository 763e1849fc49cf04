"""What the protocol found → one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from stain.measures import Pixels
from stain.validate import KINDS, Measured

_WORST: Final = 4
_STYLE: Final = Path(__file__).parent.parent / "report"


@dataclass(frozen=True, eq=False)
class Shown:
    """Tiles that can be shown.

    Attributes:
        before: (N, S, S, 3) uint8.
        after: the same, changed.
        names: the image or slide of each.
    """

    before: Pixels
    after: Pixels
    names: Sequence[str]

    def name(self, row: int) -> str:
        """Return how a tile is called: its image, and the how-manieth of that image it is."""
        return f"{self.names[row]} #{list(self.names[: row + 1]).count(self.names[row])}"


def render(data: Mapping[str, Any], measures: Sequence[Measured], shown: Mapping[str, Shown]) -> bytes:
    """Return the page: equal findings give equal bytes.

    Args:
        data: what `validation.json` holds.
        measures: what was measured.
        shown: the tiles that measures are of, by `Measured.of`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, _STYLE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        data=data,
        about=[(name, _text(value)) for name, value in data["of"].items()],
        rows=[_row(one) for one in measures],
        worst=[_worst(one, shown[one.of]) for one in measures if one.tiles.size],
        failed=[KINDS[one.name].title for one in measures if not one.good],
    )
    return page.encode("utf-8", "replace")


def _row(one: Measured) -> dict[str, Any]:
    """Return a measure as the table shows it."""
    kind = KINDS[one.name]
    taken = one.verdict != "not measured"
    return {
        "title": kind.title,
        "catches": kind.catches,
        "value": f"{one.value:.3f} {kind.unit}".rstrip() if taken else "–",
        "interval": f"{one.interval[0]:.3f} to {one.interval[1]:.3f}" if taken else "–",
        "line": f"{'≤' if kind.sense == '<=' else '≥'} {one.threshold:g}",
        "verdict": one.verdict,
        "note": one.note,
        "word": {"pass": "good", "fail": "bad", "unproven": "bad"}.get(one.verdict, "soft" if one.good else "bad"),
    }


def _worst(one: Measured, shown: Shown) -> dict[str, Any]:
    """Return the worst tiles of a measure, before and after."""
    kind = KINDS[one.name]
    return {
        "title": kind.title,
        "tiles": [
            {
                "name": shown.name(row),
                "value": f"{one.tiles[row]:.3f} {kind.unit}".rstrip(),
                "uri": _uri(np.concatenate([shown.before[row], shown.after[row]], axis=1)),
            }
            for row in one.worst(_WORST)
        ],
    }


def _uri(image: Pixels) -> str:
    """Return an image inside the page, without loss: texture is one of the things to be seen."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " → ".join(map(str, value))
    return "no" if value is False else "yes" if value is True else str(value)
