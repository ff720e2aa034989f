"""A source cut into blocks of equally many samples, for codecs that code each block by itself."""

from __future__ import annotations

from collections.abc import Iterator

from krstore.progress import Progress
from krstore.source import CHUNK_BYTES, Array, Source, chunks

__all__ = ["pieces"]


def pieces(source: Source, size: int, progress: Progress) -> Iterator[Array]:
    """Yield the samples in order, `size` at a time (the last may be fewer); the source is read in larger chunks."""
    sample_bytes = source.spec.sample_bytes
    together = max(1, CHUNK_BYTES // (sample_bytes * size)) * size
    with progress.task("encode", source.spec.samples) as task:
        for ids, samples in chunks(source, together * sample_bytes):
            for start in range(0, len(ids), size):
                yield samples[start : start + size]
            task.advance(len(ids))
