"""Names, lists and files of strangers: nothing leaves its folder, nothing is obeyed, nothing is told."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import h5py
import pytest
from _command import slidemil
from _shared import ROOT
from _slides import smooth_picture, write_aperio
from _zoo import write_zoo
from hypothesis import given
from hypothesis import strategies as st

from pipelines.console import harmless
from pipelines.errors import CheckFailedError, UsageError
from pipelines.files import csv_bytes, open_h5, read_csv
from pipelines.manifest import Sources, find_slides, safe_name, same_name
from pipelines.tables import shown_plainly, written_plainly

sys.path.insert(0, str(ROOT / "benchmarks"))
from _secrets import holds, leaks, shows

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=90)


def cells(data: bytes) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(data.decode(), newline="")) for cell in row]


# ---------------------------------------------------------------------- tables


@given(st.text())
def test_a_cell_is_never_a_formula_and_comes_back_as_it_was(text):
    shown = shown_plainly(text)
    assert written_plainly(shown) == text
    if shown.startswith(FORMULAS):
        float(shown)  # a number it may be


def test_a_table_with_formulas_in_cells_and_header_reads_back_and_runs_nowhere(tmp_path):
    rows = [{"slide_id": "a", "=cmd|' /C calc'!A0": "@SUM(A1)", "n": -0.5, "m": "-1.5e3", "x": "'=1"}]
    data = csv_bytes(list(rows[0]), rows)
    assert [cell for cell in cells(data) if cell.startswith(FORMULAS)] == ["-0.5", "-1.5e3"]
    (tmp_path / "t.csv").write_bytes(data)
    assert read_csv(tmp_path / "t.csv", strip=False) == [{**rows[0], "n": "-0.5"}]


# ---------------------------------------------------------------------- what is printed


@given(st.text())
def test_nothing_printed_is_obeyed_by_a_terminal(text):
    shown = harmless(text)
    assert all(sign.isprintable() or sign in "\n\t" for sign in shown)
    shown.encode()  # no halves of signs
    assert json.loads(harmless(json.dumps({"v": text}, ensure_ascii=False))) == {"v": text}


def test_a_slide_whose_name_breaks_the_line_is_told_on_one_line(tmp_path):
    (tmp_path / "evil\nstatus: done\x1b[2J\u202e.svs").write_bytes(b"no slide at all, but long enough")
    code, printed = slidemil("run", tmp_path, "-o", tmp_path / "job")
    assert code == 3
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert not any(line.startswith("status: done") for line in printed.splitlines())


# ---------------------------------------------------------------------- names


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_slides_of_any_names_have_outputs_of_their_own_inside_the_job(names):
    """The names of files, as a folder may hold them, through all that names an output."""
    from pipelines.manifest import SlideEntry, _name_apart

    entries = [SlideEntry(safe_name(name), Path("/s") / f"{n}" / name, safe_name(name)) for n, name in enumerate(names)]
    named, _ = _name_apart(entries, Path("/s"))
    ids = [entry.slide_id for entry in named]
    assert len({same_name(name) for name in ids}) == len(names)
    for name in ids:
        output = Path("/job/features") / f"{name}_patches.h5.json"
        assert output.parent == Path("/job/features")
        assert name == name.strip(" .") != ""
        assert len(output.name.encode()) <= 255
        assert not set(name) & set("\n\r\t\x85\u2028\u202e\u2066/\\:*?")
        assert not name.startswith(("=", "+", "-", "@", "."))


def test_hidden_signs_do_not_reach_the_names_of_outputs():
    assert safe_name("right-\u202esvs.exe").startswith("right-_svs.exe__")
    assert safe_name("a\x85b\u2028c") != safe_name("a_b_c") == "a_b_c"


# ---------------------------------------------------------------------- lists of slides

LISTS = {
    "../out.svs": False,
    "sub/../../out.svs": False,
    "./../list/in.svs": True,
    "in.svs": True,
    "./in.svs": True,
    "sub/../in.svs": True,
    "sub/deep.svs": True,
    "sub//deep.svs": True,
}


def make_svs(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aperio(path, smooth_picture(300, 300, seed))


def folders(root: Path) -> Path:
    make_svs(root / "out.svs", 1)
    make_svs(root / "list" / "in.svs", 2)
    make_svs(root / "list" / "sub" / "deep.svs", 3)
    return root / "list" / "list.csv"


def test_a_list_leaves_its_folder_only_where_that_is_said(tmp_path):
    table = folders(tmp_path)
    rows = {**LISTS, str(tmp_path / "out.svs"): False, str(tmp_path / "list" / "in.svs"): True, "/etc/passwd": False}
    for row, inside in rows.items():
        table.write_text(f"path\n{row}\n")
        if inside:
            assert len(find_slides([table]).entries) == 1, row
        else:
            with pytest.raises(UsageError, match=r"line 2: .* outside the folder .* --allow-outside"):
                find_slides([table])
        assert len(find_slides(Sources((table,), outside=True)).entries) == 1
    table.write_text("path\n../out.svs\n")
    assert slidemil("info", table)[0] == 2
    assert slidemil("info", table, "--allow-outside")[0] == 0


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_list_with_marks_line_ends_and_repeats_names_each_slide_once(tmp_path, end, mark, separator):
    table = folders(tmp_path)
    lines = [f"path{separator}case_id", *(f"{path}{separator}P1" for path in ("in.svs", "./in.svs", "sub/deep.svs"))]
    table.write_bytes((mark + end.join(lines) + end).encode())
    found = find_slides([table])
    assert [(entry.slide_id, entry.case_id) for entry in found.entries] == [("deep", "P1"), ("in", "P1")]
    assert any("more than once" in note for note in found.notes)


# ---------------------------------------------------------------------- HDF5 of strangers


def planted(kind: str, path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["coords"] = [[0, 0]]
        if kind == "external link":
            file["deep/er/features"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "external storage":
            file.create_dataset("features", (2,), "u1", external=[(str(secret), 0, 2)])
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout((2,), "u1")
            layout[:] = h5py.VirtualSource(str(secret), "x", (2,))
            file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual dataset"])
def test_hdf5_that_leads_to_another_file_is_refused(tmp_path, kind):
    with h5py.File(tmp_path / "secret", "w") as file:
        file["x"] = [1, 2]
    planted(kind, tmp_path / "f.h5", tmp_path / "secret")
    with pytest.raises(CheckFailedError, match="refused"):
        open_h5(tmp_path / "f.h5")
    planted("none", tmp_path / "g.h5", tmp_path / "secret")
    with open_h5(tmp_path / "g.h5") as file:
        assert file["coords"][()].tolist() == [[0, 0]]


def test_every_hdf5_is_opened_by_the_function_that_looks():
    for package in ("pipelines", "mil", "wsi", "stain"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            if path.name not in ("files.py", "h5_inside.py"):
                assert "h5py.File(" not in text, f"{path}: use files.open_h5"


# ---------------------------------------------------------------------- what slides say of people


def test_the_secrets_of_slides_and_of_files_they_quote_are_in_no_byte_written(tmp_path):
    """Every verb that writes or prints, over the zoo's slides that name a person or quote a neighbor."""
    cases = write_zoo(
        tmp_path / "zoo",
        lambda case: case["group"] == "privacy" or "outside_file" in case["file"] or "neighbour" in case["file"],
    )
    secrets = [word for case in cases for word in case.get("secrets", ())]
    assert len(secrets) == 5
    job = tmp_path / "job"
    job.mkdir()
    said = [
        slidemil("run", tmp_path / "zoo", "-o", job, "--set", "icc=none", "-v"),
        slidemil("scan", tmp_path / "zoo", "-o", job / "i.csv", "--manifest", job / "m.csv", "--deep"),
        slidemil("info", tmp_path / "zoo"),
        slidemil("plan", tmp_path / "zoo", "-o", job, "--force", "--probe", "2"),
        slidemil("status", job),
    ]
    codes = [
        code for code, _ in said
    ]  # one of the three quotes a file, and is refused; a plan may not reach it in time
    assert codes[:3] == [3, 3, 3]
    assert set(codes[3:]) <= {0, 3}
    (job / "printed.txt").write_text("".join(printed for _, printed in said))
    assert leaks(job, secrets) == []
    pictures = [path for path in job.rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) >= 8
    assert not any(shows(path, (255, 0, 255)) for path in pictures)


def test_the_search_finds_a_secret_in_whatever_it_is_packed(tmp_path):
    """The measure itself: it must not be blind."""
    import base64
    import gzip

    import numpy as np
    from PIL import Image, PngImagePlugin

    told = PngImagePlugin.PngInfo()
    told.add_text("note", "ZZTEST", zip=True)
    picture = Image.fromarray(np.full((8, 8, 3), (255, 0, 255), np.uint8))
    picture.save(tmp_path / "p.png", pnginfo=told)
    picture.save(tmp_path / "p.jpg", quality=60)
    (tmp_path / "g.geojson.gz").write_bytes(gzip.compress(b"of zztest"))
    (tmp_path / "u.txt").write_bytes("ZZTEST".encode("utf-16-le"))
    png = base64.b64encode((tmp_path / "p.png").read_bytes()).decode()
    (tmp_path / "r.html").write_text(f'<img src="data:image/png;base64,{png}">')
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("cause", data=["by ZZTEST^ERIKA"], compression="gzip", dtype=h5py.string_dtype())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("g").attrs["name"] = "ZZTEST"
    (tmp_path / "zztest.txt").write_text("nothing")
    (tmp_path / "clean.txt").write_text("nothing")
    found = leaks(tmp_path, ["ZZTEST"])
    assert {text.split(": ")[0].strip("'") for text in found} == {
        *("p.png", "g.geojson.gz", "u.txt", "r.html", "f.h5", "a.h5", "zztest.txt")
    }
    assert all(shows(tmp_path / f"p.{kind}", (255, 0, 255)) == 64 for kind in ("png", "jpg"))
    assert not holds(b"nothing", "ZZTEST")
