"""torchmil with the same weights: equal to 1e-6 where it is right, and shown wrong where it is not.

python benchmarks/references/torchmil_agreement.py [--quick]

Its answers come from its own environment (`make bench-env`) and are kept, with weights and bags, in
`tests/mil/data/torchmil.json` (written anew by `--write`), which `tests/mil/test_torchmil.py` holds our heads to; the
quick round reads them from there. "wrong": how much its answer for a bag moves when only what is no part of the bag
changes: padding that the mask excludes, the other bag of the batch, or nothing at all; or how far it is from the
paper's formula. Ours may not move.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from _house import BENCHMARKS, Figures, reference, say
from _torchmil_cases import made, our_clam_loss, our_slips, ours
from _turns import AbsentError, Worker

KEPT = BENCHMARKS.parent / "tests/mil/data/torchmil.json"
GOALS = {"largest_difference": ("<=", 1e-6), "our_largest_slip": ("<=", 1e-6)}


def measure(*, quick: bool, full: bool) -> tuple[Figures, dict[str, Any]]:
    del full  # there is no more to it
    how: dict[str, Any] = {"answers": str(KEPT.relative_to(BENCHMARKS.parent))}
    given = json.loads(KEPT.read_text()) if KEPT.exists() else made()
    theirs = given
    if not quick:
        try:
            theirs, how = ask(given)
        except AbsentError as error:  # the kept answers are then held against, and the figures count as short
            how |= {"lacking": set(GOALS), "absent": {"torchmil": str(error)}}
    found = {name: value.numpy() for name, value in ours(given).items()}
    gaps = {name: float(np.abs(found[name] - np.array(value)).max()) for name, value in theirs["right"].items()}
    moved = {name: float(np.abs(np.subtract(*pair)).max()) for name, pair in theirs["wrong"].items()}
    slips = our_slips(given)
    slips["clam_loss_formula"] = abs(our_clam_loss(given) - theirs["wrong"]["clam_loss_formula"][1])
    say(difference=gaps)
    say(torchmil_moves=moved)
    say(**{f"torchmil_{key}": theirs[key] for key in ("empty_bag_is_finite", "clam_loss_of_sure_tiles")})
    say(ours_moves=slips)
    figures = {"largest_difference": max(gaps.values()), "our_largest_slip": max(slips.values())}
    return figures | {f"torchmil_{name}": value for name, value in moved.items()}, how


def ask(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask torchmil, and keep what it says where that is wanted."""
    peer = Worker("mil", "references/_torchmil_worker.py")
    versions = {"torchmil": peer.ask(do="versions")["torchmil"]}
    asked = {key: given[key] for key in ("weights", "bags", "noise")}
    theirs = peer.ask(do="answers", **asked)
    peer.close()
    if "--write" in sys.argv:
        KEPT.write_text(json.dumps({"torchmil": versions["torchmil"], **theirs, **asked}) + "\n")
    return theirs, {"versions": versions}


if __name__ == "__main__":
    reference("torchmil_agreement", measure, GOALS, __doc__)
