"""The README.md of a model folder: what the model is, was trained on, and must not be used for."""

from __future__ import annotations

from typing import Any


def model_card(config: dict[str, Any]) -> str:
    """Write the model card from the config; the same config gives the same text."""
    head, training = config["head"], config["training"]
    classes = ", ".join(f"`{name}`" for name in config["classes"])
    return "\n".join(
        [
            "---",
            "library_name: slidemil",
            "tags: [pathology, whole-slide-image, multiple-instance-learning]",
            "---",
            "",
            f"# {head['name']} for {' / '.join(config['classes'])}",
            "",
            f"A multiple-instance head that reads the tile features of a slide and gives one of {classes}.",
            "",
            "## Input",
            "",
            *_input(config),
            "",
            "## Training data and choice",
            "",
            *_data(training),
            "",
            "## Decision",
            "",
            _decision(config),
            "",
            "## Intended use and limits",
            "",
            "For research. Not a medical device: no decision about a patient may rest on it.",
            "It holds for slides like those it was trained on (organ, stain, scanner, laboratory); elsewhere it has to",
            "be tested first. Attention shows where the model looked; it is not evidence for the prediction.",
            "Figures on held-out slides, where there are any, stand in `metrics.json` beside this file.",
            "",
            "## Files",
            "",
            "`config.json` (architecture, classes, encoder passport, history), `model.safetensors` (weights only).",
            "Load with `mil.load_model(folder)`; nothing in the folder is executed.",
            "",
        ]
    )


def _input(config: dict[str, Any]) -> list[str]:
    """Lines on encoder and tiles."""
    encoder, tile = config.get("encoder"), config.get("tile")
    lines = [f"Features of width {config['head']['in_dim']}, one row per tile."]
    if encoder:
        lines.append(f"Encoder: `{encoder.get('id')}`, weights SHA-256 `{encoder.get('weights_sha256')}`.")
    if tile:
        lines.append(f"Tiles: {tile.get('size')} px at {tile.get('mpp')} µm/px.")
    return lines if encoder else [*lines, "The encoder was not recorded."]


def _data(training: dict[str, Any]) -> list[str]:
    """Lines on slides, patients and the chosen epoch."""
    slides, patients = training["slides"], training["patients"]
    rows = [
        f"| {name} | {count['train']} | {count['validation']} |" for name, count in training["slides_per_class"].items()
    ]
    return [
        f"{slides['train']} slides of {patients['train']} patients for training, {slides['validation']} slides of "
        f"{patients['validation']} other patients for early stopping and the threshold.",
        "",
        "| class | training slides | validation slides |",
        "|---|---|---|",
        *rows,
        "",
        f"Weights of epoch {training['best_epoch']} of {len(training['history'])}, the lowest validation loss.",
        f"Seed {training['settings']['seed']}.",
    ]


def _decision(config: dict[str, Any]) -> str:
    """The line on how a class is chosen."""
    if config["threshold"] is None:
        return "The class with the highest probability."
    return (
        f"The positive class is `{config['classes'][1]}`: it is given when its probability is at least "
        f"{config['threshold']:.6g} ({config['threshold_rule']}), else `{config['classes'][0]}`."
    )
