"""The page of `slidemil stain validate`: measures, verdicts, and the worst tiles before and after."""

from .render import Shown, render

__all__ = ["Shown", "render"]
