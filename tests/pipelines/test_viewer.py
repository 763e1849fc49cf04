"""`slidemil serve` as a browser, ten of them, and a stranger see it."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import socket
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _viewer import asked, browser, needs_asset, serving, told, until
from PIL import Image

import wsi
from pipelines import explainable
from pipelines import tables_of_job as tables
from pipelines.convert import convert
from pipelines.jobfolder import JobFolder
from pipelines.manifest import SlideEntry
from pipelines.predictions import find_model
from pipelines.viewer import asset, server, slides
from pipelines.viewer.cam import TileCam
from pipelines.viewer.foreign import BLOCKS
from pipelines.viewer.pool import SlideGoneError


@pytest.fixture(scope="module")
def job(finished, tmp_path_factory):
    """A copy of the finished job: reviews are written into it."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("viewer") / "job")


@pytest.fixture(scope="module")
def url(job, asset_there):
    with serving(job) as ready:
        yield ready.url


@pytest.fixture(scope="module")
def asset_there(tmp_path_factory):
    """A stand-in where OpenSeadragon is not built: what is served here does not run it."""
    with pytest.MonkeyPatch.context() as patch:
        if not (asset.FOLDER / asset.SCRIPT).is_file():
            folder = tmp_path_factory.mktemp("asset")
            (folder / asset.SCRIPT).write_text("/* not built */")
            patch.setattr(asset, "FOLDER", folder)
        yield


@pytest.fixture(scope="module")
def slide(job):
    """A positive slide of the job."""
    return next(row["slide_id"] for row in predictions(job) if row["label"] == "positive")


def predictions(job):
    (path,) = job.glob("predictions/*/slides.csv")
    return rows_of(path)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_list_tells_prediction_and_quality(url, job):
    cards = {card["slide_id"]: card for card in told(f"{url}api/slides")["slides"]}
    for row in predictions(job):
        (said,) = cards[row["slide_id"]]["predictions"]
        assert (said["pred"], said["label"], said["p"]["positive"]) == (row["pred"], row["label"], row["p_positive"])
    rows = {row["slide_id"]: row for row in tables.read_slides(JobFolder(job))}
    assert {name: card["shares"]["pen"] for name, card in cards.items()} == {n: r["pen_share"] for n, r in rows.items()}
    for name in list(cards)[:2]:
        assert picture(asked(f"{url}slides/{name}/pictures/thumbnail.jpg")[1]).ndim == 3


def test_an_unchanged_list_is_not_sent_again(url):
    import urllib.request

    with urllib.request.urlopen(f"{url}api/slides", timeout=20) as answer:
        tag = answer.headers["etag"]
    assert asked(f"{url}api/slides", if_none_match=tag) == (304, b"")


def test_tiles_show_the_slide(url, job, slide):
    """Against OpenSlide, which shares none of the code."""
    import openslide

    entry = next(entry for entry in tables.read_manifest(JobFolder(job)).entries if entry.slide_id == slide)
    info = told(f"{url}slides/{slide}/info")
    with openslide.OpenSlide(str(entry.path)) as other:
        assert (info["width"], info["height"]) == other.dimensions
        for level in (info["top"], info["top"] - 1):
            down = 2 ** (info["top"] - level)
            tile = picture(asked(f"{url}slides/{slide}/tiles/{level}/2_1.jpg")[1]).astype(float)
            corner = 2 * 256 * down, 256 * down
            whole = other.read_region(corner, 0, (256 * down, 256 * down)).convert("RGB")
            want = np.asarray(whole.reduce(down)) if down > 1 else np.asarray(whole)
            assert np.abs(tile - want).mean() < 3


def test_scores_are_those_of_the_file(url, job, slide):
    (path,) = job.glob(f"heatmaps/*/{slide}.scores.h5")
    with h5py.File(path) as file:
        xy, values = file["coords"][()], file["attention"][()]
        footprint = int(file["coords"].attrs["patch_size_level0"])
    status, data = asked(f"{url}slides/{slide}/scores/{path.parent.name}/attention")
    n, width, _, step, _, _ = np.frombuffer(data, "<i4", 6)
    assert (status, n, width, step) == (200, len(xy), footprint, footprint)
    places = np.frombuffer(data, "<i4", 2 * n, 24).reshape(2, n).T
    assert (places == xy).all()
    assert (np.frombuffer(data, "<f4", n, 24 + 8 * n) == values).all()


STRANGE = (
    *(
        "slides/..%2f..%2fmanifest.csv/info",
        "slides/../../job.yaml",
        "..%2fjob.yaml",
        "%2e%2e/manifest.csv",
        "manifest.csv",
    ),
    *("slides/%00/info", "slides/{slide}/pictures/..%2f..%2fjob.jpg", "slides/{slide}/pictures/label.jpg"),
    *("slides/{slide}/pictures/macro.jpg", "slides/{slide}/tiles/99999999999999999999/0_0.jpg"),
    *(
        "slides/{slide}/tiles/3/99999999999_0.jpg",
        "slides/{slide}/tiles/3/-1_0.jpg",
        "slides/{slide}/tiles/3/0_1e9.jpg",
    ),
    *(
        "slides/{slide}/crop/0_0_99999999_99999999.jpg",
        "slides/{slide}/crop/0_0_0_0.jpg",
        "slides/{slide}/crop/99999999_0_9_9.jpg",
    ),
    *("slides/{slide}/scores/..%2f..%2fmodels/attention", "slides/{slide}/scores/gated_abmil/coords"),
    *(
        "slides/{slide}/outlines/..",
        "slides/nobody/info",
        "slides/nobody/tiles/0/0_0.jpg",
        "colors/..%2fx",
        "app.py",
        "web",
    ),
    *("slides/{slide}/gradcam/..%2fx/0_0", "package.json", ".npmrc", "colors/jet"),
)


@pytest.mark.parametrize("address", STRANGE)
def test_what_is_no_slide_place_or_file_is_refused(url, slide, address):
    status, body = asked(url + address.format(slide=slide))
    assert status in (404, 405), (status, body)
    assert b"slide_id" not in body


def test_paths_that_lead_out_are_refused_as_they_are_written(url):
    """No library between us and the server that would tidy the path up."""
    parts = urllib.parse.urlsplit(url)
    for path in (
        "/../../../../etc/passwd",
        f"{parts.path}../../etc/passwd",
        f"{parts.path}slides/../../../etc/passwd/info",
    ):
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert answer.split(b" ", 2)[1] in (b"403", b"404")
        assert b"root:" not in answer


def test_without_the_token_nothing_is_told(url):
    root = url.rsplit("/", 2)[0]
    wrong = url[:-3] + ("ab/" if not url.endswith("ab/") else "cd/")
    for address in (
        f"{root}/",
        f"{root}",
        f"{root}/api/slides",
        f"{root}//api/slides",
        f"{wrong}api/slides",
        f"{root}/é/",
    ):
        status, body = asked(urllib.parse.quote(address, safe=":/"))
        assert (status, b"slidemil serve" in body) == (403, True)


def test_other_names_and_other_sites_are_refused(url, job, slide):
    assert asked(f"{url}api/slides", host="attacker.example")[0] == 421
    assert asked(f"{url}api/slides", host="127.0.0.1.attacker.example")[0] == 421
    for host in ("localhost", "localhost:8888", "127.0.0.1", "[::1]:8000"):
        assert asked(f"{url}api/about", host=host)[0] == 200
    review, before = f"{url}slides/{slide}/review", (job / "review.csv").exists()
    body = json.dumps({"status": "accept"}).encode()
    assert asked(review, data=body, origin="https://attacker.example")[0] == 403
    assert asked(review, data=body, sec_fetch_site="cross-site")[0] == 403
    assert (job / "review.csv").exists() == before
    with serving(job, allow_hosts=("hub.example",)) as proxied:
        assert asked(f"{proxied.url}api/about", host="hub.example")[0] == 200


def test_the_policy_lets_nothing_in_from_elsewhere(url):
    import urllib.request

    with urllib.request.urlopen(url, timeout=20) as answer:
        policy, page = answer.headers["content-security-policy"], answer.read().decode()
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in policy
    assert not re.search(r"https?://", page)
    assert not re.search(r'(src|href)="/', page), "links are relative"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"status": 1}',
        b'{"status": "accept", "note": []}',
        b'{"status": "accept", "note": "\\ud800"}',
        b"[" * 5000,
    ],
)
def test_a_decision_that_is_none_is_refused(url, slide, body):
    assert asked(f"{url}slides/{slide}/review", data=body)[0] == 400


def test_decisions_are_kept_and_select_slides(url, job, slide, cohort, labels, tmp_path):
    names = [card["slide_id"] for card in told(f"{url}api/slides")["slides"]]
    with ThreadPoolExecutor(8) as threads:  # all at once: none may get lost
        sent = [
            json.dumps({"status": "accept" if n % 2 else "reject", "note": "=1+1"}).encode() for n in range(len(names))
        ]
        answers = list(
            threads.map(lambda one: asked(f"{url}slides/{one[0]}/review", data=one[1]), zip(names, sent, strict=True))
        )
    assert {status for status, _ in answers} == {200}
    rows = rows_of(job / "review.csv")
    assert [row["slide_id"] for row in rows] == sorted(names)
    assert {row["note"] for row in rows} == {"'=1+1"}, "no spreadsheet runs it"
    assert asked(f"{url}slides/{names[1]}/review", data=b'{"status": "good"}')[0] == 409
    assert asked(f"{url}slides/{names[1]}/review", data=b" " * 10_000)[0] == 413
    code, said = slidemil_json("predict", job, "-m", "gated_abmil", "--select", f"{job / 'review.csv'}:reject")
    assert (code, said["slides"]) == (0, len(names[::2]))
    folder = cohort.slides[0].path.parent
    code, said = slidemil_json("extract", folder, "-o", tmp_path / "new", "--select", job / "review.csv", "--limit", 1)
    assert (code, said["slides"]["found"]) == (0, 1)
    assert [entry.slide_id for entry in tables.read_manifest(JobFolder(tmp_path / "new")).entries] == [sorted(names)[1]]


def test_ten_clients_at_once_get_the_same_tiles(url, slide):
    info = told(f"{url}slides/{slide}/info")
    top, across = info["top"], -(-info["width"] // 256)
    places = [f"{url}slides/{slide}/tiles/{top}/{column}_{row}.jpg" for column in range(across) for row in range(4)]

    def look(number):
        order = np.random.default_rng(number).permutation(len(places))
        return {places[at]: asked(places[at]) for at in order}

    with ThreadPoolExecutor(10) as threads:
        seen = list(threads.map(look, range(10)))
    assert all(one == seen[0] for one in seen)
    assert {status for status, _ in seen[0].values()} == {200}


def test_a_tile_cannot_be_explained_by_descriptors(url, slide):
    status, body = asked(f"{url}slides/{slide}/gradcam/gated_abmil/0_0")
    assert status == 409
    assert "--encoder slidemil-compact" in json.loads(body)["error"]


def test_a_model_that_was_trained_anew_explains_the_next_tile(finished, labels, tmp_path, monkeypatch):
    job = JobFolder(shutil.copytree(finished, tmp_path / "job"))
    monkeypatch.setattr(explainable, "choose_methods", lambda *_: ("gradcam",))  # which model is asked, not how
    cam = TileCam(job, slides.Slides())
    first = cam._get("gated_abmil").named
    assert cam._get("gated_abmil").named is first, "it is loaded once"
    code, said = slidemil("train", job.root, "-l", labels, "--epochs", 1, "--set", "seed=5", "-q")
    assert code == 0, said
    assert cam._get("gated_abmil").named.sha256 == find_model(job, "gated_abmil").sha256 != first.sha256


def test_a_job_under_way_may_be_looked_at(asset_there, job, tmp_path):
    """Slides are listed, tables and features come later."""
    young = tmp_path / "young"
    young.mkdir()
    entries = tables.read_manifest(JobFolder(job)).entries[:2]
    tables.write_manifest(JobFolder(young), tables.Manifest(entries))
    with serving(young) as ready:
        cards = told(f"{ready.url}api/slides")["slides"]
        assert [card["status"] for card in cards] == ["pending", "pending"]
        name = cards[0]["slide_id"]
        assert told(f"{ready.url}slides/{name}/info")["layers"] == []
        assert asked(f"{ready.url}slides/{name}/grid")[0] == 404
        small = picture(asked(f"{ready.url}slides/{name}/pictures/thumbnail.jpg")[1])
        assert max(small.shape) <= 256
        (patches,) = job.glob(f"*/patches/{name}_patches.h5")
        (young / "20x_224px_0px_overlap/patches").mkdir(parents=True)
        shutil.copy(patches, young / "20x_224px_0px_overlap/patches")
        assert asked(f"{ready.url}slides/{name}/grid")[0] == 200


def test_slides_that_moved_are_told_and_found_again(asset_there, job, cohort, tmp_path):
    moved = shutil.copytree(job, tmp_path / "away" / "job")
    table = moved / "manifest.csv"
    table.write_text(re.sub(r"[^,\n]*/([^/,]+\.svs)", r"nowhere/\1", table.read_text()))
    name = cohort.slides[0].slide_id
    with serving(moved) as ready:
        status, body = asked(f"{ready.url}slides/{name}/tiles/0/0_0.jpg")
        assert status == 409
        assert "--slides FOLDER" in json.loads(body)["error"]
    with serving(moved, slides=(cohort.slides[0].path.parent,)) as ready:
        assert asked(f"{ready.url}slides/{name}/tiles/0/0_0.jpg")[0] == 200


@pytest.mark.parametrize("tool", ["trident", "clam", "stamp"])
def test_folders_of_other_tools_are_shown(asset_there, job, cohort, tmp_path, tool):
    """Their layouts as the adapters write them, tested elsewhere against the tools' rules; footprints come back."""
    name = cohort.slides[0].slide_id
    (features,) = job.glob(f"*/features_*/{name}.h5")
    convert([str(features)], str(tmp_path / tool), tool)
    for file in (tmp_path / tool).rglob("*.h5"):
        with h5py.File(file, "r+") as opened:  # what only we would write
            for key in [key for key in opened.attrs if key.startswith(("slidemil", "encoder_passport"))]:
                del opened.attrs[key]
    with h5py.File(features) as file:
        xy, side = file["coords"][()], int(file["coords"].attrs["patch_size_level0"])
    if tool == "clam":
        with h5py.File(tmp_path / tool / f"{name}{BLOCKS}.h5", "w") as file:
            file["attention_scores"], file["coords"] = np.arange(len(xy), dtype=np.float32)[:, None], xy
        (tmp_path / tool / "fold_0.csv").write_text(f"slide_id,Y,Y_hat,p_0,p_1\n{name},1.0,1.0,0.2,0.8\n")
    with serving(tmp_path / tool, slides=(cohort.slides[0].path.parent,)) as ready:
        assert ready.viewer.holdings.kind == tool
        (card,) = told(f"{ready.url}api/slides")["slides"]
        assert (card["slide_id"], card["status"]) == (name, "done")
        data = asked(f"{ready.url}slides/{name}/grid")[1]
        head = np.frombuffer(data, "<i4", 6)
        assert head[:3].tolist() == [len(xy), side, side]
        assert (np.frombuffer(data, "<i4", 2 * len(xy), 24).reshape(2, -1).T == xy).all()
        assert asked(f"{ready.url}slides/{name}/tiles/0/0_0.jpg")[0] == 200
        if tool == "clam":
            assert card["predictions"][0]["p"] == {"0": "0.2", "1": "0.8"}
            values = asked(f"{ready.url}slides/{name}/scores/CLAM/attention_scores")[1]
            assert np.frombuffer(values, "<f4", len(xy), 24 + 8 * len(xy)).tolist() == list(range(len(xy)))


@pytest.fixture
def dangerous(cohort, tmp_path, monkeypatch):
    """A job of a good slide and two copies of it that end, or hold, whatever opens them."""
    import _read_badly

    monkeypatch.setattr(slides, "_SERVE", _read_badly.SERVE)
    entries = []
    for name in ("good", "abort", "hang"):
        path = tmp_path / f"{name}.svs"
        path.write_bytes(cohort.slides[0].path.read_bytes())
        entries.append(SlideEntry(name, path, name))
    tables.write_manifest(JobFolder(tmp_path / "job"), tables.Manifest(tuple(entries)))
    return {entry.slide_id: entry for entry in entries}, tmp_path / "job"


def test_a_slide_that_ends_its_reader_is_refused_and_the_server_lives(asset_there, dangerous):
    entries, job = dangerous
    with serving(job) as ready, ThreadPoolExecutor(12) as threads:

        def look(address):
            return asked(f"{ready.url}slides/{address}")

        places = [f"{name}/tiles/3/{n}_0.jpg" for n in range(4) for name in ("abort", "good")]
        answers = list(threads.map(look, ["abort/info", *places, "abort/pictures/thumbnail.jpg"]))
        good = [body for place, (_, body) in zip(places, answers[1:], strict=False) if place.startswith("good")]
        assert [Image.open(io.BytesIO(body)).size for body in good] == [(256, 256)] * 4, "read at the same time"
        told_of = {json.loads(body)["error"] for status, body in answers if status == 409}
        assert [status for status, _ in answers].count(409) == 6
        (words,) = told_of
        assert "signal 6, SIGABRT: GLib-ERROR: failed to allocate 480 GB" in words
        assert "Copy the slide again" in words
        begin = time.monotonic()
        assert look("abort/info")[0] == 409
        assert time.monotonic() - begin < 0.25, "it is not opened again"
        entries["abort"].path.write_bytes(entries["good"].path.read_bytes() + b"\0")  # another file: still named badly
        assert look("abort/info")[0] == 409
        assert look("good/info")[0] == 200
        assert told(f"{ready.url}api/slides")["slides"]


def test_a_slide_that_hangs_holds_nobody_up(dangerous):
    entries, _ = dangerous
    pixels = slides.Slides(seconds=1.5)
    pixels.wait()
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(pixels.facts, entries["hang"])
        assert pixels.facts(entries["good"])["width"] > 0
        with pytest.raises(SlideGoneError, match=r"hang: no answer in 2 s"):
            hanging.result()
    assert pixels.facts(entries["good"])["width"] > 0
    with pytest.raises(SlideGoneError, match="no answer"):
        pixels.facts(entries["hang"])
    pixels.close()
    with pytest.raises(SlideGoneError, match="ends"):
        pixels.facts(entries["good"])


def test_what_cannot_be_served_is_one_clear_error(asset_there, job, tmp_path, monkeypatch):
    assert slidemil("serve", tmp_path / "none")[0] == 2
    (tmp_path / "empty").mkdir()
    code, said = slidemil("serve", tmp_path / "empty")
    assert (code, "no job" in said) == (2, True)
    for option, path in {"--weights": tmp_path / "none.pth", "--review": tmp_path / "none" / "review.csv"}.items():
        monkeypatch.setattr(server.Server, "run", lambda self: None)
        code, said = slidemil("serve", job, "--port", 0, option, path)
        assert (code, f"{option} {path}" in " ".join(said.split())) == (2, True), said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = slidemil("serve", job, "--port", taken.getsockname()[1])
    assert (code, "--port 0" in said) == (5, True)
    monkeypatch.setattr(asset, "FOLDER", tmp_path)
    code, said = slidemil("serve", job)
    assert (code, "make viewer" in said) == (5, True)


def test_small_answers_go_at_once(url):
    """Sent in two pieces, an answer would wait 40 ms for the client each time, were the protocol not named."""
    import http.client

    parts = urllib.parse.urlsplit(url)
    line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    took = []
    for _ in range(20):
        begin = time.perf_counter()
        line.request("GET", f"{parts.path}api/about")
        line.getresponse().read()
        took.append(time.perf_counter() - begin)
    line.close()
    assert min(took[1:]) < 0.03


def test_the_command_says_its_address_and_ends_at_a_signal(job):
    """The real command, in a process of its own."""
    import signal
    import subprocess
    import sys

    needs_asset()
    words = [sys.executable, "-m", "pipelines.cli", "serve", str(job), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        said = json.loads(process.stdout.readline())
        assert told(f"{said['url']}api/about")["kind"] == "slidemil"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_the_page_knows_which_methods_are_signed_and_their_units():
    """What the browser says of a method is what the method says of itself."""
    import re

    from mil.explain import METHODS
    from pipelines.viewer.app import WEB

    text = (WEB / "layer.js").read_text(encoding="utf-8")
    signed = set(re.findall(r'"(\w+)"', re.search(r"new Set\(\[(.*?)\]\)", text, re.DOTALL)[1]))
    assert signed == {name for name, method in METHODS.items() if method.signed}
    units = dict(re.findall(r'(\w+): "([^"]+)"', text))
    assert {name: method.unit for name, method in METHODS.items()} == {name: units.get(name) for name in METHODS}


def test_in_a_browser(url, job, slide):
    """Open, switch the layer, move the threshold, pan, click a tile, review by keys, and come back by the address."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    needs_asset()
    with browser() as page:

        def js(text):
            return page.execute_script(f"return {text}")

        def keys(text):
            ActionChains(page).send_keys(text).perform()

        def colored():
            """Share of the view that the overlay covers."""
            return js(
                "(() => { const c = document.querySelector('canvas.overlay'); let n = 0;"
                "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); })()"
            )

        def asked_for(part):
            return js(f"performance.getEntriesByType('resource').filter((one) => one.name.includes('{part}')).length")

        page.get(f"{url}#slide={slide}")
        until(lambda: js("document.body.dataset.ready"), "the page")
        until(lambda: js("Number(document.querySelector('.pane').dataset.tiles) > 0"), "tiles")
        assert colored() == 0
        keys("1")
        until(lambda: js("!document.getElementById('values').hidden"), "a layer")
        whole = until(colored, "colors")
        scores = asked_for("/scores/")
        assert scores == 1
        js(
            "(() => { const from = document.getElementById('from'); from.value = 700;"
            "from.dispatchEvent(new Event('input')); })()"
        )
        until(lambda: 0 < colored() < 0.5 * whole, "fewer tiles above the threshold")
        (path,) = job.glob(f"heatmaps/*/{slide}.scores.h5")
        with h5py.File(path) as file:
            ratio = np.log2(file["attention"][()].astype(float) * len(file["attention"]))
        kept = int(((ratio.clip(-6, 6) + 6) / 12 >= 0.7).sum())
        assert js("document.getElementById('shown').textContent").startswith(f"{kept} of {len(ratio)} tiles")
        assert asked_for("/scores/") == scores, "recolored without the server"

        before = until(lambda: "view=" in js("location.hash") and js("location.hash"), "the view in the address")
        image = page.find_element(By.CSS_SELECTOR, ".pane .image")
        ActionChains(page).click_and_hold(image).move_by_offset(-150, -90).release().perform()
        until(lambda: js("location.hash") != before, "the address after panning")
        keys("+")
        until(lambda: js("document.querySelectorAll('.pane').length") == 2, "two views")
        until(lambda: js("document.querySelectorAll('.pane')[1].dataset.open"), "the second view")
        keys("-")

        until(lambda: js("document.querySelectorAll('.pane').length") == 1, "one view")
        until(lambda: asked_for("/scores/") > scores + 1, "the layers again")
        js("document.querySelector('#top button').click()")
        best = int(ratio.argmax())
        with h5py.File(path) as file:
            place = ",".join(str(one) for one in file["coords"][best])
        until(lambda: f"tile={urllib.parse.quote(place)}" in js("location.hash"), "the highest tile")
        until(lambda: js("document.querySelector('button.explain') !== null"), "the tile's values")
        js("document.querySelector('button.explain').click()")
        until(lambda: "--encoder slidemil-compact" in js("document.getElementById('cam').textContent"), "the mend", 30)

        keys("a")
        until(lambda: js("document.querySelector('li.accept') !== null"), "accepted")
        keys("n")
        until(lambda: f"slide={slide}&" not in js("location.hash") + "&", "the next slide")
        until(lambda: js("document.querySelector('.pane').dataset.open") != slide, "the next slide in the view")
        later = js("new URLSearchParams(location.hash.slice(1)).get('slide')")
        keys("f")
        until(lambda: js("document.querySelector('li.flag[aria-current=true]') !== null"), "flagged")
        decided = {row["slide_id"]: row["status"] for row in rows_of(job / "review.csv")}
        assert (decided[slide], decided[later]) == ("accept", "flag")

        where = js("location.href")
        page.get("about:blank")
        page.get(where)
        until(lambda: js("document.body.dataset.ready"), "the page again")
        assert js("document.getElementById('title').textContent") == later
        assert js("document.getElementById('from').value") == "700"
        assert not js("document.getElementById('unshown').textContent")
        record = JobFolder(job).record(job / "heatmaps/gated_abmil" / f"{later}.png")
        record.unlink()
        page.refresh()
        words = until(lambda: js("document.getElementById('unshown').textContent"), "what is not shown, and why")
        assert "left half done" in words
        assert f"slidemil heatmap {job} --model gated_abmil --method attention" in words
        severe = [
            line for line in page.get_log("browser") if line["level"] == "SEVERE" and "409" not in line["message"]
        ]
        assert severe == []


def test_wsi_is_used_as_everywhere():
    """Label and macro are pictures that the readers never hand out: the protocol has no way to ask for them."""
    assert not {"associated_images", "label", "macro"} & set(dir(wsi.Slide))
