"""Class-incremental learning on one protocol: scenarios, learners, metrics, runs."""

from krstore.learning.building import build_run_config
from krstore.learning.config import RunConfig
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.frontier import frontier
from krstore.learning.harness import learn
from krstore.learning.learners import LEARNERS, get_learner, learner_names
from krstore.learning.learners.base import Learner, LearnerConfig, Rehearsal, SampleBatches
from krstore.learning.loading import load_network
from krstore.learning.report import report
from krstore.learning.results import RunResult, read_result
from krstore.learning.scenario import Scenario, Task
from krstore.learning.streams import Batch

__all__ = [
    "LEARNERS",
    "Batch",
    "Dataset",
    "Learner",
    "LearnerConfig",
    "Rehearsal",
    "RunConfig",
    "RunResult",
    "SampleBatches",
    "Scenario",
    "Task",
    "build_run_config",
    "frontier",
    "get_learner",
    "learn",
    "learner_names",
    "load_network",
    "open_dataset",
    "read_result",
    "report",
]
