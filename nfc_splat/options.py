"""Command lines made from config dataclasses by tyro: every field is a flag, and its docstring is the flag's help.

parse_options(kind, arguments, program) -> an instance of the dataclass `kind`; wrong input is a one-line `UserError`
flags(options)                          -> the names of its flags
field_docstrings(kind)                  -> the help of its flags
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from nfc_splat.errors import UserError

T = TypeVar("T")


def parse_options(
    kind: type[T],
    arguments: Sequence[str],
    program: str,
    *,
    default: T | None = None,
    positional: Mapping[str, str] | None = None,
    expected: str = "flags only",
) -> T:
    """What `arguments` make of `default`.

    Fields of `kind` that hold dataclasses become groups of flags without prefix. A dataclass whose `FLAG_GROUPS` maps
    fields to titles is shown as several groups, each from such a field to the next.

    Args:
        kind: a dataclass with a docstring under each field, at most two levels deep. A field of type `Any` holds a
            dataclass that `default` gives.
        arguments: words of the command line.
        program: how the command is called, for messages.
        default: holds the values of flags that are not given; `tyro.MISSING` for those that must be. By default
            `kind()`.
        positional: fields that are words instead of flags, and what help calls them.
        expected: what the command line may hold, for the message about a word too many.

    Raises:
        UserError: an unknown flag (with the nearest one), a wrong value, a word too many.
        SystemExit: after `--help`.
    """
    import tyro

    positional = positional or {}
    default = kind() if default is None else default
    _refuse_unknown(arguments, [*flags(default, positional), "--help"], program)
    shape = _mirror(kind, _in_groups("", default, _entries(default, positional), ""))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                shape, prog=program, args=arguments, return_unknown_args=True, config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UserError(f"{_one_line(errors.getvalue())}; see {program} --help") from None
    if unknown:
        raise UserError(f"{unknown[0]!r}: expected {expected}")
    return _rebuilt(default, dict(_leaves(parsed)))


def flags(options: Any, positional: Mapping[str, str] | None = None) -> list[str]:
    """Every flag that the command line has for the dataclass `options`, which may hold others, without prefixes."""
    names = []
    for name, value in _leaves(options):
        flag = name.replace("_", "-")
        if name not in (positional or {}):
            names += [f"--{flag}", f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}"]
    return names


def _leaves(options: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every field that is a flag."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        yield from _leaves(value) if dataclasses.is_dataclass(value) else [(field.name, value)]


def _rebuilt(default: Any, values: Mapping[str, Any]) -> Any:
    """`default` with `values`, by the names of flags, wherever they belong."""
    parts = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    changed = {
        name: _rebuilt(part, values) if dataclasses.is_dataclass(part) else values[name] for name, part in parts.items()
    }
    return type(default)(**changed)


def _entries(options: Any, positional: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    """What `dataclasses.make_dataclass` needs to make a dataclass whose help is that of `options`, in groups."""
    import tyro

    kind = type(options)
    hints, help_texts = typing.get_type_hints(kind), field_docstrings(kind)
    entries: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(options):
        value, text = getattr(options, field.name), help_texts.get(field.name, "")
        if dataclasses.is_dataclass(value):
            entries += _in_groups(field.name, value, _entries(value, positional), field.name)
            continue
        hint = Annotated[hints[field.name], tyro.conf.arg(help=text, metavar=positional.get(field.name))]
        if field.name in positional:
            hint = tyro.conf.Positional[hint]
        held = dataclasses.field() if value is tyro.MISSING else dataclasses.field(default=value)
        entries.append((field.name, hint, held))
    return entries


def _in_groups(name: str, options: Any, entries: list[tuple[str, Any, Any]], title: str) -> list[tuple[str, Any, Any]]:
    """`entries` made from the dataclass `options`, under the titles of its `FLAG_GROUPS`; under `title` before those.

    Entries without a title, and those that are groups already, stay as they are.
    """
    import tyro

    titles, flat = getattr(options, "FLAG_GROUPS", {}), {field.name for field in dataclasses.fields(options)}
    result, groups = [], {}
    for entry in entries:
        title = titles.get(entry[0], title)
        if title and entry[0] in flat:
            groups.setdefault(title, []).append(entry)
        else:
            result.append(entry)
    for index, (title, members) in enumerate(groups.items()):
        shape = _mirror(type(options), members, described=name and index == 0)
        hint = Annotated[shape, tyro.conf.arg(name=title)]
        result.insert(index, (f"{name}_group_{index}", hint, dataclasses.field(default_factory=shape)))
    return result


def _mirror(kind: type, entries: list[tuple[str, Any, Any]], described: Any = True) -> type:
    documentation = " ".join(inspect.cleandoc(kind.__doc__ or "").split()) if described else ""
    return dataclasses.make_dataclass(kind.__name__, entries, namespace={"__doc__": documentation}, kw_only=True)


@cache
def field_docstrings(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass, as one line; those of its bases included."""
    texts = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                texts[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return texts


def _refuse_unknown(arguments: Sequence[str], known: Sequence[str], program: str) -> None:
    """Raise a `UserError` for the first flag that does not exist, with the nearest one that does."""
    for word in arguments:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in known:
            near = difflib.get_close_matches(name[2:], [flag[2:] for flag in known], n=1, cutoff=0.6)
            hint = f"did you mean --{near[0]}?" if near else f"{program} --help lists them"
            raise UserError(f"{word}: unknown flag; {hint}")


def _one_line(box: str) -> str:
    """The message in what tyro draws: the rows between the first two rules under its title.

    The title is part of a frame's upper edge, or where the terminal has no such characters a row with a rule below.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        row = line.strip(" │|")
        if (row and not row.strip("─-╭╮╰╯+")) or row.startswith("╭"):
            sections.append([])
        elif row:
            sections[-1].append(row)
    messages = [" ".join(rows) for rows in sections[1:] if rows] or [" ".join(sections[0])]
    return messages[0].removesuffix(".")
