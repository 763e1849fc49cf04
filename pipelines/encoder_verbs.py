"""`slidemil encoders`: which there are, what one is, its weights fetched, its weights checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckFailedError, UsageError
from .files import copy_whole, json_bytes, sha256_file, write_bytes
from .outcome import Said

if TYPE_CHECKING:
    from mil.encoders.registry import Entry

_COLUMNS = ("id", "dim", "parameters", "µm/px", "commercial", "gated", "what it is")
_DEFAULT = ("descriptors", "159", "", "any", "yes", "no", "classical descriptors, no weights (the default)")
_TOLERANCE = 2e-3  # of the features' spread: other processors and library versions round otherwise


def list_encoders(*, commercial_only: bool = False) -> Said:
    """Name every encoder of the registry, with its licence."""
    from mil.encoders.registry import registry

    rows = [entry for entry in registry().values() if entry.commercial == "yes" or not commercial_only]
    table: list[tuple[str, ...]] = [_DEFAULT]
    table += [_row(entry) for entry in rows]
    lines = _aligned([_COLUMNS, *table])
    lines.append("Besides: every network of timm by its name, local-dir:FOLDER and hf-hub:OWNER/REPO.")
    if commercial_only:
        lines.append("Left out: licences that forbid commercial use, or that have to be read first.")
    return Said(tuple(lines), {"status": "done", "encoders": [described(entry) for entry in rows]})


def show(name: str) -> Said:
    """Say everything about one encoder.

    Raises:
        mil.UnknownEncoderError: there is none of that name.
    """
    told = described(_entry(name))
    width = max(map(len, told))
    return Said(
        tuple(f"{key:{width}}  {_text(value)}" for key, value in told.items() if value not in ("", [], None)), told
    )


def pull(name: str, out: Path | None, *, offline: bool = False) -> Said:
    """Fetch an encoder's weights into the hub cache, and copy them to a folder to carry away.

    Raises:
        mil.WeightsError: not there, not reachable, or not allowed.
        EnvironmentFault: the folder cannot be written, or there is no room.
    """
    _go_offline(offline)
    from mil.encoders import weights
    from mil.encoders.build import fetch

    entry = _known(name)
    path = weights.from_hub(_timm_repo(name), weights.FILES, encoder=name) if entry is None else fetch(entry)
    digest, size = sha256_file(path), path.stat().st_size
    lines = [f"{name}: {path.name}, {size / 1e6:,.0f} MB, SHA-256 {digest}"]
    if out is not None:
        copy = out / path.name
        copy_whole(path, copy)
        told = {"encoder": name, "file": path.name, "sha256": digest, "size": size}
        write_bytes(out / "encoder.json", json_bytes(told | ({} if entry is None else described(entry))))
        lines.append(f"use it without a network: --encoder {name} --weights {copy}")
    return Said(tuple(lines), {"status": "done", "encoder": name, "sha256": digest, "size": size, "file": path.name})


def verify(
    name: str, weights: str | None, *, expect: Path | None = None, out: Path | None = None, offline: bool = False
) -> Said:
    """Load weights strictly, look whether features depend on the batch, and compare them with a kept fingerprint.

    Args:
        name: of the encoder.
        weights: as `--weights`.
        expect: fingerprint that another machine or time wrote; features have to be alike.
        out: where to write the fingerprint.
        offline: open no connection.

    Raises:
        mil.WeightsError: weights missing, refused, or of another network.
        CheckFailedError: features are not finite, all alike, depend on the batch, or differ from the fingerprint.
    """
    _go_offline(offline)
    import mil

    encoder = mil.create_encoder(name, weights=weights, device="cpu", precision="fp32")
    pixels = standard_tiles(encoder.input_size)
    features = encoder(pixels)
    if not np.isfinite(features).all():
        raise CheckFailedError(f"{name}: gives values that are no numbers. Its weights are damaged: fetch them anew.")
    if len(np.unique(features, axis=0)) < len(features):
        raise CheckFailedError(
            f"{name}: different tiles get the same features. Its weights are damaged or not trained."
        )
    try:
        mil.check_batch_invariance(encoder, tiles=2)
    except mil.MilError as error:
        raise CheckFailedError(str(error)) from error
    passport = encoder.passport()
    print_ = {"encoder": passport["id"], "weights_sha256": passport.get("weights_sha256"), "dim": encoder.dim}
    print_ |= {"features": [[round(float(value), 5) for value in row[:16]] for row in features]}
    lines = [f"{name}: whole. Weights {passport.get('weights_sha256')}, {encoder.dim} features, alike in any batch"]
    if expect is not None:
        lines.append(_compare(name, print_, expect))
    if out is not None:
        write_bytes(out, json_bytes(print_))
        lines.append(f"fingerprint: {out}")
    return Said(tuple(lines), {"status": "done", **print_})


def described(entry: Entry) -> dict[str, Any]:
    """Return a row of the registry as JSON holds it, with where access is asked for."""
    from dataclasses import asdict

    told = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(entry).items()}
    return {**told, "page": entry.page, "buildable": entry.buildable}


def permitted(name: str) -> None:
    """Refuse an encoder whose licence forbids commercial use, or has to be read first.

    Raises:
        UsageError: says what the licence is.
    """
    from mil.encoders.registry import find

    entry = find(name)
    licence, commercial = (entry.licence, entry.commercial) if entry else _timm_licence(name)
    if commercial != "yes":
        verb = "forbids" if commercial == "no" else "may forbid"
        raise UsageError(
            f"--commercial-only: the licence of {name} ({licence}) {verb} commercial use. "
            "Those that permit it: slidemil encoders list --commercial-only"
        )


def standard_tiles(side: int, count: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the tiles of fingerprints: smooth colors with grain, by integer arithmetic, the same everywhere."""
    y, x = np.mgrid[0:side, 0:side].astype(np.int64)
    planes = [
        [(x * (3 + 2 * c + n) + y * (5 + n) + (x * y >> (4 + c)) + 40 * n * c) % 256 for c in range(3)]
        for n in range(count)
    ]
    return np.array(planes, dtype=np.uint8).transpose(0, 2, 3, 1).copy()


def _compare(name: str, found: dict[str, Any], expect: Path) -> str:
    import json

    try:
        wanted = json.loads(expect.read_text(encoding="utf-8"))
        theirs, ours = np.array(wanted["features"]), np.array(found["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{expect}: no fingerprint of `slidemil encoders verify` ({error}).") from error
    if wanted.get("weights_sha256") != found["weights_sha256"]:
        raise CheckFailedError(f"{name}: other weights than in {expect.name}: {wanted.get('weights_sha256')}")
    worst = float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else float("inf")
    if worst > _TOLERANCE * float(ours.std()):
        raise CheckFailedError(f"{name}: gives other features than {expect.name} says (by up to {worst:.2g}).")
    return f"the same features as in {expect.name}, to within {worst:.1g}"


def _entry(name: str) -> Entry:
    from mil import UnknownEncoderError
    from mil.encoders.registry import find, registry
    from mil.errors import did_you_mean

    entry = find(name)
    if entry is None:
        raise UnknownEncoderError(
            f"the registry has no encoder {name!r}.{did_you_mean(name, registry())} `slidemil encoders list` names all."
        )
    return entry


def _known(name: str) -> Entry | None:
    from mil.encoders.registry import find

    entry = find(name)
    if entry is not None and not entry.buildable:
        raise UsageError(
            f"{entry.id}: needs {entry.code}, which slidemil does not run. Extract with a tool that carries it, and "
            "bring the features in with `slidemil convert`."
        )
    return entry


def _timm_repo(name: str) -> str:
    from timm.models import get_pretrained_cfg

    from mil import WeightsError
    from mil.encoders.build import check_name

    check_name(name)
    config = get_pretrained_cfg(name)
    repo = getattr(config, "hf_hub_id", None)
    if not repo:
        raise WeightsError(f"{name}: timm knows no hub repository for it. Give its weights as a file: --weights FILE.")
    return str(repo)


def _timm_licence(name: str) -> tuple[str, str]:
    """Return the licence that timm states for a network's weights, and whether it permits commercial use."""
    if name == "descriptors":
        return "Apache-2.0", "yes"
    if ":" in name:
        return "not known", "check"
    from timm.models import get_pretrained_cfg

    licence = str(getattr(get_pretrained_cfg(name, allow_unregistered=True), "license", None) or "not stated")
    free = licence.lower().startswith(("apache", "mit", "bsd"))
    return licence, "yes" if free else "no" if "-nc" in licence.lower() else "check"


def _go_offline(offline: bool) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _row(entry: Entry) -> tuple[str, ...]:
    size = f"{entry.parameters / 1e6:,.0f} M" if entry.parameters else ""
    what = entry.title + (f" (needs {entry.code})" if entry.code else "")
    scales = " ".join(f"{one:g}" for one in entry.mpp)
    return (entry.id, str(entry.dim), size, scales, entry.commercial, entry.gated, what)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
