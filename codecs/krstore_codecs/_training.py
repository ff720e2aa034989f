"""Fitting a network to a source: batches, schedule, quantisation-aware phase, checkpoints; once for all codecs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from krstore.codec import FitContext
from krstore.config import CodecConfig
from krstore.distributed import average, processes
from krstore.errors import KrstoreError
from krstore.source import CHUNK_BYTES, Ids, Source
from krstore_codecs._normalise import Normaliser
from krstore_codecs._weights import WeightQuantiser

__all__ = ["PAPER_TRAINING", "BatchFeed", "NeuralConfig", "Positive", "Trainer"]

Loss = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

RESIDENT_BYTES_CPU = 512 << 20
RESIDENT_SHARE_GPU = 0.5
BUFFER_BYTES = 192 << 20
CPU_FLOPS, GPU_FLOPS = 2.5e13, 3e17
PAPER_ITERATIONS = 40_000
QUANTISE_FROM, QUANTISE_FIXED = 0.6, 0.9


Positive = Annotated[int, msgspec.Meta(ge=1)]


PAPER_TRAINING = {"batch_size": 1000, "learning_rate": 3e-3, "plateau": None, "weights": "float32"}


class NeuralConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of codecs that fit a network, in the KRNet paper's training by default (Sec. IV-A4)."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, description="samples an iteration (paper: 1000)")] = 100
    iterations: Annotated[
        Positive | None, msgspec.Meta(description="iterations (paper: 40000); none: sized to the device's speed")
    ] = None
    passes: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="most passes over the samples where iterations is none; none: no limit"),
    ] = None
    learning_rate: Annotated[float, msgspec.Meta(gt=0, description="Adam's rate in the first half (paper: 3e-3)")] = (
        1e-3
    )
    final_rate: Annotated[
        float, msgspec.Meta(gt=0, description="rate at the end of the linear decay (paper: 3e-6)")
    ] = 3e-6
    constant: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="share of the iterations before the decay (paper: 0.5)")
    ] = 0.5
    plateau: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="begin the decay once a tenth of the iterations gains less than this; none: never"),
    ] = 0.005
    weights: Annotated[
        Literal["quantised", "float32"], msgspec.Meta(description="how the network is stored (paper: float32)")
    ] = "quantised"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        msgspec.Meta(
            description="arithmetic of training; auto: bfloat16 on CUDA, float32 elsewhere. Decoding is float32"
        ),
    ] = "auto"
    compile: Annotated[bool, msgspec.Meta(description="torch.compile the training step on CUDA")] = True


class BatchFeed:
    """Shuffled batches (ids, grids in [0, 1]) without end, the same ones for the same seed.

    A source that fits stays on the device; another is streamed: stretches of it in random order fill a buffer, and
    batches are drawn from the shuffled buffer.
    """

    def __init__(self, source: Source, normaliser: Normaliser, batch_size: int, device: str, seed: int) -> None:
        self._source, self._normaliser, self._device, self._seed = source, normaliser, device, seed
        self.samples = source.spec.samples
        self.batch_size = min(batch_size, self.samples)
        sample_bytes = 4 * math.prod(normaliser.grid)
        room = RESIDENT_BYTES_CPU
        if device.startswith("cuda"):
            room = int(RESIDENT_SHARE_GPU * torch.cuda.mem_get_info(torch.device(device))[0])
        self._resident = sample_bytes * self.samples <= room
        self._per_buffer = self.samples if self._resident else max(self.batch_size, BUFFER_BYTES // sample_bytes)
        self._everything: Tensor | None = None

    def batches(self, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids (B,) on the CPU, grids (B, C, H, W) on the device) from batch number `skip` on."""
        epoch = 0
        while True:
            rng = np.random.default_rng([self._seed, epoch])
            for members in self._buffers(rng):
                count = max(1, len(members) // self.batch_size)
                order = rng.permutation(len(members))[: count * self.batch_size]
                if skip >= count:
                    skip -= count
                    continue
                buffer = self._load(members)
                for rows in np.split(order, count)[skip:]:
                    picked = torch.from_numpy(rows)
                    yield torch.from_numpy(members[rows]), buffer[picked.to(buffer.device)].to(self._device)
                skip = 0
            epoch += 1

    def _buffers(self, rng: np.random.Generator) -> Iterator[Ids]:
        if self._resident:
            yield np.arange(self.samples)
            return
        stretch = max(1, self._per_buffer // 16)
        starts = rng.permutation(np.arange(0, self.samples, stretch))
        for first in range(0, len(starts), 16):
            pieces = [np.arange(s, min(s + stretch, self.samples)) for s in sorted(starts[first : first + 16])]
            yield np.concatenate(pieces)

    def _load(self, members: Ids) -> Tensor:
        if self._everything is not None:
            return self._everything
        buffer = torch.empty(len(members), *self._normaliser.grid)
        runs = np.split(np.arange(len(members)), np.flatnonzero(np.diff(members) != 1) + 1)
        for run in runs:
            for rows in np.array_split(run, max(1, len(run) * 4 * math.prod(self._normaliser.grid) // CHUNK_BYTES)):
                buffer[rows[0] : rows[-1] + 1] = self._normaliser.scale(
                    self._normaliser.to_grid(self._source.read(members[rows]))
                )
        if self._resident:
            self._everything = buffer = buffer.to(self._device)
        return buffer


def feed(source: Source, normaliser: Normaliser, config: NeuralConfig, context: FitContext) -> BatchFeed:
    """Return the batches of a fit; of one that several processes do together, this one's part of them."""
    rank, world = processes() if context.together else (0, 1)
    size = -(-config.batch_size // world)
    return BatchFeed(source, normaliser, size, context.device, context.seed + 100_003 * rank)


class Trainer:
    """Runs a fit's iterations: Adam, the paper's schedule, quantisation in the decay, checkpoints, progress.

    Args:
        network: everything that is trained, on the context's device.
        loss: (ids, grids, iteration) -> (loss to minimise, mean squared error per element to show).
        quantiser, network_bytes: quantise the weights so that they take about so many bytes; `None` for float32.

    Attributes:
        planned: the iterations of the whole schedule, before any plateau.
    """

    def __init__(
        self, config: NeuralConfig, context: FitContext, network: nn.Module, batches: BatchFeed, loss: Loss,
        quantiser: WeightQuantiser | None = None, network_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.context, self.network, self.batches, self.loss = config, context, network, batches, loss
        self.quantiser, self.network_bytes = quantiser, network_bytes
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
        self.planned = self.iterations = config.iterations or self._affordable()
        self.decay_from = round(config.constant * self.iterations)
        self._window, self._window_loss, self._last_window_loss = 0, 0.0, math.inf

    def run(self) -> None:
        """Train to the end of the schedule.

        Raises:
            KrstoreError: the loss is no longer finite.
        """
        start = self._resume()
        cuda = self.context.device.startswith("cuda")
        if cuda and self.config.compile:
            for module in self.network.children() if isinstance(self.network, nn.ModuleDict) else [self.network]:
                module.compile()
        self.network.train()
        iteration = start
        with self._arithmetic() as autocast, self.context.progress.task("fit", self.iterations, "iterations") as task:
            task.advance(start)
            for ids, grids in self.batches.batches(skip=start):
                self._schedule(iteration)
                with autocast:
                    loss, error = self.loss(ids, grids, iteration)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if self.context.together:
                    average(p.grad for p in self.network.parameters() if p.grad is not None)
                    average(self.network.buffers())
                self.optimizer.step()
                iteration += 1
                planned = self.iterations
                if iteration % 10 == 0 or iteration == planned:
                    shown = error.detach().clone()
                    if self.context.together:
                        average([shown])
                    self._watch(iteration, float(shown))
                    task.advance((iteration % 10 or 10) + planned - self.iterations, loss=float(shown))
                if iteration >= self.iterations:
                    break
                if self.context.checkpoint.due():
                    self._save(iteration)
        if self.quantiser is not None and not self.quantiser.enabled:  # too short a schedule for any step of it
            self.quantiser.set_bytes(self.network_bytes)
        self.network.eval()

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[torch.autocast]:
        """Yield the autocast of training; matrix products in float32 may use TF32 as long as it lasts."""
        precision, kind = self.config.precision, self.context.device.partition(":")[0]
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "auto" else "highest")
        try:
            yield torch.autocast(
                kind, torch.bfloat16, enabled=precision == "bfloat16" or (precision == "auto" and kind == "cuda")
            )
        finally:
            torch.set_float32_matmul_precision(before)

    def _affordable(self) -> int:
        """Return the iterations that a CPU, or a GPU, does in some minutes; counted in operations, not in time."""
        ids, grids = next(self.batches.batches())
        with FlopCounterMode(display=False) as counter:
            self.loss(ids, grids, 0)[0].backward()  # type: ignore[no-untyped-call]
        room = GPU_FLOPS if self.context.device.startswith("cuda") else CPU_FLOPS
        most = math.inf if self.config.passes is None else self.config.passes * self.batches.samples / len(ids)
        return int(min(PAPER_ITERATIONS, max(200, min(most, room / max(1, counter.get_total_flops())))))

    def _schedule(self, iteration: int) -> None:
        rate = self.config.learning_rate
        if iteration >= self.decay_from:
            share = (iteration - self.decay_from) / max(1, self.iterations - self.decay_from)
            rate += share * (self.config.final_rate - rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        every = max(1, self.iterations // 20)
        first, last = (round(share * self.iterations) for share in (QUANTISE_FROM, QUANTISE_FIXED))
        if self.quantiser is not None and first <= iteration <= last and (iteration - first) % every == 0:
            self.quantiser.set_bytes(self.network_bytes)

    def _watch(self, iteration: int, error: float) -> None:
        """Begin the decay at once when the loss has stopped falling; stop when it is no number."""
        if not math.isfinite(error):
            raise KrstoreError(
                f"the fit diverged at iteration {iteration} (loss {error}); try a smaller --set learning_rate="
            )
        self._window, self._window_loss = self._window + 1, self._window_loss + error
        if self.config.plateau is None or iteration >= self.decay_from or self._window * 100 < self.iterations:
            return
        loss = self._window_loss / self._window
        if loss > (1 - self.config.plateau) * self._last_window_loss:
            self.iterations -= self.decay_from - iteration
            self.decay_from = iteration
        self._window, self._window_loss, self._last_window_loss = 0, 0.0, loss

    def _save(self, iteration: int) -> None:
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{k}": v for k, v in state.items()}
        values = {name: getattr(self, name) for name in _SAVED}
        enabled = self.quantiser is not None and self.quantiser.enabled
        self.context.checkpoint.save(tensors, values | {"iteration": iteration, "quantising": enabled})

    def _resume(self) -> int:
        loaded = self.context.checkpoint.load()
        if loaded is None:
            return 0
        tensors, values = loaded
        own = {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
        self.network.load_state_dict(own)
        adam: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam/"):
                _, number, name = key.split("/")
                adam.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": adam})
        for name in _SAVED:
            setattr(self, name, values[name])
        if self.quantiser is not None and values["quantising"]:
            self.quantiser.enable()
        return int(values["iteration"])


_SAVED = ("iterations", "decay_from", "_window", "_window_loss", "_last_window_loss")
