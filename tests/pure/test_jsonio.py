"""The strict JSON reader: every mistake is one error that names the key, what would be right and the actual value."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin import jsonio
from plugin.jsonio import JsonError
from plugin.model import FwError
from tests.pure.strategies import examples, json_values

READERS: dict[str, tuple[Callable[[Any, str], object], object]] = {
    "text": (jsonio.text, "web"),
    "a pattern": (lambda raw, key: jsonio.matching(raw, key, jsonio.ID), "abc"),
    "interface": (jsonio.interface_name, "br-lan"),
    "integer": (jsonio.integer, 7),
    "port": (jsonio.port, 8080),
    "boolean": (jsonio.boolean, True),
    "switch": (lambda raw, key: jsonio.switch(raw, key, False), "true"),
    "list": (jsonio.items, [1]),
    "object": (jsonio.mapping, {"a": 1}),
    "protocol": (jsonio.protocol, "udp"),
    "address": (lambda raw, key: jsonio.optional(raw, key, jsonio.address), "203.0.113.7"),
    "IPv4": (lambda raw, key: jsonio.stated(raw, key, jsonio.only(IPv4Address, jsonio.address)), "203.0.113.7"),
    "prefix": (lambda raw, key: jsonio.optional(raw, key, jsonio.interface), "172.18.0.1/16"),
}


@pytest.mark.parametrize(("read", "right"), READERS.values(), ids=READERS)
@given(value=json_values)
@examples(60)
def test_a_value_is_read_or_named(read: Callable[[Any, str], object], right: object, value: Any) -> None:
    """Any value is accepted, or one short error contains the key. Errors are FwErrors, which Docker shows."""
    read({"the key": right}, "the key")
    for raw in ({"the key": value}, value, {}):
        try:
            read(raw, "the key")
        except FwError as refused:
            error = refused
        else:
            continue
        assert isinstance(error, ValueError)
        assert "the key" in str(error)
        assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("read", "raw", "error"),
    [
        (jsonio.text, {"name": 7}, "name must be text, not 7"),
        (jsonio.text, {}, "name is missing: it must be text"),
        (jsonio.text, [], "a value must be a JSON object with name, not []"),
        (jsonio.port, {"name": 70000}, "name must be a whole number, 1-65535, not 70000"),
        (jsonio.port, {"name": True}, "name must be a whole number, 1-65535, not true"),
        (jsonio.protocol, {"name": "icmp"}, 'name must be tcp, udp or sctp, not "icmp"'),
        (jsonio.interface_name, {"name": "a b"}, 'name must be an interface\'s name, not "a b"'),
        (jsonio.text, {"name": ["x" * 100]}, 'name must be text, not ["' + "x" * 58 + "…"),
    ],
)
def test_the_message_names_key_expectation_and_value(read: Callable[[Any, str], object], raw: Any, error: str) -> None:
    """The error contains the key, what would be right, and the value as JSON, cut to the length of a line."""
    with pytest.raises(JsonError) as caught:
        read(raw, "name")
    assert str(caught.value) == error


def test_an_address_is_named_by_its_key() -> None:
    """A zone, or the other family, is also an error with its key."""
    for value, right in (("fe80::1%eth0", "an address"), ("2001:db8::1", "an IPv4 address"), ("1.2.3", "an address")):
        read = jsonio.only(IPv4Address, jsonio.address)
        with pytest.raises(JsonError, match=f'^where.HostIP: "{value}" is not {right}'):
            jsonio.stated({"HostIP": value}, "HostIP", read, where="where")


def test_missing_null_and_empty_values_are_equal() -> None:
    """`stated`, and lists or objects with a default, treat missing, null and empty values alike; a list elsewhere is
    required."""
    for raw in ({}, {"a": None}, {"a": ""}):
        assert jsonio.stated(raw, "a", jsonio.address) is None
    for raw in ({}, {"a": None}):
        assert jsonio.items(raw, "a", default=[]) == []
        assert jsonio.mapping(raw, "a", default={}) == {}
        with pytest.raises(JsonError):
            jsonio.items(raw, "a")


def test_unknown_fields_are_an_error() -> None:
    """A typo in a request is reported, with the known fields."""
    assert jsonio.record({"a": 1}, "a", "b") == {"a": 1}
    with pytest.raises(JsonError, match="the request has a field 'aa', which is none of a, b"):
        jsonio.record({"aa": 1}, "a", "b")


#: What JavaScript has, and JSON has not (RFC 8259 section 6): nothing is greater or less than NaN.
CONSTANTS = (b"NaN", b'{"seconds": Infinity}', b"[-Infinity]")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"nan", *CONSTANTS]
)
def test_bytes_that_are_no_json_are_one_error(data: bytes) -> None:
    """Bytes that are no JSON raise one kind of error, however deep or long they are."""
    with pytest.raises(JsonError, match=r"^the request is not JSON"):
        jsonio.document(data)


def test_documents_are_bounded() -> None:
    """The bound is in bytes, before anything is parsed, and in depth, so that no later step can run out of stack."""
    with pytest.raises(JsonError, match="at most 8388608 are read"):
        jsonio.document(b" " * (jsonio.MAX_BYTES + 1))
    deep = jsonio.MAX_DEPTH
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        assert jsonio.document((opening * deep + "1" + closing * deep).encode())
        with pytest.raises(JsonError, match="nested more than 64 deep"):
            jsonio.document((opening * (deep + 1) + "1" + closing * (deep + 1)).encode())


@given(st.recursive(json_values, lambda inner: st.lists(inner, max_size=2), max_leaves=5))
@examples(100)
def test_documents_within_the_bounds_are_read(value: Any) -> None:
    """JSON within the bounds is returned unchanged; a value that JSON cannot express is refused."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        with pytest.raises(JsonError, match="is no number"):
            jsonio.document(json.dumps(value).encode())
    else:
        assert jsonio.document(text.encode()) == value
