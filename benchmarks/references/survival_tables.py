"""Survival: our partial likelihood and C against lifelines, and C of people that the model has not seen.

python benchmarks/references/survival_tables.py [--full] [--quick]

Two tables: Rossi's 432 convicts (from lifelines, in its own environment: `make bench-env`), and 455 patients of
TCGA-LUAD. Of these the table tells time, death and the barcode, so the covariates are the number of slides and the
hospitals where 5 patients or more died (of one without a death no finite coefficient is the best). Each is fitted by
minimizing `mil.tasks.survival.cox_loss` (float64, L-BFGS; Efron) and held against lifelines' Newton steps; the interval
of C resamples people. Then `mil.train` with the task `Cox` on bags of one row, 5 folds: C of held-out people, mean of
the folds, for risks of different models are on different scales. Hospital and number of slides ought not to foretell
death: what they reach, a model could reach that knows the hospital and has looked at no tile.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _folds import side
from _house import SHARED, Figures, reference, say
from _turns import AbsentError, Worker
from numpy.typing import NDArray

import mil
from mil.folds import k_folds
from mil.metrics import bootstrap_interval
from mil.survival import concordance
from mil.tasks import Cox
from mil.tasks.survival import cox_loss

GOALS = {
    f"{table}_{what}": ("<=", 1e-4)
    for table in ("rossi", "luad")
    for what in ("log_likelihood_error", "c_error", "beta_error")
}
SETTINGS: dict[str, Any] = {
    "head": "mean",
    "epochs": 60,
    "patience": 15,
    "lr": 2e-3,
    "batch_size": 32,
    "head_options": {"hidden": 16},
}
LEAST = 5  # deaths in a hospital that gets a column of its own
Array = NDArray[np.float64]


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    figures: Figures = {}
    tables: dict[str, Callable[[], tuple[Array, Array, Array, list[str]]]] = {"luad": luad}
    how: dict[str, Any] = {"lacking": set(GOALS), "absent": {"lifelines": "left out of the quick round"}}
    peer = None
    if not quick:
        try:
            peer = Worker("survival", "references/_lifelines_worker.py")
            how = {"versions": peer.ask(do="versions")}
            tables = {"rossi": lambda: rossi(peer), "luad": luad}
        except AbsentError as error:
            how["absent"] = {"lifelines": str(error)}
    for name, table in tables.items():
        x, time, event, columns = table()
        ours = fit(x, time, event)
        say(table=name, people=len(x), events=int(event.sum()), columns=columns, **ours)
        figures |= {f"{name}_log_likelihood": ours["log_likelihood"], f"{name}_c": ours["c"]}
        if peer is not None:
            theirs = peer.ask(do="fit", x=x.tolist(), time=time.tolist(), event=event.tolist())
            figures |= errors(name, ours, theirs)
        figures |= held_out(name, x, time, event, repeats=5 if full else 1, epochs=2 if quick else 60)
    if peer is not None:
        peer.close()
    return figures, how | {"settings": SETTINGS}


def rossi(peer: Worker) -> tuple[Array, Array, Array, list[str]]:
    """Covariates, weeks, arrest, names."""
    found = peer.ask(do="rossi")
    return np.array(found["x"]), np.array(found["time"], float), np.array(found["event"], float), found["columns"]


def luad() -> tuple[Array, Array, Array, list[str]]:
    """One row per patient: number of slides and hospital, months, death, names."""
    rows = csv.DictReader((SHARED / "data/mil/labels/tcga_luad_survival.csv").read_text().splitlines())
    patients: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        patients.setdefault(row["patient_id"], []).append(row)
    site = [name.split("-")[1] for name in patients]
    of = [mine[0] for mine in patients.values()]
    deaths = Counter(name for name, row in zip(site, of, strict=True) if row["event"] == "1")
    large = sorted(name for name, n in deaths.items() if n >= LEAST)
    x = [
        [float(len(mine)), *(float(s == one) for one in large)] for s, mine in zip(site, patients.values(), strict=True)
    ]
    time, event = (np.array([float(row[key]) for row in of]) for key in ("months", "event"))
    return np.array(x), time, event, ["slides", *(f"site_{name}" for name in large)]


def fit(x: Array, time: Array, event: Array) -> dict[str, Any]:
    """Cox regression by our loss: coefficients, log-likelihood, and C with its interval."""
    middle, spread = x.mean(axis=0), x.std(axis=0)
    rows, t, d = (torch.as_tensor(values) for values in ((x - middle) / spread, time, event))
    beta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS(
        [beta], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        steps.zero_grad()
        value = cox_loss(rows @ beta, t, d)
        value.backward()
        return value

    steps.step(loss)
    risk = (rows @ beta).detach().numpy()
    return {
        "beta": (beta.detach().numpy() / spread).tolist(),
        "log_likelihood": -float(loss().detach()) * float(event.sum()),
        "c": concordance(time, event == 1, risk),
        "c_interval": interval(time, event, risk, np.arange(len(time))),
    }


def errors(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Figures:
    """Largest differences of what both have fitted."""
    say(table=name, lifelines=theirs)
    gaps = {key: float(np.max(np.abs(np.subtract(ours[key], theirs[key])))) for key in ("log_likelihood", "c", "beta")}
    return {f"{name}_{key}_error": gap for key, gap in gaps.items()}


def held_out(name: str, x: Array, time: Array, event: Array, *, repeats: int, epochs: int) -> Figures:
    """C of people in folds that the trained model has not seen; pairs are made inside a fold."""
    people = tuple(f"{name}-{i}" for i in range(len(x)))
    bags = mil.BagSet(
        [mil.Bag.from_list([row[None].astype(np.float32)], ids=[who]) for row, who in zip(x, people, strict=True)],
        np.column_stack([time, event]),
        people,
    )
    rows, risks, folds = [], [], []
    for number, split in enumerate(k_folds(people, event.astype(int), k=5, repeats=repeats)):
        settings = mil.TrainSettings(**SETTINGS | {"seed": number, "epochs": epochs})
        model = mil.train(side(bags, split.train), side(bags, split.validation), Cox(), settings)
        rows.append(split.test)
        risks.append([mil.predict(model, bags.bags[i])[0].answer[0] for i in split.test])
        folds.append(np.full(len(split.test), number))
    who, risk, fold = (np.concatenate(parts) for parts in (rows, risks, folds))
    c = in_folds(np.column_stack([time[who], event[who]]), np.column_stack([risk, fold]))
    say(table=name, held_out_c=c, interval=interval(time[who], event[who], risk, who, fold), folds=5, repeats=repeats)
    return {f"{name}_held_out_c": c}


def in_folds(labels: Array, said: Array) -> float:
    """Mean over the folds of C; labels are time and event, `said` is risk and fold."""
    each = [
        concordance(labels[mine, 0], labels[mine, 1] == 1, said[mine, 0])
        for mine in (said[:, 1] == number for number in np.unique(said[:, 1]))
    ]
    return float(np.nanmean(each))


def interval(time: Array, event: Array, risk: Array, who: NDArray[np.int64], fold: Any = 0) -> list[float]:
    """95 % of resamples of people."""
    said = np.column_stack([risk, np.broadcast_to(fold, len(risk))])
    found = bootstrap_interval(np.column_stack([time, event]), said, [str(i) for i in who], in_folds, n=500)
    return [found.low, found.high]


if __name__ == "__main__":
    reference("survival_tables", measure, GOALS, __doc__)
