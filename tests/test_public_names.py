"""Every module says what is public, and what is public is there and documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import krstore
import krstore_cli
import krstore_codecs
from krstore.errors import MissingExtraError


def modules_of(package: ModuleType) -> list[str]:
    return [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]


NAMES = [
    name
    for package in (krstore, krstore_codecs, krstore_cli)
    for name in modules_of(package)
    if not name.endswith("__main__")
]
PACKAGES = {
    "krstore.adapters",
    "krstore.store",
    "krstore_codecs",
    "krstore_cli",
    "krstore_cli.commands",
}  # nothing but a docstring


def imported(name: str) -> ModuleType:
    """Import a module; skip the test where what its extra brings is not installed."""
    try:
        return importlib.import_module(name)
    except MissingExtraError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", NAMES)
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = imported(name)
    assert module.__doc__, f"{name} has no docstring"
    if name in PACKAGES and not hasattr(module, "__all__"):
        assert not [own for own in vars(module) if inspect.isfunction(vars(module)[own])]
        return
    assert module.__all__, f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert not public.startswith("_"), f"{name}.{public} is called public and named private"
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_public_classes_document_their_public_methods(name: str) -> None:
    module = imported(name)
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if not inspect.isclass(thing) or thing.__module__ != name:
            continue
        for method, value in vars(thing).items():
            plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not method.startswith("_") and inspect.isfunction(plain):
                assert inspect.getdoc(getattr(thing, method)), f"{name}.{public}.{method} has no docstring"


@pytest.mark.parametrize("name", krstore.__all__)
def test_the_package_gives_its_public_names(name: str) -> None:
    assert getattr(krstore, name) is not None
    assert name in dir(krstore)


def test_the_package_gives_no_others() -> None:
    assert krstore.__version__
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_that_name'"):
        _ = krstore.nothing_of_that_name
