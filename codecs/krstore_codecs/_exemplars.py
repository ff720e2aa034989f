"""What codecs that keep exemplars share: how many of each class, in which order, and what they are stored with.

The samples that are kept are encoded by a codec of their own, lossless unless another is named. They lie rank by rank:
the first of every class, then the second of every class, so that a prefix of the store is the smaller set.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from krstore.archives import open_archive
from krstore.codec import Codec, Decoder, FitContext, Kind, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig, build_config
from krstore.errors import ArchiveError, CorruptStoreError, MissingExtraError, UnknownNameError, UsageError
from krstore.registry import get_sample_codec
from krstore.source import Ids, Source, SourceSpec, Subset, class_indices, scan
from krstore.store.container import MemberReader
from krstore.tensors import as_tensor
from krstore_codecs.webp import WebPLossless

__all__ = ["Chosen", "Embeddings", "Exemplars", "ExemplarsConfig"]

STORED = "network/exemplars"
PER_CLASS = 20
BATCH = 256

Count = Annotated[int, msgspec.Meta(ge=1)]
Embeddings = NDArray[np.float32]


class ExemplarsConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of the codecs that keep exemplars."""

    per_class: Annotated[
        Count | None, msgspec.Meta(description="exemplars of each class; none: 20, or what a target allows")
    ] = None
    total: Annotated[Count | None, msgspec.Meta(description="exemplars in all, equally many of each class")] = None
    codec: Annotated[
        str | None, msgspec.Meta(description="what they are stored with; none: images by webp_lossless, others by raw")
    ] = None
    codec_preset: Annotated[str | None, msgspec.Meta(description="its preset")] = None
    codec_settings: Annotated[dict[str, Any], msgspec.Meta(description="its options")] = msgspec.field(
        default_factory=dict
    )
    embeddings: Annotated[
        str | None,
        msgspec.Meta(description="archive of a vector a sample to choose by; none: the task model's, or the samples"),
    ] = None


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    codec: str


@dataclass(frozen=True)
class Chosen:
    """A selection, and what encodes it.

    Attributes:
        source: of all samples.
        context: of the fit.
        ranked: the samples of each class, the best first, as far as they may be kept.
        codec: encodes what is kept.
        fitted: that codec's, where the number of exemplars is settled; otherwise `pack` chooses it.
    """

    source: Source
    context: FitContext
    ranked: list[Ids]
    codec: Codec[Any, Any]
    fitted: Any | None

    @property
    def most(self) -> int:
        """How many of the largest class may be kept."""
        return max(map(len, self.ranked))

    def ids(self, per_class: int) -> Ids:
        """Return so many of each class, rank by rank."""
        ranks = itertools.zip_longest(*(own[:per_class] for own in self.ranked))
        return np.array([i for rank in ranks for i in rank if i is not None], np.int64)


class Exemplars(Codec[ExemplarsConfig, Chosen]):
    """Keeps some samples of each class; subclasses say which."""

    kind: ClassVar = Kind.EXEMPLAR
    Config: ClassVar = ExemplarsConfig
    embeds: ClassVar[bool] = True
    """Whether `rank` looks at the embeddings."""
    compression: ClassVar[int] = 16
    """At most what a lossless codec is expected to reach: as many samples are ranked for a target in bytes."""

    def validate(self, spec: SourceSpec) -> None:
        """Refuse what the samples' own codec refuses."""
        self._codec(spec).validate(spec)

    @abstractmethod
    def rank(self, embeddings: Embeddings, count: int, seed: int) -> Ids:
        """Choose among samples of one class.

        Args:
            embeddings: of all of them (n, D), of length 1; (n, 0) where the codec does not look at them.
            count: how many, at most n.
            seed: of everything random.

        Returns:
            the rows that are chosen (count,), the best first.
        """

    def fit(self, source: Source, context: FitContext) -> Chosen:
        """Rank the samples of each class.

        Raises:
            UsageError: contradictory or impossible options.
            ArchiveError: values too large to choose by.
        """
        codec = self._codec(source.spec)
        classes = self._classes(source)
        asked = self._asked(len(classes))
        targeted = context.budget is not None or context.max_mse is not None
        if codec.lossless and context.max_mse is not None:
            raise UsageError(
                f"codec {self.name} keeps samples as they are: max_mse={context.max_mse:g} says nothing of how many; "
                "give per_class, total, a ratio or bytes"
            )
        if codec.lossless and asked is not None and targeted:
            raise UsageError(
                f"codec {self.name}: a target and {asked} exemplars of each class, stored by the lossless codec "
                f"{codec.name}; give one of them, or name a lossy codec (--set codec=transform)"
            )
        if not codec.lossless or not targeted:
            asked = asked or PER_CLASS
        limit = asked or self._limit(source, context, [len(ids) for ids in classes.values()])
        ranked = self._ranked(source, classes, limit, context)
        chosen = Chosen(source, context, ranked, codec, None)
        return replace(chosen, fitted=self._fitted(chosen, limit)) if asked else chosen

    def knob(self, fitted: Chosen) -> Knob | None:
        """Return the stored samples' own range; or, where a target sets the number, how many of a class it costs."""
        if fitted.fitted is not None:
            return fitted.codec.knob(fitted.fitted)
        return Knob(low=0, start=fitted.most // 2, high=fitted.most - 1, integer=True)

    def pack(self, fitted: Chosen, knob: float, sink: PayloadSink) -> None:
        """Write the kept samples."""
        settled = fitted.fitted is not None
        per_class = fitted.most - (0 if settled else int(knob))
        sink.keep(fitted.ids(per_class))
        sink.write(STORED, msgspec.json.encode(_Stored(fitted.codec.name)))
        fitted.codec.pack(fitted.fitted if settled else self._fitted(fitted, per_class), knob if settled else 0.0, sink)

    def settled(self, fitted: Chosen) -> ExemplarsConfig:
        """Return the config with what the exemplars are stored with filled in."""
        return msgspec.structs.replace(self.config, codec=fitted.codec.name)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the kept samples with the codec they are stored by.

        Raises:
            CorruptStoreError: there is no such codec.
        """
        try:
            codec = get_sample_codec(msgspec.json.decode(payload.read(STORED), type=_Stored).codec)
        except (msgspec.DecodeError, msgspec.ValidationError, UnknownNameError) as error:
            raise CorruptStoreError(f"what the exemplars are stored with cannot be told: {error}") from error
        if codec.kind is not Kind.DENSE:
            raise CorruptStoreError(f"exemplars are said to be stored with {codec.name}, which keeps exemplars itself")
        return codec.open(payload, replace(context, spec=replace(context.spec, samples=context.kept)))

    def kept(self, chosen: Chosen, ids: Ids) -> Source:
        """Return what is kept of these samples: they themselves."""
        return Subset(chosen.source, ids)

    def _fitted(self, chosen: Chosen, per_class: int) -> Any:
        kept = self.kept(chosen, chosen.ids(per_class))
        return chosen.codec.fit(kept, replace(chosen.context, stats=scan(kept)))

    def _codec(self, spec: SourceSpec) -> Codec[Any, Any]:
        found = get_sample_codec(self.config.codec or _lossless(spec))
        if found.kind is not Kind.DENSE:
            raise UsageError(f"codec={found.name} keeps exemplars itself; name one that stores what it is given")
        config = build_config(
            found.name, found.Config, found.presets, self.config.codec_preset, self.config.codec_settings
        )
        return found(config)

    def _classes(self, source: Source) -> Mapping[int, Ids]:
        if source.labels is not None:
            return class_indices(source.labels)
        if self.config.per_class is not None:
            raise UsageError(f"per_class={self.config.per_class}, but there are no labels; give a total instead")
        return {0: np.arange(source.spec.samples)}

    def _asked(self, classes: int) -> int | None:
        per_class, total = self.config.per_class, self.config.total
        if per_class is not None and total is not None:
            raise UsageError(f"per_class={per_class} and total={total}; give one of them")
        if total is not None and total < classes:
            raise UsageError(f"total={total} is less than an exemplar of each of {classes} classes")
        return per_class if total is None else total // classes

    def _limit(self, source: Source, context: FitContext, sizes: list[int]) -> int:
        """Return how many of a class a target can ever allow, of classes of these sizes: small ones are kept whole."""
        if context.budget is None:
            return source.spec.samples
        left, limit = self.compression * context.budget // source.spec.sample_bytes, 0
        for number, size in enumerate(sorted(sizes)):
            limit = min(size, left // (len(sizes) - number))
            left -= limit
        return max(1, limit)

    def _ranked(self, source: Source, classes: Mapping[int, Ids], limit: int, context: FitContext) -> list[Ids]:
        given = None if self.config.embeddings is None else open_archive(self.config.embeddings)
        if given is not None and given.spec.samples != source.spec.samples:
            raise UsageError(
                f"embeddings={self.config.embeddings} has {given.spec.samples:,} samples; the archive has "
                f"{source.spec.samples:,}"
            )
        ranked = []
        with context.progress.task("choose", len(classes), "classes") as task:
            for number, ids in enumerate(classes.values()):
                embeddings = np.empty((len(ids), 0), np.float32)
                if self.embeds:
                    embeddings = _embedded(given or source, ids, None if given is not None else context)
                rows = self.rank(embeddings, min(limit, len(ids)), context.seed + number)
                ranked.append(ids[rows])
                task.advance()
        return ranked


def _lossless(spec: SourceSpec) -> str:
    try:
        WebPLossless(WebPLossless.Config()).validate(spec)
    except (UsageError, MissingExtraError):
        return "raw"
    return WebPLossless.name


def _embedded(source: Source, ids: Ids, context: FitContext | None) -> Embeddings:
    """Return samples as vectors of length 1 (n, D): those of the task model if there is one, or their own elements.

    Raises:
        ArchiveError: a vector has no finite length in float32.
    """
    import torch

    parts = []
    for rows in np.array_split(ids, -(-len(ids) // BATCH)):
        values = as_tensor(source.read(rows)).float()
        if context is not None and context.task_model is not None:
            with torch.inference_mode():
                values = context.task_model(values.to(context.device)).float().cpu()
        parts.append(values.flatten(1))
    vectors = torch.cat(parts)
    finite = torch.linalg.vector_norm(vectors, dim=1).isfinite().numpy()
    if not finite.all():
        raise ArchiveError(
            f"sample {ids[~finite][0]} cannot be compared with others: its vector has no finite length in float32; "
            "scale the features first"
        )
    return cast(Embeddings, torch.nn.functional.normalize(vectors, eps=1e-12).numpy())
