"""What a run has found, step by step, as one JSON file that can be read again."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from krstore.errors import CorruptStoreError, UsageError
from krstore.files import atomic_write
from krstore.learning import metrics
from krstore.learning.building import as_text, dotted
from krstore.learning.config import RunConfig
from krstore.learning.scenario import Scenario
from krstore.progress import Progress

__all__ = ["RESULT", "RunResult", "StepResult", "load_result", "read_result", "save_result"]

RESULT = "run.json"
SCHEMA_VERSION = 1
CURE = "name another folder, or remove this one to begin anew"


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one step has brought.

    Attributes:
        accuracy, top5: on the test samples of all classes seen.
        by_task: accuracy on the test samples of each task's classes.
        confusion: how often a class (row) was taken for another (column), in the order of learning.
        memory_bytes: of the memory's files after the step.
        held_bytes: by name, of what else the method keeps beside the network.
        network_bytes: of the network's weights and norm statistics, as stored.
        parameters: of the network, frozen ones too; 0 in results of before they were counted. DER's #Params is the mean
            over steps.
        other_accuracy: by name, of the method's other ways to predict.
        alone: accuracy on the step's own classes of a network of random weights that was trained on what the learner
            saw; `None` unless the run asks for it (see `krstore.learning.config.RunConfig`).
        probed: accuracy on the test samples of each task's classes of a linear classifier of the embeddings, fitted to
            training samples of all classes; empty unless the run asks for it.
        alone_probed: the same on the step's own classes, of the network trained alone.
        seconds: of the step, evaluation included, without what alone and probed take.
    """

    accuracy: float
    top5: float
    by_task: list[float]
    confusion: list[list[int]]
    memory_bytes: int
    held_bytes: dict[str, int]
    seconds: float
    network_bytes: int = 0
    parameters: int = 0
    other_accuracy: dict[str, float] = {}
    alone: float | None = None
    probed: list[float] = []
    alone_probed: float | None = None


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """A run, as far as it has come.

    Attributes:
        schema_version: of this record.
        config: of the run.
        versions: of what computed it.
        tasks: the classes of each task, by their labels in the data set.
        data: the data's fingerprint; empty in results of before there was one.
        sample: the shape of a sample as the network takes it; empty in results of before there was one.
        steps: those that are finished.
        class_names: what the data call the classes, in the order of learning; empty where they do not say.
    """

    config: RunConfig
    versions: dict[str, str]
    tasks: list[list[int]]
    steps: list[StepResult]
    data: str = ""
    class_names: list[str] = []
    sample: tuple[int, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def with_step(self, step: StepResult) -> RunResult:
        """Return the result with one step more."""
        return msgspec.structs.replace(self, steps=[*self.steps, step])

    @property
    def finished(self) -> bool:
        """Whether all steps are there."""
        return len(self.steps) == len(self.tasks)

    @property
    def matrix(self) -> metrics.Matrix:
        """Accuracy after each step (row) on each task (column); NaN for tasks yet to come."""
        return _matrix([step.by_task for step in self.steps])

    def summary(self) -> dict[str, float | int]:
        """Return the figures that runs are compared by; see `krstore.learning.metrics`.

        ``average_incremental`` has step 0 in it, ``average_incremental_later`` has not. Transfer is of predictions, and
        with ``representation_`` of a linear probe's.
        """
        curve, matrix, last = np.array([step.accuracy for step in self.steps]), self.matrix, self.steps[-1]
        return {
            "last": last.accuracy,
            "last_top5": last.top5,
            "average_incremental": metrics.average_incremental(curve),
            "average_incremental_later": metrics.average_incremental(curve, first=False),
            "forgetting": metrics.forgetting(matrix),
            "initial_forgetting": metrics.initial_forgetting(matrix),
            "backward_transfer": metrics.backward_transfer(matrix),
            **_forward("forward_transfer", matrix, [step.alone for step in self.steps]),
            **self._of_representations(),
            "memory_bytes": last.memory_bytes,
            "held_bytes": sum(last.held_bytes.values()),
            "network_bytes": last.network_bytes,
            "mean_parameters": float(np.mean([step.parameters for step in self.steps])),
            "seconds": sum(step.seconds for step in self.steps),
            **{
                f"{figure}_{name}": value
                for name in last.other_accuracy
                for figure, value in (
                    ("last", last.other_accuracy[name]),
                    (
                        "average_incremental",
                        metrics.average_incremental(np.array([step.other_accuracy[name] for step in self.steps])),
                    ),
                )
            },
        }

    def _of_representations(self) -> dict[str, float]:
        if not all(step.probed for step in self.steps):
            return {}
        matrix = _matrix([step.probed for step in self.steps])
        return {
            "representation_backward_transfer": metrics.backward_transfer(matrix),
            **_forward("representation_forward_transfer", matrix, [step.alone_probed for step in self.steps]),
        }


def _matrix(by_task: list[list[float]]) -> metrics.Matrix:
    accuracy = np.full((len(by_task), len(by_task)), np.nan)
    for row, own in enumerate(by_task):
        accuracy[row, : row + 1] = own
    return accuracy


def _forward(name: str, matrix: metrics.Matrix, alone: list[float | None]) -> dict[str, float]:
    """Return forward transfer by its name, where a network was trained alone at every step but the first."""
    values = np.array([np.nan if value is None else value for value in alone])
    if len(values) < 2 or np.isnan(values[1:]).any():
        return {}
    return {name: metrics.forward_transfer(matrix, values)}


def read_result(folder: str | Path) -> RunResult:
    """Read a run's results.

    Raises:
        UsageError: the folder has none.
        CorruptStoreError: they are malformed.
    """
    path = Path(folder) / RESULT
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunResult)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no run: it has no {RESULT}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptStoreError(f"{path}: the results are malformed: {error}") from error


def load_result(
    folder: Path, config: RunConfig, scenario: Scenario, data: str, sample: tuple[int, ...], progress: Progress
) -> RunResult:
    """Return what a run's folder has so far: an empty result, not written yet, where it has nothing.

    Args:
        data: the data's fingerprint.
        sample: the shape of a sample as the network takes it.
        progress: told where other versions have begun the run.

    Raises:
        UsageError: the folder is of a run with another config, or of other data.
        CorruptStoreError: its results are malformed.
    """
    versions = {name: version(name) for name in ("krstore", "torch", "numpy")}
    if (folder / RESULT).exists():
        found = read_result(folder)
        there, here = _elsewhere(found.config), _elsewhere(config)
        if there != here:
            raise UsageError(f"{folder} is of another run ({_difference(there, here)}); {CURE}")
        if found.data not in ("", data):
            raise UsageError(f"{folder} is of other data than {config.data} has now; {CURE}")
        if len(found.steps) > len(scenario.tasks):
            raise CorruptStoreError(f"{folder / RESULT}: {len(found.steps)} steps of {len(scenario.tasks)} tasks")
        if found.versions != versions and not found.finished:
            progress.note(f"{folder} was begun with {_said(found.versions)}, and goes on with {_said(versions)}")
        return found
    return RunResult(
        config=config, versions=versions, tasks=[list(task.names) for task in scenario.tasks], steps=[], data=data,
        sample=sample, class_names=scenario.class_names,
    )  # fmt: skip


def save_result(folder: Path, result: RunResult) -> None:
    """Replace a run's results, atomically."""
    with atomic_write(folder / RESULT) as file:
        file.write(msgspec.json.encode(result))


def _elsewhere(config: RunConfig) -> RunConfig:
    """Return a config without where its data lie, whose fingerprint says more."""
    return msgspec.structs.replace(config, data="", test=None)


def _said(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _difference(old: RunConfig, new: RunConfig) -> str:
    before, after = (dotted(msgspec.to_builtins(config)) for config in (old, new))
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    return ", ".join(f"{name}: {as_text(was)} -> {as_text(now)}" for name, (was, now) in pairs.items() if was != now)
