"""krstore: replay memory as a storage problem.

Feature archives go into small self-describing stores through pluggable codecs, and come back as batches of
(feature, label) for any PyTorch training loop::

    import krstore

    store = krstore.encode("features.h5", ratio=40)
    for x, y in store.replay(batch_size=128):
        ...
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krstore.archives import open_archive, open_snapshots, write_archive
    from krstore.archives.states import snapshot
    from krstore.arrays import ArraySource
    from krstore.bars import Bars
    from krstore.codec import Codec, Decoder, Kind, SnapshotCodec, SnapshotDecoder
    from krstore.comparison import compare
    from krstore.datasets import DatasetSource
    from krstore.errors import KrstoreError
    from krstore.extraction import extract
    from krstore.memory import Memory
    from krstore.memory.alike import encode_alike
    from krstore.registry import codec_names, get_codec
    from krstore.replay import Replay
    from krstore.store.export import decode, decode_snapshots
    from krstore.store.reader import Store
    from krstore.store.reader import Store as open  # noqa: N813 - krstore.open(path), as users expect
    from krstore.store.snapshots import SnapshotStore
    from krstore.store.verify import verify
    from krstore.store.writer import encode, encode_snapshots

__all__ = [
    "ArraySource",
    "Bars",
    "Codec",
    "DatasetSource",
    "Decoder",
    "Kind",
    "KrstoreError",
    "Memory",
    "Replay",
    "SnapshotCodec",
    "SnapshotDecoder",
    "SnapshotStore",
    "Store",
    "codec_names",
    "compare",
    "decode",
    "decode_snapshots",
    "encode",
    "encode_alike",
    "encode_snapshots",
    "extract",
    "get_codec",
    "open",
    "open_archive",
    "open_snapshots",
    "snapshot",
    "verify",
    "write_archive",
]

_HOMES = {
    "ArraySource": "krstore.arrays",
    "Bars": "krstore.bars",
    "Codec": "krstore.codec",
    "DatasetSource": "krstore.datasets",
    "Decoder": "krstore.codec",
    "Kind": "krstore.codec",
    "KrstoreError": "krstore.errors",
    "Memory": "krstore.memory",
    "Replay": "krstore.replay",
    "SnapshotCodec": "krstore.codec",
    "SnapshotDecoder": "krstore.codec",
    "SnapshotStore": "krstore.store.snapshots",
    "Store": "krstore.store.reader",
    "codec_names": "krstore.registry",
    "compare": "krstore.comparison",
    "decode": "krstore.store.export",
    "decode_snapshots": "krstore.store.export",
    "encode": "krstore.store.writer",
    "encode_alike": "krstore.memory.alike",
    "encode_snapshots": "krstore.store.writer",
    "extract": "krstore.extraction",
    "get_codec": "krstore.registry",
    "open_archive": "krstore.archives",
    "open_snapshots": "krstore.archives",
    "snapshot": "krstore.archives.states",
    "verify": "krstore.store.verify",
    "write_archive": "krstore.archives",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import krstore` and `krstore info` need no torch."""
    if name == "__version__":
        return version("krstore")
    if name == "open":
        return __getattr__("Store")
    if name not in _HOMES:
        raise AttributeError(f"module 'krstore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
