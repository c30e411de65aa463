"""The cases of thc-ipv6 (van Hauser and others): each numbered test of a tool is an entry."""

from __future__ import annotations

from collections.abc import Iterator

from .case import CLOSED_TCP, CLOSED_UDP, OPEN_TCP, OPEN_UDP, Case
from .case import ECHO6 as ECHO
from .neighbours import neighbour

#: The tests of firewall6 by their titles, numbered from 1.
_FIREWALL6 = (
    "plain sending",
    "plain sending with data",
    "IPv4 ethernet type",
    "sending IPv5 packet",
    "hop-by-hop hdr (ignore option)",
    "dst hdr (ignore option)",
    "hop-by-hop hdr router alert",
    "3x dst hdr (ignore option)",
    "130x dst hdr (ignore option)",
    "atomic fragment",
    "2x atomic fragment (same id)",
    "2x atomic fragment (diff id)",
    "3x atomic fragment (same id)",
    "3x atomic fragment (diff id)",
    "130x atomic fragment (same id)",
    "130x atomic fragment (diff id)",
    "260x atomic fragment (same id)",
    "260x atomic fragment (diff id)",
    "2kb dst hdr",
    "2kb dst + dst hdr",
    "32x 2kb dst hdr",
    "2x dst hdr + 2x frag",
    "4x dst hdr + 3x frag",
    "frag type first+middle",
    "frag type first (2nd)",
    "frag type first #2 (overlap)",
    "frag type first #3 (resend#2)",
    "frag type first #4 (resend#2L)",
    "frag type middle+last",
    "frag type middle(first)+last",
    "frag type last",
    "frag type last #2",
    "overlapping ping first",
    "overlapping ping last",
    "resend 2nd fake pkt",
    "Bad TLV handling",
    "Bad TLV handling #2",
    "Bad TLV handling #2 reverse",
    "plain with well-known source ports",
)
#: Tests whose packet is one IPv6 packet with a whole upper layer, so that it arrives at an open port.
_WHOLE = frozenset({1, 2, *range(5, 19), 39})
#: The TCP packet of this test is whole, its UDP datagram is not.
_WHOLE_TCP = _WHOLE | {38}
#: These tests send an echo request that arrives.
_PINGS = (36, 37)
_REASONS = {
    3: "no IPv4 packet",
    4: "no IPv6 packet",
    **dict.fromkeys(range(19, 26), "its first fragment ends before the port: discarded (RFC 8200 section 4.5)"),
    26: "overlapping fragments are discarded (RFC 5722)",
    27: "a fragment of an echo request, its length no multiple of 8: the target refuses it (RFC 8200 section 4.5)",
    **dict.fromkeys(range(28, 33), "no set of fragments that makes a packet"),
    **dict.fromkeys(range(33, 36), "an echo request in overlapping fragments, which are discarded (RFC 5722)"),
    **dict.fromkeys(_PINGS, "the tool sends an echo request in this form"),
}


def _firewall6() -> Iterator[Case]:
    """Yield each test against a closed and an open port of TCP and of UDP."""
    for number, title in enumerate(_FIREWALL6, 1):
        for option, port, name, passes in (
            ("", CLOSED_TCP, f"tcp {CLOSED_TCP}", frozenset()),
            ("-u", CLOSED_UDP, f"udp {CLOSED_UDP}", frozenset()),
            ("", OPEN_TCP, f"tcp {OPEN_TCP}", _WHOLE_TCP | {27}),
            ("-u", OPEN_UDP, f"udp {OPEN_UDP}", _WHOLE | {27}),
        ):
            arrives = ({name} if number in passes else set()) | ({ECHO} if number in _PINGS else set())
            closed = port in (CLOSED_TCP, CLOSED_UDP)
            yield Case(
                "firewall6",
                f"test {number}, {title}, {'closed' if closed else 'open'} {name}",
                f"atk6-firewall6 {option} {{link}} {{v6}} {port} {number}",
                frozenset(arrives | ({f"part of {ECHO}"} if number == 27 else set())),
                # The last test tries eleven ports in turn, 4 s each.
                quick=closed and number < 39 and (number % 2 == 0) == (option == "-u"),
                note=_REASONS.get(number, ""),
            )


#: implementation6's tests are numbered from 0, fragmentation6's from 1.
_IMPLEMENTATION6, _FRAGMENTATION6 = range(59), range(1, 34)
#: Tests of implementation6 that send a neighbour solicitation. Its hop limit shows that it was forwarded: no effect.
#: Test 0 is all tests in one run.
_SOLICITS = (0, 41, 42)
_DENIAL6 = (
    "large hop-by-hop header with router alert",
    "large destination header",
    "hop-by-hop header with router alert and 180 headers",
    "hop-by-hop header with router alert and 178 headers, ping",
    "AH header and ping",
    "first fragments of a ping with router alert",
    "large hop-by-hop header",
)
#: The host discards the others, or nothing in them is a whole echo request.
_DENIAL6_ARRIVES = (2,)


def _implementation6() -> Iterator[Case]:
    for number in _IMPLEMENTATION6:
        yield Case(
            "implementation6",
            f"test {number}",
            f"atk6-implementation6 {{link}} {{v6}} {number}",
            frozenset({ECHO, "icmpv6 135"} if number in _SOLICITS else {ECHO}),
            note="" if number else "the tool runs all of its tests",
        )


def _fragmentation6() -> Iterator[Case]:
    for number in _FRAGMENTATION6:
        command = f"atk6-fragmentation6 {{link}} {{v6}} {number}"
        yield Case("fragmentation6", f"test {number}", command, frozenset({ECHO}))


def _denial6() -> Iterator[Case]:
    """Yield its floods, each for a second; afterwards the target must answer as before."""
    for number, name in enumerate(_DENIAL6, 1):
        command = f"atk6-denial6 {{link}} {{v6}} {number}"
        arrives = frozenset({ECHO} if number in _DENIAL6_ARRIVES else ())
        yield Case("denial6", f"test {number}, {name}", command, arrives, ended_after=1)


#: How fake_router26 hides a router advertisement from a bridge's rules (RA guard evasion).
_ROUTER_EVASIONS = {
    "": "plain",
    "-E H": "behind a hop-by-hop header",
    "-E 1": "in an atomic fragment",
    "-E H111": "behind a hop-by-hop header, in three atomic fragments",
    "-E D": "a large destination header, in fragments",
    "-E O": "overlapping fragments (first wins)",
    "-E o": "overlapping fragments (last wins)",
    "-E F": "full evasion",
}
_ADVERTISE_EVASIONS = {
    "": "plain",
    "-H": "behind a hop-by-hop header",
    "-f": "in an atomic fragment",
    "-D": "a large destination header, in fragments",
    "-F": "full evasion",
}
_PARASITE_OPTIONS = {"": "plain", "-R": "and injects", "-F": "in fragments", "-H": "hop-by-hop", "-D": "large header"}


def _neighbour() -> Iterator[Case]:
    """Yield the attacks of a hostile container on its neighbour and on the host."""
    bad = "-A 2001:db8:bad::/64 -n 2 -i 1"
    for option, name in _ROUTER_EVASIONS.items():
        yield from neighbour("fake_router26", name, f"atk6-fake_router26 {option} {bad} {{link}}")
    yield from neighbour("fake_router26", "as the host", f"atk6-fake_router26 -s {{router}} {bad} {{link}}")
    for option, name in _ADVERTISE_EVASIONS.items():
        command = f"atk6-fake_advertise6 {option} -n 2 -w 1 {{link}}"
        yield from neighbour("fake_advertise6", f"the gateway's address, {name}", f"{command} {{gateway}} {{v6}}")
        yield from neighbour("fake_advertise6", f"the target's address, {name}", f"{command} {{v6}} {{gateway}}")
    asks = "ip neigh flush dev eth0; ping -c 1 -W 1 {gateway}; ping -c 1 -W 1 {network}99"
    for option, name in _PARASITE_OPTIONS.items():
        command = f"atk6-parasite6 {option} {{link}}"
        yield from neighbour("parasite6", f"answers solicitations, {name}", command, target_does=asks, ended_after=4)
    for name, router, to in (("to itself", "{gateway}", "{mine}"), ("as the router", "{router}", "{local}")):
        command = f"atk6-redir6 {{link}} {{v6}} {{outside}} {router} {to} {{mac}}"
        yield from neighbour("redir6", f"the target's way out, {name}", command)


CASES = (*_firewall6(), *_implementation6(), *_fragmentation6(), *_denial6(), *_neighbour())
