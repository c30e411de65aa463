"""The cases of SI6 Networks' ipv6toolkit (Fernando Gont): fragments, TCP, and forged neighbour discovery."""

from __future__ import annotations

from collections.abc import Iterator

from .case import CLOSED_TCP, OPEN_TCP, Case
from .case import ECHO6 as ECHO
from .neighbours import neighbour

_FRAG6 = {
    "--frag-reass-policy": "overlapping fragments: which data wins",
    "--frag-id-policy": "how the target chooses fragment identifications",
    "--pod-attack": "ping of death",
    "-F 100": "a flood of 100 fragments",
    "-O first": "a first fragment",
    "-O middle": "a middle fragment",
    "-O last": "a last fragment",
    "-O atomic": "an atomic fragment",
    "-O first -u 64": "a first fragment with destination options",
    "-O first -H 64": "a first fragment behind a hop-by-hop header",
}
#: Those of them that send whole echo requests.
_WHOLE = ("--frag-id-policy", "-O atomic")
_TCP6 = {
    "-X S": "SYN",
    "-X S -y 16": "SYN in fragments of 16 bytes",
    "-X S -u 64": "SYN behind destination options",
    "-X S -H 64": "SYN behind a hop-by-hop header",
    "-X S -U 64 -y 16 -u 64": "SYN in fragments, options in front of and behind the fragment header",
    "-X S -o 53": "SYN from port 53",
    "-X SA": "SYN and ACK",
    "-X FPU": "FIN, PSH and URG",
    "-X A": "ACK",
    "-X R": "RST",
    "-X S -F 50 -T 5 -s 2001:db8:77::/64": "SYNs from 50 forged sources",
}
#: What arrives at an open port. Conntrack calls others invalid, or the host discards them: Linux takes no hop-by-hop
#: header with more than 7 bytes of padding.
_ARRIVES = ("-X S", "-X S -u 64", "-X S -o 53", "-X A", "-X S -F 50 -T 5 -s 2001:db8:77::/64")


def _frag6() -> Iterator[Case]:
    for options, name in _FRAG6.items():
        policy = options.endswith("policy")
        yield Case(
            "frag6",
            name,
            f"frag6 -i {{link}} -d {{v6}} {options}",
            frozenset({ECHO} if options in _WHOLE else ()),
            ended_after=0 if policy else 3,
        )


def _tcp6() -> Iterator[Case]:
    for options, name in _TCP6.items():
        command = f"tcp6 -i {{link}} -d {{v6}} {options} -a"
        yield Case("tcp6", f"{name}, closed port", f"{command} {CLOSED_TCP}", ended_after=3)
        arrives = frozenset({f"tcp {OPEN_TCP}"} if options in _ARRIVES else ())
        yield Case("tcp6", f"{name}, open port", f"{command} {OPEN_TCP}", arrives, ended_after=3)


#: Extension headers in which the tools hide a message.
_EVASIONS = {"": "plain", "-y 16": "in fragments", "-u 8": "behind destination options", "-H 8": "hop-by-hop"}
_PREFIX = "-P 2001:db8:bad::/64#LA -t 1000 -e"


def _outside() -> Iterator[Case]:
    """Yield forged neighbour discovery from outside: it arrives with a hop limit below 255, so it is ignored."""
    ignored = "it arrives with a hop limit below 255, so the target ignores it (RFC 4861 section 6.1)"
    yield Case(
        "ra6",
        "from outside",
        f"ra6 -i {{link}} -s {{mine}} -D {{next_mac}} -d {{v6}} {_PREFIX}",
        frozenset({"icmpv6 134"}),
        note=ignored,
    )
    yield Case(
        "na6",
        "from outside",
        "na6 -i {link} -s {mine} -D {next_mac} -d {v6} -t {gateway} -o -e",
        frozenset({"icmpv6 136"}),
        note=ignored,
    )
    yield Case("rd6", "from outside", "rd6 -i {link} -s {mine} -D {next_mac} -d {v6} -r {outside} -t {mine} -n")


def _neighbour() -> Iterator[Case]:
    for options, name in _EVASIONS.items():
        yield from neighbour("ra6", name, f"ra6 -i {{link}} -d ff02::1 {_PREFIX} {options}")
        yield from neighbour("ra6", f"to the host, {name}", f"ra6 -i {{link}} -d {{gateway}} {_PREFIX} {options}")
        yield from neighbour(
            "na6", f"the gateway's address, {name}", f"na6 -i {{link}} -d {{v6}} -t {{gateway}} -o -e {options}"
        )
        yield from neighbour(
            "na6", f"the target's address, {name}", f"na6 -i {{link}} -d {{gateway}} -t {{v6}} -o -e {options}"
        )
        redirect = f"rd6 -i {{link}} -s {{router}} -S {{mac}} -d {{v6}} -D {{target_mac}} {options}"
        yield from neighbour("rd6", f"as the router, {name}", f"{redirect} -r {{outside}} -t {{local}} -n")


CASES = (*_frag6(), *_tcp6(), *_outside(), *_neighbour())
