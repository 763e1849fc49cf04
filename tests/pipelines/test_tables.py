"""Tables of the user's, whatever a spreadsheet put between their cells."""

from __future__ import annotations

import csv
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.files import read_csv
from pipelines.labels import read_labels
from pipelines.manifest import SlideEntry, find_slides
from pipelines.tables import header_of, number_of

CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
COLUMNS = ("path", "label, or so", "site; town")


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=4), st.sampled_from(",;\t"), st.sampled_from(["", "\ufeff"]))
def test_a_table_reads_alike_whatever_separates_its_cells(rows, separator, mark):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            file.write(mark)
            csv.writer(file, delimiter=separator).writerows([COLUMNS, *rows])
        assert read_csv(path) == [dict(zip(COLUMNS, (cell.strip() for cell in row), strict=True)) for row in rows]
        with path.open(newline="", encoding="utf-8-sig") as file:
            assert header_of(file) == list(COLUMNS)


def test_the_note_that_excel_understands_is_passed_over(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\r\npath;mpp\r\na.svs;0,25\r\n")
    assert read_csv(tmp_path / "t.csv") == [{"path": "a.svs", "mpp": "0,25"}]


def test_a_manifest_of_a_european_spreadsheet(tmp_path):
    (tmp_path / "m.csv").write_text("path;slide_id;mpp;site\nx, y.svs;one;0,2528;Graz\nb.svs;;;\n")
    one, two = sorted(find_slides([tmp_path / "m.csv"]).entries, key=lambda entry: entry.path.name, reverse=True)
    assert (one.slide_id, one.mpp, one.path.name, one.columns) == ("one", 0.2528, "x, y.svs", {"site": "Graz"})
    assert (two.slide_id, two.mpp) == ("b", None)


def test_a_table_in_another_encoding_is_told_with_the_mend(tmp_path):
    (tmp_path / "t.csv").write_bytes("slide_id,note\na,Kästchen\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"t\.csv: the table is not written in UTF-8\. Save it as `CSV UTF-8`"):
        read_csv(tmp_path / "t.csv")
    assert "K" in read_csv(tmp_path / "t.csv", errors="surrogateescape")[0]["note"]


@pytest.mark.parametrize("cell", ["0,2,5", "1.000,5", "a", "0,25 µm", "25,00"])
def test_what_is_no_number_of_um_per_px_is_refused(tmp_path, cell):
    (tmp_path / "m.csv").write_text(f"path;mpp\na.svs;{cell}\n")
    with pytest.raises(UsageError, match="line 2: mpp"):
        find_slides([tmp_path / "m.csv"])


def test_a_decimal_comma_between_commas_is_told_and_not_cut_off(tmp_path):
    """`1,25` would read as 1 µm per pixel, which may be true: nothing else would notice."""
    (tmp_path / "m.csv").write_text("path,mpp\nb.svs,0.5\na.svs,1,25\n")
    with pytest.raises(UsageError, match=r"m\.csv: line 3 has 3 cells, and the table 2 columns\. .* with a point"):
        find_slides([tmp_path / "m.csv"])
    (tmp_path / "m.csv").write_text('path,mpp\nb.svs,0.5,,\na.svs,"1,25"\n')  # empty cells at the end do no harm
    assert [entry.mpp for entry in find_slides([tmp_path / "m.csv"]).entries] == [1.25, 0.5]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_with_a_comma_are_those_with_a_point(value):
    assert number_of(str(value)) == number_of(str(value).replace(".", ",")) == value
    assert math.isnan(number_of(f"{value};"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_labels_of_any_spreadsheet(tmp_path, separator):
    lines = ["slide_id,case_id,label", "a,P1,tumor", "b,P2,normal"]
    (tmp_path / "l.csv").write_text("\n".join(lines).replace(",", separator))
    labels = read_labels(tmp_path / "l.csv", [SlideEntry(name, tmp_path / f"{name}.svs", name) for name in "ab"])
    assert labels.label == {"a": "tumor", "b": "normal"}
    assert labels.case == {"a": "P1", "b": "P2"}
