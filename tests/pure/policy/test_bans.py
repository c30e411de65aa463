"""Bans as elements: exactly the banned prefixes, of few lengths, and cheap to change."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.model import FwError, Prefix
from plugin.nftables.ban_elements import ban_change, ban_elements
from plugin.nftables.sets import Element
from plugin.policy.bans import BAN_LENGTHS, holding, pieces, read, written
from tests.pure.strategies import examples

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("text", "banned"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:db8:5::/48", "2001:db8:5::/48"),
        ("2001:db8::/40", "2001:db8::/40"),
        # One customer has at least a /64.
        ("2001:db8:5:6:7::/80", "2001:db8:5:6::/64"),
    ],
)
def test_addresses_and_prefixes_are_read(text: str, banned: str) -> None:
    """A ban covers the written address or prefix, or the whole /64 around it."""
    assert written(read(text)) == banned


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("127.0.0.1", "not an address on the Internet"),
        ("::1", "not an address on the Internet"),
        ("224.0.0.1", "not an address on"),
        ("ff02::1", "not an address on"),
        ("fe80::1", "not an address on"),
        ("169.254.0.0/16", "not an address on"),
        ("0.0.0.0", "not an address on"),
        ("::", "not an address on"),
        ("0.0.0.0/0", "too wide"),
        ("128.0.0.0/7", "too wide"),
        ("::/0", "too wide"),
        ("2001:db8::/39", "too wide"),
        ("203.0.113.7/24", "did you mean 203.0.113.0/24"),
        ("web", '"web" is not an address'),
        ("", "is not"),
        ("::ffff:203.0.113.7", "write 203.0.113.7"),
    ],
)
def test_an_address_that_cannot_be_banned_is_refused_with_a_reason(text: str, why: str) -> None:
    """Loopback, multicast, link-local, all addresses, a typo: the message says what would be right."""
    with pytest.raises(FwError, match="cannot ban") as error:
        read(text)
    assert why in str(error.value)
    assert "container:" not in str(error.value)


def test_the_widest_active_ban_of_an_address_is_found() -> None:
    """The widest active ban that contains the address is found; an expired ban applies to no address."""
    bans: dict[Prefix, float] = {ip_network("203.0.113.0/24"): 0, ip_network("203.0.113.7"): 0}
    assert holding(ip_network("203.0.113.7"), bans, NOW) == ip_network("203.0.113.0/24")
    assert holding(ip_network("203.0.114.7"), bans, NOW) is None
    assert holding(ip_network("203.0.113.7"), {ip_network("203.0.113.7"): NOW}, NOW) is None
    assert holding(ip_network("203.0.113.7"), {ip_network("203.0.113.7"): NOW + 1}, NOW) is not None


def _near(version: int) -> st.SearchStrategy[Prefix]:
    """Return prefixes that overlap each other as often as possible."""
    lengths, kind, base = (
        ([15, 16, 17, 22, 23, 24, 25, 30, 31, 32], IPv4Network, 0xCB007000)
        if version == 4
        else ([46, 47, 48, 57, 60, 63, 64, 128], IPv6Network, 0x20010DB8 << 96)
    )

    def near(length: int, bits: int) -> Prefix:
        whole, inside = (32, 0xFFF) if version == 4 else (128, (1 << 96) - 1)
        return kind((base | (bits << (whole - length)) & inside, length), strict=False)

    return st.builds(near, st.sampled_from(lengths), st.integers(0, 3))


_bans = st.dictionaries(_near(4) | _near(6), st.sampled_from([0.0, NOW - 5, NOW + 100, NOW + 500]), max_size=5)


def elements_of(bans: dict[Prefix, float]) -> tuple[set[Element], dict[Element, int]]:
    lasting, timed = ban_elements(bans, NOW)
    return set(lasting), dict(timed)


@given(_bans, _bans, st.booleans())
@examples(400)
def test_a_change_leads_from_the_old_bans_to_the_new(
    before: dict[Prefix, float], more: dict[Prefix, float], adds: bool
) -> None:
    """The change alone leads to the new state, and removes only existing elements, for any bans before and after,
    overlapping ones too."""
    after = {**before, **more} if adds else more
    lasting, timed = elements_of(before)
    change, lasts = ban_change(before, after, NOW)
    there = lasting | timed.keys()
    assert set(change.remove) <= there
    there -= set(change.remove)
    assert not lasts.keys() & there, "an element's time is another one only if it is put there anew"
    left = {element: seconds for element, seconds in timed.items() if element in there} | lasts
    right, right_timed = elements_of(after)
    assert there | set(change.add) | lasts.keys() == right | right_timed.keys()
    assert left == right_timed


@given(_bans)
@examples(200)
def test_exactly_the_addresses_within_a_ban_are_banned(bans: dict[Prefix, float]) -> None:
    """An address near the bans matches a look-up if and only if it is within one."""
    lasting, timed = ban_elements(bans, NOW)
    there = {(element.set, element.key[0]) for element in (*lasting, *timed)}
    tried = {a for prefix in bans for a in (prefix[0], prefix[-1], prefix[0] - 1, prefix[-1] + 1)}
    for address in tried:
        found = (f"banned{address.version}", address) in there
        for length in BAN_LENGTHS[address.version]:
            network = ip_network((address, length), strict=False).network_address
            found |= (f"banned{address.version}_{length}", network) in there
        assert found == any(address in prefix and not 0 < until <= NOW for prefix, until in bans.items()), address


def test_pieces_are_few() -> None:
    """No accepted ban needs more than 256 elements."""
    assert len(pieces(read("10.0.0.0/8"))) == len(pieces(read("2001:db8::/40"))) == 256
    assert max(len(pieces(ip_network((ip_address("10.0.0.0"), n)))) for n in range(8, 33)) == 256


def test_one_more_ban_takes_no_longer_with_fifty_thousand() -> None:
    """A blocklist does not make a single ban slow: otherwise containers that start would wait for it."""
    many: dict[Prefix, float] = {IPv4Network(0x0A000000 + n * 77): 0 for n in range(50_000)}
    after = {**many, ip_network("203.0.113.7"): 0.0}
    start = time.process_time()
    change, _ = ban_change(many, after, NOW)
    assert time.process_time() - start < 0.5
    assert {element.set for element in change.add} == {"banned4", "ban_families"}
