"""Facts of a job → its run card, what each run did, and on what terms its encoders may be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .read import JobFacts
from .tell import Pairs, number


def run_card(facts: JobFacts) -> Pairs:
    """Return what was run on what, with what, in a few lines."""
    settings = _section(facts.settings, "extract")
    passport = facts.passport
    pairs: Pairs = []
    runs = Counter(str(record.get("verb")) for record in facts.runs)
    if runs:
        pairs.append(("runs", ", ".join(f"{verb} × {n}" if n > 1 else verb for verb, n in runs.items())))
    tile, mpp = settings.get("tile"), settings.get("mpp")
    if isinstance(tile, int) and isinstance(mpp, int | float):
        overlap = settings.get("overlap") or 0
        more = f", {overlap} px overlapping" if overlap else ""
        pairs.append(("tiles", f"{tile} px at {mpp:g} µm/px: {tile * mpp:g} µm{more}"))
    if passport:
        pairs.append(("encoder", _encoder(passport)))
        pairs.append(("computed in", _computed(passport)))
    if "stain" in passport or "stain" in settings:
        pairs.append(("stain normalization", str(passport.get("stain", settings.get("stain", "none")))))
    if settings.get("exclude"):
        pairs.append(("cut out of the tissue", str(settings["exclude"])))
    if facts.models:
        heads = [f"{model.name} ({_head(model.config) or 'unknown head'})" for model in facts.models]
        pairs.append(("models", ", ".join(heads[:6]) + (f" and {len(heads) - 6} more" if len(heads) > 6 else "")))
    seed = _section(facts.settings, "train").get("seed")
    if seed is not None:
        pairs.append(("seed", str(seed)))
    pairs += _measured(facts.run)
    versions = facts.run.get("versions")
    if isinstance(versions, Mapping):
        told = [f"{name} {versions[name]}" for name in ("slidemil", "python", "torch", "timm") if name in versions]
        pairs.append(("versions", ", ".join(told)))
    return pairs


def run_rows(facts: JobFacts, most: int = 12) -> list[dict[str, str]]:
    """Return what the newest runs did, oldest first."""
    rows = []
    for record in facts.runs[-most:]:
        outcome = _section(record, "outcome")
        slides = _section(outcome, "slides")
        rows.append(
            {
                "verb": str(record.get("verb", "?")),
                "status": str(record.get("status", "?")),
                "seconds": number(record.get("seconds"), 1),
                "slides": ", ".join(f"{n} {what}" for what, n in slides.items() if n and what != "found"),
                "bottleneck": str(record.get("bottleneck") or outcome.get("bottleneck") or ""),
            }
        )
    return rows


def licence_rows(facts: JobFacts) -> list[dict[str, str]]:
    """Return what is known of the licence of each encoder whose features or models the job has."""
    used: dict[tuple[str, str], tuple[Mapping[str, Any], list[str]]] = {}
    for place, passport in facts.passports.items():
        _note(used, passport, place)
    for model in facts.models:
        made = model.config.get("encoder")
        if isinstance(made, Mapping):
            _note(used, made, f"models/{model.name}")
    return [_licence(passport, places) for passport, places in used.values()]


def _note(
    used: dict[tuple[str, str], tuple[Mapping[str, Any], list[str]]], passport: Mapping[str, Any], place: str
) -> None:
    key = str(passport.get("id", "unknown")), str(passport.get("weights_sha256"))
    used.setdefault(key, (passport, []))[1].append(place)


def _licence(passport: Mapping[str, Any], places: list[str]) -> dict[str, str]:
    from mil.encoders.registry import find

    name = str(passport.get("id", "unknown"))
    entry = find(name)
    digest = passport.get("weights_sha256")
    source = str(passport.get("weights") or passport.get("source") or "not told")
    random = source.startswith("random")
    if random:
        licence, commercial, note = "none needed", "yes", "Random weights: nothing was learned, there is no author."
    elif entry is not None:
        licence, commercial = entry.licence, entry.commercial
        access = {"yes": " Access has to be asked for there.", "check": " It may have to be asked for there."}
        note = (f"Terms: {entry.page}." if entry.page else "") + access.get(entry.gated, "")
    else:
        licence = str(passport.get("licence") or "not stated")
        commercial = "yes" if licence.lower().startswith(("apache", "mit", "bsd")) else "check"
        note = "" if commercial == "yes" else "Not in the registry: read the terms of whoever gave the weights."
    return {
        "id": name,
        "title": entry.title if entry is not None else str(passport.get("arch") or ""),
        "weights": source + (f", {passport['revision'][:12]}" if isinstance(passport.get("revision"), str) else ""),
        "sha256": str(digest)[:16] if digest else "–",
        "licence": licence,
        "commercial": {"yes": "permitted", "no": "not permitted"}.get(commercial, "read the terms"),
        "free": str(commercial == "yes"),
        "note": note.strip(),
        "used": ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else ""),
    }


def _encoder(passport: Mapping[str, Any]) -> str:
    parts = [str(passport.get("id", "unknown")), f"{passport.get('dim', '?')} values a tile"]
    if passport.get("weights"):
        parts.append(f"weights {passport['weights']}")
    if passport.get("weights_sha256"):
        parts.append(f"SHA-256 {str(passport['weights_sha256'])[:12]}…")
    return ", ".join(parts)


def _computed(passport: Mapping[str, Any]) -> str:
    parts = [passport.get("precision"), f"on {passport['device']}" if passport.get("device") else None]
    parts.append(f"stored as {passport['stored_dtype']}" if passport.get("stored_dtype") else None)
    return ", ".join(str(part) for part in parts if part) or "not told"


def _measured(run: Mapping[str, Any]) -> Pairs:
    read = _section(_section(run, "rates"), "read")
    pairs: Pairs = []
    if isinstance(read.get("lambda"), int | float):
        cores = f" on {run['cores']} cores" if run.get("cores") else ""
        pairs.append(("speed", f"{number(read['lambda'], 1)} tiles per second{cores}"))
    if run.get("bottleneck"):
        pairs.append(("bottleneck", str(run["bottleneck"])))
    return pairs


def _head(config: Mapping[str, Any]) -> str:
    return str(_section(config, "head").get("name", ""))


def _section(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}
