"""Avalanche: exemplars on disk for its `ReplayPlugin`, and a strategy that replays features, which the plugin cannot.

All keep what they replay in a `krstore.Memory`, one store an experience, and are written by Avalanche's
`save_checkpoint` as the memory's path. An experience that is trained again, after a checkpoint was loaded, takes the
place of what it left before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from krstore.adapters._experiences import PIL, Experiences, warn
from krstore.errors import MissingExtraError, UsageError
from krstore.memory import Memory
from krstore.memory.samples import MemorySamples
from krstore.progress import SILENT, Progress
from krstore.replay import CACHE_BYTES, Replay
from krstore.source import Ids, class_indices
from krstore.tensors import as_tensor

try:
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.benchmarks.utils.flat_data import ConstantSequence
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ExemplarsBuffer
    from avalanche.training.templates import SupervisedTemplate
except ImportError:
    raise MissingExtraError("avalanche", "avalanche", "krstore.adapters.avalanche") from None

__all__ = ["FeatureReplay", "StoredExemplars", "StoredReplay"]

Batch = tuple[Tensor, Tensor]


class StoredExemplars(ExemplarsBuffer):  # type: ignore[misc]
    """A storage policy for `ReplayPlugin`: random exemplars, as many of each class, in a memory on disk.

    Kept are the datasets' items before their transforms: PIL images as uint8 (H, W, C), tensors as they are. When the
    share of a class shrinks, its store is encoded again; a lossy codec loses a little more each time. `ReplayPlugin`
    trains on an experience's own items as they are; beside a lossy codec's they are sharper, of which there is a
    warning: `StoredReplay` lets them pass through the codec too.

    Args:
        max_size: exemplars in all; `ReplayPlugin(mem_size=...)` wants the same number.
        path: the memory's folder, made if need be.
        transform: maps a stored item, a PIL image again if it was one, to what is replayed, augmentation included;
            default a float tensor in 0..1 of an image, and the item itself otherwise.
        codec: a registered codec's name; of images, webp_lossless takes fewer bytes than raw.
        adaptive_size: share `max_size` among the classes seen so far; otherwise among `total_num_classes`.
        seed: of the selection.
        device: where a codec computes.
        encoding: other arguments of `krstore.encode`, `ratio` for example.
        progress: shows how far encoding has come; `krstore.Bars` for example.

    Raises:
        UsageError: `adaptive_size` is off and the number of classes not given.
    """

    def __init__(
        self,
        max_size: int,
        path: str | Path,
        *,
        transform: Callable[[Any], Any] | None = None,
        codec: str = "raw",
        adaptive_size: bool = True,
        total_num_classes: int | None = None,
        seed: int = 0,
        device: str = "auto",
        encoding: Mapping[str, Any] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        if not adaptive_size and not total_num_classes:
            raise UsageError("adaptive_size=False needs total_num_classes, a positive number")
        self._memory = Experiences(path, codec, seed, device, encoding, progress)
        self._transform, self._divisor, self._seed = transform, None if adaptive_size else total_num_classes, seed
        self._with_tasks, self._alike = False, -1
        super().__init__(max_size)

    @property
    def memory(self) -> Memory:
        """Where the exemplars are."""
        return self._memory.memory

    @property
    def buffer(self) -> AvalancheDataset[Any]:
        """The exemplars, as a dataset."""
        samples = self._memory.samples()
        return AvalancheDataset([]) if samples is None else self._dataset(samples)

    @buffer.setter
    def buffer(self, new_buffer: AvalancheDataset[Any]) -> None:
        if len(new_buffer):
            raise UsageError("stored exemplars come from experiences alone; their buffer cannot be set")

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Keep exemplars of the experience that was just trained on, and no more of older classes than is left."""
        self._with_tasks = _with_tasks(exp)
        if self._alike != exp.current_experience:
            warn(self._memory.samples(before=exp.current_experience), "use StoredReplay in ReplayPlugin's place")
        labels = _labels(exp)
        own = class_indices(labels)
        classes = own.keys() | self._memory.classes(exp.current_experience)
        rng = np.random.default_rng([self._seed, exp.current_experience])
        ids = np.concatenate([rng.permutation(ids)[: self._quota(len(classes))] for ids in own.values()])
        self._memory.take(exp.current_experience, *_items(exp, ids))
        self.memory.trim(self._quota(len(classes)))

    def passes(self, exp: Any) -> bool:
        """Whether an experience stands beside exemplars that a lossy codec gives back."""
        earlier = self._memory.samples(before=exp.current_experience)
        return earlier is not None and not earlier.exact

    def passed(self, exp: Any, output: Path) -> AvalancheDataset[Any]:
        """Return an experience's items as the codec of the exemplars beside it gives them back.

        Args:
            exp: the experience, not trained on yet.
            output: the store that the items are in, new.

        Raises:
            UsageError: the experience has several tasks, or a task label that is not 0.
        """
        _check_tasks(exp, "stored exemplars pass the codec")
        self._with_tasks, self._alike = _with_tasks(exp), exp.current_experience
        items = _items(exp, np.arange(len(exp.dataset)))
        return self._dataset(self._memory.passed(exp.current_experience, *items, output))

    def resize(self, strategy: Any, new_size: int) -> None:
        """Keep no more than `new_size` exemplars from now on."""
        self.max_size = new_size
        if self._memory.finished:
            self.memory.trim(self._quota(len(self._memory.classes())))

    def _quota(self, classes: int) -> int:
        quota = self.max_size // (self._divisor or classes)
        if not quota:
            raise UsageError(f"max_size={self.max_size} is less than one exemplar of each of {classes} classes")
        return int(quota)

    def _dataset(self, samples: MemorySamples) -> AvalancheDataset[Any]:
        attributes = [DataAttribute(samples.labels.tolist(), "targets")]
        if self._with_tasks:
            tasks = ConstantSequence(0, len(samples))
            attributes.append(DataAttribute(tasks, "targets_task_labels", use_in_getitem=True))
        return AvalancheDataset([_Items(samples, self._transform)], data_attributes=attributes)


class StoredReplay(ReplayPlugin):  # type: ignore[misc]
    """`ReplayPlugin` with stored exemplars: beside a lossy codec's, new items pass through the codec too.

    From the second experience on they are what the codec gives back at the exemplars' bytes a sample, and then through
    the exemplars' transform, in their own one's place. With a lossless codec nothing is done to them.

    Args:
        exemplars: what is replayed, and how many.
        options: Avalanche's `ReplayPlugin` takes them.
    """

    def __init__(self, exemplars: StoredExemplars, **options: Any) -> None:
        super().__init__(exemplars.max_size, storage_policy=exemplars, **options)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def after_train_dataset_adaptation(self, strategy: Any, **more: Any) -> None:
        """Let the experience's items pass through the codec."""
        self._forget()
        if self.storage_policy.passes(strategy.experience):
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            passed = Path(self._folder.name) / "passed.krs"
            strategy.adapted_dataset = self.storage_policy.passed(strategy.experience, passed)

    def after_training_exp(self, strategy: Any, **more: Any) -> None:
        """Keep exemplars of the experience."""
        super().after_training_exp(strategy, **more)
        self._forget()

    def _forget(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class FeatureReplay(SupervisedTemplate):  # type: ignore[misc]
    """Trains the end of a network on features: a new experience's, and those of earlier ones from a memory on disk.

    A frozen extractor maps the images of an experience to features once; these are encoded into the memory, and every
    epoch shows their decoded form mixed with that of earlier experiences. With a lossy codec new features pass through
    the codec too, so that what is new differs from what is old in nothing but its classes. Evaluation runs images
    through extractor and model. For class-incremental benchmarks, of one task label.

    Args:
        extractor: maps a batch of images to features; it is frozen.
        model: maps features to scores; what the optimiser trains.
        path: the memory's folder, made if need be.
        codec: a registered codec's name. Later stores use the first one's decoder where it can be shared.
        share: replayed samples in a batch, from 0 to below 1; default in proportion to what is stored.
        balance: in what order earlier samples are replayed; see `krstore.Replay`.
        through_codec: train on new features as the codec gives them back, beside exemplars as the codec of those does;
            otherwise as they are.
        seed: of codec and order.
        encoding: other arguments of `krstore.encode`, `ratio` and `settings` for example.
        cache_bytes: see `krstore.Replay`.
        progress: shows how far encoding has come; `krstore.Bars` for example.
        options: Avalanche's `SupervisedTemplate` takes them. `train_mb_size` is of the *new* samples of a batch.

    Raises:
        UsageError: an experience has several tasks, or a task label that is not 0.
    """

    def __init__(
        self,
        *,
        extractor: nn.Module,
        model: nn.Module,
        path: str | Path,
        codec: str = "transform",
        share: float | None = None,
        balance: str = "proportional",
        through_codec: bool = True,
        seed: int = 0,
        encoding: Mapping[str, Any] | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Progress = SILENT,
        **options: Any,
    ) -> None:
        super().__init__(model=model, **options)
        self.extractor = extractor.to(self.device).eval().requires_grad_(False)
        self._memory = Experiences(path, codec, seed, str(self.device), encoding, progress)
        self._share, self._balance, self._through_codec = share, balance, through_codec
        self._seed, self._cache_bytes = seed, cache_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def memory(self) -> Memory:
        """Where the features are."""
        return self._memory.memory

    def make_train_dataloader(self, num_workers: int = 0, **options: Any) -> None:
        """Encode the features of the experience, and mix what they decode to with earlier ones."""
        assert self.experience is not None
        _check_tasks(self.experience, "features are replayed")
        loading: dict[str, Any] = {"num_workers": num_workers, "collate_fn": _stacked}
        every = DataLoader(self.experience.dataset.eval(), batch_size=self.eval_mb_size, **loading)
        number = self.experience.current_experience
        earlier = self._memory.samples(before=number)
        store = self._memory.take(number, (x for x, _ in _Extracted(every, self.features)), _labels(self.experience))
        arguments = {"device": self.device, "seed": self._seed, "cache_bytes": self._cache_bytes}
        old = None if earlier is None else Replay(earlier, balance=self._balance, **arguments)
        new: _Extracted | Replay
        if self._through_codec and not self._memory.chooses:
            new = store.replay(self.train_mb_size, **arguments)
        elif self._through_codec and earlier is not None and not earlier.exact:
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            features = (x for x, _ in _Extracted(every, self.features))
            path = Path(self._folder.name) / "passed.krs"
            samples = self._memory.passed(number, features, _labels(self.experience), None, path)
            new = Replay(samples, batch_size=self.train_mb_size, **arguments)
        else:
            warn(earlier, "leave through_codec on")
            train = self.experience.dataset.train()
            new = _Extracted(DataLoader(train, batch_size=self.train_mb_size, shuffle=True, **loading), self.features)
        share = self._share
        if share is None:
            share = len(old) / (len(old) + len(store)) if old else 0.0
        self.dataloader = _Mixed(new, old, share, _with_tasks(self.experience))

    def _after_training_exp(self, **options: Any) -> None:
        super()._after_training_exp(**options)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def forward(self) -> Any:
        """Return the scores of a batch: of features while training, of images otherwise."""
        if not self.is_training:
            self.mbatch[0] = self.features(self.mb_x)
        return super().forward()

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features of images (B, ...), on the strategy's device."""
        return torch.as_tensor(self.extractor(x.to(self.device)))


class _Items(Dataset[Any]):
    """Stored samples as a dataset's items (x, y)."""

    def __init__(self, samples: MemorySamples, transform: Callable[[Any], Any] | None) -> None:
        samples.cache(CACHE_BYTES)
        self._samples, self._transform = samples, transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        stored = self._samples.read(np.array([index]))[0]
        image = bool(self._samples.spec.attributes.get(PIL))
        item: Any = as_tensor(stored)
        if image and self._transform is not None:
            from PIL import Image

            item = Image.fromarray(stored)
        elif image:
            item = item.movedim(-1, 0).float() / 255 if item.ndim == 3 else item[None].float() / 255
        return item if self._transform is None else self._transform(item), int(self._samples.labels[index])


class _Extracted:
    """The features of a loader's images, computed in the process that takes them."""

    def __init__(self, loader: DataLoader[Any], extract: Callable[[Tensor], Tensor]) -> None:
        self._loader, self._extract = loader, extract

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for x, y in self._loader:
            yield self._extract(x), y


class _Mixed:
    """The batches of an epoch each time that it is iterated: (x, y), and task labels where Avalanche wants them."""

    def __init__(self, new: _Extracted | Replay, old: Replay | None, share: float, with_tasks: bool) -> None:
        self._new, self._old, self._share, self._with_tasks = new, old, share, with_tasks

    def __len__(self) -> int:
        return self._new.batches if isinstance(self._new, Replay) else len(self._new)

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches: Any = self._new if self._old is None else self._old.mix(self._new, self._share)
        for batch in batches:
            x, y = batch[0], batch[1]
            yield [x, y, torch.zeros_like(y)] if self._with_tasks else [x, y]


def _stacked(items: Sequence[Any]) -> Batch:
    return torch.stack([item[0] for item in items]), torch.tensor([int(item[1]) for item in items])


def _as_stored(items: Sequence[Any]) -> Tensor:
    return torch.stack([x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x, *_ in items])


def _labels(experience: Any) -> Ids:
    return np.array([int(label) for label in experience.dataset.targets], np.int64)


def _items(experience: Any, ids: Ids) -> tuple[DataLoader[Any], Ids, dict[str, bool]]:
    """Return an experience's items before their transforms, as they are stored, their labels and attributes."""
    items = experience.dataset.train().remove_current_transform_group().subset(ids.tolist())
    loader = DataLoader(items, batch_size=64, collate_fn=_as_stored)
    return loader, _labels(experience)[ids], {PIL: not isinstance(items[0][0], Tensor)}


def _check_tasks(experience: Any, done: str) -> None:
    tasks = experience.dataset.targets_task_labels.uniques if _with_tasks(experience) else {0}
    if tasks != {0}:
        raise UsageError(f"task labels {sorted(tasks)}; {done} for one task, label 0")


def _with_tasks(experience: Any) -> bool:
    return hasattr(experience.dataset, "targets_task_labels")
