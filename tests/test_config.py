"""Options: defaults, presets, single settings, from Python or from a shell."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest

import krstore
from krstore.config import CodecConfig, build_config, describe_options
from krstore.errors import ConfigError, UnknownNameError, UsageError


class Options(CodecConfig, frozen=True, kw_only=True):
    """Options of every type there is."""

    count: Annotated[int, msgspec.Meta(ge=1, le=9, description="how many")] = 3
    rate: Annotated[float, msgspec.Meta(gt=0, description="how fast")] = 0.5
    size: Annotated[Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="how large")] = None
    style: Annotated[Literal["plain", "fancy"], msgspec.Meta(description="which way")] = "plain"
    on: Annotated[bool, msgspec.Meta(description="whether")] = False


PRESETS: dict[str, dict[str, Any]] = {"large": {"count": 9, "size": 100}}


def build(preset: str | None = None, **settings: Any) -> Options:
    return build_config("mycodec", Options, PRESETS, preset, settings)


def test_defaults_then_preset_then_settings() -> None:
    assert build() == Options()
    assert build("large") == Options(count=9, size=100)
    assert build("large", count=2) == Options(count=2, size=100)


@pytest.mark.parametrize(
    ("text", "value"),
    [({"count": "7"}, {"count": 7}), ({"rate": "1e-3"}, {"rate": 1e-3}), ({"rate": 2}, {"rate": 2.0}),
     ({"size": "12"}, {"size": 12}), ({"size": "null"}, {"size": None}), ({"style": "fancy"}, {"style": "fancy"}),
     ({"on": "true"}, {"on": True}), ({"on": "0"}, {"on": False})],
)  # fmt: skip
def test_values_from_a_shell(text: dict[str, Any], value: dict[str, Any]) -> None:
    assert build(**text) == Options(**value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 0}, "option count=0 of codec mycodec: Expected `int` >= 1"),
        ({"count": "10"}, "option count=10 of codec mycodec: Expected `int` <= 9"),
        ({"count": "many"}, "option count=many of codec mycodec: Expected `int`, got `str`"),
        ({"rate": "nan"}, "option rate=nan of codec mycodec"),
        ({"rate": -1}, "option rate=-1 of codec mycodec: Expected `float` > 0"),
        ({"style": "odd"}, "option style=odd of codec mycodec: Invalid enum value 'odd'"),
        ({"on": "perhaps"}, "option on=perhaps of codec mycodec: Expected `bool`"),
    ],
)
def test_values_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**settings)
    assert str(caught.value).startswith(said)


def test_unknown_options_and_presets() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown option of codec mycodec 'cuont'. Did you mean 'count'\?"):
        build(cuont=3)
    with pytest.raises(UnknownNameError, match=r"unknown preset of codec mycodec 'lagre'. Did you mean 'large'\?"):
        build("lagre")
    assert issubclass(UnknownNameError, UsageError)
    assert issubclass(ConfigError, UsageError)


def test_options_described() -> None:
    described = {option["name"]: option for option in describe_options(Options)}
    assert list(described) == ["count", "rate", "size", "style", "on"]
    assert described["count"] == {"name": "count", "type": "integer 1..9", "default": 3, "description": "how many"}
    assert described["style"]["type"] == "fancy | plain"
    assert described["size"]["type"] == "integer 1.. or null"
    assert described["rate"]["type"] == "number 0.."


@pytest.mark.parametrize("name", ["raw", "autoencoder", "krnet", "pq", "transform"])
def test_every_option_of_ours_is_described(name: str) -> None:
    codec = krstore.get_codec(name)
    for option in describe_options(codec.Config):
        assert option["description"], f"{name}: {option['name']}"


def test_a_codec_is_its_config() -> None:
    class Mine(krstore.Codec[Options, None]):
        name = "mine"
        Config: ClassVar = Options

        def fit(self, source: Any, context: Any) -> None:
            raise NotImplementedError

        def pack(self, fitted: None, knob: float, sink: Any) -> None:
            raise NotImplementedError

        @classmethod
        def open(cls, payload: Any, context: Any) -> Any:
            raise NotImplementedError

    assert Mine(Options(count=2)) == Mine(build(count="2")) != Mine(Options())
    assert hash(Mine(Options())) == hash(Mine(build()))
    assert repr(Mine(Options(count=2))) == f"Mine({Options(count=2)!r})"
    assert eval(repr(Options(count=2)), {"Options": Options}) == Options(count=2)
    assert Mine(Options()) != "mine"
