"""Class-incremental learning on one protocol: scenarios, learners, metrics, runs."""

from krstore.learning.config import RunConfig, build_run_config
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.frontier import frontier
from krstore.learning.harness import learn
from krstore.learning.learners import LEARNERS
from krstore.learning.report import report
from krstore.learning.results import RunResult, read_result
from krstore.learning.scenario import Scenario

__all__ = [
    "LEARNERS",
    "Dataset",
    "RunConfig",
    "RunResult",
    "Scenario",
    "build_run_config",
    "frontier",
    "learn",
    "open_dataset",
    "read_result",
    "report",
]
