"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.cli import app
from pipelines.demo_cohort import compose_cohort

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(tmp_path, capsys):
    slide = compose_cohort(tmp_path / "slides", patients=1, slides_per_patient=1, size=(2016, 2016)).slides[0]
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 16
    exec(code.replace("slides/a.svs", str(slide.path)), {})
    assert re.match(r"torch\.Size\(\[\d+, 1\]\)", capsys.readouterr().out)


def test_every_command_shown_is_one_the_command_has():
    import typer.main

    verbs = set(typer.main.get_command(app).commands)
    shown = set(re.findall(r"^slidemil (\w+)", README, re.MULTILINE))
    assert shown
    assert shown <= verbs


def test_files_the_readme_points_to_are_there():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["env", "demo", "test", "bench", "stress", "lint"])
def test_make_has_the_promised_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
