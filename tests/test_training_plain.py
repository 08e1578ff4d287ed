"""Configs survive the way to JSON and back exactly, and nothing else gets in."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfc_splat.errors import UserError
from nfc_splat.training.plain import from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    pair: tuple[float, float] = (0.9, 0.999)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    folder: Path
    count: int
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    table: dict[str, float] = field(default_factory=dict)
    rest: Any = None
    sizes: list[int] = field(default_factory=list)


@given(
    count=st.integers(),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(st.text()),
    rate=st.floats(allow_nan=False, allow_infinity=False),
)
@settings(max_examples=50, deadline=None)
def test_round_trip_is_exact(count, limit, names, rate):
    value = Outer(Path("a/b"), count, "b", limit, True, Inner(rate, (1.0, 2.0), tuple(names)), {"x": rate}, None, [1])
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value))), "config.json") == value


def test_missing_keys_take_their_defaults():
    assert from_plain(Outer, {"folder": "x", "count": 2}, "c") == Outer(Path("x"), 2)


def test_an_integer_is_a_float_but_a_truth_value_is_not_an_integer():
    assert from_plain(Inner, {"rate": 1}, "c") == Inner(1.0)
    with pytest.raises(UserError, match="c: count: True, expected int"):
        from_plain(Outer, {"folder": "x", "count": True}, "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"count": None}, "count: None, expected int"),
        ({"count": 1.5}, "count: 1.5, expected int"),
        ({"kind": "c"}, "kind: 'c', expected one of a, b"),
        ({"kind": ["a"]}, "kind"),
        ({"limit": "much"}, "limit: 'much', expected float"),
        ({"inner": 3}, "inner: expected an object"),
        ({"inner": {"pair": [1.0]}}, "pair: 1 values, expected 2"),
        ({"inner": {"names": [1]}}, "names: 1, expected str"),
        ({"table": {"x": "y"}}, "table.x: 'y', expected float"),
        ({"sizes": {}}, "sizes"),
        ({"folder": 3}, "folder: 3, expected Path"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        from_plain(Outer, {"folder": "x", "count": 2} | change, "c")


def test_a_required_key_is_asked_for():
    with pytest.raises(UserError, match="the key 'folder' is missing"):
        from_plain(Outer, {"count": 2}, "c")


def test_a_long_value_is_cut():
    with pytest.raises(UserError) as caught:
        from_plain(Outer, ["x" * 1000], "c")
    assert len(str(caught.value)) < 200
