"""Hostile stores: each function forges one, and its docstring says what it tries.

All are made from one good store by a ZIP writer that believes anything, with every checksum made to fit, so that
only the reader's own checks stand in the way. `python tests/hostile/make.py GOOD.krs FOLDER` writes them all.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

ATTACKS: dict[str, Callable[[Good], bytes]] = {}
SAMPLES = "payload/latent/samples"
INDEX = f"{SAMPLES}.index"


@dataclass
class Entry:
    """A member as the forger writes it; what is `None` is as it should be."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    date: int = 33
    disk: int = 0
    offset: int | None = None
    before: bytes = b""
    local: dict[str, Any] = field(default_factory=dict)  # where the local header differs from the directory
    hidden: bool = False  # not in the directory


def deflate(data: bytes) -> bytes:
    """Return a raw deflate stream."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


def pack(entries: list[Entry], *, reverse: bool = False, **end: Any) -> bytes:
    """Write a ZIP file of these entries; `end` overrides fields of the end record."""
    body, directory = bytearray(), []
    for entry in entries:
        body += entry.before
        packed = deflate(entry.data) if entry.method == 8 else entry.data
        facts = {
            "name": entry.name, "flags": entry.flags, "method": entry.method, "date": entry.date,
            "crc": zlib.crc32(entry.data) if entry.crc is None else entry.crc,
            "packed": len(packed) if entry.size is None else entry.size,
            "unpacked": len(entry.data) if entry.size is None else entry.size,
        }  # fmt: skip
        own = {**facts, **entry.local}
        at = len(body) if entry.offset is None else entry.offset
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 45, own["flags"], own["method"], 0, own["date"], own["crc"],
                            own["packed"], own["unpacked"], len(own["name"]), 0)  # fmt: skip
        body += own["name"] + packed
        if not entry.hidden:
            directory.append(
                struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, facts["flags"], facts["method"], 0, facts["date"],
                            facts["crc"], facts["packed"], facts["unpacked"], len(entry.name), len(entry.extra),
                            len(entry.comment), entry.disk, 0, 0, at)
                + entry.name + entry.extra + entry.comment
            )  # fmt: skip
    listing = b"".join(reversed(directory) if reverse else directory)
    record = {"disk": 0, "count": len(directory), "size": len(listing), "start": len(body), "comment": b"", **end}
    tail = struct.pack("<4s4H2IH", b"PK\5\6", record["disk"], 0, record["count"], record["count"], record["size"],
                       record["start"], len(record["comment"]))  # fmt: skip
    return bytes(body) + listing + tail + record["comment"]


class Good:
    """The good store that attacks begin from."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist() if name != "header.json"}
            self.header = json.loads(archive.read("header.json"))

    def entries(self, *, header: Any = None, **members: bytes) -> list[Entry]:
        """Return the store's entries, some members replaced, the header listing what there is."""
        names = {"labels": "labels", "samples": SAMPLES, "index": INDEX}
        contents = {**self.members, **{names[key]: data for key, data in members.items()}}
        if header is None:
            header = json.loads(json.dumps(self.header))
            for name, data in contents.items():
                header["members"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return [Entry(name.encode(), data) for name, data in contents.items()] + [Entry(b"header.json", text, 8)]

    def with_header(self, **fields: Any) -> bytes:
        """Return the store with fields of its header replaced; ``source_samples`` is that of ``source``."""
        header = json.loads(json.dumps(self.header))
        for name, value in fields.items():
            part, _, key = name.partition("_") if name.startswith(("source_", "quality_")) else ("", "", name)
            (header[part] if part else header)[key] = value
        return pack(self.entries(header=header))

    def with_text(self, old: str, new: str) -> bytes:
        """Return the store with some of its header's text replaced."""
        text = json.dumps(self.header)
        assert old in text
        return pack(self.entries(header=text.replace(old, new, 1).encode()))

    def with_first_block(self, block: bytes) -> bytes:
        """Return the store with its first block replaced, size and checksum in the index fitted."""
        per_block, count, width = struct.unpack_from("<IIB", self.members[INDEX])
        sizes = list(struct.unpack_from(f"<{count}{'HI'[width == 4]}", self.members[INDEX], 9))
        checksums = list(struct.unpack_from(f"<{count}I", self.members[INDEX], 9 + width * count))
        samples = block + self.members[SAMPLES][sizes[0] :]
        sizes[0], checksums[0] = len(block), zlib.crc32(block)
        index = struct.pack(f"<IIB{count}I{count}I", per_block, count, 4, *sizes, *checksums)
        return pack(self.entries(samples=samples, index=index))


def attack(forge: Callable[[Good], bytes]) -> Callable[[Good], bytes]:
    """Register an attack."""
    ATTACKS[forge.__name__] = forge
    return forge


def frame(size: int, data: bytes = b"\0") -> bytes:
    """Return a zstd frame that claims to unpack to `size` bytes, and holds a run of `data` that is shorter."""
    return (
        b"\x28\xb5\x2f\xfd"
        + b"\xe0"
        + struct.pack("<Q", size)
        + struct.pack("<I", 1 | 1 << 1 | 100_000 << 3)[:3]
        + data
    )


# --- the container


@attack
def prefix_junk(good: Good) -> bytes:
    """Hides bytes before the first member, as self-extracting archives do."""
    return b"MZ" * 50 + pack(good.entries())


@attack
def prefix_junk_with_fitted_offsets(good: Good) -> bytes:
    """Hides bytes before the first member, and moves all offsets along."""
    entries = good.entries()
    entries[0].before = b"MZ" * 50
    return pack(entries)


@attack
def trailing_junk(good: Good) -> bytes:
    """Appends bytes after the end record; ZIP tools search backwards and find it all the same."""
    return pack(good.entries()) + b"junk"


@attack
def archive_comment(good: Good) -> bytes:
    """Hides bytes in the archive's comment."""
    return pack(good.entries(), comment=b"hello")


@attack
def two_stores_in_one(good: Good) -> bytes:
    """Appends a whole second store: which one is read?"""
    return pack(good.entries()) + pack(good.entries())


@attack
def gap_between_members(good: Good) -> bytes:
    """Hides bytes between two members."""
    entries = good.entries()
    entries[1].before = b"hidden"
    return pack(entries)


@attack
def hidden_member(good: Good) -> bytes:
    """Has a member that the directory does not list; streaming readers see it."""
    return pack([Entry(b"labels", b"other labels", hidden=True), *good.entries()])


@attack
def duplicate_member(good: Good) -> bytes:
    """Has two members named labels: zipfile takes the last in silence, others the first."""
    entries = good.entries()
    return pack([entries[0], Entry(b"labels", entries[0].data), *entries[1:]])


@attack
def overlapping_members(good: Good) -> bytes:
    """Two directory entries share one member's bytes, as in a quoting zip bomb."""
    entries = good.entries()
    entries[2].offset = 0
    return pack(entries)


@attack
def unsorted_directory(good: Good) -> bytes:
    """Lists the members in another order than they lie."""
    return pack(good.entries(), reverse=True)


@attack
def deflated_payload(good: Good) -> bytes:
    """Deflates the payload, so that offsets into it mean nothing."""
    entries = good.entries()
    entries[1].method = 8
    return pack(entries)


@attack
def stored_header(good: Good) -> bytes:
    """Stores the header undeflated."""
    entries = good.entries()
    entries[-1].method = 0
    return pack(entries)


@attack
def encrypted_flag(good: Good) -> bytes:
    """Says that a member is encrypted."""
    entries = good.entries()
    entries[1].flags = 1
    return pack(entries)


@attack
def sizes_after_the_data(good: Good) -> bytes:
    """Promises sizes in a data descriptor behind the member."""
    entries = good.entries()
    entries[1].flags = 8
    return pack(entries)


@attack
def name_of_parent_folder(good: Good) -> bytes:
    """Would be unpacked outside the folder by a careless tool."""
    return pack([Entry(b"payload/latent/../../../evil", b"x"), *good.entries()])


@attack
def absolute_name(good: Good) -> bytes:
    """Would be unpacked over a system file by a careless tool."""
    return pack([Entry(b"/etc/passwd", b"x"), *good.entries()])


@attack
def backslash_name(good: Good) -> bytes:
    """Would be unpacked outside the folder on Windows."""
    return pack([Entry(b"payload\\latent\\..\\x", b"x"), *good.entries()])


@attack
def non_ascii_name(good: Good) -> bytes:
    """Has a name that two readers decode differently."""
    return pack([Entry("payload/latent/größe".encode(), b"x"), *good.entries()])


@attack
def nul_in_name(good: Good) -> bytes:
    """Has a name that C programs cut short: ``labels`` followed by NUL."""
    entries = good.entries()
    return pack([*entries[:-1], Entry(b"labels\0x", b"x"), entries[-1]])


@attack
def empty_name(good: Good) -> bytes:
    """Has a member without a name."""
    return pack([Entry(b"", b"x"), *good.entries()])


@attack
def long_name(good: Good) -> bytes:
    """Has a name of 60,000 bytes."""
    return pack([Entry(b"payload/latent/" + b"x" * 60_000, b"x"), *good.entries()])


@attack
def unknown_member(good: Good) -> bytes:
    """Carries a stowaway that the header does not list."""
    return pack([Entry(b"payload/latent/extra", b"x"), *good.entries()])


@attack
def listed_stranger(good: Good) -> bytes:
    """Carries a stowaway that the header lists, outside payload and columns."""
    good.members["evil.py"] = b"import os"
    return pack(good.entries())


@attack
def missing_member(good: Good) -> bytes:
    """Lacks a member that the header lists."""
    return pack(good.entries()[1:])


@attack
def missing_header(good: Good) -> bytes:
    """Has no header."""
    return pack(good.entries()[:-1])


@attack
def empty_archive(good: Good) -> bytes:
    """Is a ZIP file of nothing."""
    return pack([])


@attack
def header_only(good: Good) -> bytes:
    """Has a header that lists members, and none of them."""
    return pack(good.entries()[-1:])


@attack
def local_name_differs(good: Good) -> bytes:
    """Is called otherwise in its local header, so that streaming readers take it for another member."""
    entries = good.entries()
    entries[0].local = {"name": b"labelz"}
    return pack(entries)


@attack
def local_size_differs(good: Good) -> bytes:
    """Has another size in its local header."""
    entries = good.entries()
    entries[0].local = {"packed": 1, "unpacked": 1}
    return pack(entries)


@attack
def local_checksum_differs(good: Good) -> bytes:
    """Has another checksum in its local header."""
    entries = good.entries()
    entries[1].local = {"crc": 1}
    return pack(entries)


@attack
def member_past_the_end(good: Good) -> bytes:
    """Claims 4 GiB less two bytes for a member."""
    entries = good.entries()
    entries[1].size = 0xFFFFFFFE
    return pack(entries)


@attack
def member_of_exbibytes(good: Good) -> bytes:
    """Claims 2^62 bytes for a member, through a 64-bit size."""
    entries = good.entries()
    entries[1].size, entries[1].extra = 0xFFFFFFFF, struct.pack("<2H2Q", 1, 16, 1 << 62, 1 << 62)
    return pack(entries)


@attack
def member_of_negative_size(good: Good) -> bytes:
    """Claims 2^64 - 100 bytes: negative for a reader with signed sizes."""
    entries = good.entries()
    entries[1].size, entries[1].extra = 0xFFFFFFFF, struct.pack("<2H2Q", 1, 16, (1 << 64) - 100, (1 << 64) - 100)
    return pack(entries)


@attack
def foreign_extra_field(good: Good) -> bytes:
    """Hides bytes in an extra field of the directory."""
    entries = good.entries()
    entries[1].extra = struct.pack("<2H4s", 0x7875, 4, b"evil")
    return pack(entries)


@attack
def cut_extra_field(good: Good) -> bytes:
    """Has a 64-bit extra field that is cut short."""
    entries = good.entries()
    entries[1].size, entries[1].extra = 0xFFFFFFFF, struct.pack("<2H", 1, 16)
    return pack(entries)


@attack
def member_comment(good: Good) -> bytes:
    """Hides bytes in a member's comment."""
    entries = good.entries()
    entries[1].comment = b"evil"
    return pack(entries)


@attack
def member_on_another_disk(good: Good) -> bytes:
    """Places a member on the second disk of a set."""
    entries = good.entries()
    entries[1].disk = 1
    return pack(entries)


@attack
def dated_member(good: Good) -> bytes:
    """Smuggles a date into a format that has none."""
    entries = good.entries()
    entries[1].date = 0x5A5A
    return pack(entries)


@attack
def five_thousand_members(good: Good) -> bytes:
    """Has 5,000 members, to make opening slow."""
    return pack([*(Entry(b"payload/latent/%d" % i, b"") for i in range(5000)), *good.entries()])


@attack
def count_too_large(good: Good) -> bytes:
    """Claims more directory entries than there are."""
    return pack(good.entries(), count=4000)


@attack
def count_saturated(good: Good) -> bytes:
    """Claims a 64-bit end record that is not there."""
    return pack(good.entries(), count=0xFFFF)


@attack
def directory_too_large(good: Good) -> bytes:
    """Claims a directory of 4 GiB less two bytes."""
    return pack(good.entries(), size=0xFFFFFFFE)


@attack
def directory_elsewhere(good: Good) -> bytes:
    """Claims that the directory starts at byte 0."""
    return pack(good.entries(), start=0)


@attack
def sixty_four_bit_end_record_loops(good: Good) -> bytes:
    """Has a 64-bit end record whose locator points at itself, of 2^63 entries."""
    data = pack(good.entries(), start=0xFFFFFFFF)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 63, 1 << 63, 1 << 63, 1 << 63)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + end64 + locator + data[-22:]


# --- the header


@attack
def inflate_bomb(good: Good) -> bytes:
    """Inflates a 1 MB header to 1 GB."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabytes = squeeze.compress(b" " * (1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    packed = megabytes * 64 + squeeze.flush()
    entries = good.entries()
    entries[-1] = Entry(b"header.json", packed)
    stored = struct.pack("<3HI", 0, 0, 33, zlib.crc32(packed))
    return pack(entries).replace(stored, struct.pack("<H", 8) + stored[2:])


@attack
def deep_json(good: Good) -> bytes:
    """Nests a million lists."""
    return pack(good.entries(header=b"[" * 1_000_000 + b"]" * 1_000_000))


@attack
def deep_json_in_attributes(good: Good) -> bytes:
    """Nests a million lists where any value may stand."""
    return good.with_text('"attributes": {', '"attributes": {"deep": ' + "[" * 1_000_000 + "]" * 1_000_000 + ", ")


@attack
def huge_codec_name(good: Good) -> bytes:
    """Has a codec name of 7 MB, to flood the terminal."""
    return good.with_header(codec="x" * 7_000_000)


@attack
def terminal_escapes(good: Good) -> bytes:
    """Has a codec name that clears the terminal."""
    return good.with_header(codec="raw\x1b[2J")


@attack
def codec_that_is_a_module(good: Good) -> bytes:
    """Asks for a module of the standard library as its codec."""
    return good.with_header(codec="os:system")


@attack
def codec_unknown(good: Good) -> bytes:
    """Asks for a codec that nobody registered."""
    return good.with_header(codec="antigravity")


@attack
def not_json(good: Good) -> bytes:
    """Has a header that is no JSON."""
    return pack(good.entries(header=b"\x80\x04\x95pickle"))


@attack
def json_of_another_type(good: Good) -> bytes:
    """Has a list for a header."""
    return pack(good.entries(header=b"[1, 2, 3]"))


@attack
def invalid_utf8(good: Good) -> bytes:
    """Has bytes in a string that are no UTF-8."""
    return pack(good.entries(header=json.dumps(good.header).encode().replace(b'"raw"', b'"r\xff\xfe"')))


@attack
def two_json_values(good: Good) -> bytes:
    """Has a second header after the first."""
    return pack(good.entries(header=json.dumps(good.header).encode() * 2))


@attack
def missing_field(good: Good) -> bytes:
    """Lacks the source's samples."""
    del good.header["source"]["samples"]
    return pack(good.entries())


@attack
def nan_quality(good: Good) -> bytes:
    """Has NaN, which Python writes and JSON forbids."""
    return good.with_header(quality_mse=float("nan"))


@attack
def infinite_quality(good: Good) -> bytes:
    """Has a number that overflows to infinity."""
    return good.with_text('"max_abs": 0.0', '"max_abs": 1e999')


@attack
def samples_negative(good: Good) -> bytes:
    """Has -1 samples."""
    return good.with_header(source_samples=-1, kept=-1)


@attack
def samples_zero(good: Good) -> bytes:
    """Has no samples."""
    return good.with_header(source_samples=0, kept=0, source_bytes=0)


@attack
def samples_exbi(good: Good) -> bytes:
    """Has 2^60 samples."""
    return good.with_header(source_samples=1 << 60, kept=1 << 60)


@attack
def samples_more_than_the_file_can_hold(good: Good) -> bytes:
    """Has 2^40 samples of one byte, consistently."""
    return good.with_header(
        source_samples=1 << 40, kept=1 << 40, source_bytes=1 << 40, source_shape=[1], source_dtype="uint8",
        source_channel_axis=0,
    )  # fmt: skip


@attack
def samples_fractional(good: Good) -> bytes:
    """Has a float for a count."""
    return good.with_header(source_samples=40.5)


@attack
def samples_true(good: Good) -> bytes:
    """Has a truth value for a count."""
    return good.with_header(kept=True)


@attack
def shape_overflows(good: Good) -> bytes:
    """Has a shape whose product wraps to what 64 bits expect."""
    return good.with_header(source_shape=[1 << 32, 1 << 32, 3, 2, 2])


@attack
def shape_of_a_million_axes(good: Good) -> bytes:
    """Has a million axes of length 1."""
    return good.with_header(source_shape=[1] * 1_000_000)


@attack
def shape_with_zero(good: Good) -> bytes:
    """Has samples without elements."""
    return good.with_header(source_shape=[0], source_bytes=0)


@attack
def shape_differs_from_bytes(good: Good) -> bytes:
    """Has a shape that does not make the bytes."""
    return good.with_header(source_shape=[5, 2, 2])


@attack
def sample_of_terabytes(good: Good) -> bytes:
    """Has samples of 1 TB, consistently."""
    size = 1 << 40
    samples = good.header["source"]["samples"]
    return good.with_header(source_shape=[1, 1, size], source_dtype="uint8", source_bytes=samples * size)


@attack
def object_dtype(good: Good) -> bytes:
    """Asks for elements that are Python objects."""
    return good.with_header(source_dtype="O")


@attack
def channel_axis_outside(good: Good) -> bytes:
    """Has a channel axis that the samples lack."""
    return good.with_header(source_channel_axis=9)


@attack
def kept_too_many(good: Good) -> bytes:
    """Keeps more samples than there were."""
    return good.with_header(kept=10_000)


@attack
def kept_too_few(good: Good) -> bytes:
    """Is dense and keeps half."""
    return good.with_header(kept=2)


@attack
def kind_unknown(good: Good) -> bytes:
    """Is of no kind that exists."""
    return good.with_header(kind="executable")


@attack
def exemplar_without_ids(good: Good) -> bytes:
    """Is an exemplar store that does not say which samples it keeps."""
    return good.with_header(kind="exemplar")


@attack
def ids_in_a_dense_store(good: Good) -> bytes:
    """Renumbers the samples of a dense store."""
    good.members["ids"] = good.members["labels"]
    return pack(good.entries())


@attack
def labels_without_classes(good: Good) -> bytes:
    """Has labels, and a header that says there are none."""
    return good.with_header(classes=None)


@attack
def reserved_flags(good: Good) -> bytes:
    """Sets a flag that no version has defined."""
    return good.with_header(flags=1)


@attack
def newer_reader_needed(good: Good) -> bytes:
    """Needs a reader of version 2."""
    return good.with_header(min_reader=2)


@attack
def reader_of_the_far_future(good: Good) -> bytes:
    """Needs a reader of version 2^70."""
    return good.with_header(min_reader=1 << 70)


@attack
def version_zero(good: Good) -> bytes:
    """Is of version 0."""
    return good.with_header(krs_version=0)


@attack
def key_of_parent_folder(good: Good) -> bytes:
    """Names its features so that a decoded .npz would unpack outside the folder."""
    return good.with_header(source_features_key="../../evil")


@attack
def key_with_newline(good: Good) -> bytes:
    """Names its labels so that a listing shows a forged line."""
    return good.with_header(source_labels_key="labels\nOK")


@attack
def member_size_differs(good: Good) -> bytes:
    """Lists a member with another size."""
    good.header["members"]["labels"]["bytes"] += 1
    return pack(good.entries(header=good.header))


@attack
def member_hash_malformed(good: Good) -> bytes:
    """Lists a member with a hash that is none."""
    good.header["members"]["labels"]["sha256"] = "0" * 63 + "\n"
    return pack(good.entries(header=good.header))


@attack
def member_hash_differs(good: Good) -> bytes:
    """Lists a member with the hash of another; only verify reads it."""
    good.header["members"]["labels"]["sha256"] = "0" * 64
    return pack(good.entries(header=good.header))


# --- blocks


@attack
def blocks_of_zero_samples(good: Good) -> bytes:
    """Has blocks of no samples: a division by zero."""
    return pack(good.entries(index=struct.pack("<I", 0) + good.members[INDEX][4:]))


@attack
def blocks_of_four_billion_samples(good: Good) -> bytes:
    """Has one block of 2^32 - 1 samples."""
    data = good.members[SAMPLES]
    return pack(good.entries(index=struct.pack("<IIBII", 0xFFFFFFFF, 1, 4, len(data), zlib.crc32(data))))


@attack
def four_billion_blocks(good: Good) -> bytes:
    """Claims 2^32 - 1 blocks in an index of few bytes."""
    return pack(good.entries(index=struct.pack("<IIB", 4, 0xFFFFFFFF, 4)))


@attack
def index_without_blocks(good: Good) -> bytes:
    """Lists no block."""
    return pack(good.entries(index=struct.pack("<IIB", 4, 0, 2)))


@attack
def index_empty(good: Good) -> bytes:
    """Has an empty index."""
    return pack(good.entries(index=b""))


@attack
def index_with_odd_sizes(good: Good) -> bytes:
    """Has block sizes of 3 bytes."""
    return pack(good.entries(index=good.members[INDEX][:8] + b"\3" + good.members[INDEX][9:]))


@attack
def index_past_the_member(good: Good) -> bytes:
    """Has a block that reaches beyond its member."""
    index = bytearray(good.members[INDEX])
    index[9:11] = b"\xff\xff"
    return pack(good.entries(index=bytes(index)))


@attack
def index_for_fewer_samples(good: Good) -> bytes:
    """Has more samples a block than the header has samples for."""
    return pack(good.entries(index=struct.pack("<I", 4096) + good.members[INDEX][4:]))


@attack
def block_bomb(good: Good) -> bytes:
    """Has a block that claims to unpack to 1 TB."""
    bomb = frame(1 << 40)
    return good.with_first_block(struct.pack("<IIB", len(bomb), 0, 0) + bomb)


@attack
def block_smaller_than_it_says(good: Good) -> bytes:
    """Has a mask that claims the right size and unpacks to another."""
    mask = frame(6)
    return good.with_first_block(struct.pack("<IIB", len(mask), 0, 0) + mask)


@attack
def block_with_parts_beyond_it(good: Good) -> bytes:
    """Has a block whose parts claim 4 GiB each."""
    return good.with_first_block(struct.pack("<IIB", 0xFFFFFFFF, 0xFFFFFFFF, 1))


@attack
def block_empty(good: Good) -> bytes:
    """Has a block of no bytes, with the checksum of none."""
    return good.with_first_block(b"")


@attack
def block_cut_short(good: Good) -> bytes:
    """Has a block whose last byte is missing, with a checksum that fits."""
    size = struct.unpack_from("<H", good.members[INDEX], 9)[0]
    return good.with_first_block(good.members[SAMPLES][: size - 1])


# --- columns


def column(distinct: int, width: int, packed: bytes) -> bytes:
    """Return a column with this head."""
    return struct.pack("<QB", distinct, width) + packed


@attack
def column_bomb(good: Good) -> bytes:
    """Has labels that claim to unpack to 1 TB."""
    return pack(good.entries(labels=column(1, 1, frame(1 << 40))))


@attack
def column_of_few_bytes(good: Good) -> bytes:
    """Has labels that claim the right size and unpack to another."""
    return pack(good.entries(labels=column(1, 1, frame(8 + good.header["kept"]))))


@attack
def column_without_values(good: Good) -> bytes:
    """Has labels of no distinct value."""
    zeros = zstandard.compress(bytes(good.header["kept"]))
    return pack(good.entries(labels=column(0, 1, zeros)))


@attack
def column_of_endless_values(good: Good) -> bytes:
    """Has 2^60 distinct labels."""
    return pack(good.entries(labels=column(1 << 60, 8, frame(1 << 60))))


@attack
def column_of_odd_width(good: Good) -> bytes:
    """Has ranks of 3 bytes."""
    return pack(good.entries(labels=column(1, 3, zstandard.compress(bytes(8 + 3 * good.header["kept"])))))


@attack
def column_of_wide_ranks(good: Good) -> bytes:
    """Has ranks of 8 bytes where one is enough."""
    return pack(good.entries(labels=column(1, 8, zstandard.compress(bytes(8 + 8 * good.header["kept"])))))


@attack
def column_rank_beyond(good: Good) -> bytes:
    """Has a label that refers to a value beyond the last."""
    return pack(good.entries(labels=column(1, 1, zstandard.compress(bytes(8) + b"\1" * good.header["kept"]))))


@attack
def column_empty(good: Good) -> bytes:
    """Has labels of no bytes."""
    return pack(good.entries(labels=b""))


@attack
def column_not_compressed(good: Good) -> bytes:
    """Has labels that are no zstd frame."""
    return pack(good.entries(labels=column(1, 1, b"plain text, no frame")))


@attack
def column_without_size(good: Good) -> bytes:
    """Has a zstd frame that does not say how much it unpacks to."""
    squeeze = zstandard.ZstdCompressor(write_content_size=False)
    return pack(good.entries(labels=column(1, 1, squeeze.compress(bytes(8 + good.header["kept"])))))


if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, forge in ATTACKS.items():
        (folder / f"{name}.krs").write_bytes(forge(Good(source)))
        print(f"{name}: {forge.__doc__}")
