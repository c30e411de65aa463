"""Elements as bytes, and as netlink messages of thousands of elements."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from plugin.kernel import netlink as nl
from plugin.nftables import fields
from plugin.nftables.codec import bodies, of_set
from plugin.nftables.fields import CGROUP, TARGET, VERDICT, Value
from plugin.nftables.sets import SETS, Element, numbers, packed

V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
VALUES: dict[str, Value] = {
    **dict.fromkeys(("ip saddr", "ip daddr"), V4),
    **dict.fromkeys(("ip6 saddr", "ip6 daddr", TARGET), V6),
    **dict.fromkeys(("iifname", "oifname", "fib saddr oifname"), "br-0123456789ab"),
    **dict.fromkeys(("th sport", "th dport"), 443),
    "meta l4proto": 6,
    "meta nfproto": 10,
    "meta iiftype": 1,
    "oif": 70000,
    "ether saddr": "02:42:ac:11:00:02",
    CGROUP: 1 << 50,
}


def values(name: str) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Return a key and the data of this set."""
    spec = SETS[name]
    data = ("limit4__10.0.0.2__5_minute_5",) if spec.data == VERDICT else tuple(VALUES[each] for each in spec.data)
    return tuple(VALUES[each] for each in spec.key), data


@pytest.mark.parametrize("name", SETS)
def test_an_element_keeps_its_values(name: str) -> None:
    """The set, key and data of an element are those that it was made of, and two of equal values are equal."""
    key, data = values(name)
    element = Element(name, key, data)
    assert (element.set, element.key, element.data, element.spec) == (name, key, data, SETS[name])
    assert {element} == {Element(name, key, data)}
    assert str(element) == f"Element(set={name!r}, key={key!r}, data={data!r})"
    assert element == packed(name, element.packed_key, element.packed_data)
    addresses = [value.packed for value in key if isinstance(value, IPv4Address | IPv6Address)]
    assert [*element.addresses] == addresses or TARGET in SETS[name].key


def test_elements_of_different_sets_differ() -> None:
    """Sets with the same fields have different elements."""
    assert len({Element(name, *values(name)) for name in SETS}) == len(SETS)
    assert numbers(lambda spec: spec.meter) == {Element(n, *values(n))[0] for n, spec in SETS.items() if spec.meter}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("allow4", (V6, 6, 80)),
        ("allow6", (V4, 6, 80)),
        ("allow4", (V4, 6)),
        ("allow4", (V4, 6, 80, 80)),
        ("from4", (V4, 6, 80, 32, V6)),
        ("dockers", ("br-0123456789abcdef",)),
    ],
)
def test_a_value_that_does_not_fit_is_an_error(name: str, key: tuple[Value, ...]) -> None:
    """A value of another kind never becomes a part of some other element: it is refused before the kernel sees it."""
    with pytest.raises(ValueError, match=r"bytes|zip\(\)"):
        Element(name, key)


def one(element: Element, seconds: int = 0) -> bytes:
    """Return an element as netlink's attributes, one after the other (linux/netfilter/nf_tables.h)."""
    spec = element.spec
    inside = [nl.nested(1, nl.attr(1, fields.packed(spec.key, element.key)))]
    if seconds:
        inside.append(nl.attr(4, struct.pack("!Q", 1000 * seconds)))
    elif spec.data == VERDICT:
        jump = nl.attr(1, struct.pack("!i", -3)), nl.attr(2, f"{element.data[0]}\0".encode())
        inside.append(nl.nested(2, nl.nested(2, *jump)))
    elif spec.data:
        inside.append(nl.nested(2, nl.attr(1, fields.packed(spec.data, element.data))))
    return nl.nested(1, *inside)


@pytest.mark.parametrize("name", SETS)
def test_many_elements_are_encoded_as_one_is(name: str) -> None:
    """A message has each element as it would be alone, with its timeout or data; at most 500, which fit 64 KiB."""
    key, data = values(name)
    spec = SETS[name]
    field = next((n for n, each in enumerate(spec.key) if each.startswith(("ip", "th"))), None)
    many = [Element(name, key, data)]
    if field is not None:
        more = (V4 + n if key[field] == V4 else V6 + n if key[field] == V6 else 1000 + n for n in range(1, 1100))
        if not isinstance(key[field], str):
            many += [Element(name, (*key[:field], value, *key[field + 1 :]), data) for value in more]
    parts = [many[at : at + 500] for at in range(0, len(many), 500)]
    assert bodies(many) == [of_set(name) + nl.nested(3, *map(one, part)) for part in parts]
    timed = dict.fromkeys(many[::2], 60)
    assert bodies(many, timed) == [
        of_set(name) + nl.nested(3, *(one(each, timed.get(each, 0)) for each in part)) for part in parts
    ]
    assert max(map(len, bodies(many, timed))) < 1 << 16
