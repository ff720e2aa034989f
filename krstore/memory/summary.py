"""What a memory says of itself, as one dictionary that JSON can hold: what `krstore memory info` prints."""

from __future__ import annotations

from typing import Any

from krstore.memory.memory import Memory

__all__ = ["summarise"]


def summarise(memory: Memory) -> dict[str, Any]:
    """Return the facts of a memory; reads the manifest and the stores' headers, and needs no codec's code.

    Returns:
        ``path``; ``generation``; how many ``stores``, ``samples``, ``classes`` there are; ``shape`` and ``dtype`` of a
        sample (`None` in an empty memory); ``bytes`` of all files, ``networks`` of them kept apart from the stores;
        ``unfinished``, those of interrupted encodes, which are not among them; ``source_bytes`` of the samples, and
        their ratio to ``bytes``, ``ratio``; ``per_class``, samples by label (a string);
        ``entries``, one a store: ``name``, ``codec``, ``samples``, ``bytes`` without what is kept apart, ``networks``
        that are, ``dropped`` labels, and of its quality, against what it was encoded from, ``nmse``,
        ``variance_kept`` and ``discriminator``.
    """
    specs = [store.source for store in memory.stores]
    source_bytes = len(memory) * specs[0].sample_bytes if specs else 0
    return {
        "path": str(memory.path),
        "generation": memory.manifest.generation,
        "stores": len(specs),
        "samples": len(memory),
        "classes": len(memory.classes),
        "shape": list(specs[0].shape) if specs else None,
        "dtype": specs[0].dtype if specs else None,
        "bytes": memory.bytes,
        "networks": sum(map(memory.folder.network_bytes, memory.manifest.networks)),
        "unfinished": memory.folder.unfinished_bytes,
        "source_bytes": source_bytes,
        "ratio": source_bytes / memory.bytes,
        "per_class": {str(label): count for label, count in memory.classes.items()},
        "entries": [
            {
                "name": entry.name,
                "codec": entry.codec,
                "samples": entry.samples,
                "bytes": entry.bytes,
                "networks": sum(map(memory.folder.network_bytes, set(entry.networks.values()))),
                "dropped": list(entry.dropped),
                "nmse": store.quality.nmse,
                "variance_kept": store.quality.variance_kept,
                "discriminator": store.quality.discriminator,
            }
            for entry, store in memory.pairs()
        ],
    }
