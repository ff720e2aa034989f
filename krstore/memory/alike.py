"""Encoding samples as those of a store are stored: by the same codec, at as many bytes a sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from krstore.archives import open_archive
from krstore.errors import DecoderMismatchError, TargetUnreachableError
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Source
from krstore.store.reader import Store
from krstore.store.writer import encode

__all__ = ["encode_alike", "storage"]

ROOM = 256  # bytes more, of header and indices, that a file of other samples may need; where they do not do, more


def storage(store: Store) -> tuple[str, dict[str, Any]]:
    """Return the codec that a store's samples are stored with, and its settings: of exemplars, the codec within."""
    if store.header.kind != "exemplar":
        return store.codec, dict(store.config)
    name, preset = str(store.config.get("codec", "raw")), store.config.get("codec_preset")
    given = {} if preset is None else dict(get_sample_codec(name).presets[preset])
    return name, {**given, **store.config.get("codec_settings", {})}


def encode_alike(
    store: Store | str | Path,
    source: Source | str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> Store:
    """Encode samples with what a store's are stored with: its codec, its decoder if that can be shared, its rate.

    They come out as unlike what they were as the store's do, so that a network cannot tell old from new by that. What
    the file has beside samples, a shared decoder above all, comes on top of their bytes. All samples are kept, also
    where the store is of exemplars.

    Args:
        store: as which to encode; a path, or an open store.
        source, output, device, seed, force, progress: see `krstore.encode`; an interrupted call is taken up.

    Raises:
        as `krstore.encode`.
    """
    store = store if isinstance(store, Store) else Store(store, device=device)
    source = open_archive(source) if isinstance(source, str | Path) else source
    name, settings = storage(store)
    codec = get_sample_codec(name)
    options: dict[str, Any] = {
        "settings": settings, "device": device, "seed": seed, "force": force, "resume": "auto", "progress": progress,
    }  # fmt: skip
    if codec.lossless:
        return encode(source, output, name, **options)
    if codec.shares_decoder and store.codec == name:
        options["decoder"] = store
    share, sizes, room = source.spec.samples / len(store), store.bytes, 0
    ids = store.header.members["ids"].bytes if "ids" in store.header.members else 0
    limit = sizes.network + math.ceil(share * (sizes.latent + sizes.labels - ids)) + sizes.overhead
    most = math.ceil(max(1, share) * sizes.file) + ROOM
    while True:
        try:
            return encode(source, output, name, max_bytes=min(limit + room, most), **options)
        except DecoderMismatchError as error:
            progress.note(f"{error}; these samples get a decoder of their own")
            del options["decoder"]
        except TargetUnreachableError:
            if limit + room >= most:
                raise
            room = max(ROOM, 2 * room)
