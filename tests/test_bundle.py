"""The bundle for places without a network: installed from itself alone, and refused where a byte was changed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from _shared import ROOT

NOWHERE = "http://127.0.0.1:1"
NO_NETWORK = {
    **{f"{scheme}_proxy": NOWHERE for scheme in ("http", "https", "all")},
    **{f"{scheme}_PROXY": NOWHERE for scheme in ("HTTP", "HTTPS", "ALL")},
    "PIP_INDEX_URL": NOWHERE,
}


def bundler():
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "requirements" / "offline" / "bundle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, requires: str = "", code: str = "x = 1\n") -> Path:
    """Write a wheel of one module, as the standard has it."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "a bundle"
    (folder / "wheels").mkdir(parents=True)
    wheel(folder / "wheels", "alpha_one", "beta>=1")
    wheel(folder / "wheels", "beta")
    bundler().finish(folder, f"{sys.version_info.major}.{sys.version_info.minor}")
    return folder


def install(bundle: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Install as a stranger would, with every way to a network closed: no interfaces where the system lets us."""
    command = [str(bundle / "install.sh"), str(target)]
    alone = shutil.which("unshare")
    if alone and subprocess.run([alone, "-rn", "true"], capture_output=True, check=False).returncode == 0:
        command = [alone, "-rn", *command]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, **NO_NETWORK, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.slow
def test_a_bundle_installs_itself_without_a_network(bundle, tmp_path):
    done = install(bundle, tmp_path / "env")
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c", "import alpha_one, beta; print(alpha_one.x + beta.x)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "2"


@pytest.mark.slow
def test_a_wheel_that_was_changed_on_the_way_is_refused(bundle, tmp_path):
    wheel(bundle / "wheels", "beta", code="import os; x = os.getpid()\n")
    done = install(bundle, tmp_path / "env")
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()
    assert not list((tmp_path / "env").glob("lib/*/site-packages/beta.py"))


def test_a_bundle_for_another_python_says_so(bundle, tmp_path):
    (bundle / "python.txt").write_text("3.7\n")
    done = install(bundle, tmp_path / "env")
    assert (done.returncode, "PYTHON=python3.7" in done.stderr) == (5, True)
    assert not (tmp_path / "env").exists()


def test_what_lies_in_a_bundle_is_whole_and_names_no_registry(bundle):
    listed = (bundle / "requirements.txt").read_text()
    assert re.findall(r"^([\w-]+)==1\.0 --hash=sha256:[0-9a-f]{64}$", listed, re.MULTILINE) == ["alpha-one", "beta"]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in bundler().BESIDE:
        text = (bundle / name).read_text()
        assert "@PYTHON@" not in text
        assert not re.search(r"\w+\.(io|org|com)/", text), name
    assert f"python:{version}-slim" in (bundle / "Containerfile").read_text()


def test_wheels_for_an_older_system_serve_a_newer_one():
    """A platform's names are those that wheels carry: PEP 600, and the three names from before it."""
    names = bundler().platforms("manylinux_2_28_x86_64")
    known = {
        "manylinux_2_28",
        "manylinux_2_17",
        "manylinux2014",
        "manylinux_2_12",
        "manylinux2010",
        "manylinux1",
        "linux",
    }
    assert {f"{name}_x86_64" for name in known} <= set(names)
    assert names.index("manylinux_2_28_x86_64") < names.index("manylinux2014_x86_64")
    assert "manylinux_2_29_x86_64" not in names
    assert "manylinux2014_aarch64" not in bundler().platforms("manylinux_2_16_aarch64")
    with pytest.raises(SystemExit, match="manylinux_2_28_x86_64"):
        bundler().platforms("win_amd64")
