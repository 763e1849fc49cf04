"""lifelines in a process of its own (see `_turns.Worker`).

{"do": "rossi"} → {"columns": [...], "x": [[...]], "time": [...], "event": [...]}
{"do": "fit", "x": [[...]], "time": [...], "event": [...]} → {"beta": [...], "log_likelihood": …, "c": …}
{"do": "versions"} → {"lifelines": "0.30.3"}
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.datasets import load_rossi


def rossi() -> dict[str, Any]:
    """432 convicts in the year after their release. Rossi, Berk, Lenihan, "Money, Work, and Crime", 1980."""
    table = load_rossi()
    columns = [name for name in table.columns if name not in ("week", "arrest")]
    x, time, event = table[columns], table["week"], table["arrest"]
    return {"columns": columns, "x": x.to_numpy(float).tolist(), "time": time.tolist(), "event": event.tolist()}


def fit(x: list[list[float]], time: list[float], event: list[float]) -> dict[str, Any]:
    """Cox regression without penalty; ties by Efron's method, which is the only one that lifelines has."""
    table = pd.DataFrame(np.asarray(x), columns=[f"x{i}" for i in range(len(x[0]))])
    table["time"], table["event"] = time, event
    fitted = CoxPHFitter().fit(table, "time", "event", fit_options={"precision": 1e-10})
    return {
        "beta": fitted.params_.tolist(),
        "log_likelihood": float(fitted.log_likelihood_),
        "c": float(fitted.concordance_index_),
    }


def main() -> None:
    for command in map(json.loads, sys.stdin):
        do = command.pop("do")
        try:
            answer = {"rossi": rossi, "fit": fit, "versions": lambda: {"lifelines": version("lifelines")}}[do](
                **command
            )
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
