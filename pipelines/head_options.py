"""Options of a head as a setting has them: `hidden=256,dropout=0.1`. What a head takes only `mil` knows."""

from __future__ import annotations

from typing import Final

HOW: Final = "NAME=NUMBER, joined by commas, e.g. hidden=256,attention=128"


def read(text: str) -> dict[str, float] | None:
    """Return option → value; None where a part is not of the form, or a name stands there twice."""
    found: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = (one.strip() for one in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            return None
        if name in found:
            return None
        found[name] = int(number) if number.is_integer() else number  # 16 and 16.0 are the same training
    return found
