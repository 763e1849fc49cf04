"""`slidemil serve`: a folder → a page on one port of this machine, until it is stopped."""

from __future__ import annotations

import importlib
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import wsi
from pipelines import tables_of_job as tables
from pipelines.config import load_settings
from pipelines.errors import EnvironmentFault, UsageError
from pipelines.formats.slide_features import Given
from pipelines.jobfolder import JobFolder
from pipelines.manifest import find_slides
from pipelines.signals import Preempted

from . import asset
from .cam import TileCam
from .foreign import ForeignHoldings, slides_by_name
from .holdings import Holdings, JobHoldings
from .slides import Slides

HOST, PORT = "127.0.0.1", 8765
CACHE = 256 << 20
_EARLY = ("anyio.lowlevel", "anyio.streams.memory", "anyio.streams.stapled", "anyio.streams.tls")


@dataclass(frozen=True)
class Wish:
    """How a folder is to be served.

    Attributes:
        slides: where slides lie now, or those of another tool's folder.
        host: address to listen on.
        port: 0 for any free one.
        allow_hosts: names by which a proxy asks.
        review: the table of decisions; None for `review.csv` in the folder.
        given: what files of another tool do not say.
        weights: of the encoder, for Grad-CAM.
        cache_bytes: that finished tiles may take.
    """

    slides: tuple[Path, ...] = ()
    host: str = HOST
    port: int = PORT
    allow_hosts: tuple[str, ...] = ()
    review: Path | None = None
    given: Given = field(default_factory=Given)
    weights: str | None = None
    cache_bytes: int = CACHE


class Server:
    """A folder that is ready to be served; the port is taken already.

    Args:
        root: a job folder of ours, or one of TRIDENT, CLAM or STAMP.
        wish: how.

    Raises:
        EnvironmentFault: OpenSeadragon is not built in, or the port is taken.
        UsageError: the folder is none that can be shown, or a path is none.
    """

    def __init__(self, root: Path, wish: Wish) -> None:
        asset.check()
        check_paths(wish)
        import uvicorn

        for name in _EARLY:  # time that the first tile would else take
            importlib.import_module(name)

        from .app import Viewer
        from .guard import Guard
        from .patience import Patient
        from .review import Review

        holdings, pixels = open_folder(root, wish)
        cam = TileCam(holdings.job, pixels, wish.weights) if isinstance(holdings, JobHoldings) else None
        review = Review(wish.review or root / "review.csv")
        review.rows()  # a table that cannot be read is told now
        self.viewer = Viewer(holdings, pixels, review, cam, max(2, wsi.available_cores()), wish.cache_bytes)
        self.slides = len(holdings.cards())
        self._socket = listen(wish.host, wish.port)
        pixels.begin()
        token = secrets.token_urlsafe(24)
        shown = "127.0.0.1" if wish.host in ("0.0.0.0", "::") else wish.host  # noqa: S104
        address = f"[{shown}]" if ":" in shown else shown
        self.url = f"http://{address}:{self._socket.getsockname()[1]}/{token}/"
        names = {wish.host, socket.gethostname(), *wish.allow_hosts}
        config = uvicorn.Config(
            Guard(self.viewer.application(), token, names),
            log_level="warning",
            access_log=False,  # the token stands in every address
            server_header=False,
            lifespan="on",
            http=Patient,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        pixels.wait()

    def run(self) -> None:
        """Answer until Ctrl-C, or `stop`."""
        try:
            self._server.run(sockets=[self._socket])
        except (KeyboardInterrupt, Preempted):
            return  # that is how a server ends

    def stop(self) -> None:
        """Let `run` end, from another thread."""
        self._server.should_exit = True


def check_paths(wish: Wish) -> None:
    """Refuse at the start what would only fail at the first click, or at the first decision.

    Raises:
        UsageError: the weights are not there, or there is no place for the table of decisions.
    """
    word = wish.weights or "random"
    if word.partition(":")[0] != "random" and not Path(word.removeprefix("local-dir:")).exists():
        raise UsageError(f"--weights {word}: no such file or folder. Leave it out where the job's own lie as before.")
    if wish.review is not None and (wish.review.is_dir() or not wish.review.parent.is_dir()):
        raise UsageError(f"--review {wish.review}: no table can lie there. Name a file in a folder that exists.")


def open_folder(root: Path, wish: Wish) -> tuple[Holdings, Slides]:
    """Return what a folder holds, and what reads its slides.

    Raises:
        UsageError: the folder is not there, or of no tool that is known.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder. Give a job folder, or one of TRIDENT, CLAM or STAMP with --slides.")
    found = find_slides(wish.slides).entries if wish.slides else ()
    job = JobFolder(root)
    settings = load_settings(job.settings if job.settings.is_file() else None).extract
    pixels = Slides(settings.icc, settings.slide_mpp or wish.given.mpp)
    if job.manifest.is_file():
        tables.read_manifest(job)
        return JobHoldings(job, slides_by_name(found)), pixels
    foreign = ForeignHoldings(root, slides_by_name(found), wish.given, pixels)
    if not foreign.cards():
        raise UsageError(
            f"{root}: no job (no manifest.csv), and no features of TRIDENT, CLAM or STAMP. "
            f"Start a job: slidemil extract SLIDES -o {root}"
        )
    if not found:
        raise UsageError(f"{root}: {foreign.kind} does not say where its slides lie. Say it: --slides FOLDER")
    return foreign, pixels


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        EnvironmentFault: the port is taken, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio lets small answers go at once only where the protocol is named: else each waits 40 ms for the client
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        raise EnvironmentFault(
            f"port {port} of {host} cannot be used ({error}). Take another: --port {port + 1 if port < 65535 else 0}, "
            "or --port 0 for any free one."
        ) from error
    return listening


def spoken(url: str, slides: int, host: str) -> Sequence[str]:
    """Return what people are told."""
    lines = [f"{slides} slides at {url}", "Ctrl-C ends it."]
    port = url.split("/")[2].rpartition(":")[2]
    if host == HOST:
        lines.insert(
            1, f"From another machine: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE, then the same address there."
        )
    else:
        lines.insert(1, f"WARNING: {host} may be reached by others; the address, which lets in, goes over the network.")
    return lines
