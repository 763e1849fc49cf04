"""Addresses → what is served. Slides are looked up by name, numbers have bounds; nothing else is reachable."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import wsi
from pipelines.errors import EnvironmentFault, JobError
from pipelines.manifest import SlideEntry

from . import asset
from .cam import TileCam
from .holdings import OUTLINES, PICTURES, Holdings
from .packed import pack
from .pool import SlideGoneError, version_of
from .pyramid import SIDE
from .review import Review
from .slides import Slides
from .tile_cache import TileCache
from .work import NobodyWaitsError, Work

WEB = Path(__file__).parent / "web"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_MOST_POSTED = 8192
_KEEP = {"cache-control": "private, max-age=600"}
_SAME = {"cache-control": "no-cache"}
COLORS = ("viridis", "cividis", "magma", "inferno", "gray", "RdBu_r", "PuOr_r")


@dataclass
class Viewer:
    """What the addresses share.

    Attributes:
        holdings: what is shown.
        pixels: what slides show.
        review: decisions of people.
        cam: Grad-CAM of a tile; None where a folder has no models.
        threads: that read at once.
        cache_bytes: that finished tiles may take.
    """

    holdings: Holdings
    pixels: Slides
    review: Review
    cam: TileCam | None
    threads: int
    cache_bytes: int

    def __post_init__(self) -> None:
        self.cache = TileCache(self.cache_bytes)
        self.work: Work | None = None

    def entry(self, request: Request) -> SlideEntry:
        """Return the slide that an address names."""
        name = request.path_params["slide"]
        entry = self.holdings.entry(name)
        if entry is None:
            raise HTTPException(404, "There is no such slide.")
        return entry

    async def made(self, request: Request, key: tuple[Any, ...], how: Callable[[], bytes | None]) -> Response:
        """Return a picture that is made once."""
        assert self.work is not None, "the application is running"
        try:
            data = await self.work.make(key, how, request.is_disconnected)
        except NobodyWaitsError:
            return Response(status_code=499)
        if data is None:
            raise HTTPException(404, "There is no such place.")
        return Response(data, media_type="image/jpeg", headers=_KEEP)

    # -- the page

    async def page(self, request: Request) -> Response:
        """The page and its scripts."""
        name = request.path_params.get("name", "index.html")
        if name == asset.SCRIPT:
            return _file(asset.FOLDER / asset.SCRIPT)
        if name not in _web_files():
            raise HTTPException(404, "There is no such file.")
        return _file(WEB / name)

    async def about(self, request: Request) -> Response:
        """What this viewer shows."""
        told = {"name": self.holdings.root.resolve().name, "kind": self.holdings.kind, "colors": COLORS}
        return JSONResponse({**told, "gradcam": self.cam is not None, "side": SIDE})

    async def colors(self, request: Request) -> Response:
        """A color table: 256 times red, green, blue."""
        from pipelines.heatmap import color_table

        name = request.path_params["name"]
        if name not in COLORS:
            raise HTTPException(404, "There is no such color map.")
        table = await run_in_threadpool(color_table, name)
        return Response(table.tobytes(), media_type="application/octet-stream", headers=_KEEP)

    # -- slides

    async def slides(self, request: Request) -> Response:
        """The list of slides with what is known and decided."""

        def make() -> bytes:
            decided = self.review.rows()
            cards = [{**card, "review": _decision(decided.get(card["slide_id"], {}))} for card in self.holdings.cards()]
            return json.dumps({"slides": cards}, ensure_ascii=True).encode()

        data = await run_in_threadpool(make)
        tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**_SAME, "etag": tag})
        return Response(data, media_type="application/json", headers={**_SAME, "etag": tag})

    async def info(self, request: Request) -> Response:
        """Size, resolution and layers of a slide; opens it."""
        entry = self.entry(request)

        def make() -> dict[str, Any]:
            name = entry.slide_id
            return {
                "slide_id": name,
                **self.pixels.facts(entry),
                "version": hashlib.sha256(version_of(entry).encode()).hexdigest()[:12],
                "layers": self.holdings.layers(name),
                "unshown": self.holdings.unshown(name),
                "pictures": [kind for kind in PICTURES if self.holdings.picture(name, kind) is not None],
                "outlines": [kind for kind in OUTLINES if self.holdings.outlines(name, kind)],
            }

        return JSONResponse(await run_in_threadpool(make))

    async def tile(self, request: Request) -> Response:
        """One tile of the pyramid."""
        entry, at = self.entry(request), request.path_params
        level, column, row = at["level"], at["column"], at["row"]
        key = (entry.slide_id, version_of(entry), level, column, row)

        return await self.made(request, key, lambda: self.pixels.tile(entry, level, column, row))

    async def crop(self, request: Request) -> Response:
        """A small picture of any rectangle."""
        entry, at = self.entry(request), request.path_params
        box = at["x"], at["y"], at["width"], at["height"]
        key = (entry.slide_id, version_of(entry), "crop", *box)

        return await self.made(request, key, lambda: self.pixels.crop(entry, box))

    async def picture(self, request: Request) -> Response:
        """A small picture of the whole slide: as the job has it, else the thumbnail from the slide itself."""
        name, kind = request.path_params["slide"], request.path_params["kind"]
        if kind not in PICTURES:
            raise HTTPException(404, "There is no such picture.")
        known = {card["slide_id"] for card in self.holdings.cards()} if self.holdings.entry(name) is None else {name}
        if name not in known:
            raise HTTPException(404, "There is no such slide.")
        path = self.holdings.picture(name, kind)
        if path is not None:
            return _file(path, "image/jpeg")
        if kind != "thumbnail":
            raise HTTPException(404, "There is no such picture.")
        entry = self.entry(request)
        key = name, version_of(entry), "thumbnail"
        return await self.made(request, key, lambda: self.pixels.thumbnail(entry))

    async def outlines(self, request: Request) -> Response:
        """Polygons: the tissue, or the true region."""
        entry, kind = self.entry(request), request.path_params["kind"]
        if kind not in OUTLINES:
            raise HTTPException(404, "There are no such outlines.")
        return JSONResponse(await run_in_threadpool(self.holdings.outlines, entry.slide_id, kind))

    async def grid(self, request: Request) -> Response:
        """Where the tiles lie."""
        entry = self.entry(request)
        placed = await run_in_threadpool(self.holdings.grid, entry.slide_id)
        if placed is None:
            raise HTTPException(404, "This slide has no tiles yet.")
        return Response(pack(placed), media_type="application/octet-stream")

    async def scores(self, request: Request) -> Response:
        """Tiles and values of one method of one model."""
        entry, at = self.entry(request), request.path_params
        found = await run_in_threadpool(self.holdings.scores, entry.slide_id, at["model"], at["method"])
        if found is None:
            raise HTTPException(404, "There are no such scores.")
        return Response(pack(*found), media_type="application/octet-stream")

    async def gradcam(self, request: Request) -> Response:
        """Grad-CAM of one tile."""
        entry, at = self.entry(request), request.path_params
        if self.cam is None or all(one["model"] != at["model"] for one in self.holdings.layers(entry.slide_id)):
            raise HTTPException(404, "This folder has no such model to explain with.")
        wanted = request.query_params.get("class") or None
        return JSONResponse(await run_in_threadpool(self.cam.of, entry, at["model"], (at["x"], at["y"]), wanted))

    # -- review

    async def decide(self, request: Request) -> Response:
        """Keep what somebody decided about a slide."""
        entry = self.entry(request)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_POSTED:
                raise HTTPException(413, "A decision is shorter than that.")
        try:
            told = json.loads(body)
            status, note = told["status"], told.get("note")
            if not isinstance(status, str) or not isinstance(note, str | None):
                raise TypeError
            f"{status}{note}".encode()  # half a character of UTF-16 could not be written
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise HTTPException(400, "A decision is an object with status, and maybe note.") from None
        row = await run_in_threadpool(self.review.decide, entry.slide_id, status, note)
        return JSONResponse(_decision(row))

    def application(self) -> Starlette:
        """Return the whole, not yet guarded."""
        slide = "/slides/{slide}"
        routes = [
            Route("/", self.page),
            Route("/api/about", self.about),
            Route("/api/slides", self.slides),
            Route("/colors/{name}", self.colors),
            Route(f"{slide}/info", self.info),
            Route(f"{slide}/tiles/{{level:int}}/{{column:int}}_{{row:int}}.jpg", self.tile),
            Route(f"{slide}/crop/{{x:int}}_{{y:int}}_{{width:int}}_{{height:int}}.jpg", self.crop),
            Route(f"{slide}/pictures/{{kind}}.jpg", self.picture),
            Route(f"{slide}/outlines/{{kind}}", self.outlines),
            Route(f"{slide}/grid", self.grid),
            Route(f"{slide}/scores/{{model}}/{{method}}", self.scores),
            Route(f"{slide}/gradcam/{{model}}/{{x:int}}_{{y:int}}", self.gradcam),
            Route(f"{slide}/review", self.decide, methods=["POST"]),
            Route("/{name}", self.page),
        ]
        handlers: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
            HTTPException: _refused,
            SlideGoneError: _problem,
            wsi.SlideError: _problem,
            JobError: _problem,
            Exception: _bug,
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._running)

    @contextlib.asynccontextmanager
    async def _running(self, app: Starlette) -> AsyncIterator[None]:
        self.work = Work(self.threads, self.cache)
        try:
            yield
        finally:
            self.work.close()
            self.pixels.close()


def _decision(row: Mapping[str, str]) -> dict[str, str]:
    return {"status": row.get("status", ""), "note": row.get("note", "")}


def _web_files() -> frozenset[str]:
    return frozenset(path.name for path in WEB.iterdir() if path.suffix in _TYPES)


def _file(path: Path, kind: str | None = None) -> Response:
    try:
        data = path.read_bytes()
    except OSError:
        raise HTTPException(404, "This file is not there any more.") from None
    return Response(data, media_type=kind or _TYPES.get(path.suffix, "text/plain"), headers=_SAME)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _problem(request: Request, error: Exception) -> Response:
    """Say what a slide or a table does not give, with the mend; the browser shows it."""
    return JSONResponse({"error": str(error)}, 507 if isinstance(error, EnvironmentFault) else 409)


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"a bug: {type(error).__name__}: {error}"[:500]}, 500)
