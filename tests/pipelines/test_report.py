"""The report: one file, from the job folder alone, complete where the job is and honest where it is not."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import heatmap
from pipelines.report import render
from pipelines.report.read import read_job
from pipelines.report.tell import funnel

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"
VOID = {"meta", "img", "br", "line", "path", "polyline", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and text, and demands that every tag is closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode("utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " " + data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def put_table(path: Path, rows: list[dict[str, object]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    put(path, out.getvalue())


def jpeg(width: int = 400) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 300), (200, 180, 190)).save(out, "JPEG")
    return out.getvalue()


def slide_rows() -> list[dict[str, object]]:
    base = {
        "stage": "features",
        "reader": "openslide",
        "width": 4000,
        "tissue_share": 0.5,
        "n_tiles": 40,
        "n_missing": 0,
    }
    done = [{"slide_id": f"S{k}", "status": "done", **base, "warning": "", "cause": "", "mend": ""} for k in range(4)]
    empty = {**done[0], "slide_id": "EMPTY", "tissue_share": 0, "n_tiles": 0, "warning": "no tissue: all glass"}
    bad = {"slide_id": "BAD", "status": "failed", "stage": "extract", "cause": "truncated", "mend": "Copy it again."}
    return [*done, empty, bad]


def predictions() -> list[dict[str, object]]:
    rows = [("S0", "positive", 0.9, "test"), ("S1", "positive", 0.2, "test"), ("S2", "negative", 0.1, "train")]
    return [
        {
            "slide_id": name,
            "case_id": f"C{name}",
            "label": label,
            "pred": "positive" if p >= 0.5 else "negative",
            "p_negative": 1 - p,
            "p_positive": p,
            "n_tiles": 40,
            "split": split,
            "warning": "",
        }
        for name, label, p, split in rows
    ]


METRICS = {
    "split": {
        "train": {"slides": 10, "patients": 5},
        "val": {"slides": 4, "patients": 2},
        "test": {"slides": 6, "patients": 3},
    },
    "validation": {"n": 4, "auc": 0.75, "auc_interval": [0.5, 1.0]},
    "test": {
        "n": 6,
        "n_patients": 3,
        "classes": ["negative", "positive"],
        "threshold": 0.5,
        "auc": 0.8765,
        "auc_interval": [0.6, 0.95],
        "auc_interval_level": 0.95,
        "auc_interval_method": "percentile bootstrap over patients",
        "accuracy": 0.8,
        "confusion": [[3, 0], [1, 2]],
        "roc": {"fpr": [0, 0, 1], "tpr": [0, 0.5, 1], "thresholds": [None, 0.5, 0.1]},
        "brier": 0.1,
    },
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    root = tmp_path / "job"
    put(
        root / "job.yaml",
        yaml.safe_dump({"extract": {"tile": 224, "mpp": 0.5, "overlap": 0, "min_tissue": 0.25, "stain": "none"}}),
    )
    put_table(root / "slides.csv", [{**dict.fromkeys(slide_rows()[0], ""), **row} for row in slide_rows()])
    put_table(root / "manifest.csv", [{"slide_id": row["slide_id"], "path": "x.svs"} for row in slide_rows()])
    put(root / "models/abmil/metrics.json", json.dumps(METRICS))
    config = {
        "classes": ["negative", "positive"],
        "head": {"name": "abmil"},
        "encoder": {"id": "descriptors", "dim": 159},
    }
    put(root / "models/abmil/config.json", json.dumps(config))
    put_table(root / "predictions/abmil/slides.csv", predictions())
    picture = heatmap.draw(
        np.full((300, 400, 3), 200, np.uint8), (4000, 3000), (0.25, 0.25), np.array([[0, 0]]), (448, 448), [1.0],
        title="S1", unit="attention", normalization="raw",
    )  # fmt: skip
    put(root / "heatmaps/abmil/S1.png", picture)
    put(root / "heatmaps/abmil/top/S1.jpg", jpeg())
    put(root / "contours/S1.jpg", jpeg())
    ring = [[1000, 600], [2000, 600], [2000, 1500], [1000, 600]]
    truth = {"type": "FeatureCollection", "features": [{"geometry": {"type": "Polygon", "coordinates": [ring]}}]}
    put(root / "truth/S1.geojson", json.dumps(truth))
    rates = {
        "read": {"lambda": 59.63, "W_mean": 0.019, "W_p99": 0.0413, "L": 1.1, "wait": 0.032, "workers": 2, "depth": 5}
    }
    first = {
        "outcome": {"rates": rates},
        "bottleneck": "encoder-bound: it waits 3%",
        "versions": {"torch": "2.15"},
        "notes": [],
    }
    put(root / "runs/20260101T000000Z-a.json", json.dumps(first))
    put(
        root / "runs/20260102T000000Z-b.json", json.dumps({"verb": "train", "versions": {"torch": "2.15"}, "notes": []})
    )
    return root


def test_a_full_job_shows_its_figures(job: Path) -> None:
    words = Page(render(job)).words
    for wanted in ("0.876", "0.600 to 0.950", "truncated", "Copy it again.", "59.6", "19.0", "3.2%", "encoder-bound",
                   "descriptors", "10 slides of 5 patients", "abmil", "1 of 1 heatmaps"):  # fmt: skip
        assert wanted in words, wanted


def test_the_page_needs_nothing_from_outside(job: Path) -> None:
    page = Page(render(job))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for _, attrs in page.tags:
        for name in ("src", "href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
        assert not [name for name in attrs if name.startswith("on")]
    assert b"url(" not in render(job)


def test_pictures_inside_the_page_are_whole(job: Path) -> None:
    import base64

    sources = [attrs["src"] for tag, attrs in Page(render(job)).tags if tag == "img"]
    assert len(sources) == 3
    for source in sources:
        assert source is not None
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).load()


def test_same_job_gives_same_bytes_wherever_it_lies(job: Path) -> None:
    first = render(job)
    moved = job.rename(job.parent / "elsewhere")
    assert render(moved) == first


def test_the_page_tells_no_time_and_no_path(job: Path) -> None:
    page = render(job).decode()
    assert str(job.parent) not in page
    assert "20260101" not in page


def test_truth_is_drawn_at_its_place_in_the_heatmap(job: Path) -> None:
    page = render(job).decode()
    with Image.open(job / "heatmaps/abmil/S1.png") as image:
        frame = json.loads(image.text[heatmap.FRAME_KEY])
        assert f'viewBox="0 0 {image.width} {image.height}"' in page
    numbers = [float(v) for v in re.findall(r"[\d.]+", re.search(r'class="truth" d="([^"]*)"', page).group(1))]
    wanted = (frame["left"] + 1000 / 4000 * frame["width"], frame["top"] + 600 / 3000 * frame["height"])
    assert numbers[:2] == pytest.approx(wanted, abs=0.1)


def test_hostile_names_stay_text(job: Path) -> None:
    rows = slide_rows()
    rows[0]["slide_id"] = rows[0]["warning"] = HOSTILE
    rows[-1]["cause"] = rows[-1]["mend"] = HOSTILE
    put_table(job / "slides.csv", [{**dict.fromkeys(slide_rows()[0], ""), **row} for row in rows])
    put_table(
        job / "predictions/abmil/slides.csv", [{**row, "slide_id": HOSTILE, "label": HOSTILE} for row in predictions()]
    )
    metrics = {
        **METRICS,
        "test": {
            **METRICS["test"],
            "classes": ["a", HOSTILE],
            "roc": {HOSTILE: METRICS["test"]["roc"], "1": METRICS["test"]["roc"]},
        },
    }
    put(job / "models/abmil/metrics.json", json.dumps(metrics))
    put(job / "models/abmil/config.json", json.dumps({"classes": ["a", HOSTILE], "head": {"name": HOSTILE}}))
    put(job / "demo.json", json.dumps({"note": HOSTILE, "localization_auc": HOSTILE}))
    page = render(job)
    assert not [tag for tag, _ in Page(page).tags if tag == "script"]
    assert "49" not in re.findall(r"alert\(1\)[^<]{0,40}", page.decode())[0]
    assert HOSTILE in Page(page).words


def test_an_empty_folder_says_what_is_absent(tmp_path: Path) -> None:
    words = Page(render(tmp_path)).words
    assert "No slides are listed" in words
    assert "no model was trained" in words
    assert "No rates were recorded" in words


def test_a_job_after_extract_alone_renders(job: Path) -> None:
    import shutil

    for name in ("models", "predictions", "heatmaps", "truth"):
        shutil.rmtree(job / name)
    words = Page(render(job)).words
    assert "The job has features only" in words
    assert "predicted" not in [step.name for step in funnel(read_job(job))]


def test_predictions_without_a_model_folder_render(job: Path) -> None:
    import shutil

    shutil.rmtree(job / "models")
    words = Page(render(job)).words
    assert "there are no figures of how well it does" in words
    assert "CS0" in words


def test_the_funnel_counts_each_slide_once_and_says_why_it_was_lost(job: Path) -> None:
    steps = {step.name: step for step in funnel(read_job(job))}
    assert [steps[n].count for n in ("found", "readable", "tissue", "features", "predicted")] == [6, 5, 4, 4, 3]
    assert steps["readable"].lost == [("truncated", 1)]
    assert steps["tissue"].lost == [("no tissue: all glass", 1)]


def test_wrong_predictions_on_held_out_slides_come_first(job: Path) -> None:
    page = render(job).decode()
    table = page[page.index("<h3>Predictions") :]
    places = [table.index(f"<td>{name}</td>") for name in ("S1", "S0", "S2")]
    assert places == sorted(places)


def test_damaged_files_are_named_and_do_not_end_the_report(job: Path) -> None:
    put(job / "models/abmil/metrics.json", "{")
    put(job / "job.yaml", "a: [")
    put(job / "heatmaps/abmil/S1.png", b"no picture")
    put(job / "truth/S1.geojson", "[]")
    words = Page(render(job)).words
    assert "metrics.json: could not be read" in words
    assert "job.yaml: could not be read" in words


def test_yaml_is_never_run(job: Path) -> None:
    put(job / "job.yaml", "!!python/object/apply:os.mkdir [hacked]")
    assert "job.yaml: could not be read" in Page(render(job)).words


def test_names_in_tables_never_lead_out_of_the_job(job: Path) -> None:
    put(job.parent / "secret.png", (job / "heatmaps/abmil/S1.png").read_bytes())
    put_table(job / "predictions/abmil/slides.csv", [{**predictions()[0], "slide_id": "../../../secret"}])
    page = Page(render(job))
    captions = [attrs.get("alt") for tag, attrs in page.tags if tag == "img"]
    assert not any("secret" in (text or "") for text in captions)


def test_a_two_thousand_slide_job_stays_small(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**dict.fromkeys(slide_rows()[0], ""), **slide_rows()[0], "slide_id": f"S{k}"} for k in range(2000)]
    put_table(job / "slides.csv", rows)
    put_table(job / "predictions/abmil/slides.csv", [{**predictions()[0], "slide_id": f"S{k}"} for k in range(2000)])
    for k in range(300):
        put(job / f"contours/S{k}.jpg", jpeg(64))
    page = render(job)
    assert len(page) < 3_000_000
    words = Page(page).words
    assert "400 of 2000 are shown" in words
    assert "120 of 300 are shown" in words
    monkeypatch.setattr("pipelines.report.images.MOST_BYTES", 10_000)
    assert "more pictures were left out" in Page(render(job)).words


def test_the_demo_says_that_all_slides_share_one_picture(job: Path) -> None:
    put(job / "demo.json", json.dumps({"slide_auc": 1, "localization_auc": 0.9876, "note": "one source image"}))
    words = Page(render(job)).words
    assert "This is the demo. one source image" in words
    assert "0.988" in words
