"""The encoders that are known by name, from `registry.toml`: what builds each, what it sees, gives, and permits."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("registry.toml")
EMBEDDED = Path(__file__).with_name("embedded")
"""Weights that come with slidemil, each beside its model card."""


@dataclass(frozen=True)
class Entry:
    """One row of the registry.

    Attributes:
        id: the name here, and of the feature folder.
        title: what people call it.
        dim: width of its features.
        licence: of the weights, as stated by third parties.
        commercial: whether that permits commercial use: "yes", "no", or "check".
        gated: whether the hub asks for an agreement first: "yes", "no", or "check".
        repo: on the Hugging Face hub; empty where it is not there.
        files: names its weights have there, the first that exists is taken.
        names: what other tools call the same numbers.
        arch: the network that timm builds, or slidemil itself; empty where neither can.
        args: of that network.
        swiglu: its MLPs are SwiGLU, which no JSON can say.
        norm_eps: of its layer norms, where timm's default is another.
        pooling: one vector of the tokens: "token" (class token), "token+mean" (and the mean of the patch tokens),
            "avg" (mean of a map), or "cut" (mean of the map before the block `cut`).
        cut: the first block that is left out.
        prefix_tokens: class token and registers, which are no patches.
        parameters: how many, without a classifier.
        size: side in px of what it sees.
        resize: side in px to which tiles are brought before the middle `size` px are taken.
        tile: side in px of the tiles it is meant for.
        kernel: of the resizing.
        mean: per channel, of values in [0, 1].
        std: per channel.
        mpp: µm/px at which it was trained or is used.
        autocast: what precision its authors or other tools use on a GPU.
        code: why timm cannot build it; empty where it can.
        note: where tools that use this name disagree.
    """

    id: str
    title: str
    dim: int
    licence: str
    commercial: str
    gated: str
    repo: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    arch: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    norm_eps: float | None = None
    pooling: str = "token"
    cut: str = ""
    prefix_tokens: int = 0
    parameters: int = 0
    size: int = 224
    resize: int = 224
    tile: int = 224
    kernel: str = "bilinear"
    mpp: tuple[float, ...] = (0.5,)
    autocast: str = "fp16"
    code: str = ""
    note: str = ""

    @property
    def buildable(self) -> bool:
        """Whether timm or slidemil builds it."""
        return not self.code

    @property
    def shipped(self) -> Path | None:
        """Its weights, where they come with slidemil."""
        return EMBEDDED / self.files[0] if self.files and not self.repo else None

    @property
    def page(self) -> str:
        """Where access is asked for."""
        return f"https://huggingface.co/{self.repo}" if self.repo else ""


@cache
def registry() -> dict[str, Entry]:
    """Return every entry by its id, in the order of the table."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    norms = table.pop("norms")
    return {name: _entry(name, _whole(name, table), norms) for name in table}


def find(name: str) -> Entry | None:
    """Return the entry of that id, or of that name in another tool, in any case ("UNI"); None where there is none."""
    entries, name = registry(), name.lower()
    if name in entries:
        return entries[name]
    return next((entry for entry in entries.values() if name in entry.names), None)


def _whole(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with what it takes over from the row it is like; names are its own."""
    row = dict(table[name])
    base = row.pop("like", None)
    return row if base is None else {**_whole(base, table), "names": [], "note": "", **row}


def _entry(name: str, row: Mapping[str, Any], norms: Mapping[str, Any]) -> Entry:
    """Build an entry; lists become tuples, and what is not in the row keeps its default."""
    mean, std = norms[row["norm"]]
    values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in row.items()}
    values.pop("norm")
    strangers = values.keys() - {one.name for one in fields(Entry)}
    if strangers:
        raise ValueError(f"{TABLE.name}: {name} has unknown fields {sorted(strangers)}")
    values["resize"] = values.get("resize", values.get("size", 224))
    values["tile"] = values.get("tile", values.get("size", 224))
    return Entry(id=name, mean=tuple(mean), std=tuple(std), **values)
