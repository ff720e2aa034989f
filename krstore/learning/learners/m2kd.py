"""M2KD: multi-model and multi-level knowledge distillation (Zhou et al., 2019).

The classifier's outputs for each group of classes are taught by the network that learnt them (Eq. 2), those of an
auxiliary classifier of intermediate features as well (Eq. 3); L = L_MMD + lambda L_AD (Eq. 4). The earlier networks are
made again from one set of weights: after each step weights are pruned by magnitude, those that stay are trained for
half as long once more and frozen, and the next step has the others (Alg. 1, Eqs. 5 to 8).

Outputs are sigmoids. The equations print only the first half of the binary cross-entropy, which alone is least where
all outputs are 1; both halves are taken, as in iCaRL's code. What the paper leaves open: "the second residual block" is
read as the second stage; its classifier is linear, of the average over positions; the old classes' labels are used by
its cross-entropy alone; and the training after pruning repeats the schedule, its epochs and milestones halved.
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.errors import UnknownNameError, UsageError
from krstore.learning.learners._branched import Branched, grown, intermediate, linear
from krstore.learning.learners._nearest import NearestMeanLearner
from krstore.learning.learners._pruning import FREE, Masks
from krstore.learning.learners.base import LearnerConfig, Rehearsal, SampleBatches, frozen
from krstore.learning.learners.icarl import binary_loss
from krstore.learning.network import Network, stored_bytes
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch
from krstore.snapshots import HeldStates, State
from krstore.store.writer import encode_snapshots
from krstore.tensors import as_array

__all__ = ["M2KD", "M2KDConfig", "auxiliary_loss"]


SNAPSHOTS = "snapshots.krs"
OVERHEAD = 1_000  # bytes of a store, for each network in it, beside its arrays


class M2KDConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of M2KD."""

    multi_model: Annotated[
        bool,
        msgspec.Meta(description="teach classes by the network that learnt them; false: all by the last one, LwF-MC"),
    ] = True
    skip: Annotated[
        int, msgspec.Meta(ge=0, description="oldest teachers to leave out; the one after them teaches their classes")
    ] = 0
    auxiliary: Annotated[float, msgspec.Meta(ge=0, description="lambda, the weight of L_AD; 0 leaves it out")] = 1.0
    classification: Annotated[
        float,
        msgspec.Meta(ge=0, description="alpha, of the auxiliary classifier's cross-entropy over all classes"),
    ] = 0.5
    layer: Annotated[str, msgspec.Meta(description="the module of the body whose output it classifies")] = "layer2"
    pruning: Annotated[
        bool, msgspec.Meta(description="keep earlier networks in one set of weights; false: each by itself")
    ] = True
    ratio: Annotated[
        float,
        msgspec.Meta(
            gt=0, lt=1, description="share of the free weights that is pruned after a step (paper: 0.8 where steps are "
            "few; what its Table 1 calls 0 is no pruning)"
        ),
    ] = 0.75  # fmt: skip
    finetuning: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="epochs after pruning, as a share of the step's")
    ] = 0.5
    prediction: Annotated[
        Literal["cnn", "nme"],
        msgspec.Meta(description="by the classifier, or by the nearest mean of the exemplars, if there are any"),
    ] = "cnn"


class M2KD(NearestMeanLearner):
    """Teachers from one set of weights."""

    name = "m2kd"
    summary = "M2KD: every earlier network teaches its classes, all from one pruned set of weights"
    rehearsal: ClassVar = Rehearsal.OPTIONAL
    transferable = False
    own_classifier = True
    Config: ClassVar = M2KDConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        self.needs_exemplars = self.config.prediction == "nme"
        if self.config.auxiliary:
            known = [name for name, _ in network.body.named_modules() if name]
            if self.config.layer not in known:
                raise UnknownNameError("options.layer of m2kd", self.config.layer, known)
        self._task = Task(0, 0, 0, ())
        self._masks = Masks(network.body)
        self._branch: nn.Linear | None = None
        self._stops: list[int] = []
        self._own: dict[int, dict[str, Tensor]] = {}
        self._teachers: dict[int, Branched] = {}

    def begin_step(self, task: Task) -> None:
        """Keep what the last step has of its own, and make all earlier networks again."""
        if task.number == FREE:
            raise UsageError(f"m2kd: more than {FREE} steps")
        self._task = task
        if task.number > len(self._stops):
            self._own = self._lasting()
            self._own[len(self._stops)] = self._current(task.first)
            self._stops.append(task.first)
        teaching = set(self._asked(len(self._stops)))
        self._teachers = {step: self._teacher(own, step) for step, own in self._own.items() if step in teaching}
        if self.config.pruning:
            self._masks.begin()

    def imprint(self, task: Task, samples: SampleBatches) -> None:
        """Give the auxiliary classifier the new classes."""
        if self.config.auxiliary:
            x, _ = next(samples(1))
            width = intermediate(self.network.eval(), self.config.layer, x)[1].shape[1]
            self._branch = grown(self._branch, width, task.stop, x.device)

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return the network and the auxiliary classifier."""
        branch = [] if self._branch is None else list(self._branch.parameters())
        return [{"params": [*self.network.parameters(), *branch]}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_MMD and lambda L_AD."""
        logits, own = Branched(self.network, self._branch, self.config.layer)(batch.x)
        taught, taught_own = self._taught(batch.x)
        terms = {"mmd": binary_loss(logits, batch.y, taught)}
        if own is not None:
            loss = auxiliary_loss(own, batch.y, taught_own, self.config.classification)
            terms["ad"] = self.config.auxiliary * loss
        return terms

    def after_update(self) -> None:
        """Put back what is frozen or pruned."""
        if self.config.pruning:
            self._masks.restore()

    def prune(self, task: Task) -> float:
        """Prune what is free, and train what stays for some epochs more."""
        if not self.config.pruning:
            return 0.0
        self._masks.prune(task.number, self.config.ratio)
        return float(self.config.finetuning)

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross-entropy without teachers."""
        return {"bce": binary_loss(self.network(batch.x), batch.y, None)}

    def held(self) -> dict[str, int]:
        """Return the bytes of all networks but the last: what they add to a store of packnet, or each by itself."""
        branch = [] if self._branch is None else list(self._branch.parameters())
        own_bytes = {} if self._branch is None else {"auxiliary": sum(tensor.nbytes for tensor in branch)}
        if not self.config.pruning:
            kept = [tensor for own in self._lasting().values() for tensor in own.values()]
            return {"snapshots": sum(tensor.nbytes for tensor in kept), **own_bytes}
        states = self.states()
        return {"snapshots": _stored_bytes(states) - _stored_bytes(states[-1:]), **own_bytes}

    def hand_over(self, folder: Path) -> None:
        """Write `snapshots.krs`, a store of the networks after each step, where they have one set of weights."""
        if self.config.pruning:
            held = HeldStates(tuple(self.states()))
            encode_snapshots(held, folder / SNAPSHOTS, codec="packnet", device="cpu", force=True)

    def states(self) -> list[State]:
        """Return the network after each step of those that are kept, the last one without its auxiliary classifier."""
        last = {n: v for n, v in self._current(self.network.classes).items() if not n.startswith("auxiliary.")}
        shared = [
            {f"body.{name}": weight for name, weight in self._masks.of_step(step).items()}
            for step in range(len(self._stops) + 1 if self.config.pruning else 0)
        ]
        parts: Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]
        parts = itertools.zip_longest(shared, [*self._own.values(), last], fillvalue={})
        return [{name: as_array(tensor) for name, tensor in {**one, **own}.items()} for one, own in parts]

    def final_bytes(self, stops: Sequence[int]) -> int:
        """Return the most bytes of network and earlier ones: of their own arrays, and of the weights' steps."""
        tasks, body = len(stops), stored_bytes(self.network.body)
        per_class = 4 * (self.network.width + 1)
        if self._branch is not None:
            per_class += 4 * (self._branch.in_features + 1)
        shared = sum(index.numel() for index in self._masks.index.values()) if self.config.pruning else 0
        steps = math.ceil(shared * math.log2(tasks + 1) / 8)
        earlier = range(tasks - 1) if self.config.pruning else {*self._asked(tasks)} - {tasks - 1}
        own = sum(body - 4 * shared + per_class * stops[step] + OVERHEAD for step in earlier)
        return body + per_class * stops[-1] + steps + own

    def state(self) -> dict[str, Tensor]:
        """Return the earlier networks' own arrays, the weights' steps, and the auxiliary classifier."""
        lasting = self._lasting()
        kept = {f"own{step}/{name}": value for step, own in lasting.items() for name, value in own.items()}
        kept["stops"] = torch.tensor(self._stops, dtype=torch.int64)
        kept |= {f"index/{name}": index for name, index in self._masks.index.items()}
        kept["pruned"] = torch.tensor(self._masks.pruned)
        if self._branch is not None:
            kept |= {f"branch/{name}": value for name, value in self._branch.state_dict().items()}
        return kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take these up."""
        self._stops = state["stops"].tolist()
        own = {step: _part(state, f"own{step}/") for step in range(len(self._stops))}
        self._own = {step: part for step, part in own.items() if part}
        self._masks.load(_part(state, "index/"), len(self._stops), bool(state["pruned"]))
        branch = _part(state, "branch/")
        if branch:
            self._branch = linear(branch["weight"], branch["bias"])

    def _asked(self, steps: int) -> list[int]:
        """Return who teaches each group of classes, where there are so many earlier networks."""
        oldest = min(self.config.skip, steps - 1) if self.config.multi_model else steps - 1
        return [max(group, oldest) for group in range(steps)]

    def _lasting(self) -> dict[int, dict[str, Tensor]]:
        """Return what is kept of earlier networks: of all where they have one set of weights, or of who will teach."""
        later = set(self._asked(len(self._stops) + 1))
        return {step: own for step, own in self._own.items() if self.config.pruning or step in later}

    def _current(self, classes: int) -> dict[str, Tensor]:
        """Return what the network's last step has of its own: all that is not handed out step by step."""
        shared = {f"body.{name}" for name in self._masks.index} if self.config.pruning else set()
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items() if name not in shared}
        own |= {name: own[name][:classes] for name in ("head.weight", "head.bias")}
        if self._branch is not None:
            own |= {f"auxiliary.{name}": value.detach().clone() for name, value in self._branch.state_dict().items()}
        return own

    def _teacher(self, own: Mapping[str, Tensor], step: int) -> Branched:
        network = copy.deepcopy(self.network)
        network.forget_classifier()
        network.grow(len(own["head.bias"]))
        branch = None
        if self.config.auxiliary:
            branch = linear(own["auxiliary.weight"], own["auxiliary.bias"]).requires_grad_(False)
        state = {name: value for name, value in own.items() if not name.startswith("auxiliary.")}
        if self.config.pruning:
            state |= {f"body.{name}": weight for name, weight in self._masks.of_step(step).items()}
        network.load_state_dict(state)
        frozen(network)
        return Branched(network, branch, self.config.layer)

    def _taught(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what the teachers say of the classes that each is to teach, and their auxiliary classifiers."""
        if not self._teachers:
            return None, None
        with torch.no_grad():
            said = {step: teacher(x) for step, teacher in self._teachers.items()}
        logits, own, first = [], [], 0
        for asked, stop in zip(self._asked(len(self._stops)), self._stops, strict=True):
            outputs, branch = said[asked]
            logits.append(outputs[:, first:stop])
            if branch is not None:
                own.append(branch[:, first:stop])
            first = stop
        return torch.cat(logits, 1), torch.cat(own, 1) if own else None


def auxiliary_loss(logits: Tensor, y: Tensor, taught: Tensor | None, classification: float) -> Tensor:
    """Return L_AD (Eq. 3) of auxiliary logits (B, C), the mean over samples.

    The old classes' outputs by binary cross-entropy with the teachers' (B, C_old), `None` at the first step; and the
    cross-entropy over all classes, times `classification`.
    """
    logits = logits.float()
    total = classification * F.cross_entropy(logits, y)
    if taught is not None:
        wanted = torch.sigmoid(taught.float())
        kept = F.binary_cross_entropy_with_logits(logits[:, : taught.shape[1]], wanted, reduction="sum")
        total = total + kept / len(logits)
    return total


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _stored_bytes(states: list[State]) -> int:
    """Return the bytes of a store of states."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshots.krs"
        return encode_snapshots(HeldStates(tuple(states)), path, codec="packnet", device="cpu").bytes.file
