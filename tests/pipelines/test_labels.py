"""Labels and slides find each other, or it is said why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import NothingMatchedError, UsageError
from pipelines.labels import Labels, read_labels
from pipelines.learn import check_labels
from pipelines.manifest import SlideEntry

SLIDES = [SlideEntry("001", Path("x/001.svs"), "001"), SlideEntry("b.2", Path("x/b.2.svs"), "b.2")]


def table(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_slides_are_matched_with_and_without_extension_and_zeros_are_kept(tmp_path):
    labels = read_labels(table(tmp_path, "slide,label,patient\n001.svs,pos,P\nb.2,neg,Q\n"), SLIDES)
    assert labels.label == {"001": "pos", "b.2": "neg"}
    assert labels.case == {"001": "P", "b.2": "Q"}
    assert labels.classes == ("neg", "pos")


def test_labels_that_match_no_slide_show_the_first_differences(tmp_path):
    with pytest.raises(NothingMatchedError) as caught:
        read_labels(table(tmp_path, "slide_id,label\n1,pos\n2,neg\n"), SLIDES)
    assert "'1', '2'" in str(caught.value)
    assert "'001', 'b.2'" in str(caught.value)


def test_labels_of_other_slides_and_slides_without_label_are_noted(tmp_path):
    labels = read_labels(table(tmp_path, "slide_id,label\n001,pos\nzzz,neg\n"), SLIDES)
    assert any("1 labels belong to no slide" in note for note in labels.notes)
    assert any("1 slides have no label" in note for note in labels.notes)
    assert any("patient of its own" in note for note in labels.notes)


def test_words_that_may_be_meant_otherwise_are_noted(tmp_path):
    labels = read_labels(table(tmp_path, "slide_id,label\n001,None\nb.2,Pos\nz,pos\n"), SLIDES)
    assert labels.label == {"b.2": "Pos"}
    assert any("None counts as no label" in note for note in labels.notes)
    assert any("Pos and pos are taken for different" in note for note in labels.notes)


def test_what_can_hardly_be_classes_is_refused_with_the_mend(tmp_path):
    path = table(tmp_path, "slide_id,label,age\n001,none,61.5\nb.2,pos,70\n")
    with pytest.raises(UsageError, match=r"class 'pos'.*none counts as no label"):
        check_labels(path, read_labels(path, SLIDES))
    many = [SlideEntry(str(i), Path(f"x/{i}.svs"), str(i)) for i in range(20)]
    path = table(tmp_path, "slide_id,age\n" + "".join(f"{i},{40 + i}\n" for i in range(20)))
    with pytest.raises(UsageError, match=r"20 different numbers.*--task regression"):
        check_labels(path, read_labels(path, many, column="age"))


def test_two_labels_for_one_slide_are_refused(tmp_path):
    with pytest.raises(UsageError, match="twice and differently"):
        read_labels(table(tmp_path, "slide_id,label\n001,pos\n001.svs,neg\n"), SLIDES)


def test_a_missing_column_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no column `label`.*slide_id"):
        read_labels(table(tmp_path, "slide_id,grade\n001,3\n"), SLIDES)
    labels = read_labels(table(tmp_path, "slide_id,grade\n001,10\nb.2,9\n"), SLIDES, column="grade")
    assert labels.classes == ("9", "10"), "numbers are ordered as numbers"


def test_a_name_that_may_mean_several_slides_is_refused_and_its_path_is_not(tmp_path):
    slides = [SlideEntry(f"s__{n}", Path(f"cohort/{n}/s.svs"), f"s__{n}") for n in ("x", "y")]
    with pytest.raises(UsageError, match=r"may be any of s__x, s__y"):
        read_labels(table(tmp_path, "slide_id,label\ns,pos\n"), slides)
    labels = read_labels(table(tmp_path, "path,label\nx/s.svs,pos\ny/s.svs,neg\n"), slides)
    assert labels.label == {"s__x": "pos", "s__y": "neg"}


def test_cells_that_mean_nothing_are_no_class(tmp_path):
    labels = read_labels(table(tmp_path, "slide_id,label\n001,NaN\nb.2,2\n"), SLIDES)
    assert labels.label == {"b.2": "2"}


def test_one_slide_with_two_patients_is_refused(tmp_path):
    with pytest.raises(UsageError, match="twice and differently"):
        read_labels(table(tmp_path, "slide_id,case_id,label\n001,P,pos\n001,Q,pos\n"), SLIDES)


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        ({"case", "control"}, ("control", "case")),
        ({"mutant", "wildtype"}, ("wildtype", "mutant")),
        ({"1", "0"}, ("0", "1")),
        ({"b", "a", "c"}, ("a", "b", "c")),
    ],
)
def test_the_negative_class_comes_first(found, ordered):
    assert Labels(dict(zip("xyz", sorted(found), strict=False)), {}, {}).classes == ordered
