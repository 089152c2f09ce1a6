"""Where labelled images come from: one file for each kind of source, found by name in one registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .arrays import ArrayFiles, ArraySource
from .base import DataSource
from .cifar import Cifar10, Cifar100
from .digits import Digits
from .fashion_mnist import FashionMnist
from .fitted import Fitted, fitted
from .formula import Formula
from .hugging_face import HuggingFace
from .imagefolder import ImageFolder
from .scenes import Scenes
from .table import Table

__all__ = ["ArraySource", "Data", "DataSource", "Fitted", "register_source", "source", "source_forms", "source_names"]

Data = str | DataSource | tuple[Any, ...]
"""What is accepted as data: a specification, a source, or two, four or six arrays (see `source`)."""


@dataclass(frozen=True)
class _Kind:
    make: Callable[..., DataSource]
    forms: tuple[str, ...]
    argument: Literal["required", "optional", "none"] = "required"


_KINDS: dict[str, _Kind] = {
    "imagefolder": _Kind(ImageFolder, ("imagefolder:DIR",)),
    "csv": _Kind(Table, ("csv:FILE",)),
    "fashion-mnist": _Kind(FashionMnist, ("fashion-mnist:DIR",), "optional"),
    "cifar10": _Kind(Cifar10, ("cifar10:PATH",)),
    "cifar100": _Kind(Cifar100, ("cifar100:PATH",)),
    "arrays": _Kind(ArrayFiles, ("arrays:PATH",)),
    "hf": _Kind(HuggingFace.named, ("hf:NAME", "hf:NAME:CONFIG")),
    "digits": _Kind(Digits, ("digits",), "none"),
    "formula": _Kind(Formula.named, ("formula", "formula:CLASSES"), "optional"),
    "scenes": _Kind(Scenes, ("scenes:DIR",), "optional"),
    "squash": _Kind(fitted("squash", lambda spec: _named(spec)), ("squash:DATA",)),
    "pad": _Kind(fitted("pad", lambda spec: _named(spec)), ("pad:DATA",)),
}


def register_source(
    name: str,
    make: Callable[..., DataSource],
    *forms: str,
    argument: Literal["required", "optional", "none"] = "required",
) -> None:
    """Makes a kind of data source available under its name.

    Args:
        name: what stands before the colon of a specification.
        make: gives the source for the text after the colon. It is called without an argument where there is no colon,
            and where `argument` is "none".
        forms: how specifications look, for messages: "imagefolder:DIR".
        argument: whether there must be text after the colon.

    Raises:
        ValueError: the name has no character or a colon, or another kind has it.
    """
    if not name or ":" in name:
        raise ValueError(f"a data source's name must have a character and no colon, given {name!r}")
    kind = _Kind(make, forms or (name if argument == "none" else f"{name}:...",), argument)
    if _KINDS.get(name, kind) != kind:
        raise ValueError(f"a data source named {name!r} is registered already")
    _KINDS[name] = kind


def source(data: Data) -> DataSource:
    """The data source that `data` names or is.

    Args:
        data: a specification ("imagefolder:pictures"; `source_forms` lists them), a `DataSource`, or arrays: (images,
            labels), then perhaps (validation images, validation labels), then (test images, test labels), as
            `ArraySource` takes them.

    Raises:
        ValueError: an unknown specification, or arrays that cannot be used; in one line.
        TypeError: something else.
    """
    if isinstance(data, str):
        return _named(data)
    if isinstance(data, tuple | list):
        if len(data) not in (2, 4, 6):
            raise ValueError(f"data: arrays are given as 2 (images, labels) or as 4 or 6 of them, given {len(data)}")
        return ArraySource(*data)
    if not isinstance(data, DataSource):
        raise TypeError(f"data: a specification, a DataSource or arrays are expected, given {type(data).__name__}")
    if type(data).__hash__ is None:
        raise TypeError(f"data: {type(data).__name__} must be hashable (a frozen dataclass is)")
    return data


def _named(spec: str) -> DataSource:
    name, colon, argument = spec.partition(":")
    if name == ArraySource.kind:
        raise ValueError(f"data {spec!r} are arrays that were given in Python: they must be given again")
    kind = _KINDS.get(name)
    if kind is None or (kind.argument == "required" and not argument) or (kind.argument == "none" and argument):
        raise ValueError(f"unknown data {spec!r}; allowed are {', '.join(source_forms())}")
    if kind.argument == "none" or not colon:
        return kind.make()
    return kind.make(argument)


def source_names() -> list[str]:
    """The names of all kinds of sources that are registered."""
    return list(_KINDS)


def source_forms() -> list[str]:
    """How specifications of all kinds look: "imagefolder:DIR", "digits", ..."""
    return [form for kind in _KINDS.values() for form in kind.forms]
