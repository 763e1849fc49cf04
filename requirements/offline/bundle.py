"""Make a folder from which slidemil is installed where there is no network.

    python requirements/offline/bundle.py [dist/bundle]

All wheels of the pinned requirements and our own go into `wheels/`; `requirements.txt` names each with its version and
the SHA-256 of its bytes, and pip refuses whatever differs. Beside them lie the install script and the recipes of a
container. Wheels are for the machine and the Python that this runs on, unless others are named.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
UV = ("uv",) if shutil.which("uv") else (sys.executable, "-m", "uv")
BESIDE = ("install.sh", "Containerfile", "slidemil.def", "README.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist" / "bundle")
    parser.add_argument("--extras", default="", help="further extras, e.g. dicom,remote: all their pins come along")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="e.g. 3.12")
    parser.add_argument("--platform", help="e.g. manylinux_2_28_x86_64; this machine's where it is not named")
    parser.add_argument("--index", help="one more package index, e.g. of builds of torch without CUDA")
    given = parser.parse_args(arguments)
    wheels = given.folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    pins = given.folder / "pins.txt"
    pins.write_text(pinned(given.extras, given.python, given.platform))
    fetch(pins, wheels, given)
    run(*UV, "build", "--quiet", "--wheel", "--out-dir", wheels, ROOT)
    finish(given.folder, given.python)
    size = sum(path.stat().st_size for path in wheels.iterdir()) / 1e6
    count = len(list(wheels.glob("*.whl")))
    print(f"{given.folder}: {count} wheels, {size:,.0f} MB. Carry it over, then: ./install.sh")
    return 0


def pinned(extras: str, python: str, platform: str | None) -> str:
    """Return what is installed, a line each, with the versions of the committed pins."""
    asked = ["--extra=" + extra for extra in extras.split(",") if extra]
    if platform:
        glibc, machine = parts_of(platform)
        asked.append(f"--python-platform={machine}-manylinux_2_{glibc}")
    command = [*UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    constraints = ["-c", ROOT / "requirements" / "dev.txt"]
    return run(*command, f"--python-version={python}", *asked, *constraints, ROOT / "pyproject.toml")


def fetch(pins: Path, wheels: Path, given: argparse.Namespace) -> None:
    """Get a wheel of each line."""
    target = ["--python-version", given.python, "--implementation", "cp"]
    target += [f"--platform={one}" for one in (platforms(given.platform) if given.platform else [])]
    index = ["--extra-index-url", given.index] if given.index else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run(*command, "--only-binary", ":all:", *target, *index, "-r", pins, "-d", wheels)


def parts_of(platform: str) -> tuple[int, str]:
    """Return the second number of a platform's glibc, and its processor."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(x86_64|aarch64)", platform)
    if found is None:
        sys.exit(f"--platform {platform}: wheels are for Linux, e.g. manylinux_2_28_x86_64")
    return int(found[1]), found[2]


def platforms(platform: str) -> list[str]:
    """Return what runs there: wheels for the same glibc and for each older one; pip takes only what is named."""
    glibc, machine = parts_of(platform)
    older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    names = [name for n in range(glibc, 4, -1) for name in (f"manylinux_2_{n}", older.get(n)) if name]
    return [f"{name}_{machine}" for name in (*names, "linux")]


def finish(folder: Path, python: str) -> None:
    """Write what lies beside the wheels: their list with hashes, the install script, the recipes."""
    (folder / "pins.txt").unlink(missing_ok=True)
    (folder / "requirements.txt").write_text(hashed(folder / "wheels"))
    (folder / "python.txt").write_text(f"{python}\n")
    for name in BESIDE:
        text = (HERE / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("@PYTHON@", python), encoding="utf-8")
    (folder / "install.sh").chmod(0o755)


def hashed(wheels: Path) -> str:
    """Return requirements that only these very wheels meet."""
    lines = []
    for path in sorted(wheels.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{re.sub(r'[-_.]+', '-', name).lower()}=={version} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


def run(*command: object) -> str:
    """Run a command; its output is returned, and its errors end this."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - uv and pip
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command[:4]))} …")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
