"""Output goes nowhere where it would overwrite a slide, or a file of the user's."""

from __future__ import annotations

import json

import pytest
from _command import slidemil
from _slides import smooth_picture, write_aperio

from pipelines import losable
from pipelines.errors import UsageError
from pipelines.files import write_csv
from pipelines.manifest import SlideEntry
from pipelines.targets import check_json, check_no_slide


@pytest.fixture
def folder(tmp_path):
    """Two slides, of which one may be scanned, and what a user keeps beside them."""
    (tmp_path / "sl").mkdir()
    write_aperio(tmp_path / "sl" / "a.svs", smooth_picture(400, 300))
    write_aperio(tmp_path / "b.tif", smooth_picture(400, 300, 1))
    (tmp_path / "notes.csv").write_text("path,slide_id,remark\nsl/a.svs,a,mine\n")
    (tmp_path / "text").write_text("dear diary")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["-o", "--manifest"])
@pytest.mark.parametrize("target", ["sl/a.svs", "b.tif", "notes.csv", "text", "sl", "new.svs", "text/m.csv"])
def test_a_scan_overwrites_nothing_that_is_not_its_own(folder, monkeypatch, option, target):
    before = contents(folder)
    monkeypatch.setattr(losable, "each", lambda *a, **k: pytest.fail("it must be said before any work"))
    code, said = slidemil("scan", folder / "sl", option, folder / target)
    assert (code, "Name another file" in said) == (2, True), said
    assert contents(folder) == before


def test_a_scan_writes_its_own_tables_again_and_no_other_kind_over_them(folder):
    inventory, manifest = folder / "i.csv", folder / "m.csv"
    for _ in range(2):
        arguments = ("-o", inventory, "--manifest", manifest, "--no-quality", "-q")
        assert slidemil("scan", folder / "sl", *arguments)[0] == 0
    before = contents(folder)
    for arguments in (("-o", manifest), ("--manifest", inventory), ("-o", folder / "x", "--manifest", folder / "x")):
        assert slidemil("scan", folder / "sl", *arguments)[0] == 2, arguments
    assert contents(folder) == before


def test_a_jobs_manifest_is_none_of_a_scan(folder):
    write_csv(folder / "manifest.csv", ("slide_id", "path", "case_id", "mpp", "series"), [{"slide_id": "a"}])
    assert slidemil("scan", folder / "sl", "--manifest", folder / "manifest.csv")[0] == 2


@pytest.mark.parametrize(
    ("slide", "target", "refused"),
    [
        ("m.mrxs", "m/i.csv", True),
        ("m.mrxs", "i.csv", False),
        ("v.vms", "v-i.csv", True),
        ("v.vms", "i.csv", False),
        ("s.svs", "s-i.csv", False),
    ],
)
def test_no_file_is_put_among_a_slides_own(tmp_path, slide, target, refused):
    """What is put there would change the slide: `wsi.files_of` would count it."""
    import wsi

    (tmp_path / "m").mkdir()
    (tmp_path / slide).write_bytes(b"x")
    before = wsi.files_of(tmp_path / slide)
    entry = SlideEntry("s", tmp_path / slide, "s")
    if refused:
        with pytest.raises(UsageError, match="files that"):
            check_no_slide(tmp_path / target, "-o", [entry])
    else:
        check_no_slide(tmp_path / target, "-o", [entry])
    (tmp_path / target).write_bytes(b"x")
    assert (wsi.files_of(tmp_path / slide) != before) is refused


@pytest.mark.parametrize("verb", ["extract", "run", "plan"])
@pytest.mark.parametrize("table", [None, "manifest.csv", "slides.csv"])
def test_a_job_lands_on_no_file_and_on_no_table_of_the_users(folder, verb, table):
    target = folder / "b.tif"
    if table:
        target = folder / "mine"
        target.mkdir()
        (target / table).write_text("path,slide_id,remark\nsl/a.svs,a,mine\n")
    before = contents(folder)
    code, said = slidemil(verb, folder / "sl", "-o", target)
    assert (code, "Name another folder" in said) == (2, True), said
    assert contents(folder) == before


def test_the_demo_lands_on_no_file(folder):
    assert slidemil("demo", "-o", folder / "text")[0] == 2


@pytest.mark.parametrize("target", ["sl/a.svs", "b.tif", "text", "sl", "mine.json"])
def test_a_stain_reference_overwrites_nothing_that_is_none(folder, target):
    (folder / "mine.json").write_text('{"kind": "of mine"}')
    before = contents(folder)
    code, said = slidemil("stain", "fit", folder / "sl", "-o", folder / target)
    assert (code, "Name another file" in said) == (2, True), said
    assert contents(folder) == before


def test_a_stain_reference_may_be_fitted_again(tmp_path):
    import stain

    reference = stain.combine("reinhard", [stain.LabStatistics(mean=(60.0, 10.0, 5.0), sd=(9.0, 3.0, 2.0))], {})
    (tmp_path / "r.json").write_text(json.dumps(reference.to_json()))
    check_json(tmp_path / "r.json", "-o", "stain reference", ("kind", "method", "target"))
