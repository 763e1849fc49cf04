"""Finding slides and naming them."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from _shared import shared_path
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import NothingMatchedError, UsageError
from pipelines.manifest import Sources, find_slides, safe_name, slide_stem


def make_svs(path, seed=0):
    import numpy as np

    from pipelines.demo_svs import write_svs

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(200, 255, (512, 512, 3), dtype=np.uint8)
    write_svs(path, pixels, mpp=0.5)
    return path


def test_a_folder_without_slides_says_what_was_seen(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "photo.jpeg2").write_bytes(b"\xff\xd8")
    with pytest.raises(NothingMatchedError, match=r"notes\.txt") as caught:
        find_slides([tmp_path])
    assert caught.value.exit_code == 4


def test_pictures_of_a_job_that_lies_among_the_slides_are_no_slides(tmp_path):
    slide = make_svs(tmp_path / "a.svs")
    for folder in ("job/.done", "job/heatmaps/mean", "heatmaps"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(slide, tmp_path / "job/heatmaps/mean/a.scores.ome.tif")
    shutil.copy(slide, tmp_path / "heatmaps/b.svs")  # a folder of somebody's that is called so
    assert [entry.slide_id for entry in find_slides([tmp_path]).entries] == ["a", "b"]


def test_a_missing_path_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        find_slides([tmp_path / "nothing"])


def test_two_slides_of_one_stem_get_names_of_their_own(tmp_path):
    make_svs(tmp_path / "a" / "slide.svs", 1)
    make_svs(tmp_path / "b" / "slide.svs", 2)
    found = find_slides([tmp_path])
    names = [entry.slide_id for entry in found.entries]
    assert len(set(names)) == 2
    assert all(name.startswith("slide__") for name in names)
    assert any("2 slides are called slide" in note for note in found.notes)
    assert names == [entry.slide_id for entry in find_slides([tmp_path]).entries], "names must not change"


def test_the_same_file_twice_is_one_slide(tmp_path):
    slide = make_svs(tmp_path / "s.svs")
    found = find_slides([slide, tmp_path, slide])
    assert [entry.slide_id for entry in found.entries] == ["s"]
    assert any("more than once" in note for note in found.notes)


def test_a_manifest_names_paths_patients_and_resolution(tmp_path):
    make_svs(tmp_path / "deep" / "s.svs")
    table = tmp_path / "list.csv"
    table.write_text("wsi,patient,mpp,site\ndeep/s.svs,P1,0.25,Oslo\n")
    (entry,) = find_slides([table]).entries
    assert (entry.slide_id, entry.case_id, entry.mpp) == ("s", "P1", 0.25)
    assert entry.columns["site"] == "Oslo"
    assert entry.path == tmp_path / "deep" / "s.svs"


def test_all_mistakes_of_a_manifest_are_said_at_once(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,mpp\na.svs,0\nb.svs,nan\n,0.5\nc.svs,0.5\n")
    with pytest.raises(UsageError) as caught:
        find_slides([table])
    assert all(f"line {number}" in str(caught.value) for number in (2, 3, 4))
    assert "line 5" not in str(caught.value)


def test_a_manifest_without_a_path_column_names_the_ones_taken(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("foo,bar\n1,2\n")
    with pytest.raises(UsageError, match=r"path.*wsi"):
        find_slides([table])


def test_a_dicom_series_is_one_slide():
    folder = shared_path("data/slides/cmu-1-small-region-dicom")
    (entry,) = find_slides([folder.parent / folder.name]).entries
    assert len(entry.files) == 12


def test_files_of_one_dicom_series_are_one_slide_however_they_are_given(tmp_path):
    folder = shared_path("data/slides/cmu-1-small-region-dicom")
    files = sorted(folder.glob("*.dcm"))
    for named in (files[2:5], files[:1], files):
        (entry,) = find_slides(named).entries
        assert set(entry.files) == set(files)
        assert entry.path == named[0]
    (tmp_path / "list.csv").write_text(f"path,slide_id\n{files[0]},mine\n")
    (entry,) = find_slides(Sources((tmp_path / "list.csv",), outside=True)).entries
    assert entry.slide_id == "mine"
    assert set(entry.files) == set(files)


def ways_to_name(folder, files, table):
    """Yield SLIDES arguments that mean the same: a folder, the one above, all files, each file, rows of a table."""
    yield from ([folder], [folder.parent], files, files[::-1], [folder, files[-1]], [folder / ".." / folder.name])
    for file in files:
        yield [file]
        table.write_text(f"path\n{file}\n")
        yield [table]


def copied(files, folder):
    folder.mkdir(parents=True)
    return [Path(shutil.copy(file, folder)) for file in files]


def test_a_dicom_series_has_one_name_however_it_is_given(tmp_path, monkeypatch):
    real = shared_path("data/slides/cmu-1-small-region-dicom")
    files = copied(sorted(real.glob("*.dcm")), tmp_path / "all" / "patient 7")
    for sources in ways_to_name(files[0].parent, files, tmp_path / "list.csv"):
        (entry,) = find_slides(sources).entries
        assert entry.slide_id == "patient 7", sources
        assert len(entry.files) == len(files)
    monkeypatch.chdir(files[0].parent)
    for source in (Path(), Path(files[3].name)):
        assert [entry.slide_id for entry in find_slides([source]).entries] == ["patient 7"]


def test_several_dicom_series_in_one_folder_have_one_name_each(tmp_path):
    real = shared_path("data/slides/cmu-1-small-region-dicom")
    series = sorted(real.glob("*.dcm")), [real.parent / "conformance" / f"boxes_{n}.dcm" for n in (0, 1)]
    first, second = (copied(files, tmp_path / name) for files, name in zip(series, "ab", strict=True))
    flat = tmp_path / "flat"
    first, second = copied([*first, *second], flat)[: len(first)], [flat / file.name for file in second]
    assert {entry.slide_id for entry in find_slides([flat]).entries} == {"level-0", "boxes_0"}
    for files, name in ((first, "level-0"), (second, "boxes_0")):
        for sources in ([files[0]], [files[-1]], files[::-1]):
            assert [entry.slide_id for entry in find_slides(sources).entries] == [name]


def test_a_slide_given_twice_is_told_in_its_own_name(tmp_path):
    files = copied(sorted(shared_path("data/slides/cmu-1-small-region-dicom").glob("*.dcm")), tmp_path / "s")
    assert find_slides([tmp_path / "s", files[2]]).notes == ("s was given more than once and is taken once",)
    slide = make_svs(tmp_path / "t" / "t.svs")
    (tmp_path / "link.svs").symlink_to(slide)
    notes = find_slides([tmp_path / "link.svs", slide]).notes
    assert notes == ("link.svs was given more than once and is taken once, as t.svs",)


def test_two_part_extensions_count_as_one():
    assert slide_stem(Path("x/OS-1.ome.tif")) == "OS-1"
    assert slide_stem(Path("x/a.b.svs")) == "a.b"


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different_and_harmless(names):
    one, two = (safe_name(unicodedata.normalize("NFC", name)) for name in names)
    if unicodedata.normalize("NFC", names[0]) != unicodedata.normalize("NFC", names[1]):
        assert one != two
    for name in (one, two):
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert "\x00" not in name
        assert name[0] not in "=+-@"
        assert len(name.encode()) <= 200
        assert not any(ord(sign) < 32 or ord(sign) == 127 for sign in name)


def test_slides_of_one_name_from_several_folders_never_share_a_name(tmp_path):
    """Given as separate sources, so that each has the same path below its own source."""
    for number, folder in enumerate("abc"):
        make_svs(tmp_path / folder / "s.svs", number)
    found = find_slides([tmp_path / folder for folder in "abc"])
    assert len({entry.slide_id for entry in found.entries}) == 3


def test_slides_added_one_folder_at_a_time_never_share_a_name(tmp_path):
    from pipelines.jobfolder import JobFolder
    from pipelines.tables_of_job import join, write_manifest

    job = JobFolder(tmp_path / "job")
    for _ in range(2):  # the second round finds the names of the first again
        for number, folder in enumerate("abc"):
            if not (tmp_path / folder).exists():
                make_svs(tmp_path / folder / "s.svs", number)
            mine, everything = join(job, find_slides([tmp_path / folder]))
            write_manifest(job, everything)
        assert len(everything.entries) == 3
    assert len({entry.path for entry in everything.entries}) == 3
    assert len(mine.entries) == 1


def test_the_files_of_a_mirax_slide_are_all_known(tmp_path):
    import wsi

    (tmp_path / "m").mkdir()
    for name in ("m.mrxs", "m/Data0000.dat", "m/Slidedat.ini"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in wsi.files_of(tmp_path / "m.mrxs")] == ["m.mrxs", "Data0000.dat", "Slidedat.ini"]
