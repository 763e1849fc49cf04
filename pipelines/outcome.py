"""What a run over slides came to: printed, written to `slides.csv`, and turned into an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ExitCode
from .manifest import one_line
from .units import counted

if TYPE_CHECKING:
    from wsi import SlideError


@dataclass(frozen=True)
class Failure:
    """One slide that failed: what was found, and what helps."""

    slide: str
    cause: str
    mend: str

    @classmethod
    def of(cls, slide_id: str, error: SlideError) -> Failure:
        """Return an error of a slide as people read it: printable, and no longer than 300 signs in all."""
        name, what, mend = error.fitted()
        return cls(slide_id, f"{name}: {what}", mend)


@dataclass(frozen=True)
class Outcome:
    """The result of `run` and `extract`.

    Attributes:
        found: number of slides.
        done: slides finished by this run.
        skipped: slides that were finished already, by the same settings.
        failed: slides that failed, with cause and mend.
        outputs: files written, relative to the job folder.
        warnings: what the user should know.
        rates: per stage λ, W, L and wait.
        bottleneck: one sentence.
        text: lines for people, beside those about the slides.
        problem: why a step after the extraction could not be done.
        problem_code: the exit code it stands for.
        more: what else a verb has to say, e.g. metrics.
    """

    found: int
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[Failure, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]
    rates: Mapping[str, Mapping[str, Any]]
    bottleneck: str
    text: tuple[str, ...] = ()
    problem: str | None = None
    problem_code: ExitCode = ExitCode.DONE
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`done`, `partial` (some slides, or a later step, failed) or `failed` (all slides did)."""
        if not self.failed:
            return "partial" if self.problem else "done"
        return "partial" if len(self.failed) < self.found else "failed"

    @property
    def exit_code(self) -> ExitCode:
        """0 where everything is done, 3 where slides failed, else the code of the step that failed."""
        return ExitCode.SOME_FAILED if self.failed else self.problem_code

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "status": self.status,
            "slides": {
                "found": self.found,
                "done": len(self.done),
                "failed": len(self.failed),
                "skipped": len(self.skipped),
            },
            "failed": [asdict(failure) for failure in self.failed],
            "outputs": list(self.outputs),
            "warnings": list(self.warnings),
            "rates": dict(self.rates),
            "bottleneck": self.bottleneck,
            **({"problem": self.problem} if self.problem else {}),
            **self.more,
        }

    def lines(self) -> list[str]:
        """Return what people read: counts, then failures with their mend, then the rest."""
        found = counted(self.found, "slide")
        counts = f"{found}: {len(self.done)} done, {len(self.skipped)} were done, {len(self.failed)} failed"
        failed = [one_line(f"  failed  {f.slide}: {f.cause}. {f.mend}".rstrip()) for f in self.failed]
        pace = [self.bottleneck] if self.done else []
        stopped = [f"  stopped  {self.problem}"] if self.problem else []
        return [counts, *failed, *(f"  note    {text}" for text in self.warnings), *pace, *self.text, *stopped]


@dataclass(frozen=True)
class Said:
    """The result of a smaller verb.

    Attributes:
        text: lines for people.
        data: the object that `--json` prints.
        exit_code: what the shell is told.
    """

    text: tuple[str, ...]
    data: Mapping[str, Any]
    exit_code: ExitCode = ExitCode.DONE

    def lines(self) -> list[str]:
        """Return what people read."""
        return list(self.text)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return dict(self.data)
