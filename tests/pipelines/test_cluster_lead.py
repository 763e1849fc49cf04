"""Who is to blame when a process is lost: told by the books of the tasks, with workers that follow a script.

The workers here are functions that write what real ones write; dask's part (to carry tasks) is played by a list. Runs
with real workers are in `test_cluster_runs`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from pipelines.cluster.connect import Connection
from pipelines.cluster.flight import DONE, FAILED, PORTION, Flight
from pipelines.cluster.lead import Lead, WorkerFault
from pipelines.cluster.spec import Remote
from pipelines.cluster.stage import _tell
from pipelines.cluster.task import Answer
from pipelines.cluster.workforce import Workforce
from pipelines.config import ExtractSettings
from pipelines.errors import EnvironmentFault
from pipelines.jobfolder import JobFolder
from pipelines.manifest import SlideEntry
from pipelines.outcome import Failure
from pipelines.progress import Quiet


class KilledWorker(Exception):
    """Called like dask's."""


@dataclass
class Future:
    value: Answer | None = None
    error: Exception | None = None
    released: bool = False

    @property
    def status(self) -> str:
        return "finished" if self.error is None else "error"

    def done(self) -> bool:
        return True

    def result(self):
        return self.value

    def exception(self):
        return self.error

    def release(self) -> None:
        self.released = True

    def cancel(self, **_) -> None:
        pass


@dataclass
class Crew:
    """Plays client and workers: each task is worked on at once, by its worker or any that may take it."""

    job: JobFolder
    poison: set[str] = field(default_factory=set)
    kills_worker: bool = False
    blind: set[str] = field(default_factory=set)
    together: int = 3
    workers: dict = field(default_factory=dict)
    begun: Counter = field(default_factory=Counter)
    done: Counter = field(default_factory=Counter)
    tasks: list = field(default_factory=list)
    futures: list = field(default_factory=list)
    status: str = "running"
    fault: tuple[str, str] = ("", "")
    idle: int = 0
    held: set[str] = field(default_factory=set)
    portions: Counter = field(default_factory=Counter)
    deadly: set[int] = field(default_factory=set)
    shy: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scheduler_comm = SimpleNamespace(comm=SimpleNamespace(closed=lambda: False))
        self.workers = self.workers or {f"w{n}": {"nthreads": 2, "host": f"h{n}", "resources": {}} for n in range(3)}

    def scheduler_info(self, n_workers: int):
        return {"workers": self.workers}

    def subscribe_topic(self, topic, handler) -> None:
        pass

    def run(self, *_, **__) -> None:
        pass

    def submit(self, function, task, *, workers=None, **_):
        address = (workers or sorted(self.workers))[0]
        self.tasks.append(([entry.slide_id for entry in task.entries], bool(workers and len(workers) == 1)))
        future = self._work(task, address)
        self.futures.append(future)
        return future

    def _work(self, task, address: str) -> Future:
        if self.fault[0]:
            return Future(Answer(task.id, fault=self.fault))
        if address in self.blind:
            return Future(Answer(task.id, address, trouble="it does not see /x"))
        if self.idle:
            self.idle -= 1
            return Future(Answer(task.id, address))
        flight = Flight(self.job.flight(task.run, task.id))
        if task.portion is not None:
            return self._portion(task, flight)
        waiting = [entry.slide_id for entry in task.entries]
        while waiting or flight.open:
            while waiting and len(flight.open) < self.together:
                name = waiting.pop(0)
                flight.begin(name)
                self.begun[name] += 1
                if name in self.poison:
                    if self.kills_worker:
                        del self.workers[address]
                        self.workers[f"{address}'"] = {"nthreads": 2, "host": address[1:], "resources": {}}
                        return Future(error=KilledWorker())
                    return Future(Answer(task.id, address, lost="SIGKILL"))
            name = flight.open[0]
            self.done[name] += 1
            flight.end(name, DONE)
        return Future(Answer(task.id, address, seconds=1.0))

    def _portion(self, task, flight) -> Future:
        (entry,), (number, count) = task.entries, task.portion
        assert entry.slide_id in self.held, "the client holds the claim meanwhile"
        self.portions[entry.slide_id, number, count] += 1
        flight.begin(entry.slide_id)
        if number in self.deadly:
            return Future(Answer(task.id, lost="SIGKILL"))
        if number in self.shy and self.portions[entry.slide_id, number, count] < 2:
            flight.withdraw()
            return Future(Answer(task.id, stopped=True))
        flight.end(entry.slide_id, FAILED if number in self.bad else PORTION, Failure("big", "is torn", ""))
        return Future(Answer(task.id, seconds=1.0))


@dataclass
class Seen:
    """What a run is to the client: where it lies, and what fails."""

    job: JobFolder
    run: SimpleNamespace
    progress: Quiet = field(default_factory=Quiet)
    force: bool = False
    failures: dict = field(default_factory=dict)
    passport: dict = field(default_factory=dict)
    beside: tuple = ()
    claims: SimpleNamespace | None = None

    def fail(self, entry, error) -> None:
        self.failures[entry.slide_id] = error


@pytest.fixture
def lead_of(tmp_path):
    """Return a lead over a crew, and slides."""

    def make(count: int = 20, **crew):
        job = JobFolder(tmp_path / "job")
        slides = []
        for number in range(count):
            path = tmp_path / f"s{number}.svs"
            path.write_bytes(bytes(number + 1))
            slides.append(SlideEntry(f"s{number}", path, f"s{number}"))
        team = Crew(job, **crew)
        seen = Seen(job, SimpleNamespace(name="run", log=lambda *_, **__: None))
        seen.claims = SimpleNamespace(take=lambda name: not team.held.add(name), release=team.held.discard)
        told: list[str] = []
        workforce = Workforce(Connection(team, Remote("tcp://x")), gpu=False, say=told.append)
        return Lead(workforce, seen, ExtractSettings(), offline=False), team, slides, told

    return make


@pytest.mark.parametrize("kills_worker", [False, True])
def test_a_poison_is_tried_twice_and_costs_nobody_else_anything(lead_of, kills_worker):
    lead, crew, slides, _ = lead_of(poison={"s7"}, kills_worker=kills_worker)
    lead(slides)
    assert crew.begun["s7"] == 2
    assert list(lead.extraction.failures) == ["s7"]
    assert "twice" in str(lead.extraction.failures["s7"])
    assert set(crew.done) == {entry.slide_id for entry in slides} - {"s7"}
    assert max(crew.done.values()) == 1
    assert all(future.released for future in crew.futures)
    assert "s7" in lead.lost
    assert crew.tasks[-1][1], "the last ones are alone on a worker"


def test_suspects_are_tried_alone_and_one_by_one_on_each_worker(lead_of):
    """Two poisons that are under way together with innocents: only the two fail."""
    lead, crew, slides, _ = lead_of(poison={"s19", "s17"}, together=4)
    lead(slides)
    assert set(lead.extraction.failures) == {"s19", "s17"}
    assert crew.begun["s19"] <= 2
    assert crew.begun["s17"] <= 2
    alone = [names for names, bound in crew.tasks if bound]
    assert all(len(names) == 1 for names in alone)
    assert max(crew.done.values()) == 1
    assert len(crew.done) == 18


def test_an_earlier_runs_suspect_goes_last_and_has_one_try(lead_of):
    lead, crew, slides, _ = lead_of(poison={"s3"})
    lead.lost["s3"] = ["an earlier run was lost on it"]
    lead(slides)
    assert crew.begun["s3"] == 1
    assert list(lead.extraction.failures) == ["s3"]
    assert crew.tasks[-1] == (["s3"], True)


def test_a_machine_that_does_not_see_the_slides_gets_none(lead_of):
    lead, crew, slides, told = lead_of(blind={"w0"})
    lead(slides)
    assert len(crew.done) == 20
    assert not lead.extraction.failures
    assert any("h0" in line and "does not see /x" in line for line in told), told


def test_where_no_machine_sees_the_slides_the_run_says_so(lead_of, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.workforce._LOOK_EVERY", 0.0)
    lead, _, slides, _ = lead_of(blind={"w0", "w1", "w2"})
    with pytest.raises(EnvironmentFault, match="h0: it does not see /x"):
        lead(slides)


def test_slides_that_are_gone_are_no_fault_of_the_machine(lead_of):
    """The worker that misses them is not barred where the client misses them, too."""
    lead, crew, slides, _ = lead_of(3, blind={"w0"})

    def gone(function, task, **options):
        for entry in slides:
            entry.path.unlink(missing_ok=True)
        crew.blind = set()
        return Future(Answer(task.id, "w0", trouble="it does not see s2.svs"))

    really, crew.submit = crew.submit, gone
    original = lead._take_in

    def take_in(under, batches):
        crew.submit = really
        original(under, batches)

    lead._take_in = take_in
    lead(slides)
    assert not lead.workforce.troubles
    assert len(crew.done) == 3


def test_a_slide_that_comes_back_undone_again_and_again_fails(lead_of):
    """No run may go round for ever."""
    lead, _, slides, _ = lead_of(2, idle=100)
    lead(slides)
    assert set(lead.extraction.failures) == {"s0", "s1"}
    assert "undone" in str(lead.extraction.failures["s0"])


@pytest.mark.parametrize(("kind", "code"), [("EnvironmentFault", 5), ("WeightsError", 6), ("UsageError", 2)])
def test_what_stops_the_whole_job_stops_it(lead_of, kind, code):
    lead, _, slides, _ = lead_of(fault=(kind, "no room"))
    with pytest.raises(WorkerFault, match="no room") as told:
        lead(slides)
    assert told.value.exit_code == code


def test_a_scheduler_that_comes_back_gets_what_is_left(lead_of, monkeypatch):
    lead, crew, slides, told = lead_of(together=1)
    really = crew.submit
    given = []

    def submit(function, task, **options):
        given.append(task.id)
        if len(given) == 4:
            crew.status = "closed"
            flight = Flight(lead.extraction.job.flight("run", task.id))  # it had begun, and is no suspect for that
            flight.begin(task.entries[0].slide_id)
            return SimpleNamespace(done=lambda: False, cancel=lambda **_: None)
        return really(function, task, **options)

    def again(seconds: float) -> None:
        crew.status = "running"

    monkeypatch.setattr(lead.workforce.connection, "again", again)
    crew.submit = submit
    lead(slides)
    assert len(crew.done) == 20
    assert not lead.lost
    assert any("scheduler is back" in line for line in told)


def test_a_scheduler_that_stays_away_ends_the_run_with_what_to_do(lead_of, monkeypatch):
    lead, crew, slides, _ = lead_of()

    def again(seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(lead.workforce.connection, "again", again)
    crew.status = "closed"
    with pytest.raises(EnvironmentFault, match="same command again"):
        lead(slides)


def test_nobody_there_is_told(lead_of, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.workforce.LONELY", 0.0)
    monkeypatch.setattr("pipelines.cluster.workforce._LOOK_EVERY", 0.0)
    lead, crew, slides, _ = lead_of()
    crew.workers.clear()
    with pytest.raises(EnvironmentFault, match="dask worker"):
        lead(slides)


@pytest.fixture
def with_a_large_one(lead_of, tmp_path):
    """Return a lead over six slots, and slides of which one has 10 GB, of holes."""

    def make(**crew):
        lead, crew, slides, _ = lead_of(**crew)
        with slides[4].path.open("ab") as file:
            file.truncate(10**10)
        return lead, crew, slides

    return make


def test_a_large_slide_is_given_out_in_portions_and_then_once_whole(with_a_large_one):
    """A portion that a worker let go of is given out again; none else is."""
    lead, crew, slides = with_a_large_one(shy={2})
    lead(slides)
    assert crew.portions == {("s4", number, 6): 1 + (number == 2) for number in range(6)}
    assert crew.done == {entry.slide_id: 1 for entry in slides}
    assert lead.states["s4"] == DONE
    assert not crew.held
    assert not lead.lost


def test_a_portion_that_a_process_was_lost_on_makes_the_slide_a_suspect(with_a_large_one):
    """It is tried once more, alone and last; where that kills, too, it fails, and nothing else does."""
    for poison in (False, True):
        lead, crew, slides = with_a_large_one(deadly={1}, poison={"s4"} if poison else set())
        lead(slides)
        assert max(crew.portions.values()) == 1
        assert crew.tasks[-1] == (["s4"], True)
        assert set(lead.extraction.failures) == ({"s4"} if poison else set())
        assert set(crew.done) == {entry.slide_id for entry in slides} - ({"s4"} if poison else set())
        assert not crew.held


def test_a_slide_that_a_portion_finds_torn_has_failed(with_a_large_one):
    lead, crew, slides = with_a_large_one(bad={0})
    lead(slides)
    assert lead.states["s4"] == FAILED
    assert "s4" not in crew.done
    assert not crew.held


def test_a_large_slide_is_given_out_whole_where_another_run_works_on_it(with_a_large_one):
    lead, crew, slides = with_a_large_one()
    lead.extraction.claims.take = lambda _: False
    lead(slides)
    assert not crew.portions
    assert max(crew.done.values()) == 1


def test_a_large_slide_whose_maps_are_asked_for_is_done_whole_and_named(with_a_large_one):
    lead, crew, slides = with_a_large_one()
    lead._settings = replace(lead._settings, dense=True)
    lead(slides)
    assert not crew.portions
    assert lead.whole == ["s4"]
    assert max(crew.done.values()) == 1
    assert not crew.held
    seen = SimpleNamespace(warnings=[], facts={}, run=SimpleNamespace(facts={}))
    _tell(seen, lead)
    assert seen.warnings == ["large, but done by one worker each, for --dense makes maps of whole slides: s4"]
