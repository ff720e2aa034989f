"""The Avalanche adapter, with the real framework; skipped where it is not installed (see CONTRIBUTING.md)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import krstore
from krstore.errors import UsageError
from krstore.testing import ArraySource

pytest.importorskip("avalanche", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")

from avalanche.benchmarks import nc_benchmark  # noqa: E402
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark  # noqa: E402
from avalanche.benchmarks.utils import as_classification_dataset  # noqa: E402
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin  # noqa: E402
from avalanche.training.supervised import Naive  # noqa: E402
from PIL import Image  # noqa: E402

from krstore.adapters.avalanche import FeatureReplay, StoredExemplars, StoredReplay  # noqa: E402

CLASSES, EACH = 6, 20


class Labelled(torch.utils.data.Dataset[Any]):
    """Items whose channel 0 tells their class."""

    def __init__(self, *, images: bool, each: int = EACH, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.targets = np.repeat(np.arange(CLASSES), each).tolist()
        self.values = rng.integers(0, 30, (CLASSES * each, 8, 8, 3)).astype(np.uint8)
        for value, label in zip(self.values, self.targets, strict=True):
            value[..., 0] += 40 * label
        self.images = images

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        value = self.values[index]
        image = Image.fromarray(value) if self.images else torch.from_numpy(value).permute(2, 0, 1).float() / 255
        return image, self.targets[index]


def to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def data(name: str, *, images: bool) -> Any:
    groups = dict.fromkeys(("train", "eval"), to_tensor) if images else None
    return as_classification_dataset(
        Labelled(images=images, seed=("train", "test").index(name)), transform_groups=groups
    )


def benchmark(*, images: bool = False, tasks: bool = False) -> Any:
    """Three experiences of two classes; with `tasks` their items have a third member, task label 0."""
    streams = {name: data(name, images=images) for name in ("train", "test")}
    if tasks:
        return nc_benchmark(*streams.values(), n_experiences=3, task_labels=False, fixed_class_order=[*range(CLASSES)])
    return class_incremental_benchmark(streams, num_experiences=3, class_order=[*range(CLASSES)])


def layers() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), end


def evaluator() -> EvaluationPlugin:
    return EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])


def accuracy(strategy: Any, stream: Any) -> float:
    (value,) = strategy.eval(stream).values()
    return float(value)


def save(strategy: Any, path: Path) -> None:
    """Checkpoint all but the optimiser, which dill cannot pickle in every release of torch."""
    save_checkpoint(strategy, path, exclude=["optimizer"])


def load(strategy: Any, path: Path) -> int:
    """Load a checkpoint into a new strategy, and return how many experiences it had finished."""
    done: int = maybe_load_checkpoint(strategy, path)[1]
    strategy.optimizer = torch.optim.Adam(strategy.model.parameters(), 0.02)
    strategy.optimized_param_id = None
    return done


def replaying(path: Path, **options: Any) -> tuple[Any, StoredExemplars]:
    extractor, end = layers()
    model, policy = nn.Sequential(extractor, end), StoredExemplars(24, path, **options)
    strategy = Naive(
        model=model, optimizer=torch.optim.Adam(model.parameters(), 0.02), train_mb_size=10, train_epochs=20,
        plugins=[ReplayPlugin(mem_size=24, storage_policy=policy)], evaluator=evaluator(),
    )  # fmt: skip
    return strategy, policy


@pytest.mark.parametrize("tasks", [False, True])
def test_replay_plugin_replays_images_from_disk(tasks: bool, tmp_path: Path) -> None:
    stream = benchmark(images=True, tasks=tasks)
    strategy, policy = replaying(tmp_path / "memory", transform=to_tensor)
    sizes = []
    for experience in stream.train_stream:
        strategy.train(experience)
        sizes.append(policy.memory.classes)
    assert sizes == [{0: 12, 1: 12}, dict.fromkeys(range(4), 6), dict.fromkeys(range(6), 4)]
    assert policy.memory.samples.spec.dtype == "uint8"
    source = {value.tobytes() for value in Labelled(images=True).values}
    assert all(value.tobytes() in source for value in policy.memory.samples.read(np.arange(24)))
    x, y, *rest = policy.buffer[0]
    assert x.dtype == torch.float32
    assert rest == ([0] if tasks else [])
    assert int(x[0].min() * 255) // 40 == int(y)
    assert accuracy(strategy, stream.test_stream) > 0.5


def test_exemplars_of_fewer_classes_than_there_will_be(tmp_path: Path) -> None:
    stream = benchmark()
    strategy, policy = replaying(tmp_path / "memory", adaptive_size=False, total_num_classes=CLASSES)
    strategy.train(stream.train_stream[0])
    assert policy.memory.classes == {0: 4, 1: 4}
    policy.resize(strategy, 12)
    assert policy.memory.classes == {0: 2, 1: 2}
    with pytest.raises(UsageError, match="max_size=4 is less than one exemplar"):
        policy.resize(strategy, 4)
    with pytest.raises(UsageError, match="needs total_num_classes"):
        StoredExemplars(4, tmp_path / "other", adaptive_size=False)


def test_exemplars_survive_a_checkpoint_and_what_came_after_it(tmp_path: Path) -> None:
    stream = benchmark()
    strategy, _ = replaying(tmp_path / "memory")
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    save(strategy, tmp_path / "checkpoint")
    strategy.train(stream.train_stream[2])
    loaded, _ = replaying(tmp_path / "another")
    assert load(loaded, tmp_path / "checkpoint") == 2
    again = next(p for p in loaded.plugins if isinstance(p, ReplayPlugin)).storage_policy
    assert sorted(set(again.buffer.targets)) == [0, 1, 2, 3]
    loaded.train(stream.train_stream[2])
    assert again.memory.classes == dict.fromkeys(range(6), 4)
    assert len(again.buffer) == 24


def features(path: Path, **options: Any) -> FeatureReplay:
    extractor, model = layers()
    arguments = {"codec": "raw"} | options
    return FeatureReplay(
        extractor=extractor, model=model, path=path, optimizer=torch.optim.Adam(model.parameters(), 0.02),
        train_mb_size=10, eval_mb_size=16, train_epochs=20, evaluator=evaluator(), **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("through_codec", [False, True])
def test_features_are_replayed(tasks: bool, through_codec: bool, tmp_path: Path) -> None:
    stream = benchmark(tasks=tasks)
    strategy = features(tmp_path / "memory", through_codec=through_codec)
    before = [value.clone() for value in strategy.extractor.parameters()]
    for experience in stream.train_stream:
        strategy.train(experience)
    assert strategy.memory.classes == dict.fromkeys(range(CLASSES), EACH)
    assert strategy.memory.samples.spec.shape == (8, 6, 6)
    assert accuracy(strategy, stream.test_stream) > 0.5
    for old, new in zip(before, strategy.extractor.parameters(), strict=True):
        assert torch.equal(old, new)


def test_without_replay_the_same_training_forgets(tmp_path: Path) -> None:
    """What the replayed features are worth: the share of 0 makes the others' accuracy fall."""
    stream = benchmark()
    strategy = features(tmp_path / "memory", share=0.0)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert accuracy(strategy, stream.test_stream) < 0.4


def test_a_lossy_codec_shares_its_decoder_and_new_features_pass_it(tmp_path: Path) -> None:
    stream = benchmark()
    encoding = {"ratio": 4, "preset": "linear"}
    strategy = features(tmp_path / "memory", codec="transform", encoding=encoding)
    seen: list[torch.Tensor] = []
    strategy.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    assert len(strategy.memory.manifest.networks) <= 2
    decoded = {row.tobytes() for row in strategy.memory.samples.read(np.arange(len(strategy.memory)))}
    assert {row.numpy().tobytes() for row in seen[0]} <= decoded


def test_features_survive_a_checkpoint_and_what_came_after_it(tmp_path: Path) -> None:
    stream = benchmark()
    strategy = features(tmp_path / "memory")
    strategy.train(stream.train_stream[0])
    save(strategy, tmp_path / "checkpoint")
    strategy.train(stream.train_stream[1])
    loaded = features(tmp_path / "another")
    assert load(loaded, tmp_path / "checkpoint") == 1
    for experience in stream.train_stream[1:]:
        loaded.train(experience)
    assert loaded.memory.classes == dict.fromkeys(range(CLASSES), EACH)
    assert len(loaded.memory.manifest.stores) == 3
    assert accuracy(loaded, stream.test_stream) > 0.5


def test_a_memory_of_others_is_refused(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((4, 8, 6, 6), np.float32), np.arange(4))
    memory = krstore.Memory.create(tmp_path / "memory")
    memory.append(krstore.encode(source, tmp_path / "a.krs", "raw"))
    with pytest.raises(UsageError, match="has no task column"):
        features(tmp_path / "memory").train(benchmark().train_stream[0])


def test_several_tasks_are_refused(tmp_path: Path) -> None:
    stream = nc_benchmark(data("train", images=False), data("test", images=False), n_experiences=2, task_labels=True)
    strategy = features(tmp_path / "memory")
    strategy.train(stream.train_stream[0])
    with pytest.raises(UsageError, match=r"task labels \[1\]; features are replayed for one task"):
        strategy.train(stream.train_stream[1])


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "avalanche.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"benchmark": benchmark(), "network": lambda: nn.Sequential(*layers())}
    for block in page.split("```python\n")[1:]:
        exec(block.split("```")[0], names)


def through_webp(path: Path, plugin: type[ReplayPlugin], codec: str = "webp") -> tuple[Any, StoredExemplars, list[Any]]:
    """Train on two experiences, and return the items that new samples were in the second one, by what replays."""
    encoding = {} if codec == "webp_lossless" else {"ratio": 1.2}
    stream = benchmark(images=True)
    policy = StoredExemplars(24, path, codec=codec, transform=to_tensor, encoding=encoding)
    plugins = [StoredReplay(policy) if plugin is StoredReplay else ReplayPlugin(24, storage_policy=policy)]
    extractor, end = layers()
    model = nn.Sequential(extractor, end)
    strategy = Naive(
        model=model, optimizer=torch.optim.Adam(model.parameters(), 0.02), train_mb_size=10, train_epochs=2,
        plugins=plugins, evaluator=evaluator(),
    )  # fmt: skip
    strategy.train(stream.train_stream[0])
    seen: list[Any] = []
    shown = SupervisedPlugin()
    shown.before_training_exp = lambda strategy, **more: seen.extend(strategy.adapted_dataset)
    strategy.plugins.append(shown)
    strategy.train(stream.train_stream[1])
    return strategy, policy, seen


@pytest.mark.parametrize(("codec", "alike"), [("webp", False), ("webp_lossless", True)])
def test_new_items_pass_the_exemplars_lossy_codec_too(codec: str, alike: bool, tmp_path: Path) -> None:
    """At about the exemplars' bytes a sample; with a lossless codec they are the experience's own."""
    strategy, policy, seen = through_webp(tmp_path / "memory", StoredReplay, codec)
    assert sorted(int(y) for _, y, *_ in seen) == [2] * EACH + [3] * EACH
    own = {to_tensor(value).numpy().tobytes() for value in Labelled(images=True).values}
    assert all((x.numpy().tobytes() in own) == alike for x, *_ in seen)
    assert policy.memory.classes == dict.fromkeys(range(4), 6)
    save(strategy, tmp_path / "checkpoint")


def test_items_of_several_tasks_do_not_pass(tmp_path: Path) -> None:
    streams = [data(name, images=True) for name in ("train", "test")]
    stream = nc_benchmark(*streams, n_experiences=2, task_labels=True)
    encoding = {"ratio": 1.2}
    policy = StoredExemplars(24, tmp_path / "memory", codec="webp", transform=to_tensor, encoding=encoding)
    model = nn.Sequential(*layers())
    strategy = Naive(
        model=model, optimizer=torch.optim.Adam(model.parameters()), train_mb_size=10, plugins=[StoredReplay(policy)],
        evaluator=evaluator(),
    )  # fmt: skip
    strategy.train(stream.train_stream[0])
    with pytest.raises(UsageError, match=r"task labels \[1\]; stored exemplars pass the codec for one task, label 0"):
        strategy.train(stream.train_stream[1])


def test_new_samples_beside_a_lossy_codecs_are_warned_of(tmp_path: Path) -> None:
    cases = [(ReplayPlugin, "webp", 1), (ReplayPlugin, "webp_lossless", 0), (StoredReplay, "webp", 0)]
    for number, (plugin, codec, said) in enumerate(cases):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            through_webp(tmp_path / f"exemplars{number}", plugin, codec)
        assert sum("use StoredReplay in ReplayPlugin's place" in str(one.message) for one in caught) == said
    stream = benchmark()
    for number, (through_codec, said) in enumerate(((False, 1), (True, 0))):
        options = {"codec": "transform", "encoding": {"ratio": 4, "preset": "linear"}, "through_codec": through_codec}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy = features(tmp_path / f"features{number}", **options)
            for experience in stream.train_stream[:2]:
                strategy.train(experience)
        assert sum("leave through_codec on" in str(one.message) for one in caught) == said


def test_beside_exemplars_features_are_learnt_from_as_they_are(tmp_path: Path) -> None:
    stream = benchmark()
    strategy = features(tmp_path / "memory", codec="random", encoding={"settings": {"per_class": 2}})
    seen: list[int] = []
    strategy.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    strategy.train(stream.train_stream[0])
    assert sum(seen) == 20 * 2 * EACH, "twenty epochs of all samples, of which two of a class are kept"
    assert strategy.memory.classes == {0: 2, 1: 2}


@pytest.mark.parametrize("lossless", [True, False])
def test_beside_lossy_exemplars_features_pass_their_codec(lossless: bool, tmp_path: Path) -> None:
    stream = benchmark()
    settings = {"per_class": 8} | ({} if lossless else {"codec": "pq", "codec_settings": {"iterations": 5}})
    strategy = features(tmp_path / "memory", codec="random", encoding={"settings": settings}, share=0.2)
    seen: list[torch.Tensor] = []
    strategy.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    strategy.train(stream.train_stream[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="new samples are sharper")
        seen.clear()
        strategy.train(stream.train_stream[1])
    images = torch.stack([x for x, *_ in stream.train_stream[1].dataset])
    own = {x.numpy().tobytes() for x in strategy.features(images)}
    exact = sum(x.numpy().tobytes() in own for x in torch.cat(seen))
    assert (exact > 20 * 2 * EACH * 0.9) if lossless else (exact == 0)
    assert len(torch.cat(seen)) == 20 * 2 * EACH * 5 // 4
