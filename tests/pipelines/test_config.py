"""Settings: one order of precedence, and every mistake said at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from _command import slidemil

from pipelines.config import as_yaml, load_settings, settings_table
from pipelines.errors import UsageError
from pipelines.units import gigabytes, worker_count


def test_later_sources_win(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("extract:\n  tile: 256\n  mpp: 1\nhead: mean\n")
    settings = load_settings(config, ["tile=512"], {"mpp": 0.25, "encoder": None})
    assert (settings.extract.tile, settings.extract.mpp, settings.train.head) == (512, 0.25, "mean")
    assert settings.extract.encoder == "descriptors"


def test_settings_written_are_settings_read(tmp_path):
    settings = load_settings(None, ["tile=300", "stain=macenko", "lr=0.01"])
    config = tmp_path / "job.yaml"
    config.write_text(as_yaml(settings))
    assert load_settings(config) == settings


def test_options_of_a_head_are_numbers_by_name_however_they_are_written(tmp_path):
    config = tmp_path / "job.yaml"
    for text in ("train:\n  head_options: {hidden: 32, dropout: 0.1}\n", "head_options: 'hidden=32, dropout=1e-1'\n"):
        config.write_text(text)
        settings = load_settings(config)
        assert settings.train.of_head == {"hidden": 32, "dropout": 0.1}
        config.write_text(as_yaml(settings))
        assert load_settings(config) == settings
    assert load_settings(config, ["head_options=hidden=8"]).train.of_head == {"hidden": 8}
    for wrong in ("hidden", "hidden=wide", "hidden=1,hidden=2", "7"):
        with pytest.raises(UsageError, match=f"head_options must be NAME=NUMBER.* not {wrong}"):
            load_settings(None, [f"head_options={wrong}"])
    with pytest.raises(UsageError, match="dropout is set twice"):
        load_settings(None, ["head_options=dropout=0.1", "dropout=0.2"])


def test_all_mistakes_are_said_at_once(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("extract:\n  tyle: 256\n  mpp: wide\n  overlap: 900\nseed: -1\n")
    with pytest.raises(UsageError) as caught:
        load_settings(config, ["nonsense"])
    message = str(caught.value)
    for part in ("`tyle`. Did you mean `tile`?", "`wide` is no number", "overlap must be", "seed must", "key=value"):
        assert part in message, part


@pytest.mark.parametrize(
    ("text", "gb"), [("8G", 8), ("500M", 0.5), ("1.5", 1.5), ("2GB", 2), ("4GiB", 4), ("1T", 1000)]
)
def test_amounts_of_memory(text, gb):
    assert gigabytes(text) == pytest.approx(gb)


@pytest.mark.parametrize("text", ["", "much", "-3G", "8X"])
def test_no_amounts_of_memory(text):
    with pytest.raises(UsageError, match="no amount of memory"):
        gigabytes(text)


def test_worker_counts():
    assert worker_count("auto") == 0
    assert worker_count("3") == 3
    with pytest.raises(UsageError):
        worker_count("0")


@pytest.mark.parametrize("name", ["read.processes=2", "train.processes=2"])
def test_a_right_name_under_a_wrong_section_is_told_its_own(name):
    with pytest.raises(UsageError, match=r"`processes` belongs to `extract`\. Write `extract\.processes`"):
        load_settings(None, [name])


def rows_of(text):
    """Return section.key → default, as the table in Markdown shows them."""
    rows, part = {}, ""
    for line in text.splitlines():
        part = line[4:-1] if line.startswith("## ") else part
        row = re.fullmatch(r"\| `(\w+)` \| (?:`(.*)`)? \| (\S.*) \|", line)
        if row:
            rows[f"{part}.{row[1]}"] = row[2]
    return rows


def test_the_page_of_settings_is_the_settings():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = rows_of(page)
    settings = load_settings()
    fields = {f"{part}.{name}" for part in ("extract", "train") for name in vars(getattr(settings, part))}
    assert set(rows) == fields
    assert load_settings(None, [f"{key}={value}" for key, value in rows.items() if value]) == settings
    shown = {key for key in rows if rows[key] is None}
    assert all(getattr(getattr(settings, key.split(".")[0]), key.split(".")[1]) in (None, "") for key in shown)
    assert page.endswith(settings_table()), "write docs/settings.md anew: pipelines.config.settings_table()"


def test_help_says_where_the_settings_are():
    for verb in ("extract", "run", "plan", "train"):
        assert "docs/settings.md" in re.sub(r"[\s│]+", "", slidemil(verb, "--help")[1])
    code, said = slidemil("extract", "slides", "-o", "job", "--set", "help")
    assert (code, rows_of(said)) == (0, rows_of(settings_table()))
