"""Frozen config dataclasses to JSON values and back, strictly: what does not fit is an error, never a guess."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from nfc_splat.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """`value` (dataclasses, paths, tuples, lists, dictionaries and scalars, nested) as what JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], value: Any, source: str) -> T:
    """The dataclass `kind` from what `to_plain` gave.

    A missing key takes the field's default, so that files written before the field existed still load.

    Raises:
        UserError: an unknown key, a missing key without default, or a value of the wrong type; `source` says where.
    """
    if not isinstance(value, dict):
        raise UserError(f"{source}: expected an object with the fields of {kind.__name__}, found {_show(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise UserError(f"{source}: unknown key {unknown[0]!r} for {kind.__name__}; was it written by a newer version?")
    if missing := [name for name, field in fields.items() if name not in value and _required(field)]:
        raise UserError(f"{source}: the key {missing[0]!r} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(hints[name], item, f"{source}: {name}") for name, item in value.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, source: str) -> Any:
    """`value` as the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        raise UserError(f"{source}: {_show(value)}, expected one of {', '.join(map(str, arguments))}")
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, source)
    if origin in (tuple, list) and isinstance(value, list):
        return _convert_sequence(origin, arguments, value, source)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{source}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, source)
    return _convert_scalar(hint, value, source)


def _convert_union(choices: tuple, value: Any, source: str) -> Any:
    """The first of `choices` that fits."""
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in (choice for choice in choices if choice is not type(None)):
        try:
            return _convert(choice, value, source)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _convert_sequence(origin: type, arguments: tuple, value: list, source: str) -> Any:
    """A list, a tuple of any length (`tuple[X, ...]`) or one of fixed length."""
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"{source}: {len(value)} values, expected {len(arguments)}")
        return tuple(_convert(hint, item, source) for hint, item in zip(arguments, value, strict=True))
    return origin(_convert(arguments[0], item, source) for item in value)


def _convert_scalar(hint: Any, value: Any, source: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:  # exact, so that true is not an int
        return value
    raise UserError(f"{source}: {_show(value)}, expected {getattr(hint, '__name__', hint)}")


def _show(value: Any) -> str:
    """`value`, short enough for one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
