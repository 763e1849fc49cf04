"""The house rules: imports go one way, and `slidemil --help` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wsi", "stain", "mil", "pipelines")
MAY_IMPORT = {"wsi": set(), "stain": set(), "mil": set(), "pipelines": {"wsi", "stain", "mil"}}
HEAVY = ("torch", "timm", "torchvision", "sklearn", "matplotlib", "dask", "distributed")
OPTIONAL_TORCH = "stain/transfer/"  # a package that `stain` does not import: whoever wants it, does


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path, *, typing_too: bool = True) -> set[str]:
    """Return absolute dotted names of what a file imports, at its top or in a function; relative ones resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = path.relative_to(ROOT).with_suffix("").parts
    names: set[str] = set()
    for node in _statements(tree.body, typing_too):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _statements(body: list[ast.stmt], typing_too: bool):
    """Yield every statement; without `typing_too`, those that only a type checker sees are left out."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_too:
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, inner, []), typing_too)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body, typing_too)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package):
    for path in sources(package):
        others = {name.split(".")[0] for name in imported(path)} & set(PACKAGES) - {package}
        assert others <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {others}"


@pytest.mark.parametrize("package", ["wsi", "stain"])
def test_wsi_and_stain_know_no_torch(package):
    for path in sources(package):
        if not path.relative_to(ROOT).as_posix().startswith(OPTIONAL_TORCH):
            roots = {name.split(".")[0] for name in imported(path)}
            assert not roots & {"torch", "timm", "torchvision"}, path


def test_no_import_cycles():
    """Depth-first search over all imports, also those inside functions; a cycle would be a back edge."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sources(package)
    }
    edges = {
        name: {other for other in imported(path, typing_too=False) if other in modules and other != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' → '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(edges[name]):
                # a package's __init__ names its rooms; a room importing its own package is the usual pattern
                if not other.startswith(name + ".") and not name.startswith(other + "."):
                    visit(other, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['slidemil', *{arguments!r}]\n"
        "from pipelines.cli import app\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print('LOADED', loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there(package):
    """Every name a package lists can be had from it."""
    module = __import__(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None, f"{package}.{name}"


def test_wsi_and_stain_load_no_torch():
    code = "import sys, wsi, stain, stain.validate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_every_verb_has_an_example():
    import typer.main

    from pipelines.cli import app

    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"slidemil {name}" in (command.help or ""), f"{name}: no example in its help"


def test_no_test_or_benchmark_shadows_a_module():
    for path in [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert path.stem not in sys.stdlib_module_names, path
        assert path.stem not in PACKAGES, path
    assert not list(ROOT.glob("tests/**/__init__.py"))


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("slidemil")
    if not command.exists():
        pytest.skip("slidemil is not installed beside this Python")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()[0]) == (0, "slidemil"), done.stderr
