"""Built-in references to normalize to: numbers measured on an image that anybody can get.

Each holds what our own fit gives for every method on the named file; a test measures it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .macenko import StainMatrix
from .reinhard import LabStatistics


@dataclass(frozen=True)
class Reference:
    """One reference image, as numbers.

    Attributes:
        source: which file was measured.
        sha256: hash of that file.
        macenko: its two stains.
        vahadane: its two stains by that method.
        reinhard: its colours.
    """

    source: str
    sha256: str
    macenko: StainMatrix
    vahadane: StainMatrix
    reinhard: LabStatistics

    def measure(self, method: str) -> StainMatrix | LabStatistics:
        """Return what belongs to a method."""
        found: StainMatrix | LabStatistics = getattr(self, method)
        return found


DEFAULT_REFERENCE: Final = "tiatoolbox-target"
REFERENCES: Final = {
    "tiatoolbox-target": Reference(
        source="TissueImageAnalytics/tiatoolbox, tiatoolbox/data/target_image.png (BSD-3-Clause), H&E",
        sha256="23c1e65fb65f2c5ba6aba2ad958181860e196b280a025f35e91296ba8ba51b6c",
        macenko=StainMatrix(
            vectors=((0.534538384, 0.750252378, 0.389088789), (0.082480698, 0.839313977, 0.537353685)),
            max_concentrations=(2.833868, 0.923540),
        ),
        vahadane=StainMatrix(
            vectors=((0.526341049, 0.753996242, 0.393007338), (0.186738843, 0.836321627, 0.515455858)),
            max_concentrations=(2.85233, 1.163401),
        ),
        reinhard=LabStatistics(
            mean=(48.813582, 32.220435, -14.181940),
            sd=(13.937800, 5.417716, 6.228263),
        ),
    ),
}
