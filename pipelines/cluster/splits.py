"""Which large slides are being encoded in portions, and what became of these. No dask, no files."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Split:
    """One slide that several workers work on.

    Attributes:
        slide: its name.
        count: of its portions.
        out: numbers of the portions that have not come back for good.
        failed: whether a portion found that the slide cannot be made.
        lost: whether a process was lost on a portion.
    """

    slide: str
    count: int
    out: set[int] = field(default_factory=set)
    failed: bool = False
    lost: bool = False
    _tries: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """All portions are to be made."""
        self.out = set(range(self.count))

    def again(self, number: int, tries: int) -> bool:
        """Say whether a portion that came back undone is given out once more; else the slide is made without it."""
        self._tries[number] = self._tries.get(number, 0) + 1
        return not self.failed and not self.lost and self._tries[number] < tries


class Portion(str):
    """What a portion is called among the slides that wait.

    Attributes:
        slide: name of its slide.
        number: of the portion.
    """

    slide: str
    number: int

    def __new__(cls, slide: str, number: int) -> Portion:
        """Return the name of a portion; no slide has a line break in its own."""
        made = super().__new__(cls, f"{slide}\n{number}")
        made.slide, made.number = slide, number
        return made
