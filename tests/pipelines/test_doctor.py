"""The doctor sees what it is for, and names the mend."""

from __future__ import annotations

import numpy as np

from pipelines import doctor


def test_a_good_installation_passes_every_check():
    found = doctor.examine()
    assert found.exit_code == 0, found.lines()
    assert {check["name"] for check in found.data["checks"]} >= {"openslide", "pixels", "torch", "packages"}


def test_a_library_that_returns_blank_tiles_is_seen(monkeypatch):
    """As pixman 0.38 did: no error, only wrong pixels."""
    from wsi.readers.openslide import OpenSlideSlide

    monkeypatch.setattr(
        OpenSlideSlide, "read", lambda self, x, y, width, height, *, level=0: np.zeros((height, width, 3), np.uint8)
    )
    found = doctor.examine()
    assert found.exit_code == 5
    (check,) = [check for check in found.data["checks"] if not check["ok"]]
    assert check["name"] == "pixels"
    assert "openslide-bin" in check["mend"]


def test_an_old_openslide_is_refused(monkeypatch):
    import openslide

    monkeypatch.setattr(openslide, "__library_version__", "3.4.1")
    found = doctor.examine()
    assert found.exit_code == 5
    assert any("3.4.1" in line for line in found.lines())


def test_a_check_that_breaks_is_a_finding_and_no_crash(monkeypatch):
    def broken():
        raise RuntimeError("no such library")

    monkeypatch.setitem(doctor._CHECKS, "torch", broken)
    assert doctor.examine().exit_code == 5
