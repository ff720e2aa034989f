"""DER: dynamically expandable representation (Yan et al., CVPR 2021); not Dark Experience Replay.

An extractor a task, initialised from the last one; earlier ones stay. u = [Phi_{t-1}(x), F_t(x)] is classified, and
F_t(x) alone by an auxiliary classifier (Eq. 8); channel masks are learnt beside and the masked channels removed (Eqs. 9
to 13): L = L_H + lambda_a L_Ha + lambda_s L_S. Then the classifier is trained anew on balanced samples (Sec. 3.3): the
run's fine-tuning on what the memory holds.

What the paper leaves open, as no code of its masks was released: which maps of a residual block are masked (see
`krstore.learning.learners._channels`); s_max is 100, and scores begin at 1, where all channels open up as s grows.
Their learning rate is s_max times that of the weights: HAT (Serra et al., ICML 2018), where masks and compensation come
from, has that factor in its gradients, and without it they hardly move. Of a pruned extractor the next one takes over
what is left; its other channels are fresh. Scores stay within 6, where a sigmoid still has a gradient. The classifier
has offsets, which the authors' has not, and keeps its weights from task to task, as the paper says; their code begins
it anew.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.errors import ConfigError
from krstore.learning.expansion import Extractors
from krstore.learning.learners._channels import SHARPEST, ChannelMasks, reshaped, widened
from krstore.learning.learners._expanding import ExpandingConfig, ExpandingLearner
from krstore.learning.network import Network, stored_bytes
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["DER", "DERConfig"]


class DERConfig(ExpandingConfig, frozen=True, kw_only=True):
    """Options of DER."""

    pruning: Annotated[bool, msgspec.Meta(description="learn channel masks and remove what they close")] = False
    sparsity: Annotated[
        float, msgspec.Meta(ge=0, description="lambda_s, the weight of L_S; the paper tunes it for each setting")
    ] = 0.2
    temperature: Annotated[
        float, msgspec.Meta(gt=0, description="of the softmax when the classifier is trained anew")
    ] = 5.0
    expansion: Annotated[
        bool,
        msgspec.Meta(description="give each task an extractor; false: one learns all, as the paper's Table 4 begins"),
    ] = True


class DER(ExpandingLearner):
    """Dynamically expandable representation."""

    name = "der"
    summary = "DER: an extractor a task beside earlier ones, its channels pruned; a classifier of all"
    Config: ClassVar = DERConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        if self.config.pruning and not self.config.expansion:
            raise ConfigError("options of der: pruning=true is of extractors that are added; leave out expansion=false")
        self.own_classifier = self.config.pruning
        self._blank = copy.deepcopy(self.body.last)
        self._masks: ChannelMasks | None = None
        self._kept: list[Tensor] = []
        self._balancing = False

    def _expandable(self, body: nn.Module) -> Extractors:
        return Extractors(body)

    def _extractor(self) -> nn.Module:
        return widened(self._blank, self.body.last, self._kept) if self._kept else super()._extractor()

    def begin_step(self, task: Task) -> None:
        """Add an extractor, and masks on its channels."""
        self._balancing = False
        super().begin_step(task)
        self._masks = ChannelMasks(self.body.last) if self.config.pruning else None

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return what is trained; masks do not decay."""
        if self._balancing:
            return [{"params": list(self.network.head.parameters())}]
        groups = super().parameter_groups(task)
        if self._masks is not None:
            groups.append({"params": list(self._masks.parameters()), "rate": SHARPEST, "weight_decay": 0.0})
        return groups

    def train_mode(self) -> None:
        """Train the last extractor, or the classifier alone."""
        self.network.train(not self._balancing)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_H, lambda_a L_Ha, and lambda_s L_S."""
        if self._masks is None:
            return super().losses(batch)
        self._masks.sharpen(batch.passed)
        return super().losses(batch) | {"sparsity": self.config.sparsity * self._masks.share()}

    def after_backward(self) -> None:
        """Compensate the gradients of the masks (Eq. 12)."""
        if self._masks is not None:
            self._masks.compensate()

    def after_update(self) -> None:
        """Keep the masks' scores in bounds."""
        if self._masks is not None:
            self._masks.limit()

    def prune(self, task: Task) -> float:
        """Remove the channels that are masked."""
        if self._masks is not None:
            self._kept, embeddings = self._masks.kept(), self._masks.remove()
            earlier = self.network.width - self._full_width
            self.network.keep_inputs(torch.cat([torch.arange(earlier, device=embeddings.device), embeddings + earlier]))
            self._masks = None
        return 0.0

    def begin_finetuning(self, task: Task) -> None:
        """Begin a new classifier; the extractors stay."""
        self._balancing = True
        self.network.head.reset_parameters()

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the classifier alone, at a temperature."""
        with torch.no_grad():
            embedded = self.network.body(batch.x)
        return {"ce": F.cross_entropy(self.network.head(embedded) / self.config.temperature, batch.y)}

    def final_bytes(self, stops: Sequence[int]) -> int:
        """Return the same; where channels are removed, with extractors to come as small as the last one.

        What the first will be cut down to is not known before it has been: 0 until then.
        """
        if not self.config.pruning:
            return super().final_bytes(stops)
        if not self._kept:
            return 0
        each = stored_bytes(self.body.last)
        return self._final_bytes(stops, each, len(self._kept[-1])) + sum(self.held().values())

    def state(self) -> dict[str, Tensor]:
        """Return which channels of the last extractor have stayed."""
        return {f"kept/{number}": kept.to(torch.int32) for number, kept in enumerate(self._kept)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take these up."""
        self._kept = [state[f"kept/{number}"].long() for number in range(len(state))]

    def reshape(self, state: Mapping[str, Tensor]) -> None:
        """Give the body its extractors, with the channels that were saved."""
        super().reshape(state)
        if self.config.pruning:
            if self._masks is not None:
                self._masks.detach()
                self._masks = None
            for number, extractor in enumerate(self.body.extractors):
                prefix = f"body.extractors.{number}."
                reshaped(extractor, {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
            self.network.grow(self.network.classes, state["head.weight"].shape[1])

    @property
    def _expands(self) -> bool:
        return bool(self.config.expansion)
