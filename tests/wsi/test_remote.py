"""Reading in processes gives the same, and a process that is lost costs at most the slide that it is lost on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from _icc import linear_profile
from _scripted_slide import ScriptedSlide, picture, source, write_script
from _shared import shared_path
from _slides import smooth_picture, write_aperio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wsi
from wsi.plan import read_plan
from wsi.remote import Readers

LIMIT = 60.0
"""Seconds after which a test that hangs has failed."""


def children(pid: int | None = None) -> list[int]:
    """Return the processes whose parent is `pid`, zombies included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == (pid or os.getpid()):
            found.append(int(stat.parent.name))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true, what="it never came to be"):
    ends = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < ends, what
        time.sleep(0.01)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Each test must leave as many threads, processes and descriptors as it found."""
    gc.collect()
    before, files = set(children()), descriptors()
    yield
    until(lambda: not any(t.name.startswith("tiles-") for t in threading.enumerate()), threading.enumerate())
    until(lambda: set(children()) <= before, "a process is left")
    gc.collect()
    assert descriptors() <= files


def within_limit(work):
    """Run `work` in a thread that is given up after LIMIT, return its result or raise its error."""
    outcome = {}

    def run():
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "the stream hangs"
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def collect(stream):
    """Return {(slide, index): pixels} and {(slide, index): error}."""
    tiles, errors = {}, {}
    for batch in stream:
        failed = iter(batch.errors)
        for pixels, slide, index, ok in zip(batch.pixels, batch.slide, batch.index, batch.ok, strict=True):
            key = int(slide), int(index)
            assert key not in tiles, "a tile came twice"
            assert key not in errors, "a tile came twice"
            if ok:
                tiles[key] = pixels.copy()
            else:
                errors[key] = next(failed)
                assert not pixels.any()
    return tiles, errors


def read(paths, **options):
    """Stream scripted slides; return tiles, errors and the record."""
    sources = [source(path) for path in paths]
    with wsi.stream(sources, **{"processes": 1, "workers": 2, "batch_size": 8, **options}) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    assert sorted([*tiles, *errors]) == [(n, i) for n, (_, grid) in enumerate(sources) for i in range(len(grid))]
    for (n, i), pixels in tiles.items():
        slide, grid = sources[n]
        x, y = grid.xy[i]
        assert np.array_equal(pixels, picture(slide.script["seed"])[y : y + 64, x : x + 64])
    return tiles, errors, stream.record()


def slides_hit(errors):
    return {slide for slide, _ in errors}


@pytest.fixture(scope="module")
def three_readers(aperio):
    """A direct slide, one through OpenSlide and one through tifffile, and their tiles as one thread reads them."""
    slides = [
        wsi.open_slide(aperio),
        wsi.open_slide(aperio),
        wsi.open_slide(shared_path("data/slides/OS-1-detail.ome.tif")),
    ]
    slides[1].native.close()
    slides[1].native = None
    readers = {}
    for size in (75, 112):
        sources = [(slide, wsi.tile_grid(slide, None, wsi.TileSpec(size, 0.7))) for slide in slides]
        with wsi.stream(sources, workers=1) as stream:
            readers[size] = sources, collect(stream)[0]
    yield readers
    for slide in slides:
        slide.close()


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 70), st.integers(0, 4_000_000), st.sampled_from([75, 112]))
def test_any_number_of_processes_gives_the_same_bytes(three_readers, processes, workers, batch, memory, size):
    sources, wanted = three_readers[size]
    with wsi.stream(sources, processes=processes, workers=workers, batch_size=batch, memory=memory) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert tiles.keys() == wanted.keys()
    assert all(np.array_equal(tiles[key], wanted[key]) for key in wanted)
    assert stream.record().processes_lost == 0


def test_tiles_are_read_in_another_process(tmp_path):
    """The slide's own reader must never be asked here."""
    slide, grid = source(write_script(tmp_path / "a"))
    slide._read = None
    with wsi.stream([(slide, grid)], processes=1, workers=2) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    assert len(tiles) == len(grid)
    assert not errors


@pytest.mark.parametrize(
    "name",
    [
        "aperio",
        "CMU-1-Small-Region.svs",
        "OS-1-detail.ome.tif",
        "kidney-48-5.tif",
        "hamamatsu-DAPI-387.ndpi",
        "TCGA-XK-AAJU-section.tif",
        "cmu-1-small-region-dicom/level-0.dcm",
    ],
)
def test_slides_of_every_reader_can_be_sent(aperio, name):
    """What cannot be sent is read in the calling process, where an abort ends the run: no file's slide may be so."""
    path = aperio if name == "aperio" else shared_path(f"data/slides/{name}")
    readers = Readers(1, 10.0)
    with wsi.open_slide(path, slide_mpp=0.5) as slide:
        plan = read_plan(slide, wsi.tile_grid(slide, None, wsi.TileSpec(64, 0.5)))
        assert readers.plan(slide.name, plan) is not plan
    readers.stop()


def test_every_codec_and_colour_profile_travels(tmp_path):
    """Packed, plain and JPEG 2000 tiles, the low band, pixels turned into sRGB: the same bytes as from threads."""
    image, profile = smooth_picture(300, 300), linear_profile()
    slides = [
        wsi.open_slide(write_aperio(tmp_path / f"{kind}.svs", image, compression=kind, compressionargs=None))
        for kind in ("deflate", "lzw", None, "zstd")
    ]
    path = write_aperio(tmp_path / "jpeg2000.svs", image, compression="jpeg2000", compressionargs={"level": 40})
    slides += [wsi.open_slide(path), wsi.open_slide(path, low_band=True)]
    path = write_aperio(tmp_path / "icc.svs", image, iccprofile=profile)
    slides += [wsi.open_slide(path, icc="srgb"), wsi.open_slide(path, icc="srgb")]
    slides[-1].native.close()
    slides[-1].native = None  # tile by tile
    sources = [(slide, wsi.tile_grid(slide, None, wsi.TileSpec(75, 1.0))) for slide in slides]
    assert sum(slide.native is not None for slide in slides) == len(slides) - 1
    found = []
    for processes in (0, 1):
        with wsi.stream(sources, processes=processes, workers=2) as stream:
            tiles, errors = within_limit(lambda s=stream: collect(s))
            found.append({key: pixels.tobytes() for key, pixels in tiles.items()})
            assert not errors
    assert found[0] == found[1]
    readers = Readers(1, 10.0)
    for slide, grid in sources:
        plan = read_plan(slide, grid)
        assert readers.plan(slide.name, plan) is not plan, slide.name
        slide.close()
    readers.stop()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("abort", "died (signal 6, SIGABRT: GLib-ERROR: failed to allocate 480 GB) while reading this slide"),
        ("kill", "died (signal 9, SIGKILL) while reading this slide"),
        ("leave", "died (exit code 7) while reading this slide"),
        ("hang", "took longer than 2 s"),
        ("hang_fast", "took longer than 2 s"),
    ],
)
def test_a_slide_that_kills_its_reader_is_the_only_one_that_fails(tmp_path, act, said):
    """Slides before and after it are whole, and so are its own tiles that were read before."""
    paths = [write_script(tmp_path / f"good{i}", i, always=0.002) for i in range(2)]
    bad = write_script(tmp_path / "bad", 7, **{"256,256": act})
    tiles, errors, record = read([paths[0], bad, paths[1]], read_timeout=2.0, workers=3)
    assert slides_hit(errors) == {1}
    assert 0 < len(errors) < 64
    assert sum(slide == 1 for slide, _ in tiles) >= 30  # what lies before the bad place
    for error in errors.values():
        assert isinstance(error, wsi.TileReadError)
        assert error.slide == "bad"
        assert said in error.what
        assert "Copy the slide again" in error.mend
    assert record.processes_lost == 2  # the one all were reading in, and the one that proved the guilt
    assert record.failed == len(errors)


def test_innocent_slides_lose_nothing_however_they_are_mixed(tmp_path):
    """Eight readers, small slides, two killers: at its end each has many neighbours in the same process."""
    bad = {1, 4}
    acts = [{"192,0": "abort"} if i in bad else {} for i in range(6)]
    paths = [write_script(tmp_path / str(i), i, always=0.001, **acts[i]) for i in range(6)]
    _, errors, record = read(paths, workers=8, processes=2)
    assert slides_hit(errors) == bad
    assert record.processes_lost == 2 * len(bad)


def test_a_process_that_is_killed_from_outside_costs_nothing(tmp_path):
    """What it was reading is read again: kill -9 is no slide's fault."""
    paths = [write_script(tmp_path / str(i), i, always=0.02) for i in range(2)]
    before = set(children())
    sources = [source(path) for path in paths]
    with wsi.stream(sources, processes=1, workers=3, batch_size=4) as stream:
        first = next(stream)
        kept = {(int(s), int(i)): p.copy() for s, i, p in zip(first.slide, first.index, first.pixels, strict=True)}
        (child,) = set(children()) - before
        os.kill(child, signal.SIGKILL)
        tiles, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert len(tiles) + len(kept) == 128
    for (n, i), pixels in (tiles | kept).items():
        x, y = sources[n][1].xy[i]
        assert np.array_equal(pixels, picture(n)[y : y + 64, x : x + 64])
    assert stream.record().processes_lost == 1


def test_a_process_that_dies_while_idle_is_replaced(tmp_path):
    """Nothing was under way: nothing is read again, but the loss is told."""
    sources = [source(write_script(tmp_path / str(i), i)) for i in range(2)]
    killed = []

    def one_after_the_other():
        yield sources[0]
        before.wait(LIMIT)
        (child,) = set(children()) - known
        os.kill(child, signal.SIGKILL)
        until(lambda: not running(child))
        killed.append(child)
        yield sources[1]

    before, known = threading.Event(), set(children())
    with wsi.stream(one_after_the_other(), processes=1, workers=2, batch_size=16) as stream:
        tiles = sum(len(next(stream)) for _ in range(4))
        before.set()
        rest, errors = within_limit(lambda: collect(stream))
    assert (tiles, len(rest), len(errors), len(killed)) == (64, 64, 0, 1)
    assert stream.record().processes_lost == 1


def test_a_passing_hang_costs_nothing(tmp_path):
    """A read that hangs once (storage that was away) is tried again."""
    _, errors, record = read([write_script(tmp_path / "a", **{"0,64": "hang", "once": True})], read_timeout=1.5)
    assert not errors
    assert record.processes_lost == 1


def test_waiting_for_a_slow_consumer_is_no_hang(tmp_path):
    """The time limit is for reading, not for waiting for room."""
    slide = source(write_script(tmp_path / "a"))
    with wsi.stream([slide], processes=1, workers=2, batch_size=8, memory=1, read_timeout=1.0) as stream:
        next(stream)
        time.sleep(2.5)
        tiles, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert len(tiles) == 64 - 8
    assert stream.record().processes_lost == 0


def test_a_slide_whose_reads_take_too_long_in_all_is_given_up(tmp_path):
    """No single read is late, but all of them would take 6 s; the slide after it is whole."""
    slow, good = write_script(tmp_path / "slow", 1, always=0.1), write_script(tmp_path / "good", 2)
    began = time.monotonic()
    tiles, errors, record = read([slow, good], workers=1, slide_timeout=1.0)
    assert time.monotonic() - began < 5
    assert slides_hit(errors) == {0}
    assert 3 <= sum(slide == 0 for slide, _ in tiles) <= 11
    assert all("reading its tiles takes longer than 1 s" in error.what for error in errors.values())
    assert record.processes_lost == 0


def test_waiting_for_a_slow_consumer_is_no_slow_slide(tmp_path):
    """Two slabs of memory: the requests wait far longer for room than they read."""
    slide = source(write_script(tmp_path / "a"))
    with wsi.stream([slide], processes=1, workers=2, batch_size=8, memory=1, slide_timeout=1.0) as stream:
        next(stream)
        time.sleep(2.0)
        tiles, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert len(tiles) == 64 - 8


def test_errors_keep_their_kind_and_words(tmp_path):
    """As from a thread; kinds that only a reader knows arrive as the nearest of ours."""
    path = write_script(tmp_path / "a", **{"0,0": "damage", "64,0": "stray"})
    _, there, _ = read([path])
    _, here, _ = read([path], processes=0)
    assert there.keys() == here.keys() == {(0, 0), (0, 1)}
    for key, error in there.items():
        assert type(error) is wsi.TileReadError
        assert (error.slide, error.what, error.mend) == (here[key].slide, here[key].what, here[key].mend)
        assert str(error) == str(here[key])


def test_damaged_tiles_of_a_direct_slide_fail_alone(aperio, tmp_path):
    """One damaged native tile: the same rows fail with the same words in threads and in processes."""
    with wsi.open_slide(aperio) as slide:
        level = slide.native.levels[0]
        offset, count = int(level.offsets[5]), int(level.counts[5])
    data = bytearray(aperio.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    broken = tmp_path / "broken.svs"
    broken.write_bytes(data)
    found = []
    for processes in (0, 2):
        with wsi.open_slide(broken) as slide:
            assert slide.native is not None
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(100, 0.5))
            with wsi.stream([(slide, grid)], processes=processes, workers=2, batch_size=8) as stream:
                tiles, errors = within_limit(lambda s=stream: collect(s))
        found.append(({k: p.tobytes() for k, p in tiles.items()}, {k: str(e) for k, e in errors.items()}))
    assert found[0] == found[1]
    assert 0 < len(found[0][1]) < len(grid) / 2


def test_a_bug_in_the_process_comes_as_a_bug_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="a bug of the reader") as caught:
        read([write_script(tmp_path / "a", **{"64,64": "bug"})])
    assert "_scripted_slide.py" in str(caught.value)


def test_a_file_that_is_replaced_before_it_is_opened_again_fails(tmp_path):
    """The grid belongs to the file that was looked at here."""
    slide, grid = source(write_script(tmp_path / "a", 1))
    write_script(tmp_path / "b", 2).replace(tmp_path / "a")
    with wsi.stream([(slide, grid)], processes=1, workers=2) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    assert not tiles
    assert all("the file was changed while it was read" in error.what for error in errors.values())
    assert len(errors) == len(grid)


def test_a_file_that_is_gone_fails_and_the_others_go_on(tmp_path, aperio):
    gone = tmp_path / "gone.svs"
    gone.write_bytes(aperio.read_bytes())
    slide = wsi.open_slide(gone)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, 0.5))
    gone.unlink()
    with wsi.stream([(slide, grid), source(write_script(tmp_path / "a"))], processes=1) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    slide.close()
    assert {n for n, _ in tiles} == {1}
    assert slides_hit(errors) == {0}
    assert "opened again" in next(iter(errors.values())).what


def test_slides_in_memory_share_the_stream(tmp_path):
    """They are read here: their pixels need not travel, and nothing can abort."""
    image = np.random.default_rng(3).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    slide = wsi.MemorySlide(image, mpp=0.5)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, 0.5))
    with wsi.stream([source(write_script(tmp_path / "a")), (slide, grid)], processes=1, batch_size=5) as stream:
        tiles, errors = within_limit(lambda: collect(stream))
    assert not errors
    for (n, i), pixels in tiles.items():
        if n == 1:
            assert np.array_equal(pixels, wsi.read_tile(slide, grid, i))
    assert len(tiles) == 64 + len(grid)


def test_what_is_measured_obeys_littles_law_here_too(tmp_path):
    """Reads of 20 ms by five readers over two processes, a consumer of 100 tiles a second."""
    paths = [write_script(tmp_path / str(i), i, always=0.020) for i in range(4)]
    with wsi.stream([source(p) for p in paths], batch_size=10, workers=5, processes=2) as stream:
        next(stream)  # the start of the processes is no part of it
        for taken in stream:
            time.sleep(len(taken) / 100)
    record = stream.record()
    assert record.W_mean == pytest.approx(0.020, rel=0.6)
    assert abs(record.L - record.lambda_ * record.W_mean) < 1e-9
    assert record.in_flight == pytest.approx(record.L, rel=0.1)
    assert record.tiles == 4 * 64
    assert record.workers == 5


def test_opening_a_slide_once_more_is_no_waiting_for_storage(tmp_path):
    """Three readers that each wait half a second until the process has opened the slide, and reads of no time."""
    _, _, record = read([write_script(tmp_path / "a", opening=0.5)], workers=3)
    assert record.service - record.core - record.queued < 0.1 * 3 * 0.5 / 64
    assert record.W_mean < 0.1 * 3 * 0.5 / 64
    assert record.first_batch > 0.5


def test_processor_time_of_the_process_counts_as_the_readers():
    """Whether more readers would help is told from it: decoding elsewhere is no waiting for storage."""
    path = shared_path("data/slides/CMU-1-Small-Region.svs")
    core = {}
    for processes in (0, 1):
        with wsi.open_slide(path) as slide:
            grid = wsi.tile_grid(slide, None, wsi.TileSpec(224, 0.5))
            with wsi.stream([(slide, grid)] * 10, processes=processes, workers=2) as stream:
                for _ in stream:
                    pass
        core[processes] = stream.record().core
    assert 0.5 * core[0] < core[1] < 4 * core[0]  # nothing of it, where it is not passed on


def test_an_allocator_gets_the_shared_memory(tmp_path):
    made = []

    def allocate(shape, dtype, buffer):
        made.append(np.ndarray(shape, dtype, buffer))
        return made[-1]

    with wsi.stream([source(write_script(tmp_path / "a"))], processes=1, batch_size=8, allocate=allocate) as stream:
        homes = {batch.pixels.__array_interface__["data"][0] for batch in stream}
    assert homes <= {slab.__array_interface__["data"][0] for slab in made}
    made.clear()


def test_an_allocator_that_takes_other_memory_is_refused(tmp_path):
    def allocate(shape, dtype, buffer):
        return np.empty(shape, dtype)

    with (
        wsi.stream([source(write_script(tmp_path / "a"))], processes=1, allocate=allocate) as stream,
        pytest.raises(ValueError, match="shared memory"),
    ):
        within_limit(lambda: collect(stream))


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("act", [0.05, "hang_fast"])
def test_closing_in_the_middle_ends_the_processes_at_once(tmp_path, after, act):
    """Also one that would answer nothing: nobody waits for a read that nobody wants."""
    acts = {"always": 0.01, "0,320": act}
    stream = wsi.stream([source(write_script(tmp_path / "a", **acts))], batch_size=8, workers=3, processes=2)
    for _, _ in zip(range(after), stream, strict=False):
        pass
    began = time.monotonic()
    within_limit(stream.close)
    assert time.monotonic() - began < 5
    assert list(stream) == []


def test_an_abandoned_stream_ends_its_processes(tmp_path):
    """No close, no with: the loop is left and the stream forgotten."""
    for _ in wsi.stream([source(write_script(tmp_path / "a", always=0.01))], batch_size=8, workers=2, processes=2):
        break
    gc.collect()


def test_a_stream_never_asked_starts_no_process(tmp_path):
    before = children()
    stream = wsi.stream([source(write_script(tmp_path / "a"))], processes=2)
    assert children() == before
    stream.close()


OWNER = """
import sys, time
from pathlib import Path
from _scripted_slide import source
import wsi
stream = wsi.stream([source(Path(sys.argv[1]))], processes=2, workers=4, batch_size=4)
if __name__ == "__main__":
    print(len(next(stream)), flush=True)
    if sys.argv[2] == "leave":
        sys.exit()
    for _ in stream:
        time.sleep(0.2)
"""


@pytest.mark.parametrize(("act", "end"), [(0.05, "kill"), ("hang_fast", "kill"), (0.05, "leave"), (0.05, "interrupt")])
def test_processes_end_with_their_owner(tmp_path, act, end):
    """However the owner ends: kill -9, even while a library holds its process fast; the end of the script; Ctrl-C."""
    path = write_script(tmp_path / "a", always=0.01, **{"0,64": act})
    shm = set(Path("/dev/shm").glob("*"))
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, path, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    with owner:
        assert owner.stdout.readline() == b"4\n"
        if end != "leave":
            time.sleep(0.3)
            readers = children(owner.pid)
            assert len(readers) == 2
            if end == "kill":
                owner.kill()
            else:
                os.killpg(owner.pid, signal.SIGINT)  # as a terminal does: to all of them
        else:
            readers = []
        owner.wait(LIMIT)
        said = owner.stderr.read().decode()
    until(lambda: not any(running(pid) for pid in readers), "a reader process outlives its owner")
    assert set(Path("/dev/shm").glob("*")) <= shm
    assert ("KeyboardInterrupt" in said) == (end == "interrupt")
    assert said.count("Traceback") == (end == "interrupt")  # the readers say nothing


def test_a_script_without_a_main_guard_works(tmp_path):
    """Nothing of the caller's program is run again in the processes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom _scripted_slide import source\nimport wsi\nprint('once')\n"
        f"with wsi.stream([source(Path({str(write_script(tmp_path / 'a'))!r}))], processes=1) as stream:\n"
        "    print(sum(len(batch) for batch in stream))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LIMIT, env=env)
    assert (done.stdout, done.stderr) == ("once\n64\n", "")


def test_processes_that_cannot_start_are_named(tmp_path, monkeypatch):
    """An environment that is broken is no slide's fault."""
    from wsi import reader_process

    monkeypatch.setattr(reader_process, "_SERVE", "raise SystemExit('no such library')")
    with pytest.raises(RuntimeError, match=r"no process that reads can be started.*exit code 1: no such library"):
        read([write_script(tmp_path / "a")])


def test_a_process_that_talks_nonsense_is_lost_like_any_other(tmp_path, monkeypatch):
    from wsi import reader_process

    monkeypatch.setattr(
        reader_process,
        "_SERVE",
        "import sys; from wsi import wire, remote_reader\n"
        "wire.Wire.tell = lambda self, message, seconds=None: self.send(b'{')\n"
        "remote_reader.main(*map(int, sys.argv[1:]))",
    )
    _, errors, _ = read([write_script(tmp_path / "a")])
    assert len(errors) == 64


def test_slides_are_closed_in_the_processes_when_they_are_done(tmp_path):
    """A thousand slides must not leave a thousand open files there."""
    paths = []
    for i in range(6):
        paths.append(tmp_path / f"{i}.svs")
        paths[-1].write_bytes(shared_path("data/slides/CMU-1-Small-Region.svs").read_bytes())

    def sources():
        for path in paths:
            slide = wsi.open_slide(path)
            yield slide, wsi.tile_grid(slide, None, wsi.TileSpec(224, 0.5))
            opened.append(sum(str(tmp_path) in file for file in held()))

    def held():
        until(lambda: set(children()) - before, "no process was started")
        (child,) = set(children()) - before
        found = []
        for fd in Path(f"/proc/{child}/fd").iterdir():
            try:
                found.append(str(fd.readlink()))
            except OSError:
                continue
        return found

    opened, before = [], set(children())
    with wsi.stream(sources(), processes=1, workers=2, close_slides=True) as stream:
        _, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert 1 <= max(opened) <= 4


@pytest.mark.parametrize("bad", [{"processes": -1}, {"read_timeout": 0.0}, {"read_timeout": float("nan")}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="processes must be 0 or more"):
        wsi.stream([], **bad)


def test_a_slide_travels_as_the_way_to_open_it(tmp_path):
    """What was decided about it stays: µm/px, the reader."""
    import pickle

    path = shared_path("data/slides/kidney-48-5.tif")
    with wsi.open_slide(path, slide_mpp=0.3) as slide:
        sent = pickle.dumps(slide)
        with pickle.loads(sent) as other:
            assert (other.mpp, other.reader, other.levels, other.name) == (
                slide.mpp,
                slide.reader,
                slide.levels,
                slide.name,
            )
            assert np.array_equal(other.read(0, 0, 64, 64), slide.read(0, 0, 64, 64))
    with pytest.raises(TypeError, match="in memory"):
        pickle.dumps(wsi.MemorySlide(np.zeros((8, 8, 3), np.uint8)))
    sent = pickle.dumps(ScriptedSlide(write_script(tmp_path / "a", 5)))
    (tmp_path / "a").rename(tmp_path / "away")
    with pickle.loads(pickle.dumps(pickle.loads(sent))) as slide:  # who only hands it on opens nothing
        assert slide.size == (512, 512)
        with pytest.raises(wsi.TileReadError):
            slide.read(0, 0, 8, 8)
        (tmp_path / "away").rename(tmp_path / "a")
        assert np.array_equal(slide.read(0, 0, 8, 8), picture(5)[:8, :8])
