"""Slides behind an address: the same pixels as on this disk, through faults of the network, and no secret told."""

from __future__ import annotations

import fcntl
import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import tifffile
from _range_server import Shelf, serving
from _shared import shared_path
from _slides import APERIO, MPP, halved, smooth_picture, streamed
from hypothesis import given
from hypothesis import strategies as st

import wsi
from wsi import ranges, sources, staging
from wsi.address import is_url, shown
from wsi.ranges import RemoteError, RemoteFile
from wsi.remote_path import RemotePath, path_of

WORD = "-".join(["geheim", "4711"])
"""Put together, so that no line of this file in a traceback holds it."""
SECRET = f"X-Signature={WORD}"


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Short pauses, copies in a folder of the test."""
    monkeypatch.setattr(ranges, "PAUSE", 0.01)
    monkeypatch.setattr(ranges, "SECONDS", 1.0)
    monkeypatch.setenv(staging.FOLDER, str(tmp_path / "copies"))


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Path:
    """A slide as Aperio scanners lay it out: the thumbnail, in strips, stands before the smaller levels."""
    path = tmp_path_factory.mktemp("s") / "a.svs"
    image = smooth_picture(1500, 1100)
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 95}, "photometric": "rgb"}
    with tifffile.TiffWriter(path) as tiff:
        said = {"metadata": None, "software": False, **jpeg}
        tiff.write(image, tile=(256, 256), description=APERIO.format(w=1500, h=1100, power=20, mpp=0.5), **said)
        tiff.write(halved(halved(image)), rowsperstrip=16, description="Aperio Image Library v12.0\nthumbnail", **said)
        for _ in range(2):
            image = halved(image)
            tiff.write(image, tile=(256, 256), description="Aperio Image Library v12.0\nlevel", **said)
    return path


@pytest.fixture
def shelf(pyramid):
    with serving(Shelf({"b/a.svs": pyramid.read_bytes()})) as shelf:
        yield shelf


def tiles_of(path, mpp=1.0, **options):
    with wsi.open_slide(path, slide_mpp=MPP) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=100, mpp=mpp))
        return streamed(slide, grid, **options)


def same(one, other):
    assert one[1] == other[1] == {}
    assert one[0].keys() == other[0].keys() != set()
    return all((one[0][row] == other[0][row]).all() for row in one[0])


# ---------------------------------------------------------------------- addresses


def test_an_address_shows_no_secret_and_travels_whole():
    address = path_of(f"https://user:{WORD}@h.org:81/a%20b/x.svs?{SECRET}#f")
    told = f"{address} {address!r} {address.parts} {address.parent} {address.with_suffix('.x')} {address.name}"
    assert WORD not in told
    assert (address.name, address.stem, address.suffix) == ("x.svs", "x", ".svs")
    assert str(address) == "https://h.org:81/a%20b/x.svs"
    again = pickle.loads(pickle.dumps(address))
    assert (again.url, again, hash(again)) == (address.url, address, hash(address))
    assert path_of("s3://b/k/x?#1.svs").name == "x?#1.svs"
    assert not any(map(is_url, ("/a/b", "C://x", "file:///etc/passwd", "dir::s3://b")))
    assert RemotePath(address.url, called="s1.svs").name == str(RemotePath(address.url, called="s1.svs")) == "s1.svs"


@given(
    st.text(max_size=30), st.text(st.characters(blacklist_characters="/?#@", codec="ascii"), min_size=1, max_size=20)
)
def test_whatever_stands_behind_the_question_mark_is_not_shown(secret, name):
    assert shown(f"https://h/{name}.svs?{secret}") == f"https://h/{name}.svs"


@pytest.mark.parametrize(
    ("text", "meant", "below"),
    [
        ("a.svs", "http://h/b/a.svs", True),
        ("c/a 1.svs", "http://h/b/c/a%201.svs", True),
        ("../a.svs", "http://h/b/../a.svs", False),
        ("/a.svs", "http://h/a.svs", False),
        ("c/../../a.svs", "http://h/b/c/../../a.svs", False),
    ],
)
def test_what_a_list_at_an_address_names(text, meant, below):
    table = RemotePath(f"http://h/b/list.csv?{SECRET}")
    named = table.beside(text)
    assert (str(named), named.url, named.is_below(table)) == (meant, meant, below)


# ---------------------------------------------------------------------- pixels


@pytest.mark.parametrize("processes", [0, 1])
def test_tiles_from_an_address_are_those_of_the_file(shelf, pyramid, processes):
    address = f"{shelf.url}/b/a.svs"
    for mpp in (0.5, 1.0):
        assert same(tiles_of(address, mpp, processes=processes), tiles_of(pyramid, mpp))
    with wsi.open_slide(address) as far, wsi.open_slide(pyramid) as near:
        assert far.held is None, "it was copied"
        assert (far.levels, far.objective_power) == (near.levels, near.objective_power)
        assert (far.mpp.x, far.mpp.y) == (near.mpp.x, near.mpp.y)
        assert (far.read(0, 0, 375, 275, level=2) == near.read(0, 0, 375, 275, level=2)).all()


def test_little_more_than_what_is_needed_is_fetched(pyramid, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 2**14)
    monkeypatch.setattr(sources, "_GAP", 2**12)
    with serving(Shelf({"a.svs": pyramid.read_bytes()})) as shelf:
        with wsi.open_slide(f"{shelf.url}/a.svs") as slide:
            opening = shelf.sent
            native = slide.native.levels[2]
            slide.native.fetch(native, list(range(len(native.counts))))
        assert opening < 0.5 * pyramid.stat().st_size
        assert shelf.sent - opening <= native.counts.sum() + len(native.counts) * sources._GAP
        fetched = shelf.asked[-1]
        assert fetched[3] - fetched[2] + 1 >= native.counts.sum(), "neighbors were not fetched in one piece"


@given(st.lists(st.tuples(st.integers(0, 2**25), st.integers(1, 2**18)), max_size=30))
def test_joined_pieces_cover_all_that_is_wanted_and_stay_short(wanted):
    pieces = sorted((start, start + size, n) for n, (start, size) in enumerate(wanted))
    groups = sources.joined(pieces)
    assert sorted(piece for group in groups for piece in group) == pieces
    for group in groups:
        assert max(end for _, end, _ in group) - group[0][0] <= max(sources._LONGEST, max(e - s for s, e, _ in group))
        stop = group[0][1]
        for start, end, _ in group[1:]:
            assert start - stop <= sources._GAP
            stop = max(stop, end)


@given(st.data())
def test_a_source_reads_as_the_file_does(data):
    content = bytes(np.random.default_rng(1).integers(0, 256, 3000, dtype=np.uint8))
    source = sources.RangeSource.__new__(sources.RangeSource)
    source._file = type("F", (), {"pieces": lambda _, places: [content[a:b] for a, b in places]})()
    source.size, source._blocks, source._lock = len(content), sources.OrderedDict(), threading.Lock()
    source.path = RemotePath("memory://x")
    for _ in range(5):
        place, size = data.draw(st.integers(0, 3500)), data.draw(st.integers(0, 3500))
        block, kept = sources._BLOCK, sources._KEPT
        sources._BLOCK, sources._KEPT = 256, 1024
        try:
            assert source.read(place, size) == content[place : place + size]
            assert len(source._blocks) * 256 <= 1024
        finally:
            sources._BLOCK, sources._KEPT = block, kept
    views = [memoryview(bytearray(data.draw(st.integers(0, 400)))) for _ in range(4)]
    places = [data.draw(st.integers(0, 2600)) for _ in views]
    assert source.fill(views, places) == [len(view) for view in views]
    assert all(bytes(view) == content[at : at + len(view)] for view, at in zip(views, places, strict=True))


def test_memory_and_buckets_are_read_through_fsspec(pyramid, shelf, monkeypatch):
    """`s3://` through s3fs against a bucket on the loopback; `memory://` stands for any synchronous file system."""
    import fsspec

    bucket = {"endpoint_url": shelf.url, "key": "k", "secret": WORD, "use_listings_cache": False}
    monkeypatch.setitem(fsspec.config.conf, "s3", bucket)
    memory = fsspec.filesystem("memory")
    memory.pipe("/b/a.svs", pyramid.read_bytes())
    near = tiles_of(pyramid)
    try:
        for address in ("memory://b/a.svs", "s3://b/a.svs"):
            assert same(tiles_of(address), near)
            with wsi.open_slide(address) as slide:
                assert slide.held is None
        with pytest.raises(wsi.SlideError, match="nothing at this address") as caught:
            wsi.open_slide("s3://b/none.svs")
        assert WORD not in "".join(traceback.format_exception(caught.value))
    finally:
        memory.rm("/b", recursive=True)


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["500", "reset", "short", "slow"])
def test_faults_now_and_then_do_no_harm(shelf, pyramid, fault):
    shelf.fault = lambda number: fault if number % 4 == 1 else ""
    assert same(tiles_of(f"{shelf.url}/b/a.svs"), tiles_of(pyramid))
    assert len(shelf.asked) > 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [("500", "status 500"), ("reset", "asked 4 times"), ("short", "cut short"), ("slow", "no answer within 1 s")],
)
def test_a_lasting_fault_is_told_in_time_without_a_secret(shelf, fault, said):
    shelf.fault = lambda _: fault
    began = time.monotonic()
    with pytest.raises(wsi.FetchError, match=said) as caught:
        wsi.open_slide(f"{shelf.url}/b/a.svs?{SECRET}")
    assert time.monotonic() - began < 15
    told = "".join(traceback.format_exception(caught.value))
    assert f"{shelf.url}/b/a.svs" in str(caught.value)
    assert WORD not in told
    assert "Run the same command again" in caught.value.mend


def test_what_the_network_does_not_give_is_no_damaged_tile(shelf):
    """The tiles are not there now; a later run must ask again."""
    with wsi.open_slide(f"{shelf.url}/b/a.svs", slide_mpp=MPP) as slide:
        grid = wsi.tile_grid(slide, None, wsi.TileSpec(size=100, mpp=0.5))
        shelf.fault = lambda _: "500"
        tiles, errors = streamed(slide, grid)
    assert not tiles
    assert all(type(error) is wsi.FetchError for error in errors.values())


def test_refusals_are_told_at_once_and_by_name(shelf):
    shelf.secret = SECRET
    with wsi.open_slide(f"{shelf.url}/b/a.svs?{SECRET}", slide_mpp=MPP) as slide:
        assert slide.size == (1500, 1100)
    count = len(shelf.asked)
    for query, name, said in (
        (f"wrong={WORD}", "a.svs", "access is refused"),
        (SECRET, "no.svs", "nothing at this address"),
    ):
        with pytest.raises(wsi.SlideError, match=said) as caught:
            wsi.open_slide(f"{shelf.url}/b/{name}?{query}")
        assert WORD not in "".join(traceback.format_exception(caught.value))
    assert len(shelf.asked) == count + 2


def test_a_file_that_changes_while_it_is_read_is_noticed(shelf, pyramid):
    with wsi.open_slide(f"{shelf.url}/b/a.svs", slide_mpp=MPP) as slide:
        shelf.files["b/a.svs"] = pyramid.read_bytes() + b"more"
        native = slide.native.levels[0]
        with pytest.raises(wsi.FetchError, match="was changed"):
            slide.native.fetch(native, [0, 1])


def test_without_the_extra_the_mend_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(wsi.SlideError, match=r"slidemil\[remote\]"):
        wsi.open_slide("https://h.invalid/a.svs")


# ---------------------------------------------------------------------- copies


def plain_tiff(tmp_path) -> Path:
    """A slide whose pixels lie in strips: only a file on this disk serves."""
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, smooth_picture(700, 500), photometric="rgb", rowsperstrip=16, metadata=None)
    return path


def copies() -> list[Path]:
    root = staging.cache_folder()
    return sorted(path for folder in root.iterdir() if folder.is_dir() for path in folder.iterdir())


@pytest.mark.parametrize("given", [{}, {"ranges": False}, {"tags": False}, {"ranges": False, "tags": False}])
def test_what_cannot_be_read_in_pieces_is_copied(tmp_path, given):
    path = plain_tiff(tmp_path)
    with serving(Shelf({"b/strips.tif": path.read_bytes()}, **given)) as shelf:
        address = f"{shelf.url}/b/strips.tif"
        assert same(tiles_of(address, processes=1), tiles_of(path))
        (copy,) = copies()
        assert copy.read_bytes() == path.read_bytes()
        count = len(shelf.asked)
        assert same(tiles_of(address), tiles_of(path))
        whole = [end for method, _, start, end in shelf.asked[count:] if end - start > 2**20 or end < 0]
        assert given or not whole, "it was copied again"
        for lock in staging.cache_folder().glob("*.lock"):
            os.close(staging._locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))  # nobody holds it any more


def test_a_server_without_pieces_gives_the_whole_slide(shelf, pyramid):
    shelf.ranges = False
    assert same(tiles_of(f"{shelf.url}/b/a.svs"), tiles_of(pyramid))
    assert len(copies()) == 1


def staged(shelf, name, limit=10**9):
    address = RemotePath(f"{shelf.url}/{name}")
    return staging.Staging(staging.cache_folder(), limit).copy(address, RemoteFile.of(address).state())


def test_the_copy_used_longest_ago_goes_first_and_none_that_is_held():
    with serving(Shelf({name: name.encode() * 100_000 for name in "abcd"})) as shelf:
        a = staged(shelf, "a", 250_000)
        staged(shelf, "b", 250_000).let_go()
        staged(shelf, "c", 250_000).let_go()  # b is older than c, and a is held
        assert {path.name for path in copies()} == {"a", "c"}
        time.sleep(0.01)
        a.let_go()
        held = staged(shelf, "c", 250_000)
        staged(shelf, "d", 250_000).let_go()
        assert {path.name for path in copies()} == {"c", "d"}
        with pytest.raises(wsi.SlideError, match=staging.GIGABYTES):
            staged(shelf, "a", 150_000)
        again = pickle.loads(pickle.dumps(held))
        held.let_go()
        with pytest.raises(wsi.SlideError, match="needs"):
            staged(shelf, "a", 150_000)
        again.let_go()
        staged(shelf, "a", 150_000).let_go()
        assert {path.name for path in copies()} == {"a"}


def test_a_folder_that_is_not_ours_is_never_emptied(tmp_path, monkeypatch):
    root = staging.cache_folder()
    root.mkdir(parents=True)
    (root / "thesis.txt").write_text("years of work")
    with serving(Shelf({"a": bytes(1000)})) as shelf:
        with pytest.raises(wsi.SlideError, match=f"none of ours.*{staging.FOLDER}"):
            staged(shelf, "a")
        assert [path.name for path in root.iterdir()] == ["thesis.txt"]
        monkeypatch.setenv(staging.FOLDER, str(tmp_path / "thesis"))
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1").write_text("x")
        staged(shelf, "a", 1000).let_go()  # into a folder of our own below it
        assert (tmp_path / "thesis" / "chapter1").read_text() == "x"


def test_a_folder_that_another_run_claims_meanwhile_is_ours(monkeypatch, tmp_path):
    """Two runs that come first together: one finds what the other has just begun to keep."""
    monkeypatch.setenv(staging.FOLDER, str(tmp_path / "new"))
    really, held = Path.iterdir, []

    def iterdir(folder):
        if folder == staging.cache_folder() and not held:
            held.append(None)
            held[0] = staged(shelf, "a")  # the other run: between our two looks
        return really(folder)

    with serving(Shelf({"a": bytes(1000)})) as shelf:
        monkeypatch.setattr(Path, "iterdir", iterdir)
        held.append(staged(shelf, "a"))
        assert held[0].path == held[1].path
        for one in held:
            one.let_go()


def test_many_at_once_copy_a_slide_once():
    with serving(Shelf({"a": bytes(3_000_000)})) as shelf:
        got: list[staging.Held] = []
        threads = [threading.Thread(target=lambda: got.append(staged(shelf, "a"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len({held.path for held in got}) == 1
        assert len(got) == 8
        assert sum(end - start > 1 for _, _, start, end in shelf.asked) == 1
        for held in got:
            held.let_go()


def test_a_copy_cut_off_is_made_anew(monkeypatch):
    with serving(Shelf({"a": bytes(range(256)) * 4000})) as shelf:
        shelf.fault = lambda number: "500" if number > 1 else ""
        with pytest.raises(RemoteError):
            staged(shelf, "a")
        assert copies() == []
        shelf.fault = None
        held = staged(shelf, "a")
        assert held.path.read_bytes() == bytes(range(256)) * 4000
        held.let_go()


REAL = "hamamatsu-DAPI-387.ndpi", "OS-2-ndpi.ome.tif", "TCGA-XK-AAJU-section.tif", "CMU-1-Small-Region.svs"


@pytest.mark.parametrize("name", REAL)
def test_real_slides_look_alike_from_afar(name):
    path = shared_path(f"data/slides/{name}")
    with (
        serving(Shelf({name: path.read_bytes()})) as shelf,
        wsi.open_slide(f"{shelf.url}/{name}") as far,
        wsi.open_slide(path) as near,
    ):
        assert far.levels == near.levels
        assert (far.held is not None) == name.endswith(".ndpi")
        x, y = (int(side // 3) for side in near.size)
        ours, theirs = (one.read(x, y, 200, 150).astype(int) for one in (far, near))
        assert np.abs(ours - theirs).max() <= 2


def test_slides_of_several_files_are_refused_from_afar():
    with pytest.raises(wsi.SlideError, match="several files"):
        wsi.open_slide("https://h.invalid/a.mrxs")
