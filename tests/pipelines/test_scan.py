"""The inventory: its lights agree with the zoo's manifest and with a real job, and one bad slide never stops it."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path

import openslide
import pytest
import tifffile
from _command import slidemil, slidemil_json
from _shared import shared_path
from _slides import halved, smooth_picture, write_aperio
from _zoo import write_zoo
from rich.cells import cell_len

from pipelines import scan as stage
from pipelines.manifest import Sources, find_slides
from pipelines.scan_slide import ScanSettings, Task, look
from pipelines.scan_tables import as_object, write_inventory, write_manifest
from pipelines.scan_text import _table, size_of

HERE = pytest.mark.usefixtures("looked_at_here")


def scanned(*arguments):
    """Return the exit code, and slide_id → what is told of it."""
    code, said = slidemil_json("scan", *arguments)
    return code, {row["slide_id"]: row for row in said["slides"]}


def table_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three good slides: one plain, one without µm/px, one whose µm/px is absurd."""
    folder = tmp_path_factory.mktemp("slides")
    write_aperio(folder / "good.svs", smooth_picture(1024, 768), levels=2)
    tifffile.imwrite(
        folder / "bare.tif", smooth_picture(900, 700, 1), tile=(256, 256), compression="jpeg", metadata=None
    )
    write_aperio(folder / "absurd.svs", smooth_picture(800, 600, 2), mpp=99, power=40)
    return folder


def test_each_light_is_what_the_zoos_manifest_says(tmp_path):
    groups = ("truncated", "damaged", "structure", "format")
    cases = write_zoo(tmp_path, lambda case: case["group"] in groups or case["file"].startswith("good/a"))
    code, rows = scanned(tmp_path, "--no-quality")
    by_file = {Path(row["path"]).relative_to(tmp_path).as_posix(): row for row in rows.values()}
    assert code == 3
    assert len(cases) > 50
    wrong = {}
    for case in cases:
        light = by_file[case["file"]]["light"]
        if (case["expect"] == "opens" and light == "red") or (case["expect"] == "clear error" and light != "red"):
            wrong[case["file"]] = light
    assert wrong == {}
    assert all(row["cause"] and row["mend"] for row in rows.values() if row["light"] == "red")
    assert by_file["good/aperio_big.svs"]["light"] == "amber"  # the same picture as aperio.svs
    assert "tiles of the 1024 x 768 image are zeros" in by_file["truncated/tail_of_zeros.tiff"]["cause"]


@pytest.mark.slow
def test_each_light_is_what_a_real_job_makes_of_the_slide(tmp_path):
    zoo = tmp_path / "zoo"
    groups = ("damaged", "metadata", "bomb", "file", "format")
    write_zoo(zoo, lambda case: case["group"] in groups or case["file"] in ("good/white.svs", "good/sparse.tiff"))
    _, rows = scanned(zoo, "--no-quality", "--slide-mpp", 0.5)
    slidemil("extract", zoo, "-o", tmp_path / "job", "--slide-mpp", 0.5, "-q")
    job = {row["slide_id"]: row for row in table_of(tmp_path / "job" / "slides.csv")}
    assert set(job) == set(rows)
    assert len(job) > 70
    assert {name for name, row in rows.items() if row["light"] == "red"} == {
        name for name, row in job.items() if row["status"] == "failed"
    }
    done = {name: int(row["n_tiles"]) for name, row in job.items() if row["status"] == "done"}
    assert {name: rows[name]["tiles"] for name in done} == done


def seen(path, **settings):
    """Look at one slide in this process."""
    (entry,) = find_slides([path]).entries
    return look(Task(entry, ScanSettings(**{"quality": False, **settings})))


def cut_tiles(path, numbers):
    """Overwrite the second half of some JPEG tiles of level 0 with zeros."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        places = [(page.dataoffsets[n], page.databytecounts[n]) for n in numbers]
    data = bytearray(path.read_bytes())
    for start, count in places:
        data[start + count // 2 : start + count] = bytes(count - count // 2)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A slide of 256 JPEG tiles on level 0, with two lower levels."""
    path = tmp_path_factory.mktemp("pyramid") / "s.tif"
    image = smooth_picture(2048, 2048)
    with tifffile.TiffWriter(path) as tiff:
        for number in range(3):
            shown = {"subfiletype": 1 if number else 0, "compression": "jpeg", "photometric": "rgb"}
            tiff.write(image, tile=(128, 128), metadata=None, resolution=(20000, 20000), resolutionunit=3, **shown)
            image = halved(image)
    return path


@pytest.mark.parametrize(
    ("bad", "tile", "light"),
    [([], 224, "green"), ([0], 56, "amber"), ([0], 224, "red"), (range(0, 256, 32), 56, "red")],
)
def test_the_share_of_bad_tiles_decides_as_in_a_job(pyramid, tmp_path, bad, tile, light):
    """One native tile of 256 is 9 of 1,296 tiles of 56 px, under 1 %, but 1 of 81 tiles of 224 px, over it."""
    path = tmp_path / "s.tif"
    path.write_bytes(pyramid.read_bytes())
    cut_tiles(path, bad)
    row = seen(path, tile=tile, deep=True)
    assert (row.light, row.worst.code if bad else None) == (light, "damaged" if bad else None)
    if bad == [0]:
        assert f"; {1 / 81 if tile == 224 else 9 / 1296:.1%} of a job's tiles touch such" in row.worst.what


def test_what_is_told_of_a_slide_is_what_other_libraries_read():
    path = shared_path("data/slides/CMU-1-Small-Region.svs")
    row = as_object(seen(path, quality=True))
    assert (row["light"], row["direct"], row["icc_profile"]) == ("green", True, None)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert row["native_tile"] == (page.tilewidth, page.tilelength)
        assert row["compression"] == page.compression.name
        assert row["levels"] == [[page.imagewidth, page.imagelength]]
    with openslide.OpenSlide(path) as slide:
        assert row["vendor"] == slide.properties["openslide.vendor"]
        assert row["mpp"] == tuple(float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        assert row["objective_power"] == float(slide.properties["openslide.objective-power"])
    assert row["bytes"] == path.stat().st_size
    assert set(row["quality"]) >= {"blur", "pen"}


def test_color_profiles_are_seen():
    boxes = [shared_path(f"data/slides/conformance/boxes{end}") for end in ("_0.dcm", ".tiff")]
    dicom, plain = map(seen, boxes)
    with openslide.OpenSlide(boxes[0]) as slide:
        assert (dicom.icc is not None) is (slide.color_profile is not None)
    with tifffile.TiffFile(boxes[1]) as tiff:
        assert (plain.icc is not None) is (34675 in tiff.pages.first.tags)
    assert (dicom.container, dicom.compression) == ("DICOM", "JPEG")


@HERE
def test_a_dicom_series_is_one_slide():
    folder = shared_path("data/slides/cmu-1-small-region-dicom")
    _, rows = scanned(folder, folder.parent / "CMU-1-Small-Region.svs", "--no-quality")
    assert set(rows) == {"CMU-1-Small-Region", folder.name}
    assert rows[folder.name]["files"] == len(list(folder.glob("*.dcm"))) == 12
    assert rows[folder.name]["bytes"] == sum(file.stat().st_size for file in folder.glob("*.dcm"))
    twin = {f["what"] for f in rows["CMU-1-Small-Region"]["findings"] if f["code"] == "same-picture"}
    assert twin == {f"the same picture as {folder.name}"}


@HERE
def test_a_manifest_once_filled_in_is_what_a_job_takes(slides, tmp_path):
    code, said = slidemil_json("scan", slides, "--manifest", tmp_path / "m.csv", "--no-quality")
    lights = {row["slide_id"]: row["light"] for row in said["slides"]}
    assert (code, lights) == (0, {"good": "green", "bare": "amber", "absurd": "amber"})
    rows = table_of(tmp_path / "m.csv")
    assert [row["slide_id"] for row in rows] == ["absurd", "bare", "good"]  # what is to be filled in comes first
    assert [row["mpp"] for row in rows] == ["", "", ""]  # nothing is guessed in silence
    assert [row["proposed"] for row in rows] == ["0.25", "", ""]  # 10 / 40x; the bare one states no power
    assert ["fill in" in row["to_do"] for row in rows] == [True, True, False]
    for row in rows[:2]:
        row["mpp"] = "0.5"
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, said = slidemil_json("extract", tmp_path / "m.csv", "-o", tmp_path / "job", "--allow-outside")
    assert (code, said["slides"]["done"]) == (0, 3)
    sources = {row["slide_id"]: row["mpp_source"] for row in table_of(tmp_path / "job" / "slides.csv")}
    assert (sources["absurd"], sources["bare"]) == ("manifest", "manifest")
    assert sources["good"] != "manifest"


@HERE
def test_a_manifest_keeps_what_another_one_said(slides, tmp_path):
    given = tmp_path / "given.csv"
    given.write_text(
        f"path,case_id,mpp,label,site\n{slides / 'bare.tif'},P1,0.4,tumor,A\n{slides / 'good.svs'},P2,,none,B\n"
    )
    slidemil("scan", given, "--manifest", tmp_path / "m.csv", "--no-quality", "-q", "--allow-outside")
    before, after = (find_slides(Sources((path,), True)).entries for path in (given, tmp_path / "m.csv"))
    for old, new in zip(before, after, strict=True):
        assert (old.slide_id, old.case_id, old.mpp) == (new.slide_id, new.case_id, new.mpp)
        assert old.path.resolve() == new.path.resolve()
        assert old.columns.items() <= new.columns.items()


NAMES = [
    "two words",
    "line\nbreak",
    "tab\there",
    "=1+1",
    "-rf",
    " blank first",
    "quote\"and'",
    "100%d {0}",
    "right-\u202exe",
]


@HERE
def test_odd_names_lie_in_the_tables_and_lead_back_to_their_slides(tmp_path):
    data = write_aperio(tmp_path / "x.svs", smooth_picture(300, 300)).read_bytes()
    folder = tmp_path / "slides"
    folder.mkdir()
    (tmp_path / "x.svs").unlink()
    paths = [folder / f"{name}.svs" for name in NAMES]
    paths.append(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.svs")))
    for path in paths:
        path.write_bytes(data)
    found = stage.scan([folder], ScanSettings(quality=False), quiet=True)
    assert not re.search(r"[\x00-\x1f\u202e]", "".join(found.lines()))
    assert r"caf\xe9.svs" in [Path(row["path"]).name for row in found.to_json()["slides"]]
    names = {entry.slide_id for entry in find_slides([folder]).entries}
    for write in (write_inventory, write_manifest):
        for table in (tmp_path / "beside.csv", folder / "inside.csv", tmp_path / "else" / "where.csv"):
            write(table, found.rows)
            assert not [cell for row in table_of(table) for cell in row.values() if cell.startswith(tuple("=+-@"))]
            entries = find_slides(Sources((table,), outside=True)).entries
            assert {os.path.realpath(entry.path) for entry in entries} == {os.path.realpath(path) for path in paths}
            assert {entry.slide_id for entry in entries} == names


@HERE
def test_copies_are_found_under_any_name_and_in_any_format(tmp_path):
    picture = smooth_picture(1024, 768, 3)
    first = write_aperio(tmp_path / "first.svs", picture, levels=3)
    (tmp_path / "copy.svs").write_bytes(first.read_bytes())
    tifffile.imwrite(tmp_path / "lossless.tif", picture, tile=(256, 256), compression="zlib", metadata=None)
    write_aperio(tmp_path / "other.svs", smooth_picture(1024, 768, 4), levels=3)
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 1  # as large, and the same at its start, middle and end
    (tmp_path / "touched.svs").write_bytes(data)
    rows = scanned(tmp_path, "--no-quality")[1]
    told = {name: {f["code"]: f["what"] for f in row["findings"]} for name, row in rows.items()}
    assert told["first"]["duplicate"] == "the same bytes as copy"
    assert told["copy"]["duplicate"] == "the same bytes as first"
    assert "duplicate" not in told["touched"] | told["lossless"] | told["other"]
    assert "same-picture" in told["lossless"]
    assert "same-picture" not in told["other"]


@HERE
def test_blocks_alone_do_not_make_a_copy(tmp_path):
    for name, middle in (("a", b"x"), ("b", b"y"), ("c", b"y")):
        (tmp_path / f"{name}.svs").write_bytes(bytes(100_000) + middle * 100_000 + bytes(1_000_000))
    rows = scanned(tmp_path)[1]
    codes = {name: {f["code"] for f in row["findings"]} for name, row in rows.items()}
    assert ("duplicate" in codes["a"], "duplicate" in codes["b"], "duplicate" in codes["c"]) == (False, True, True)


SABOTAGE = """
import os, time, wsi
real = wsi.open_slide
def open_slide(path, **options):
    if "abort" in path.name:
        os.write(2, b"GLib-ERROR: failed to allocate 3298534883328 bytes\\n")
        os.abort()
    if "hang" in path.name:
        time.sleep(600)
    if "bug" in path.name:
        raise ZeroDivisionError("division by zero")
    return real(path, **options)
wsi.open_slide = open_slide
"""


def test_a_slide_that_ends_or_hangs_its_process_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setattr(stage, "seconds_for", lambda task: 8.0)
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, name in enumerate(["abort", "bug", "good1", "good2", "hang"]):
        write_aperio(folder / f"{name}.svs", smooth_picture(400, 300, number))
    began = time.monotonic()
    code, rows = scanned(folder, "--no-quality")
    assert time.monotonic() - began < 60
    assert code == 3
    assert {name: row["light"] for name, row in rows.items()} == {
        **dict.fromkeys(("abort", "bug", "hang"), "red"),
        **dict.fromkeys(("good1", "good2"), "green"),
    }
    assert "SIGABRT): GLib-ERROR: failed to allocate" in rows["abort"]["cause"]
    assert rows["hang"]["cause"] == "it took longer than 8 s"
    assert "ZeroDivisionError" in rows["bug"]["cause"]


@HERE
def test_exit_codes_and_one_object(slides, tmp_path):
    (tmp_path / "empty").mkdir()
    assert slidemil("scan", tmp_path / "empty")[0] == 4
    assert slidemil("scan", slides, "--mpp", -1)[0] == 2
    assert slidemil("scan", slides / "good.svs", "-q")[0] == 0
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    code, said = slidemil_json("scan", slides / "good.svs", tmp_path / "bad.svs", "--no-quality")
    assert (code, said["status"], said["lights"]) == (3, "partial", {"green": 1, "amber": 0, "red": 1})


def test_options_that_mend_turn_the_light(slides):
    assert seen(slides / "bare.tif", slide_mpp=0.5).light == "green"
    coarse = seen(slides / "good.svs", mpp=0.25)
    assert (coarse.light, "--allow-upsampling" in coarse.worst.mend) == ("amber", True)
    assert seen(slides / "good.svs", mpp=0.25, allow_upsampling=True).light == "green"


@HERE
def test_what_a_search_passes_over_is_said(slides, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.svs").write_bytes((slides / "good.svs").read_bytes())
    (tmp_path / "in" / ".hidden.svs").write_bytes(b"x")
    (tmp_path / "in" / "._good.svs").write_bytes(b"x")
    (tmp_path / "in" / "linked").symlink_to(slides, target_is_directory=True)
    (tmp_path / "in" / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the administrator may read any folder
    notes = "\n".join(slidemil_json("scan", tmp_path / "in", "--no-quality")[1]["notes"])
    assert "closed: this folder cannot be read (Permission denied)" in notes
    assert ".hidden.svs: hidden" in notes
    assert "linked: a link to a folder is not followed" in notes
    assert "._good" not in notes


@HERE
def test_the_table_fits_the_terminal(slides, tmp_path, monkeypatch):
    (tmp_path / ("組織" * 30 + ".svs")).write_bytes((slides / "good.svs").read_bytes())
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    found = stage.scan([tmp_path, slides], ScanSettings(quality=False), quiet=True)
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in _table(found.rows)]
        assert max(map(cell_len, lines)) <= max(60, min(columns, 160))
        assert sum(line.startswith("●") for line in lines) == len(found.rows) == 5
    plain = "\n".join(found.lines())
    assert "amber  1 slide without a stated µm/px. Give it with --slide-mpp, or fill in a manifest" in plain
    assert "5 slides: 0 green, 4 amber, 1 red" in plain


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e11, "250 GB"), (3e18, "3000 PB")]
)
def test_sizes_as_people_write_them(size, text):
    assert size_of(int(size)) == text


@HERE
def test_the_inventory_says_what_json_says(slides, tmp_path):
    _, said = slidemil_json("scan", slides, "-o", tmp_path / "i.csv")
    for row, line in zip(said["slides"], table_of(tmp_path / "i.csv"), strict=True):
        assert (row["light"], row["slide_id"], row["cause"] or "") == (line["light"], line["slide_id"], line["cause"])
        assert row["levels"] == [[int(side) for side in level.split("x")] for level in line["levels"].split()]
        assert row["quality"] == {flaw: float(line[f"{flaw}_share"]) for flaw in row["quality"]}
    assert json.dumps(said)
