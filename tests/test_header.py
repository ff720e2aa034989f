"""The header: what is written can be read, what cannot be read is not written."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from krstore.errors import CorruptStoreError, UsageError
from krstore.store.header import (
    FORMAT_VERSION,
    Header,
    MemberInfo,
    Quality,
    SourceInfo,
    decode_header,
    encode_header,
)


def header(**changes: Any) -> Header:
    source = SourceInfo(
        samples=10, shape=(3, 4), dtype="float16", channel_axis=1, bytes=240, sha256="a" * 64,
        features_key="group/features", labels_key="größe", attributes={"mean": [0.5], "layer": None},
    )  # fmt: skip
    quality = Quality(
        mse=0.25, mse_normalised=1e-300, nmse=0.5, psnr=None, max_abs=1.5, cosine=-0.5, per_class=(0.1, 0.4)
    )
    plain = Header(
        krs_version=1, min_reader=1, flags=0, kind="dense", codec="raw", config={"level": 3}, source=source, kept=10,
        classes=2, quality=quality, members={"labels": MemberInfo(5, "b" * 64)},
    )  # fmt: skip
    nested = {k: v for k, v in changes.items() if k in SourceInfo.__struct_fields__}
    rest = {k: v for k, v in changes.items() if k not in nested}
    return msgspec.structs.replace(plain, source=msgspec.structs.replace(source, **nested), **rest)


def test_round_trip() -> None:
    assert decode_header(encode_header(header()), Header) == header()
    assert encode_header(header()) == encode_header(header())
    assert decode_header(encode_header(header()), Header).source.spec.bytes == 240


def test_unknown_fields_are_ignored_and_a_newer_reader_is_asked_for() -> None:
    plain = json.loads(encode_header(header()))
    future = {**plain, "krs_version": 9, "new": [1], "source": {**plain["source"], "new": 1}}
    assert decode_header(json.dumps(future).encode(), Header).source == header().source
    with pytest.raises(CorruptStoreError, match=f"version 9 is needed.*reads up to {FORMAT_VERSION}: upgrade"):
        decode_header(json.dumps({"min_reader": 9, "everything": "else has changed"}).encode(), Header)


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 0, "kept": 0, "bytes": 0},
        {"bytes": 241},
        {"shape": (3, 5)},
        {"shape": (1,) * 33, "bytes": 20},
        {"dtype": "int64", "bytes": 960},
        {"channel_axis": 2},
        {"channel_axis": -1},
        {"sha256": "A" * 64},
        {"features_key": ""},
        {"features_key": "../x"},
        {"features_key": "/x"},
        {"features_key": "a\x1b[2J"},
        {"labels_key": "x" * 1025},
        {"kept": 9},
        {"kept": 11},
        {"kind": "sparse"},
        {"codec": ""},
        {"codec": "os:system"},
        {"codec": "../raw"},
        {"codec": "raw\n"},
        {"flags": 1},
        {"krs_version": 0},
        {"min_reader": 0},
        {"classes": 11},
        {"classes": 1},
        {"classes": None},
        {"members": {"x": MemberInfo(-1, "b" * 64)}},
        {"members": {"x": MemberInfo(1, "b" * 63)}},
        {"members": {"x" * 256: MemberInfo(1, "b" * 64)}},
        {"quality": Quality(mse=math.nan, mse_normalised=0, nmse=0, psnr=None, max_abs=0, cosine=1)},
        {"quality": Quality(mse=0, mse_normalised=0, nmse=0, psnr=None, max_abs=math.inf, cosine=1)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_cannot_be_read_is_neither_read_nor_written(changes: dict[str, Any]) -> None:
    bad = header(**changes)
    with pytest.raises(CorruptStoreError):
        decode_header(msgspec.json.encode(bad), Header)
    with pytest.raises(UsageError, match="cannot be kept in a store"):
        encode_header(bad)


@pytest.mark.parametrize("field", [f.name for f in msgspec.structs.fields(Header)])
def test_every_field_is_needed(field: str) -> None:
    plain = json.loads(encode_header(header()))
    del plain[field]
    with pytest.raises(CorruptStoreError, match=field):
        decode_header(json.dumps(plain).encode(), Header)
