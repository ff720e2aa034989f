"""M2KD: multi-model and multi-level knowledge distillation (Zhou et al., 2019).

The classifier's outputs for each group of classes are taught by the network that learnt them (Eq. 2), those of an
auxiliary classifier of intermediate features as well (Eq. 3); L = L_MMD + lambda L_AD (Eq. 4). The earlier networks are
made again from one set of weights: after each step weights are pruned by magnitude, those that stay are trained for
half as long once more and frozen, and the next step has the others (Alg. 1, Eqs. 5 to 8).

Outputs are sigmoids. The equations print only the first half of the binary cross-entropy, which alone is least where
all outputs are 1; both halves are taken, as in iCaRL's code. Sums over classes are means here, in all terms alike, as
the learning rate presupposes. What the paper leaves open: "the second residual block" is read as the second stage; its
classifier is linear, of the average over positions; the old classes' labels are used by its cross-entropy alone; and
the training after pruning repeats the schedule, its epochs and milestones halved.
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.errors import UnknownNameError, UsageError
from krstore.learning.learners._nearest import NearestMeanLearner
from krstore.learning.learners._pruning import FREE, Masks
from krstore.learning.learners.base import LearnerConfig, Rehearsal, SampleBatches, frozen
from krstore.learning.learners.icarl import balanced_loss, binary_loss
from krstore.learning.network import Network, carry_over
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch
from krstore.snapshots import HeldStates, State
from krstore.store.writer import encode_snapshots
from krstore.tensors import as_array

__all__ = ["M2KD", "M2KDConfig", "auxiliary_loss"]


OVERHEAD = 10_000  # of a store, for each network in it


class M2KDConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of M2KD.

    Attributes:
        multi_model: teach each group of classes by the network that learnt it; otherwise all by the last one, LwF-MC.
        skip: leave out so many of the oldest teachers; the one after them teaches their classes.
        auxiliary: lambda, the weight of L_AD; 0 leaves it out.
        classification: alpha, of the auxiliary classifier's cross-entropy over all classes.
        layer: the module of the body whose output it classifies.
        pruning: keep earlier networks in one set of weights; otherwise each by itself.
        ratio: the share of the free weights that is pruned after a step; the paper has 0.8 where steps are few. (What
            its Table 1 calls 0 is no pruning.)
        finetuning: epochs after pruning, as a share of the step's.
        prediction: ``"cnn"``, by the classifier, or ``"nme"``, by the nearest mean of the exemplars, if there are any.
    """

    multi_model: bool = True
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    auxiliary: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    classification: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    layer: str = "layer2"
    pruning: bool = True
    ratio: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.75
    finetuning: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    prediction: Literal["cnn", "nme"] = "cnn"


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
        self._own: list[dict[str, Tensor]] = []
        self._teachers: list[_Branched] = []

    def begin_step(self, task: Task) -> None:
        """Keep what the last step has of its own, and make all earlier networks again."""
        if task.number == FREE:
            raise UsageError(f"m2kd: more than {FREE} steps")
        self._task = task
        if task.number > len(self._own):
            self._own.append(self._current(task.first))
        self._teachers = [self._teacher(own, step) for step, own in enumerate(self._own)]
        if self.config.pruning:
            self._masks.begin()

    def imprint(self, task: Task, samples: SampleBatches) -> None:
        """Give the auxiliary classifier the new classes."""
        if self.config.auxiliary:
            x, _ = next(samples(1))
            width = _intermediate(self.network.eval(), self.config.layer, x)[1].shape[1]
            self._branch = _grown(self._branch, width, task.stop, x.device)

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return the network and the auxiliary classifier."""
        branch = [] if self._branch is None else list(self._branch.parameters())
        return [{"params": [*self.network.parameters(), *branch]}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_MMD and lambda L_AD."""
        logits, own = _Branched(self.network, self._branch, self.config.layer)(batch.x)
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
        return {"bce": balanced_loss(self.network(batch.x), batch.y)}

    def held(self) -> dict[str, int]:
        """Return the bytes of all networks but the last: what they add to a store of packnet, or each by itself."""
        branch = [] if self._branch is None else list(self._branch.parameters())
        own_bytes = {} if self._branch is None else {"auxiliary": sum(tensor.nbytes for tensor in branch)}
        if not self.config.pruning:
            return {"snapshots": sum(tensor.nbytes for own in self._own for tensor in own.values()), **own_bytes}
        states = self.states()
        return {"snapshots": _stored_bytes(states) - _stored_bytes(states[-1:]), **own_bytes}

    def states(self) -> list[State]:
        """Return the network after each step, the last one without its auxiliary classifier."""
        last = {n: v for n, v in self._current(self.network.classes).items() if not n.startswith("auxiliary.")}
        shared = [
            {f"body.{name}": weight for name, weight in self._masks.of_step(step).items()}
            for step in range(len(self._own) + 1 if self.config.pruning else 0)
        ]
        parts: Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]
        parts = itertools.zip_longest(shared, [*self._own, last], fillvalue={})
        return [{name: as_array(tensor) for name, tensor in {**one, **own}.items()} for one, own in parts]

    def final_bytes(self, tasks: int, classes: int) -> int:
        """Return the most bytes of network and earlier ones: of their own arrays, and of the weights' steps."""
        branch = 0 if self._branch is None else 4 * classes * (self._branch.in_features + 1)
        network = super().final_bytes(tasks, classes) - sum(self.held().values())
        shared = sum(4 * index.numel() for index in self._masks.index.values()) if self.config.pruning else 0
        steps = math.ceil(shared / 4 * math.log2(tasks + 1) / 8)
        return network + branch + steps + (tasks - 1) * (network - shared + branch + OVERHEAD)

    def state(self) -> dict[str, Tensor]:
        """Return the earlier networks' own arrays, the weights' steps, and the auxiliary classifier."""
        kept = {f"own{step}/{name}": value for step, own in enumerate(self._own) for name, value in own.items()}
        kept |= {f"index/{name}": index for name, index in self._masks.index.items()}
        kept["pruned"] = torch.tensor(self._masks.pruned)
        if self._branch is not None:
            kept |= {f"branch/{name}": value for name, value in self._branch.state_dict().items()}
        return kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take these up."""
        steps = {name.partition("/")[0] for name in state if name.startswith("own")}
        self._own = [_part(state, f"own{step}/") for step in range(len(steps))]
        self._masks.load(_part(state, "index/"), len(self._own), bool(state["pruned"]))
        branch = _part(state, "branch/")
        if branch:
            self._branch = _linear(branch["weight"], branch["bias"])

    def _current(self, classes: int) -> dict[str, Tensor]:
        """Return what the network's last step has of its own: all that is not handed out step by step."""
        shared = {f"body.{name}" for name in self._masks.index} if self.config.pruning else set()
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items() if name not in shared}
        own |= {name: own[name][:classes] for name in ("head.weight", "head.bias")}
        if self._branch is not None:
            own |= {f"auxiliary.{name}": value.detach().clone() for name, value in self._branch.state_dict().items()}
        return own

    def _teacher(self, own: Mapping[str, Tensor], step: int) -> _Branched:
        network = copy.deepcopy(self.network)
        network.forget_classifier()
        network.grow(len(own["head.bias"]))
        branch = None
        if self.config.auxiliary:
            branch = _linear(own["auxiliary.weight"], own["auxiliary.bias"]).requires_grad_(False)
        state = {name: value for name, value in own.items() if not name.startswith("auxiliary.")}
        if self.config.pruning:
            state |= {f"body.{name}": weight for name, weight in self._masks.of_step(step).items()}
        network.load_state_dict(state)
        frozen(network)
        return _Branched(network, branch, self.config.layer)

    def _taught(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what the teachers say of the classes that each is to teach, and their auxiliary classifiers."""
        if not self._teachers:
            return None, None
        last = len(self._teachers) - 1
        oldest = min(self.config.skip, last) if self.config.multi_model else last
        with torch.no_grad():
            said = {step: self._teachers[step](x) for step in range(oldest, last + 1)}
        logits, own, first = [], [], 0
        for group, teacher in enumerate(self._teachers):
            outputs, branch = said[max(group, oldest)]
            stop = teacher.network.classes
            logits.append(outputs[:, first:stop])
            if branch is not None:
                own.append(branch[:, first:stop])
            first = stop
        return torch.cat(logits, 1), torch.cat(own, 1) if own else None


class _Branched:
    """A network with a linear classifier of one of its layers' outputs, averaged over positions."""

    def __init__(self, network: Network, branch: nn.Linear | None, layer: str) -> None:
        self.network, self._branch, self._layer = network, branch, layer

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, C) of both; `None` without a branch."""
        if self._branch is None:
            return self.network(x), None
        logits, pooled = _intermediate(self.network, self._layer, x)
        return logits, self._branch(pooled)


def auxiliary_loss(logits: Tensor, y: Tensor, taught: Tensor | None, classification: float) -> Tensor:
    """Return L_AD (Eq. 3) of auxiliary logits (B, C): means over samples and classes.

    The old classes' outputs by binary cross-entropy with the teachers' (B, C_old), `None` at the first step; and the
    cross-entropy over all classes, times `classification`.
    """
    logits = logits.float()
    total = classification * F.cross_entropy(logits, y)
    if taught is not None:
        wanted = torch.sigmoid(taught.float())
        kept = F.binary_cross_entropy_with_logits(logits[:, : taught.shape[1]], wanted, reduction="sum")
        total = total + kept / len(logits)
    return total / logits.shape[1]


def _intermediate(network: Network, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and a layer's output averaged over positions (B, channels)."""
    seen: list[Tensor] = []
    hook = network.body.get_submodule(layer).register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        logits = network(x)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[0], Tensor) or not 2 <= seen[0].ndim <= 4:
        raise UsageError(f"options.layer of m2kd: {layer!r} gives no feature maps, tokens or embeddings")
    positions = {2: (), 3: (1,), 4: (2, 3)}[seen[0].ndim]
    return logits, seen[0].mean(positions) if positions else seen[0]


def _grown(branch: nn.Linear | None, width: int, classes: int, device: torch.device) -> nn.Linear:
    """Return a classifier of more classes, in which those of the earlier one have their weights."""
    grown = nn.Linear(width, classes, device=device)
    if branch is not None:
        carry_over(branch, grown, branch.out_features)
    return grown


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _stored_bytes(states: list[State]) -> int:
    """Return the bytes of a store of states."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshots.krs"
        return encode_snapshots(HeldStates(tuple(states)), path, codec="packnet", device="cpu").bytes.file
