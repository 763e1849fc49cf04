"""The README.md of a model folder: what the model is, was trained on, and must not be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .task_balance import conflict_of, spoken_conflict


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> str:
    """Write the model card from the config and, where there are any, its figures; the same gives the same text."""
    head, names = config["head"], config["classes"] or config["columns"]
    title = f"{head['name']} for {' / '.join(names)}"
    gives = f"one of {', '.join(f'`{name}`' for name in names)}" if config["classes"] else f"`{', '.join(names)}`"
    parts = {
        "Input": _input(config),
        "Training data": _data(config),
        "Splits and choice": _splits(config, metrics),
        "Figures": _figures(metrics),
        "Site and scanner": _sites(config, metrics),
        "Decision": [_decision(config)],
        "Intended use": _USE,
        "Limits": _limits(config),
        "Encoder passport": _passport(config),
        "Files": _FILES,
    }
    lines = [
        "---",
        "library_name: slidemil",
        "tags: [pathology, whole-slide-image, multiple-instance-learning]",
        "---",
        "",
        f"# {title}",
        "",
        f"A multiple-instance head (`{config['task']}`) that reads the tile features of a slide and gives {gives}.",
    ]
    for name, text in parts.items():
        lines += ["", f"## {name}", "", *text] if text else []
    return "\n".join([*lines, ""])


_USE = [
    "For research, on slides like those it was trained on: same organ, stain, scanner and laboratory, cut into the",
    "same tiles and read by the same encoder. Not a medical device: no decision about a patient may rest on it.",
]
_FILES = [
    "`config.json` (architecture, classes, encoder passport, history), `model.safetensors` (weights only),",
    "`metrics.json` and `cohort.json` (which slides it has seen, under hashes), `epochs.csv`, where `slidemil train`",
    "wrote them. Load with `mil.load_model(folder)`; nothing in the folder is executed.",
]


def _input(config: Mapping[str, Any]) -> list[str]:
    """Lines on encoder, tiles and clinical variables."""
    encoder, tile, clinical = config.get("encoder"), config.get("tile"), config.get("clinical")
    head = config["head"]
    built = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in head["options"].items())
    lines = [f"Features of width {head['in_dim']}, one row per tile. Head `{head['name']}`: {built}."]
    if encoder:
        weights = encoder.get("weights_sha256")
        lines.append(f"Encoder: `{encoder.get('id')}`, {f'weights SHA-256 `{weights}`' if weights else 'no weights'}.")
    else:
        lines.append("The encoder was not recorded.")
    if tile:
        lines.append(f"Tiles: {tile.get('size')} px at {tile.get('mpp')} µm/px.")
    if config.get("per_patient"):
        lines.append("One bag per patient: the tiles of all slides together.")
    if clinical:
        lines += [
            "",
            f"Clinical variables ({clinical['fusion'].replace('_', ' ')} fusion); any of them may be missing.",
            "",
        ]
        lines += ["| variable | as the training slides had it |", "|---|---|"]
        lines += [f"| `{one['name']}` | {_variable(one)} |" for one in clinical["variables"]]
    return lines


def _variable(one: Mapping[str, Any]) -> str:
    if one["categories"]:
        return ", ".join(f"`{name}`" for name in one["categories"])
    return f"mean {one['mean']:.4g}, standard deviation {one['spread']:.4g}"


def _data(config: Mapping[str, Any]) -> list[str]:
    """Lines on slides and patients."""
    training = config["training"]
    slides, patients = training["slides"], training["patients"]
    lines = [
        f"{slides['train']} slides of {patients['train']} patients for training, {slides['validation']} slides of "
        f"{patients['validation']} other patients for early stopping and the threshold."
    ]
    if config.get("target"):
        lines.append(f"The labels stood in `{config['target']}` of their table.")
    rows = [
        f"| {name} | {count['train']} | {count['validation']} |" for name, count in training["slides_per_class"].items()
    ]
    if rows:
        lines += ["", "| class | training slides | validation slides |", "|---|---|---|", *rows]
    return lines


def _splits(config: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> list[str]:
    """Lines on how patients were divided, and which epoch was kept."""
    training = config["training"]
    told = training["settings"]
    lines = ["All slides of a patient are on one side. Labels of held-out slides never reached the training."]
    sides = (metrics or {}).get("split")
    if sides:
        lines += ["", "| side | slides | patients |", "|---|---|---|"]
        lines += [f"| {name} | {count['slides']} | {count['patients']} |" for name, count in sides.items()]
        lines.append("")
    best, epochs = training["best_epoch"], len(training["history"])
    taught, conflict = config.get("taught_by"), conflict_of(training)
    if taught:
        lines.append(
            f"It learned from what {taught['members']} model(s) say of the training slides (share {taught['share']:g}, "
            f"temperature {taught['temperature']:g}) and from the labels. None of these has seen a held-out slide."
        )
    if conflict:
        lines.append(spoken_conflict(conflict))
    return [
        *lines,
        f"Weights of epoch {best} of {epochs}, the lowest validation loss. Seed {told['seed']}, learning rate "
        f"{told['lr']:g}, weight decay {told['weight_decay']:g}; all settings stand in `config.json`.",
    ]


def _figures(metrics: Mapping[str, Any] | None) -> list[str]:
    """Figures of the held-out slides."""
    test = (metrics or {}).get("test")
    if not test:
        return ["No patient was held out, or none is told here: nothing says how good the model is."]
    lines = []
    if "auc" in test:
        low, high = test["auc_interval"]
        lines.append(
            f"AUC {_shown(test['auc'])} ({_shown(low)} to {_shown(high)}), balanced accuracy "
            f"{_shown(test['balanced_accuracy'])}, on {test['n']} held-out slides of {test['n_patients']} patients."
        )
    for name, part in _parts(test.get("figures") or {}).items():
        lines.append(f"{name + ': ' if name else ''}{part['n']} held-out slides of {part['n_patients']} patients.")
        for figure, said in part["slides"].items():
            low, high = said["interval"]
            lines.append(f"- {figure.replace('_', ' ')} {_shown(said['value'])} ({_shown(low)} to {_shown(high)})")
    return [*lines, "", "Intervals of 95 % know of patients; they say nothing of other hospitals."]


def _parts(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"": figures} if "slides" in figures else figures


def _sites(config: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> list[str]:
    """Lines on what was kept out, and what a fresh probe still finds."""
    told = config["training"]["settings"]
    if told.get("adapt", "none") == "none":
        return []
    lines = [f"Kept out in training by `{told['adapt']}` (weight {told['adapt_weight']:g}), within the classes."]
    rows = [
        f"| `{column}` | {name.replace('_', ' ')} ({said['slides']}) | {said['before']['balanced_accuracy']:.2f} | "
        f"{said['after']['balanced_accuracy']:.2f} | {said['after']['chance']:.2f} |"
        for column, sets in ((metrics or {}).get("site_probe") or {}).items()
        for name, said in sets.items()
        if "reason" not in said
    ]
    head = ["", "| | slides | fresh probe before | after | chance |", "|---|---|---|---|---|"]
    return lines + (head + rows if rows else ["There were too few slides for a probe."])


def _decision(config: Mapping[str, Any]) -> str:
    """The line on how a class is chosen."""
    if not config["classes"]:
        return f"The answer is what stands in the columns {', '.join(f'`{name}`' for name in config['columns'])}."
    if config["threshold"] is None:
        return "The class with the highest probability."
    return (
        f"The positive class is `{config['classes'][1]}`: it is given when its probability is at least "
        f"{config['threshold']:.6g} ({config['threshold_rule']}), else `{config['classes'][0]}`."
    )


def _limits(config: Mapping[str, Any]) -> list[str]:
    """What it cannot do."""
    lines = [
        "Elsewhere than on slides like its own it has to be tested first. Attention shows where the model looked; it",
        "is not evidence for the prediction. Probabilities are those of a cohort with the classes' shares of the",
        "training slides (or equal shares, where classes were balanced): elsewhere they have to be calibrated anew.",
    ]
    patients = config["training"]["patients"]
    if patients["train"] < 100:
        lines.append(f"It has learned from {patients['train']} patients: another split may give another model.")
    if config.get("clinical"):
        lines.append("A category or a value that training has not met counts as missing.")
    return lines


def _passport(config: Mapping[str, Any]) -> list[str]:
    """The passport word for word: features of another one are refused."""
    encoder = config.get("encoder")
    if not encoder:
        return []
    text = json.dumps(encoder, indent=1, sort_keys=True, ensure_ascii=False)
    return ["`slidemil predict` refuses features that were made otherwise.", "", "```json", text, "```"]


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
