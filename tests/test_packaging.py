"""The package as others get it: a wheel in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import krstore

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in ("krstore", "codecs", "cli"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, tree], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def said(*command: object, cwd: Path) -> str:
    run = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "krstore", "krstore_codecs", "krstore_cli", f"krstore-{krstore.__version__}.dist-info"
    }  # fmt: skip
    for package in ("krstore", "krstore_codecs", "krstore_cli"):
        assert f"{package}/py.typed" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "krstore").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.parametrize("cwd", [Path("/"), ROOT], ids=["elsewhere", "repository"])
def test_the_installed_command_works(environment: Path, cwd: Path) -> None:
    command = environment / "bin" / "krstore"
    assert said(command, "--version", cwd=cwd) == krstore.__version__
    assert {"raw", "autoencoder", "krnet", "pq", "transform"} <= {
        line.split()[0] for line in said(command, "codecs", cwd=cwd).splitlines()
    }


def test_the_installed_packages_are_the_wheels(environment: Path) -> None:
    for package in ("krstore", "krstore_codecs", "krstore_cli"):
        file = said(environment / "bin" / "python", "-c", f"import {package}; print({package}.__file__)", cwd=Path("/"))
        assert Path(file).is_relative_to(environment)
