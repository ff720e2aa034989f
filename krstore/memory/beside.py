"""Encoding samples for a memory that has a decoder of such samples already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from krstore.errors import DecoderMismatchError
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Source
from krstore.store.rate import DEFAULT_RATIO, make_target
from krstore.store.reader import Store
from krstore.store.writer import encode

if TYPE_CHECKING:
    from krstore.memory.collection import Collection

__all__ = ["encode_beside", "target_beside"]


def encode_beside(
    memory: Collection,
    decoder: Store | None,
    source: Source,
    output: Path,
    codec: str,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Store:
    """Encode samples with a decoder that the memory has, where the codec shares decoders.

    Samples that the decoder was not made for get one of their own.

    Args:
        memory: that the store is for.
        decoder: a store of the memory, its first for example.
        source, output, codec, preset, progress, options: see `krstore.encode`.
        ratio, max_bytes, max_mse: the target, of what is added to the memory: a decoder counts once.

    Raises:
        as `krstore.encode`.
    """
    options |= {"preset": preset, "progress": progress}
    target: dict[str, Any] = {"ratio": ratio, "max_bytes": max_bytes, "max_mse": max_mse}
    if decoder is not None and decoder.codec == codec and get_sample_codec(codec).shares_decoder:
        beside = target_beside(memory, decoder, source, preset=preset, **target)
        try:
            return encode(source, output, codec, decoder=decoder, **beside, **options)
        except DecoderMismatchError as error:
            progress.note(f"{error}; these samples get a decoder of their own")
    return encode(source, output, codec, **target, **options)


def target_beside(
    memory: Collection,
    decoder: Store,
    source: Source,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """Return the target of a file of samples with a decoder in it that the memory may have already.

    Args:
        ratio, max_bytes, max_mse, preset: what `krstore.encode` is asked for, of what the memory does not have.

    Raises:
        UsageError: more than one target, or one that is not positive.
    """
    if all(asked is None for asked in (ratio, max_bytes, max_mse, preset)):
        ratio = DEFAULT_RATIO
    target = make_target(source.spec.bytes, ratio, max_bytes, max_mse)
    if target is None or target.max_bytes is None:
        return {"max_mse": max_mse}
    held = [part.bytes for part in decoder.header.members.values() if part.sha256 in memory.manifest.networks]
    return {"max_bytes": target.max_bytes + sum(held)}
