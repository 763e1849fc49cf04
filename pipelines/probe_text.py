"""What a site probe found, in words; apart from it, for the report loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def spoken(found: Mapping[str, Any]) -> list[str]:
    """Say it in lines."""
    lines = []
    for column, sets in found.items():
        for name, said in sets.items():
            which = "slides not trained on" if name == "held_out" else "slides"
            if "reason" in said:
                lines.append(f"{column}: {said['slides']} {which} are too few for a probe ({said['reason']})")
                continue
            one, two = said["before"], said["after"]
            left = f"(chance {two['chance']:.2f}; p {two['p']:.3f})"
            lines.append(
                f"{column}: a fresh probe tells it with balanced accuracy {one['balanced_accuracy']:.2f} before and "
                f"{two['balanced_accuracy']:.2f} after adaptation {left}, "
                f"{said['slides']} {which}"
            )
    return lines
