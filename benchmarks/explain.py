"""Are explanations right, do they find what is there, and what do they cost?    python benchmarks/explain.py [--quick]

The demo's cohort, whose true regions are known, goes through the network that comes with slidemil (`--encoder resnet18
--weights random:0` names another): every method is drawn on the held-out positive slides, and compared as
`slidemil heatmap --method all --compare` does. Further: captum's Grad-CAM on the whole bag, sums that are known, memory
over calls and over tiles, and the heatmap of a slide of 10,000 tiles from its features, in CPU seconds of one thread
(`heatmap_command_s` is the command with the start of Python and torch).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from _explain import IG_HEADS, completeness, gradcam_against_captum, growth_of_calls, head_on, memory_of_gradcam, sums
from _summary import cpu_seconds, line, summary

from pipelines import stages
from pipelines.config import load_settings
from pipelines.demo import write_truth
from pipelines.demo_cohort import compose_cohort
from pipelines.files import open_h5
from pipelines.heatmap_stage import heatmap
from pipelines.jobfolder import JobFolder

GOALS = {
    "best_localization_auc": (">=", 0.95),
    "best_deletion_over_random": (">=", 2),
    "gradcam_from_captum": ("<=", 1e-6),
    "lrp_float32_from_logit": ("<=", 1e-6),
    "lrp_float64_from_logit": ("<=", 1e-12),
    "completeness_error": ("<=", 2e-4),
    "rollout_row_from_1": ("<=", 1e-6),
    "memory_100_calls": ("<=", 1.02),
    "gradcam_memory_8x_tiles": ("<=", 1.1),
    "heatmap_10000_tiles_s": ("<=", 5),
}
FULL = 100
"""Tiles in a row, and in a column, of the large slide."""
FAITHFUL = ("perturbation", "lrp", "gradcam")
"""Methods of which one has to find the region; attention is no evidence."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a tiny round, figures without meaning")
    options.add_argument("--encoder", default="slidemil-compact")
    options.add_argument("--weights", help="of the encoder; random:SEED, a file, local-dir:FOLDER")
    options.add_argument("--memory", type=int, help=argparse.SUPPRESS)  # a process that measures its own peak
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.memory:
        print(memory_of_gradcam("resnet18", chosen.memory))
        return
    quick = chosen.quick
    arch = "test_resnet" if quick else "resnet18"
    figures = gradcam_against_captum(arch, 4 if quick else 24)
    line(**figures)
    figures |= sums(100 if quick else 2000)
    figures["completeness_error"] = completeness(50, IG_HEADS[:1]) if quick else completeness(1000)
    figures["memory_100_calls"] = growth_of_calls(arch, 10 if quick else 100)
    line(**figures)
    with tempfile.TemporaryDirectory() as folder:
        encoder, weights = (arch, "random:0") if quick else (chosen.encoder, chosen.weights)
        figures |= cohort(Path(folder) / "cohort", encoder, weights, quick=quick)
        figures |= large(Path(folder) / "large", 6 if quick else FULL)
    if not quick:
        few, many = (measured_apart(n) for n in (96, 768))
        line(gradcam_mb={"96 tiles": few, "768 tiles": many})
        figures["gradcam_memory_8x_tiles"] = many / few
    how = {
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "encoder": f"{encoder} {weights or ''}".strip(),
        "cohort": "the demo's: all slides from one source image, 8 patients held out",
        "threads": 1,
    }
    summary("explain", {key: float(value) for key, value in figures.items()}, GOALS, how)


def cohort(folder: Path, encoder: str, weights: str | None, *, quick: bool) -> dict[str, float]:
    """Compare all methods on the held-out positive slides of the demo's cohort."""
    size: dict[str, Any] = {"patients": 3, "slides_per_patient": 2, "size": (1600, 1600)} if quick else {}
    made = compose_cohort(folder / "slides", **size)
    job = JobFolder(folder / "job")
    write_truth(job, made)
    options: dict[str, Any] = {"encoder": encoder, "weights": weights}
    if quick:
        options |= {"epochs": 1, "tile": 160, "processes": "0", "quality": False}
    settings = load_settings(options=options)
    began, cores = time.monotonic(), cpu_seconds()
    stages.extract([folder / "slides"], job.root, settings, quiet=True)
    stages.train(job.root, job.truth / "labels.csv", settings, quiet=True)
    line(step="features and model", seconds=time.monotonic() - began, core_seconds=cpu_seconds() - cores)
    wanted = [slide.slide_id for slide in made.slides if slide.split == "test" and slide.region]
    began, cores = time.monotonic(), cpu_seconds()
    told = heatmap(
        job.root,
        settings.train.head,
        methods=["lrp", "gradcam"] if quick else ["all"],
        slides=wanted,
        compare=True,
        quiet=True,
    )
    line(step="methods compared", seconds=time.monotonic() - began, core_seconds=cpu_seconds() - cores)
    rows = {row["method"]: row for row in told.data["comparison"]}
    for row in rows.values():
        line(**row)
    figures = {f"localization_{m}": row["localization_auc"] for m, row in rows.items() if row["localization_auc"]}
    steep = {f"deletion_{m}": row["deletion_ratio"] for m, row in rows.items() if row["deletion_ratio"]}
    figures |= steep
    known = [rows[m]["localization_auc"] for m in FAITHFUL if m in rows and rows[m]["localization_auc"]]
    if known and steep:
        figures |= {"best_localization_auc": max(known), "best_deletion_over_random": max(steep.values())}
    return figures


def large(folder: Path, across: int) -> dict[str, float]:
    """Draw the heatmap of a slide of `across`² tiles from features that are there, as a command of its own."""
    slide = folder / "slides" / "large.tif"
    slide.parent.mkdir(parents=True)
    write_slide(slide, across * 224)
    settings = load_settings(
        options={"encoder": "test_resnet", "weights": "random:0", "tile": 112, "quality": False, "min_tissue": 0.1}
    )
    job = JobFolder(folder / "job")
    told = stages.extract([slide.parent], job.root, settings, quiet=True)
    features = job.root / str(told.more["features"]) / "large.h5"
    model = write_model(folder / "model", features)
    cores = cpu_seconds()
    drawn = heatmap(job.root, str(model), quiet=True).data["drawn"]
    figures = {"heatmap_10000_tiles_s": cpu_seconds() - cores}
    assert drawn == 1, drawn
    with open_h5(features) as file:
        figures["heatmap_tiles"] = len(file["coords"])
    if across == FULL:
        figures["heatmap_command_s"] = command_seconds(job, model)
    line(**figures)
    return figures


def command_seconds(job: JobFolder, model: Path) -> float:
    """Return the core seconds of the same as a command, from the start of Python."""
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "heatmap",
        str(job.root),
        "-m",
        str(model),
        "-q",
        "--json",
        "--force",
    ]
    cores = cpu_seconds()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert json.loads(done.stdout)["drawn"] == 1, done.stdout
    return cpu_seconds() - cores


def write_slide(path: Path, side: int) -> None:
    """Write a slide full of tissue: one real-looking tile over and over, compressed once."""
    import tifffile

    rng = np.random.default_rng(0)
    tile = np.clip(rng.normal((150, 90, 160), 30, (256, 256, 3)), 0, 255).astype(np.uint8)
    rows = -(-side // 256)
    tifffile.imwrite(
        path,
        (tile for _ in range(rows * rows)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        resolution=(40000, 40000),  # 0.25 µm/px
        resolutionunit="CENTIMETER",
    )


def write_model(folder: Path, features: Path) -> Path:
    """Write a model of random weights that fits the features."""
    import safetensors.torch

    with open_h5(features) as file:
        passport, rows = json.loads(file.attrs["encoder_passport"]), file["features"][:1000].astype(np.float32)
    head = head_on(rows)
    folder.mkdir()
    config = {
        "format": "slidemil-model",
        "version": 1,
        "task": "classification",
        "head": {"name": head.name, "in_dim": head.in_dim, "classes": head.classes, "options": dict(head.options)},
        "classes": ["negative", "positive"],
        "threshold": 0.5,
        "encoder": passport,
    }
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(head.state_dict(), folder / "model.safetensors")
    return folder


def measured_apart(n: int) -> float:
    """Return the peak of memory that Grad-CAM of so many tiles takes, in MB."""
    done = subprocess.run([sys.executable, __file__, "--memory", str(n)], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
