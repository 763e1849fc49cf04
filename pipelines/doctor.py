"""`slidemil doctor`: does the installation do what it must, and how is it mended where it does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .errors import ExitCode
from .outcome import Said
from .provenance import versions

_SAFE_OPENSLIDE = (4, 0, 1)
_WORST_LOSS = 6.0  # grey levels; what JPEG at quality 90 may change in a smooth picture


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as it must be.
        found: what was seen.
        mend: what helps, where it is not.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""


def examine() -> Said:
    """Run every check; exit code 5 where one failed."""
    checks = [_guarded(name, check) for name, check in _CHECKS.items()]
    ok = all(check.ok for check in checks)
    lines = [
        f"{'ok  ' if c.ok else 'FAIL'}  {c.name}: {c.found}" + ("" if c.ok else f"\n      {c.mend}") for c in checks
    ]
    data = {
        "status": "done" if ok else "failed",
        "checks": [asdict(c) for c in checks],
        "versions": versions(),
    }
    return Said(tuple(lines), data, ExitCode.DONE if ok else ExitCode.ENVIRONMENT)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a doctor that dies of the illness helps nobody
        return Check(
            name,
            False,
            f"{type(error).__name__}: {error}",
            "Install again: make env, or pip install slidemil.",
        )


def _packages() -> Check:
    missing = []
    for module in (
        "numpy",
        "scipy",
        "skimage",
        "sklearn",
        "h5py",
        "tifffile",
        "tiffslide",
        "timm",
        "safetensors",
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing.append(f"{module} ({error})")
    found = "all import" if not missing else f"do not import: {', '.join(missing)}"
    return Check("packages", not missing, found, "pip install slidemil")


def _torch() -> Check:
    import torch
    import torchvision

    good = bool(torch.isfinite(torchvision.transforms.functional.resize(torch.zeros(3, 8, 8), [4, 4])).all())
    device = f"CUDA: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no CUDA device, CPU is used"
    found = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}{_openvino()}"
    return Check("torch", good, found, "torch and torchvision do not fit together: install a matching pair.")


def _openvino() -> str:
    """Name OpenVINO's version where it is installed, without loading it."""
    try:
        return f", OpenVINO {importlib.metadata.version('openvino')} (--device openvino)"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _openslide() -> Check:
    import openslide

    found = tuple(int(part) for part in openslide.__library_version__.split(".")[:3])
    mend = "pip install 'openslide-bin>=4.0.1': older libraries can be made to write outside their memory."
    return Check("openslide", found >= _SAFE_OPENSLIDE, f"OpenSlide {openslide.__library_version__}", mend)


def _pixels() -> Check:
    """Read a slide made here: some library versions return blank tiles without an error."""
    from wsi.readers.openslide import OpenSlideSlide

    from .demo_svs import write_svs

    ramp = np.linspace(30, 220, 512).astype(np.uint8)
    truth = np.stack([np.broadcast_to(ramp, (512, 512)), np.broadcast_to(ramp[:, None], (512, 512))], axis=-1)
    truth = np.ascontiguousarray(np.concatenate([truth, truth[..., :1][::-1, ::-1]], axis=-1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.svs"
        write_svs(path, truth, mpp=0.5)
        with OpenSlideSlide(path) as slide:  # not open_slide, which would turn to another reader
            read = slide.read(0, 0, 512, 512)
            reader, mpp = slide.reader, slide.mpp
    error = float(np.abs(read.astype(float) - truth).mean())
    good = error < _WORST_LOSS and mpp is not None and abs(mpp.x - 0.5) < 0.005
    found = f"{reader} reads a known slide with a mean error of {error:.2f} grey levels"
    return Check("pixels", good, found, "A library returns wrong pixels: install openslide-bin anew.")


def _cores() -> Check:
    import wsi

    return Check("cores", True, f"{wsi.available_cores()} cores may be used")


def _disk() -> Check:
    import shutil

    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    return Check("disk", free > 1, f"{free:.1f} GB free for temporary files", "Make room, or set TMPDIR.")


_CHECKS: dict[str, Callable[[], Check]] = {
    "packages": _packages,
    "torch": _torch,
    "openslide": _openslide,
    "pixels": _pixels,
    "cores": _cores,
    "disk": _disk,
}
