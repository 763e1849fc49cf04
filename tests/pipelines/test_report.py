"""The report: one file, from the job folder alone, complete where the job is and honest where it is not."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from _viewer import browser
from PIL import Image

from pipelines import heatmap, report
from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now
from pipelines.records import finish
from pipelines.report import images, render
from pipelines.report.bands import RESAMPLES, bands_of
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
        self.pieces: list[str] = []
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
        self.pieces.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.pieces).split())


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
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pipelines.report.results.RESAMPLES", 40)  # the figures are those of any number
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
    for wanted in ("truncated", "Copy it again.", "59.6", "19.0", "3.2%", "encoder-bound",
                   "descriptors", "10 slides of 5 patients", "abmil", "59.6 tiles per second"):  # fmt: skip
        assert wanted in words, wanted


def test_the_page_needs_nothing_from_outside(job: Path) -> None:
    page = Page(render(job))
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")]
    for _, attrs in page.tags:
        for name in ("src", "href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
        assert not [name for name in attrs if name.startswith("on")]
    assert b"url(" not in render(job)


def the_one_script(page: bytes) -> str:
    """Return the text of the page's only script, which the page's own policy must allow by its hash."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page.decode(), re.DOTALL | re.IGNORECASE)
    assert len(scripts) == len([tag for tag, _ in Page(page).tags if tag == "script"]) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for tag, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy
    return scripts[0]


def test_the_only_script_is_ours_and_the_page_runs_no_other(job: Path) -> None:
    script = the_one_script(render(job))
    assert script == (Path(report.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert not re.search("innerHTML|outerHTML|eval|fetch|XMLHttp|import|document.write", script)


def test_pictures_inside_the_page_are_whole(job: Path) -> None:
    sources = [attrs["src"] for tag, attrs in Page(render(job)).tags if tag == "img"]
    assert len(sources) == 3, "the wrong one's heatmap and tiles, and the contact sheet"
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
    assert the_one_script(page) == the_one_script(render(job.parent))
    assert "49" not in re.findall(r"alert\(1\)[^<]{0,40}", page.decode())[0]
    assert HOSTILE in Page(page).words


def test_an_empty_folder_says_what_is_absent(tmp_path: Path) -> None:
    words = Page(render(tmp_path)).words
    assert "No slides are listed" in words
    assert "no model was trained" in words
    assert "No rates were recorded" in words


def test_a_job_after_extract_alone_renders(job: Path) -> None:
    for name in ("models", "predictions", "heatmaps", "truth"):
        shutil.rmtree(job / name)
    words = Page(render(job)).words
    assert "The job has features only" in words
    assert "predicted" not in [step.name for step in funnel(read_job(job))]


def test_predictions_without_a_model_folder_render(job: Path) -> None:
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


def trained(job: JobFolder, weights: bytes) -> str | None:
    for name, data in {"config.json": b'{"classes": ["negative", "positive"]}', "model.safetensors": weights}.items():
        finish(job, job.model("abmil") / name, data, {})
    return digest_now(job, "abmil")


def test_explanations_of_a_model_that_had_the_name_before_are_not_shown(job: Path) -> None:
    folder, where = JobFolder(job), job / "heatmaps/abmil"
    png, digest = (where / "S1.png").read_bytes(), trained(folder, b"old")
    for name in ("S0", "S1"):
        finish(folder, where / f"{name}.png", png, {"model": digest})
    put_table(where / "methods.csv", [{"rank": 1, "method": "lrp", "class": "positive", "model_sha256": digest}])
    put_table(where / "concepts.csv", [{"concept": "brown glands", "class": "positive", "model_sha256": digest}])
    (before,) = read_job(job).models
    assert (set(before.heatmaps), len(before.explained), before.older) == ({"S0", "S1"}, 1, [])
    page = Page(render(job)).words
    assert "What the explanations are worth, for positive" in page
    assert "brown glands" in page
    finish(folder, where / "S0.png", png, {"model": trained(folder, b"new")})
    (after,) = read_job(job).models
    assert (set(after.heatmaps), set(after.top), after.explained) == ({"S0"}, set(), [])
    page = Page(render(job)).words
    assert "heatmaps of 1 slide, what the methods are worth, concepts" in page
    assert "brown glands" not in page


def test_below_each_picture_stands_for_which_class_it_speaks(job: Path) -> None:
    """S0 is shown as drawn; of S1 no record tells, and nothing is made up."""
    folder, where = JobFolder(job), job / "heatmaps/abmil"
    png = (where / "S1.png").read_bytes()
    finish(folder, where / "S0.png", png, {}, {"methods": ["integrated_gradients", "lrp"], "target": "negative"})
    assert Page(render(job)).words.count("Picture: integrated gradients for negative") == 1


@pytest.mark.parametrize("width", [420, 1000])
def test_a_window_is_never_left_sideways(job: Path, width: int) -> None:
    """Long names, ten classes, many columns: what is too wide for the window is moved in a box of its own."""
    name = "a_name_without_any_space_" * 5
    classes = [f"class_{k}" for k in range(10)]
    row = {"slide_id": name, "case_id": name, "split": "test", "label": "class_1", "pred": "class_2", "n_tiles": 4}
    put_table(job / "predictions/abmil/slides.csv", [{**row, **{f"p_{one}": 0.1 for one in classes}}])
    put(job / "models/abmil/config.json", json.dumps({"classes": classes}))
    put_table(job / "slides.csv", [{**slide_rows()[-1], "slide_id": name, "cause": name, "mend": name}])
    put(job / "report.html", render(job))
    with browser() as page:
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        page.get((job / "report.html").as_uri())
        sizes = "const it = document.scrollingElement; return [window.innerWidth, it.clientWidth, it.scrollWidth]"
        seen, inside, whole = page.execute_script(sizes)
        assert (seen, whole) == (width, inside)
        boxes = "return Array.from(document.querySelectorAll('.wide')).some((one) => one.scrollWidth > one.clientWidth)"
        assert page.execute_script(boxes)  # it was not for want of something wide


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
    """Pictures of noise are the largest there can be: their budget holds, and every slide keeps its row."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    noise.save(job / "contours/S0.jpg", "JPEG", quality=95)
    (job / "contours/S1.jpg").unlink()
    for k in range(1, 2000):
        (job / f"contours/S{k}.jpg").symlink_to("S0.jpg")
    rows = [{**dict.fromkeys(slide_rows()[0], ""), **slide_rows()[0], "slide_id": f"S{k}"} for k in range(2000)]
    put_table(job / "slides.csv", rows)
    put_table(job / "predictions/abmil/slides.csv", held_out(2000))
    page = render(job)
    assert len(page) < 10_000_000
    words = Page(page).words
    assert "2000 of 2000 slides, those with a remark" in words
    assert set(re.findall(r"<td>(S\d+)</td>", page.decode())) >= {f"S{k}" for k in range(2000)}
    assert page.count(b"data-paged=") >= 3
    monkeypatch.setattr("pipelines.report.images.MOST_BYTES", 100_000)
    small = render(job)
    assert "more pictures were left out" in Page(small).words
    assert len(small) < len(page) / 2


def test_pictures_take_no_more_than_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_BYTES", 1_000_000)
    gallery = images.Gallery(0.2)
    made = [gallery.add(tmp_path / "a.png", width=200) for _ in range(60)]
    kept = [picture for picture in made if picture is not None]
    one = len(base64.b64decode(kept[0].uri.split(",")[1]))
    assert 200_000 <= gallery.bytes == one * len(kept) < 200_000 + one
    assert gallery.left_out == 60 - len(kept) > 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_real_browser_pages_the_tables(job: Path) -> None:
    """The policy lets our script run, and it shows 25 of 300 rows."""
    put_table(job / "predictions/abmil/slides.csv", held_out(300))
    put(job / "report.html", render(job))
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
             (job / "report.html").as_uri()],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    table = done.stdout[done.stdout.index("<h3>Predictions") :]
    rows = re.findall(r"<tr([^>]*)><td>S\d+</td>", table[: table.index("</table>")])
    assert len(rows) == 300
    assert len([row for row in rows if "hidden" not in row]) == 25
    assert "1–25 of 300" in table


# --- results --------------------------------------------------------------------------------------------


def held_out(n: int, **columns: str) -> list[dict[str, object]]:
    """Predictions of test slides, two of each patient, somewhat right."""
    rng = np.random.default_rng(1)
    rows = []
    for k in range(n):
        label = ("negative", "positive")[int(rng.random() < 0.5)]
        p = float(np.clip(rng.normal(0.35 + 0.3 * (label == "positive"), 0.25), 0.001, 0.999))
        pred = "positive" if p >= 0.5 else "negative"
        row = {**predictions()[0], "slide_id": f"S{k}", "case_id": f"C{k // 2}", "label": label, "pred": pred}
        rows.append({**row, "p_negative": 1 - p, "p_positive": p, "split": "test", **columns})
    return rows


def cells(page: bytes, heading: str) -> list[str]:
    """Return the text of the cells of the first table after a heading."""
    text = page.decode()
    table = text[text.index(heading) :]
    table = table[table.index("<tbody") : table.index("</tbody>")]
    return [html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", table)]


def test_figures_are_those_of_scikit_learn_on_the_held_out_rows(job: Path) -> None:
    from sklearn import metrics

    rows = held_out(60)
    put_table(job / "predictions/abmil/slides.csv", [*rows, *predictions()[2:]])  # the last one is a training slide
    page = render(job)
    y, p = [row["label"] == "positive" for row in rows], [float(row["p_positive"]) for row in rows]
    told = cells(page, "60 slides of 30 patients")
    found = dict(zip(told[::3], told[1::3], strict=True))
    assert found["AUC"] == f"{metrics.roc_auc_score(y, p):.3f}"
    assert found["average precision"] == f"{metrics.average_precision_score(y, p):.3f}"
    assert found["accuracy"] == f"{metrics.accuracy_score(y, [v >= 0.5 for v in p]):.3f}"
    assert found["Brier score"] == f"{metrics.brier_score_loss(y, p):.3f}"
    assert all(re.fullmatch(r"0\.\d{3} to [01]\.\d{3}", ends) for ends in told[2::3])
    assert cells(page, "True class (rows)") == [
        str(n) for n in metrics.confusion_matrix(y, [v >= 0.5 for v in p]).ravel()
    ]
    for title in ("ROC curve", "Precision and recall", "Calibration"):
        assert f'aria-label="{title}"' in page.decode()
    assert page.count(b"<polygon") == 2, "bands of two curves"


def test_bands_hold_the_curve_and_are_those_of_a_plain_bootstrap() -> None:
    """The oracle goes through thresholds one by one."""
    from mil.tasks import Classification

    rng = np.random.default_rng(0)
    y = np.repeat(rng.random(40) < 0.5, 2)
    p = np.clip(rng.normal(0.4 + 0.25 * y, 0.2), 0, 1)
    found = bands_of(
        Classification(("n", "p")), y[:, None] * 1.0, np.stack([1 - p, p], 1), [f"{k // 2:02d}" for k in range(80)]
    )
    x = found["roc", "p"].x
    dice, seen = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = np.concatenate([[2 * k, 2 * k + 1] for k in dice.integers(40, size=40)])
        points = [(np.mean(p[rows][~y[rows]] >= t), np.mean(p[rows][y[rows]] >= t)) for t in [2, *p[rows]]]
        seen.append([max(tpr for fpr, tpr in points if fpr <= place + 1e-12) for place in x])
    low, high = np.quantile(seen, (0.025, 0.975), axis=0)
    assert np.allclose(found["roc", "p"].low, low)
    assert np.allclose(found["roc", "p"].high, high)
    assert set(found) == {("roc", "p"), ("precision_recall", "p")}


def test_folds_and_subgroups_have_figures_of_their_own(job: Path) -> None:
    rows = [{**row, "fold": f"r0f{k % 2}"} for k, row in enumerate(held_out(40))]
    put_table(job / "predictions/abmil/folds.csv", rows)
    (job / "predictions/abmil/slides.csv").unlink()
    manifest = [
        {"slide_id": row["slide_id"], "path": "x.svs", "site": "AB"[k < 15], "name": k} for k, row in enumerate(rows)
    ]
    put_table(job / "manifest.csv", manifest)
    page = render(job)
    assert cells(page, "Per fold")[0] == "AUC"
    groups = cells(page, "Per subgroup")
    assert [groups[k] for k in (0, 1, 7, 8)] == ["site: A", "25", "site: B", "15"]
    assert not any("name" in cell for cell in groups), "a column that may tell of people"
    assert "every slide by the model of its fold" in Page(page).words


def test_what_evaluate_found_is_told_unless_it_speaks_of_other_predictions(job: Path) -> None:
    from mil.evaluation import evaluate_task
    from mil.tasks import Classification
    from pipelines import evaluating

    rows = held_out(40)
    put_table(job / "predictions/abmil/slides.csv", rows)
    task = Classification(("negative", "positive"))
    read = [{key: str(value) for key, value in row.items()} for row in rows]
    score = evaluate_task(
        task, evaluating.targets(task, read), evaluating.answers(task, read), [row["case_id"] for row in read],
        groups={"ward": ["east" if k % 2 else "west" for k in range(40)]},
    )  # fmt: skip
    leak = {"slides": 40, "patients_on_two_sides": ["C7"], "suspicions": []}
    put(job / "predictions/abmil/evaluation.json", json.dumps({"score": score, "leakage": leak}))
    words = Page(render(job)).words
    assert "LEAK: patient C7 is on two sides" in words
    assert "ward: east" in words
    put(job / "predictions/abmil/evaluation.json", json.dumps({"score": score, "leakage": {"slides": [HOSTILE]}}))
    assert "evaluation.json of abmil: could not be read" in Page(render(job)).words
    put(job / "predictions/abmil/evaluation.json", json.dumps({"score": score, "leakage": leak}))
    put_table(job / "predictions/abmil/slides.csv", held_out(38))
    words = Page(render(job)).words
    assert "C7 is on two sides" not in words
    assert "run slidemil evaluate again" in words


def test_figures_stored_with_a_model_stand_in_where_no_row_is_left(job: Path) -> None:
    (job / "predictions/abmil/slides.csv").unlink()
    words = Page(render(job)).words
    for wanted in ("0.876", "0.600 to 0.950", "as stored with the model"):
        assert wanted in words


def test_a_label_that_is_no_class_and_a_torn_table_end_no_report(job: Path) -> None:
    rows = held_out(30)
    rows[3]["label"] = "neither"
    put_table(job / "predictions/abmil/slides.csv", rows)
    page = render(job)
    assert "29 slides of 15 patients" in Page(page).words
    assert b"<polygon" in page
    put(job / "predictions/abmil/slides.csv", "slide_id,label\nS1,positive\n")
    assert "no figures" in Page(render(job)).words


def test_a_wrong_number_is_no_wrong_class(job: Path) -> None:
    spec = {"kind": "regression", "name": "age"}
    config = {"classes": ["age"], "task": "regression", "task_spec": spec, "head": {"name": "abmil"}}
    put(job / "models/abmil/config.json", json.dumps(config))
    rest = {"n_tiles": 4, "split": "test", "warning": "", "fold": ""}
    said = [k + (3 if k == 4 else 0.5) for k in range(12)]
    rows = [
        {"slide_id": f"S{k}", "case_id": f"C{k}", "label": k, "pred": v, "age": v, **rest} for k, v in enumerate(said)
    ]
    put_table(job / "predictions/abmil/slides.csv", rows)
    page = render(job).decode()
    assert "wrong-word" not in page.split("</style>")[1]
    assert "the truth is 4, the answer 7" in page
    assert page.index("<b>S4</b>") < page.index("<b>S0</b>")
    assert 'aria-label="Answer against truth"' in page


def test_the_surest_error_is_shown_first_with_its_tiles(job: Path) -> None:
    rows = held_out(40)
    put_table(job / "predictions/abmil/slides.csv", rows)
    wrong = [row for row in rows if row["label"] != row["pred"]]
    surest = max(wrong, key=lambda row: float(row[f"p_{row['pred']}"]))["slide_id"]
    for name in {row["slide_id"] for row in wrong} - {"S1"}:
        shutil.copy(job / "heatmaps/abmil/S1.png", job / f"heatmaps/abmil/{name}.png")
        put(job / f"heatmaps/abmil/top/{name}.jpg", jpeg())
        put(job / f"heatmaps/abmil/gradcam_tiles/{name}.jpg", jpeg())
    page = render(job).decode()
    part = page[page.index("Errors worth looking at") :]
    part = part[: part.index("Right, but least sure")]
    assert f"{len(wrong)} of {len(wrong)} wrong answers on 40 held-out slides" in part
    assert re.findall(r"<figcaption><b>(S\d+)", part)[0] == surest
    assert part.index(f'alt="heatmap of {surest}"') < part.index(f'alt="Grad-CAM of the top tiles of {surest}"')


def test_the_ledger_names_the_licence_of_each_encoder(job: Path) -> None:
    for name, encoder in {
        "abmil": {
            "id": "uni_v1",
            "weights": "MahmoodLab/UNI",
            "weights_sha256": "ab" * 32,
            "licence": "CC-BY-NC-ND-4.0",
        },
        "b": {"id": "resnet18", "weights": "random (seed 0)", "weights_sha256": "cd" * 32, "licence": None},
        "c": {"id": "homemade", "weights": "mine.safetensors", "weights_sha256": "ef" * 32, "licence": None},
    }.items():
        put(job / f"models/{name}/config.json", json.dumps({"classes": ["a", "b"], "encoder": encoder}))
    told = cells(render(job), 'id="licences"')
    rows = {row[0][: len("homemade")]: row for row in (told[k : k + 6] for k in range(0, len(told), 6))}
    assert rows["uni_v1UN"][2:4] == ["CC-BY-NC-ND-4.0", "not permitted"]
    assert "huggingface.co/MahmoodLab/UNI" in rows["uni_v1UN"][4]
    assert rows["resnet18"][2:4] == ["none needed", "permitted"]
    assert rows["homemade"][2:4] == ["not stated", "read the terms"]


def test_members_of_an_ensemble_stand_behind_it(job: Path) -> None:
    put(job / "models/cv/ensemble.json", json.dumps({"members": ["abmil_r0f0", "../../evil"]}))
    put(job / "models/abmil_r0f0/config.json", json.dumps({"classes": ["negative", "positive"], "threshold": 0.25}))
    models = {model.name: model for model in read_job(job).models}
    assert set(models) == {"abmil", "cv"}
    assert models["cv"].members == ["abmil_r0f0"]
    assert models["cv"].threshold == 0.25


def test_the_demo_says_that_all_slides_share_one_picture(job: Path) -> None:
    put(job / "demo.json", json.dumps({"slide_auc": 1, "localization_auc": 0.9876, "note": "one source image"}))
    words = Page(render(job)).words
    assert "This is the demo. one source image" in words
    assert "0.988" in words
