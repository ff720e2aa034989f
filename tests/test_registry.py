"""The registry: entry points, mistakes in them, names nobody knows."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import krstore
from krstore import plugins
from krstore.codec import Codec
from krstore.errors import KrstoreError, UnknownNameError
from krstore.registry import GROUP, codec_names, get_codec

FAKE = Path(__file__).parent / "fake_codec"


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points as the installed distributions give them; a test adds its own."""
    found = [EntryPoint("raw", "krstore_codecs.raw:Raw", GROUP)]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "krstore.codecs"
        return found

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return found


def test_the_built_in_codecs_are_registered() -> None:
    assert {"raw", "autoencoder", "krnet", "pq", "transform"} <= set(codec_names())
    assert codec_names() == sorted(codec_names())
    for name in ("raw", "autoencoder", "krnet", "pq", "transform"):
        codec = get_codec(name)
        assert issubclass(codec, Codec)
        assert codec.name == name
        assert codec.__doc__


def test_another_distributions_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "uniform" not in codec_names()
    monkeypatch.syspath_prepend(str(FAKE))
    assert "uniform" in codec_names()
    assert krstore.get_codec("uniform").name == "uniform"


def test_an_unknown_codec_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_codec("krnett")
    said = str(caught.value)
    assert said.startswith("unknown codec 'krnett'. Did you mean 'krnet'? Known: autoencoder, herding, kmeans, krnet")
    assert "krstore.codecs" in said
    assert caught.value.known == codec_names()


def test_a_name_far_from_all_suggests_nothing() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_codec("zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_the_same_distribution_seen_twice_is_one(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("raw", "krstore_codecs.raw:Raw", GROUP))
    assert get_codec("raw").name == "raw"


def test_a_name_registered_twice(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("raw", "elsewhere:Raw", GROUP))
    assert codec_names() == ["raw"]
    with pytest.raises(KrstoreError, match=r"registered more than once: krstore_codecs.raw:Raw, elsewhere:Raw"):
        get_codec("raw")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("other", "krstore_codecs.raw:Raw"),
        ("config", "krstore_codecs.raw:RawConfig"),
        ("text", "krstore.codec:__doc__"),
    ],
)
def test_what_is_no_codec_of_that_name(entries: list[EntryPoint], name: str, value: str) -> None:
    entries.append(EntryPoint(name, value, GROUP))
    with pytest.raises(KrstoreError, match=f"entry point '{name}' = '{value}' is no codec of that name"):
        get_codec(name)


def test_listing_imports_nothing(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("absent", "no.such.module:Codec", GROUP))
    assert codec_names() == ["absent", "raw"]
