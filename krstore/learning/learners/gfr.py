"""GFR: generative feature replay (Liu et al., CVPR Workshops 2020).

From the second task on, with k old classes for each new one,

    L = (L_ce(new) + k L_ce(generated)) / (k + 1) + k ||F(x) - F_old(x)||

where generated embeddings of old classes, drawn uniformly, go through the classifier alone, and the last term, over the
embeddings of the batch's new samples, is the norm of their difference as one vector, neither squared nor averaged. The
network stays in eval mode. After each task a conditional Wasserstein GAN with a gradient penalty learns the embeddings
of the task's classes, and, by `alignment` k sum ||G(z, c) - G_old(z, c)||^2 over old classes, keeps what it knew of
them. Other than in the authors' code the classifier grows with the classes, and the GAN learns the last task too, as no
learner knows which is the last.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.errors import UsageError
from krstore.learning.learners.base import Learner, LearnerConfig, SampleBatches, frozen
from krstore.learning.network import Network
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["GFR", "GFRConfig", "Generator", "apart", "critic_loss", "generator_loss", "gradient_penalty"]

SLOPE = 0.2
DECAY_EVERY, DECAY = 200, 0.3  # epochs of the GAN, and what its rate is multiplied by then

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class GFRConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of GFR."""

    distillation: Annotated[NotNegative, msgspec.Meta(description="weight of k ||F(x) - F_old(x)||")] = 1.0
    replayed: Annotated[Positive, msgspec.Meta(description="generated embeddings in a batch")] = 128
    latent: Annotated[Positive, msgspec.Meta(description="numbers of the GAN's noise z")] = 200
    hidden: Annotated[Positive, msgspec.Meta(description="width of the GAN's hidden layers")] = 512
    epochs: Annotated[Positive, msgspec.Meta(description="of the GAN's training after each task")] = 501
    batch_size: Annotated[Positive, msgspec.Meta(description="of the GAN's training")] = 128
    rate: Annotated[float, msgspec.Meta(gt=0, description="learning rate of the GAN's Adam")] = 1e-4
    critic_steps: Annotated[Positive, msgspec.Meta(description="steps of the critic for one of the generator")] = 5
    penalty: Annotated[NotNegative, msgspec.Meta(description="weight of the critic's gradient penalty")] = 10.0
    alignment: Annotated[
        NotNegative, msgspec.Meta(description="weight of what keeps the generator's old classes as they were")
    ] = 1e-3


class Generator(nn.Module):
    """Noise (B, Z) and classes (B,) to embeddings (B, D): two hidden layers, rectified at the end.

    A class adds a row to the first layer's answer, which is a one-hot vector beside the noise, for any number of them.
    Rows begin with a deviation of 1, thirty times that of a linear layer's weights for a one-hot input: classes that
    are apart from the start need fewer epochs.
    """

    def __init__(self, latent: int, hidden: int, width: int) -> None:
        super().__init__()
        self.noise, self.classes = nn.Linear(latent, hidden), nn.Embedding(1, hidden)
        self.rest = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Linear(hidden, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, width), nn.ReLU()
        )

    def grow(self, classes: int) -> None:
        """Know more classes; those that it knows keep their rows."""
        with torch.device(self.classes.weight.device):
            grown = nn.Embedding(classes, self.classes.embedding_dim)
        with torch.no_grad():
            grown.weight[: self.classes.num_embeddings] = self.classes.weight
        self.classes = grown

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate."""
        return torch.as_tensor(self.rest(self.noise(z) + self.classes(y)))


class _Critic(nn.Module):
    """Embeddings (B, D) and classes (B,) to scores (B,), conditioned by projection."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(width, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, hidden), nn.LeakyReLU(SLOPE)
        )
        self.score, self.classes = nn.Linear(hidden, 1), nn.Embedding(classes, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.body(x)
        return torch.as_tensor(self.score(hidden)[:, 0] + (self.classes(y) * hidden).sum(1))


class GFR(Learner):
    """Generative feature replay."""

    name = "gfr"
    summary = "generative feature replay: a GAN of embeddings stands in for old classes"
    Config = GFRConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        self._generator: Generator | None = None
        self._teacher: nn.Module | None = None
        self._old = self._ratio = 0.0

    def begin_step(self, task: Task) -> None:
        """Keep the body as the last task left it."""
        self._old, self._ratio = task.first, task.first / (task.stop - task.first)
        self._teacher = frozen(copy.deepcopy(self.network.body)) if task.number else None

    def train_mode(self) -> None:
        """Train the first task; later the statistics of batch norm stay."""
        self.network.train(self._teacher is None)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms, weighted as they are added."""
        embedded = self.network.body(batch.x)
        ce = F.cross_entropy(self.network.head(embedded), batch.y)
        if self._teacher is None or self._generator is None:
            return {"ce": ce}
        k = self._ratio
        with torch.no_grad():
            wanted = self._teacher(batch.x)
            features, labels = self._generated(self.config.replayed, batch.x.device)
        replayed = F.cross_entropy(self.network.head(features), labels)
        distance = torch.linalg.vector_norm(embedded.float() - wanted.float())
        return {
            "ce": ce / (k + 1),
            "replay": k * replayed / (k + 1),
            "distillation": self.config.distillation * k * distance,
        }

    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Train the GAN on the task's embeddings."""
        self.network.eval()
        with torch.no_grad():
            pairs = [(self.network.body(x), y) for x, y in samples()]
        x, y = torch.cat([p[0] for p in pairs]).float(), torch.cat([p[1] for p in pairs])
        before = self._generator
        generator = Generator(self.config.latent, self.config.hidden, x.shape[1])
        if before is not None:
            generator = copy.deepcopy(before)
        generator.grow(task.stop)
        self._generator = self._fitted(generator.to(x.device), before, task, x, y)

    def state(self) -> dict[str, Tensor]:
        """Return the generator."""
        return {} if self._generator is None else dict(self._generator.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a generator, if there is one yet."""
        if not state:
            return
        self._generator = Generator(self.config.latent, self.config.hidden, self.network.width)
        self._generator.grow(len(state["classes.weight"]))
        self._generator.load_state_dict(dict(state))
        frozen(self._generator.to(next(self.network.parameters()).device))

    def _generated(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return embeddings of old classes, drawn uniformly, and their labels."""
        assert self._generator is not None
        labels = torch.randint(0, int(self._old), (count,)).to(device)
        return self._generator(torch.randn(count, self.config.latent).to(device), labels), labels

    def _fitted(self, generator: Generator, before: Generator | None, task: Task, x: Tensor, y: Tensor) -> Generator:
        config = self.config
        generator.train().requires_grad_(True)
        critic = _Critic(x.shape[1], config.hidden, task.stop).to(x.device)
        optimisers = [torch.optim.Adam(m.parameters(), config.rate, (0.5, 0.999)) for m in (generator, critic)]

        def noise(count: int) -> Tensor:
            return torch.randn(count, config.latent).to(x.device)

        def batch(rows: Tensor, turn: int) -> Tensor:
            real, labels = x[rows.to(x.device)], y[rows.to(x.device)]
            with torch.no_grad():
                fake = generator(noise(len(rows)), labels)
            criticism = critic_loss(critic, real, fake, labels, config.penalty)
            _step(optimisers[1], criticism)
            if turn % config.critic_steps:
                return criticism.detach()
            loss = generator_loss(critic, generator(noise(len(rows)), labels), labels)
            if before is not None and config.alignment:
                old = torch.randint(0, task.first, (config.batch_size,)).to(x.device)
                z = noise(config.batch_size)
                with torch.no_grad():
                    wanted = before(z, old)
                loss = loss + config.alignment * self._ratio * apart(generator(z, old), wanted)
            _step(optimisers[0], loss)
            return criticism.detach()

        turns = itertools.count(1)
        with self.progress.task(f"GAN of task {task.number}", config.epochs, "epochs") as bar:
            for epoch in range(config.epochs):
                for own in optimisers:
                    own.param_groups[0]["lr"] = config.rate * DECAY ** (epoch // DECAY_EVERY)
                parts = torch.split(torch.randperm(len(x)), config.batch_size)
                loss = float(torch.stack([batch(rows, next(turns)) for rows in parts]).mean())
                if not math.isfinite(loss):
                    raise UsageError(
                        f"gfr: the GAN's loss is {loss} in epoch {epoch}; lower options.rate={config.rate}"
                    )
                bar.advance(1, loss=loss)
        return frozen(generator)  # type: ignore[return-value]


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Return how much higher generated embeddings (B, D) are scored than real ones, and the gradient penalty."""
    distance = critic(fake, labels).mean() - critic(real, labels).mean()
    return torch.as_tensor(distance + penalty * gradient_penalty(critic, real, fake, labels))


def generator_loss(critic: nn.Module, fake: Tensor, labels: Tensor) -> Tensor:
    """Return the negative mean score of generated embeddings (B, D)."""
    return torch.as_tensor(-critic(fake, labels).mean())


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of (||gradient of the critic|| - 1)^2 at random points between real and fake (B, D).

    Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017, Eq. 3.
    """
    between = torch.lerp(real, fake, torch.rand(len(real), 1).to(real.device)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between, labels).sum(), between, create_graph=True)
    return torch.as_tensor((gradient.norm(dim=1) - 1).square().mean())


def apart(generated: Tensor, wanted: Tensor) -> Tensor:
    """Return the sum over samples of the squared distance of embeddings (B, D) from an earlier generator's."""
    return (generated - wanted).square().sum()


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
