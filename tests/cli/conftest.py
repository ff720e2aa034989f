"""What the tests of the command line share: a small archive, and two ways to run a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from krstore_cli.app import run

FAKE_CODECS = Path(__file__).parent.parent / "fake_codec"


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line of an error."""
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("KRSTORE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """90 samples of 4x6x6, labels -1, 3 and 40, tasks, attributes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.maximum(rng.normal(size=(90, 4, 6, 6)), 0).astype(np.float32)
        file["labels"] = rng.permutation(np.repeat([-1, 3, 40], 30))
        file["task"] = np.repeat([0, 1], 45)
        file.attrs["network"] = "resnet32"
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's distribution with the codecs uniform and first."""
    monkeypatch.syspath_prepend(str(FAKE_CODECS))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


def child(*arguments: object, path: Path = FAKE_CODECS, **environment: str) -> subprocess.Popen[str]:
    """Start the installed command as a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    paths = os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("krstore")), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "PYTHONPATH": paths, **environment},
    )


@pytest.fixture
def process() -> Any:
    """Run the installed command to its end."""

    def call(*arguments: object, **environment: str) -> Ran:
        started = child(*arguments, **environment)
        out, err = started.communicate(timeout=60)
        return Ran(started.returncode, out, err)

    return call


@pytest.fixture
def start() -> Any:
    """Start the installed command."""
    return child
