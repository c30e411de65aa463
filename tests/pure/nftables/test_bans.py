"""Which packets a ban drops, by the text of the rules, and for how long; and which addresses cannot be banned."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.model import FwError, Prefix
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.hooks import HOOKS
from plugin.nftables.sets import BAN_HOOK, BAN_HOOK_HOST, Element, chains_for
from plugin.policy.bans import BAN_LENGTHS, MAX_PIECES, WIDEST, as_data, holding, pieces, read, written
from tests.pure.strategies import examples, prefixes4, prefixes6
from tests.pure.tracer import CHAINS, Packet, Table

NOW = 1_900_000_000.0


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("203.0.113.0/25", "203.0.113.0/25"),
        ("2001:DB8::/56", "2001:db8::/56"),
        ("2001:db8::8/127", "2001:db8::/64"),
        ("2001:db8::/65", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::1/128"),
    ],
)
def test_an_address_or_prefix_is_banned(text: str, meant: str) -> None:
    """An address or a prefix of either family; an IPv6 prefix that is longer than one customer's /64 is widened to
    it."""
    assert read(text) == ip_network(meant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("203.0.113.7/24", 'cannot ban: "203.0.113.7/24" has bits beyond its length; did you mean 203.0.113.0/24?'),
        ("example.org", 'cannot ban: "example.org" is not an address or a prefix like 2001:db8::/32'),
        ("", 'cannot ban: "" is not an address or a prefix like 2001:db8::/32'),
        ("service:api", 'cannot ban: "service:api" is not an address or a prefix like 2001:db8::/32'),
        ("fe80::1%eth0", 'cannot ban: "fe80::1%eth0" is not an address or a prefix like 2001:db8::/32'),
        ("::ffff:203.0.113.7", 'cannot ban: "::ffff:203.0.113.7" is an IPv4-mapped IPv6 address; write 203.0.113.7'),
        ("127.0.0.0/8", "cannot ban 127.0.0.0/8: it is not an address on the Internet"),
        ("::1", "cannot ban ::1: it is not an address on the Internet"),
        ("0.0.0.0/0", "cannot ban 0.0.0.0/0: it is too wide, at most /8 of IPv4 and /40 of IPv6"),
        ("2000::/3", "cannot ban 2000::/3: it is too wide, at most /8 of IPv4 and /40 of IPv6"),
        (
            "2001:db8::/52",
            "cannot ban 2001:db8::/52: a /49 to /55 is too many pieces; ban 2001:db8::/48, or its /56s one by one",
        ),
    ],
)
def test_an_address_that_cannot_be_banned_is_refused(text: str, message: str) -> None:
    """Text that is no address, addresses that are not public, and prefixes that need too many elements are refused,
    with the right form."""
    with pytest.raises(FwError) as caught:
        read(text)
    assert str(caught.value) == message


def test_the_widest_ban_is_the_widest_that_is_looked_up() -> None:
    """The widest prefix that can be banned is also the widest that `fwctl` looks up when it searches the bans of an
    address."""
    for version, length in WIDEST.items():
        base = IPv4Network("10.0.0.0/8") if version == 4 else IPv6Network("2a00::/16")
        assert read(str(ip_network((base.network_address, length)))).prefixlen == length
        with pytest.raises(FwError, match="too wide"):
            read(str(ip_network((base.network_address, length - 1))))


@given(prefixes4 | prefixes6)
@examples(200)
def test_pieces_cover_the_prefix(banned: Prefix) -> None:
    """Every prefix is refused, or cut into at most 256 pieces of lengths that are looked up; a prefix that was read,
    written and read again is unchanged."""
    with contextlib.suppress(FwError):
        found = read(str(banned))
        assert read(written(found)) == found
        cut = pieces(found)
        assert len(set(cut)) == len(cut) <= MAX_PIECES
        assert all(each.prefixlen in (*BAN_LENGTHS[each.version], each.max_prefixlen) for each in cut)
        assert sum(each.num_addresses for each in cut) == found.num_addresses
        assert all(each.subnet_of(found) for each in cut)  # type: ignore[arg-type]
        assert banned.subnet_of(found)  # type: ignore[arg-type]


def test_a_ban_as_it_is_shown() -> None:
    """An address is shown without its length; a permanent ban has no end."""
    assert as_data(ip_network("203.0.113.7"), 0) == {"address": "203.0.113.7", "until": None}
    assert as_data(ip_network("2001:db8::/48"), 5.5) == {"address": "2001:db8::/48", "until": 5.5}


# --- banned addresses ---------------------------------------------------------------------------------------------

_listed = st.sampled_from(
    [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.0/23",
        "10.1.2.128/25",
        "10.1.2.3",
        "10.1.2.130",
        "10.9.0.0/17",
        "2001:db8::/40",
        "2001:db8::/48",
        "2001:db8::/47",
        "2001:db8:0:1::/64",
        "2001:db8:0:1::5",
        "2001:db8::/63",
    ]
).map(ip_network)
_ends = st.sampled_from([0, 0, NOW - 5, NOW + 1.5, NOW + 60, NOW + 3600])
banned = st.dictionaries(_listed, _ends, max_size=5)
ADDRESSES = [
    ip_address(text)
    for text in (
        "10.1.2.3",
        "10.1.2.2",
        "10.1.2.130",
        "10.1.3.3",
        "10.1.9.9",
        "10.9.0.1",
        "10.200.0.1",
        "11.0.0.1",
        "2001:db8:0:1::5",
        "2001:db8:0:1::6",
        "2001:db8:0:2::5",
        "2001:db8:1::1",
        "2001:db8:ffff::1",
        "2001:db9::1",
    )
]


def _is_banned(address: IPv4Address | IPv6Address, bans: Mapping[Prefix, float], now: float) -> bool:
    return any(address in each and not 0 < until <= now for each, until in bans.items())


@given(banned, st.sampled_from(ADDRESSES))
@examples(150)
def test_the_widest_active_ban_of_an_address_is_found(
    bans: dict[Prefix, float], address: IPv4Address | IPv6Address
) -> None:
    """The widest ban that contains the address and has not ended is found."""
    there = [each for each, until in bans.items() if address in each and not 0 < until <= NOW]
    assert holding(ip_network(address), bans, NOW) == min(there, key=lambda each: each.prefixlen, default=None)
    for each in bans:
        by = holding(each, bans, NOW)
        assert by is None or each.subnet_of(by)  # type: ignore[arg-type]


def dropped(one: IPv4Address | IPv6Address, elements: set[Element]) -> bool:
    """True if packets from and to the address are dropped; both must have the same result."""
    table, other = Table(elements), IPv4Address("192.0.2.1") if one.version == 4 else IPv6Address("2001:db9:9::1")
    found = set()
    for packet in (Packet(one, other, 6, 80), Packet(other, one, 6, 80)):
        asked = table.finds("meta nfproto", "ban_families", packet)
        found.add(asked and table.verdict("banned", packet) == "deny")
    (verdict,) = found
    return verdict


@given(banned, st.sampled_from(ADDRESSES))
@examples(200)
def test_a_banned_address_is_dropped_in_both_directions(
    bans: dict[Prefix, float], address: IPv4Address | IPv6Address
) -> None:
    """An address is dropped if and only if a ban contains it now, and for as long as the ban lasts: to the second,
    never shorter."""
    lasting, timed = ban_elements(bans, NOW)
    assert not lasting & timed.keys()
    assert dropped(address, lasting | timed.keys()) is _is_banned(address, bans, NOW)
    for later in (1.5, 60, 3600):
        before = {element for element, seconds in timed.items() if seconds > later - 0.5}
        after = {element for element, seconds in timed.items() if seconds > later + 1}
        assert dropped(address, lasting | before) or not _is_banned(address, bans, NOW + later - 0.5)
        assert not dropped(address, lasting | after) or _is_banned(address, bans, NOW + later + 1)


def test_bans_come_before_everything() -> None:
    """Bans apply in both directions, before established flows and before the host's own rules; only loopback is
    exempt."""
    look_up = "meta nfproto @ban_families jump banned"
    assert CHAINS[BAN_HOOK] == [look_up]
    assert CHAINS[BAN_HOOK_HOST] == ['iifname "lo" accept', look_up]
    for name, hook in ((BAN_HOOK, "forward"), (BAN_HOOK_HOST, "input")):
        assert (HOOKS[name].hook, HOOKS[name].priority) == (hook, "filter - 3")
        assert name in chains_for(Element("ban_families", (2,)))


def test_only_families_with_a_ban_are_looked_up() -> None:
    """A packet causes a look-up of bans of its own family only, and of prefixes only if a prefix is banned."""
    assert ban_elements({}, NOW) == (set(), {})
    lasting, _ = ban_elements({ip_network("203.0.113.7"): 0}, NOW)
    assert lasting == {Element("banned4", (IPv4Address("203.0.113.7"),)), Element("ban_families", (2,))}
    lasting, timed = ban_elements({ip_network("2001:db8::/48"): NOW + 59.5}, NOW)
    assert lasting == {Element("ban_families", (10,)), Element("ban_prefix_families", (10,))}
    assert timed == {Element("banned6_48", (IPv6Address("2001:db8::"),)): 60}
