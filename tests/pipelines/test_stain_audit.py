"""`slidemil stain audit`: two sites with other stains, before and after normalization."""

from __future__ import annotations

import json

import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _slides import write_aperio

DYES = {
    "north": np.array([[0.65, 0.70, 0.29], [0.09, 0.95, 0.28]]),
    "south": np.array([[0.50, 0.75, 0.43], [0.22, 0.80, 0.56]]),
}


def tissue(seed, dyes, strength):
    """H&E by Beer and Lambert with the dyes of a site; a margin of glass."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(1.2, strength, (48, 48, 2)).repeat(4, 0).repeat(4, 1)
    amounts[:32] = 0
    return np.clip(245 * np.exp(-amounts @ dyes), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Eight patients, four of each site, encoded as they are and normalized."""
    root = tmp_path_factory.mktemp("audit")
    rows = ["slide_id,case_id,scanner,label"]
    for number in range(8):
        site = ("north", "south")[number % 2]
        folder = root / "slides" / site
        folder.mkdir(parents=True, exist_ok=True)
        write_aperio(folder / f"s{number}.svs", tissue(number, DYES[site], 0.5 + 0.2 * (number % 2)))
        rows.append(f"s{number},p{number},{site},{'ab'[number // 4]}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    for name, more in {"plain": (), "macenko": ("--stain", "macenko")}.items():
        code, said = slidemil_json(
            "extract", root / "slides", "-o", root / name, "--tile", 64, "--set", "processes=0", *more
        )
        assert code == 0, said
    return root


def test_the_site_is_known_before_and_less_after(jobs):
    code, said = slidemil_json(
        "stain", "audit", jobs / "plain", jobs / "macenko", "-l", jobs / "table.csv", "--site", "scanner",
        "-o", jobs / "audit.json",
    )  # fmt: skip
    assert code == 0, said
    before, after = said["jobs"]
    assert (before["stain"], after["stain"]) == ("none", "macenko")
    assert before["balanced_accuracy"] == 1.0
    assert before["p"] < 0.06
    assert after["balanced_accuracy"] < before["balanced_accuracy"]
    assert "p_difference" in after
    assert "p_difference" not in before
    assert json.loads((jobs / "audit.json").read_text())["jobs"] == said["jobs"]
    assert said["sites"] == {"north": 4, "south": 4}


def test_without_a_table_the_folder_is_the_site(jobs):
    code, said = slidemil("stain", "audit", jobs / "plain")
    assert code == 0
    assert "2 sites: north (4), south (4)" in said
    assert "balanced accuracy 1.00" in said


def test_sites_are_permuted_within_a_column(jobs):
    code, said = slidemil_json(
        "stain", "audit", jobs / "plain", "-l", jobs / "table.csv", "--site", "scanner", "--within", "label"
    )
    assert (code, said["within"]) == (0, "label")
    assert 0.05 < said["jobs"][0]["p"] < 0.2, "36 ways to deal them, two of which are as good"


def test_a_site_with_one_patient_is_left_out_and_named(jobs, tmp_path):
    text = (jobs / "table.csv").read_text().replace("s0,p0,north", "s0,p0,moon")
    (tmp_path / "table.csv").write_text(text)
    code, said = slidemil_json("stain", "audit", jobs / "plain", "-l", tmp_path / "table.csv", "--site", "scanner")
    assert (code, said["slides"]) == (0, 7)
    assert any("moon" in note for note in said["notes"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--site", "scanner"), "-l TABLE.csv"),
        (("-l", "table.csv", "--site", "planet"), "no column"),
        (("-l", "table.csv", "--site", "case_id"), "no site has slides of two patients"),
        (("-o", "table.csv"), "no batch-effect audit"),
    ],
)
def test_mistakes_are_told(jobs, more, told):
    more = tuple(jobs / word if word == "table.csv" else word for word in more)
    code, said = slidemil("stain", "audit", jobs / "plain", *more)
    assert code == 2, said
    assert told in said
