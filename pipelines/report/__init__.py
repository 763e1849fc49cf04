"""A job folder → one HTML file that opens by double click, without network and without scripts."""

from .render import render

__all__ = ["render"]
