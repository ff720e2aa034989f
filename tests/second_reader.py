"""A second reader of raw stores, written from docs/format.md alone: it imports nothing of krstore.

`python tests/second_reader.py STORE.krs` prints what a store holds.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

ELEMENT_BYTES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def read_store(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a raw store's header, and its arrays: features (bfloat16 as uint16), labels and task where it has them.

    Raises:
        ValueError: it is no store of version 1, or is damaged.
    """
    members = read_members(path)
    header = json.loads(members.pop("header.json"))
    if header["min_reader"] > 1 or header["flags"] != 0:
        raise ValueError(f"a reader of version {header['min_reader']} is needed")
    if {name: len(data) for name, data in members.items()} != {k: v["bytes"] for k, v in header["members"].items()}:
        raise ValueError("the members are not those that the header lists")
    for name, data in members.items():
        if hashlib.sha256(data).hexdigest() != header["members"][name]["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")
    if header["codec"] != "raw":
        raise ValueError(f"codec {header['codec']}: this reader knows raw only")
    rows, source = header["kept"], header["source"]
    shape, size = source["shape"], ELEMENT_BYTES[source["dtype"]]
    blocks = read_blocks(members["payload/latent/samples"], members["payload/latent/samples.index"], rows)
    elements = math.prod(shape)
    words = b"".join(unpack_block(block, samples * elements, size) for samples, block in blocks)
    dtype = np.dtype("<u2" if source["dtype"] == "bfloat16" else source["dtype"]).newbyteorder("<")
    arrays = {"features": np.frombuffer(words, dtype).reshape(rows, *shape)}
    arrays.update({name: read_column(members[name], rows) for name in ("labels", "task") if name in members})
    return header, arrays


def read_members(path: Path) -> dict[str, bytes]:
    """Read a ZIP file's members, checking that they tile it."""
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = 0
        for info in archive.infolist():
            if info.header_offset != at:
                raise ValueError(f"{info.filename} begins at byte {info.header_offset}, not {at}")
            name_size, extra_size = struct.unpack_from("<2H", data, at + 26)
            at += 30 + name_size + extra_size + info.compress_size
        if at != archive.start_dir or len(set(archive.namelist())) != len(archive.namelist()):
            raise ValueError("there are bytes between the members and the directory, or a name stands twice")
        return {name: archive.read(name) for name in archive.namelist()}


def read_column(data: bytes, rows: int) -> np.ndarray:
    """Unpack a column of integers."""
    distinct, width = struct.unpack_from("<QB", data)
    body = unpack(data[9:], 8 * distinct + width * rows)
    values = np.cumsum(np.frombuffer(body, "<i8", distinct))
    return values[np.frombuffer(body, f"<u{width}", rows, 8 * distinct)]


def read_blocks(data: bytes, index: bytes, rows: int) -> list[tuple[int, bytes]]:
    """Cut a block sequence into (samples, bytes), checking each block's CRC-32."""
    per_block, count, width = struct.unpack_from("<IIB", index)
    sizes = np.frombuffer(index, f"<u{width}", count, 9).tolist()
    checksums = np.frombuffer(index, "<u4", count, 9 + width * count).tolist()
    if count != -(-rows // per_block) or sum(sizes) != len(data):
        raise ValueError("the index does not fit the blocks")
    blocks, at = [], 0
    for number, (size, checksum) in enumerate(zip(sizes, checksums, strict=True)):
        block = data[at : at + size]
        if zlib.crc32(block) != checksum:
            raise ValueError(f"block {number} is damaged")
        blocks.append((min(per_block, rows - number * per_block), block))
        at += size
    return blocks


def unpack_block(block: bytes, elements: int, size: int) -> bytes:
    """Unpack one block of raw into the bytes of its elements."""
    if size == 1:
        return unpack(block, elements)
    mask_size, top_size, packed = struct.unpack_from("<IIB", block)
    mask, top, rest = block[9 : 9 + mask_size], block[9 + mask_size :][:top_size], block[9 + mask_size + top_size :]
    alive = np.unpackbits(np.frombuffer(unpack(mask, -(-elements // 8)), np.uint8))[:elements].astype(bool)
    count = int(alive.sum())
    planes = unpack(rest, count * (size - 1)) if packed else rest
    octets = np.frombuffer(planes + unpack(top, count), np.uint8).reshape(size, count).T
    rotated = np.ascontiguousarray(octets).view(f"<u{size}").reshape(count)
    words = np.zeros(elements, f"<u{size}")
    words[alive] = (rotated >> 1) | (rotated << (8 * size - 1))
    return words.tobytes()


def unpack(frame: bytes, size: int) -> bytes:
    """Unpack a zstd frame that must hold `size` bytes."""
    data = zstandard.decompress(frame, max_output_size=size)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes; expected {size}")
    return data


if __name__ == "__main__":
    facts, contents = read_store(Path(sys.argv[1]))
    print(json.dumps(facts, indent=2))
    for key, array in contents.items():
        print(key, array.dtype, array.shape)
