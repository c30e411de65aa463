"""Properties of a protocol with ports and only its entry in the registry: `test_protocols` runs this in a copy."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plugin.driver.protocol import port_bindings
from plugin.fwctl.check.compose.model import Place, Value
from plugin.fwctl.check.compose.ports import _short
from plugin.fwctl.drop_record import header, line
from plugin.labels.parser import parse
from plugin.model import Address, AddressPolicy, BridgeNetwork, Container, Endpoint, Flow, FwError, Policy, Prefix, Rule
from plugin.nftables.elements import address_elements
from plugin.policy import flows
from plugin.policy.decide import of, passes
from plugin.policy.peers import PeerIndex
from plugin.state import codec
from tests.pure.tracer import Packet, Table

NEW, NUMBER = "udplite", 136
V4, V6 = IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2")
SUBNETS: tuple[Prefix, ...] = (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:1::/64"))
NETWORK = BridgeNetwork("n" * 64, "app", "br-app", SUBNETS)
OUT: dict[Address, Address] = {V4: IPv4Address("203.0.113.7"), V6: IPv6Address("2001:db8:9::9")}
BOTH = pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])


def policy(**labels: str) -> Policy:
    """Return what a container with these labels accepts and may initiate."""
    parsed = parse({f"fw.{key}": value for key, value in labels.items()})
    assert not parsed.problems
    container = Container("c" * 64, "web", parsed.spec)
    endpoint = Endpoint("e" * 64, NETWORK.id, V4, V6, joined=True, container=container)
    return PeerIndex().resolved(of(NETWORK, endpoint), container)


def enters(made: Policy, address: Address, port: int, number: int = NUMBER) -> bool:
    """True if the table's rules accept a packet from outside."""
    table = Table(address_elements(NETWORK.bridge, address, made))
    found = table.verdict(f"inbound{address.version}", Packet(OUT[address], address, number, port))
    assert found in ("permit", "deny")
    return found == "permit"


def leaves(made: Policy, address: Address, port: int) -> bool:
    """True if the table's rules permit a packet of the container, on a network where egress is restricted."""
    table = Table(address_elements(NETWORK.bridge, address, made))
    if (NETWORK.bridge, address) in table.sets.get(f"egress_all{address.version}", set()):
        return True
    return table.verdict(f"egress_allow{address.version}", Packet(address, OUT[address], NUMBER, port)) == "accept"


def stays(made: Policy, address: Address, port: int, *, outbound: bool = False) -> bool:
    """True if an established flow remains when the policy has changed."""
    by, to = (address, OUT[address]) if outbound else (OUT[address], address)
    flow = Flow(by.packed, 40000, to.packed, port, to.packed, port, by.packed, NUMBER)
    subnet = next(subnet for subnet in SUBNETS if subnet.version == address.version)
    return not flows.is_closed(flow, {address.packed: AddressPolicy(subnet, made)}, set())


def every(made: Policy, address: Address, port: int) -> set[bool]:
    """Return the results of the pure decision, the table's rules and the check of established flows, for one port."""
    return {passes(made.accepts, NEW, port, OUT[address]), enters(made, address, port), stays(made, address, port)}


@BOTH
def test_an_open_policy_that_denies_the_protocol_closes_it(address: Address) -> None:
    """`fw.policy: open` with `fw.deny: */NEW` closes the protocol on each port, in all places, and everything else
    stays open."""
    made = policy(policy="open", deny=f"*/{NEW}")
    for port in (1, 22, 4000, 65535):
        assert every(made, address, port) == {False}
    assert every(policy(policy="open"), address, 4000) == {True}
    assert enters(made, address, 4000, socket.IPPROTO_UDP)
    assert enters(made, address, 0, 47)
    assert enters(made, address, 0, 89), "protocols without an entry stay open"


@BOTH
def test_one_port_of_it_is_denied(address: Address) -> None:
    """`fw.policy: open` with `fw.deny: 4000/NEW` closes that port only."""
    made = policy(policy="open", deny=f"4000/{NEW}")
    assert every(made, address, 4000) == {False}
    assert every(made, address, 3999) == every(made, address, 4001) == {True}


@BOTH
def test_it_is_closed_unless_a_rule_opens_it(address: Address) -> None:
    """The protocol is closed without a label; `fw.allow` opens its ports, to all or to some."""
    assert every(policy(), address, 4000) == every(policy(), address, 443) == {False}
    made = policy(allow=f"4000-4100/{NEW}, 5000/{NEW} from {OUT[address]}, 5001/{NEW} from 192.0.2.1")
    assert every(made, address, 4000) == every(made, address, 4100) == every(made, address, 5000) == {True}
    assert every(made, address, 4101) == every(made, address, 5001) == {False}
    assert not enters(policy(allow="4000/udp"), address, 4000)


@BOTH
def test_it_leaves_only_if_a_rule_lets_it(address: Address) -> None:
    """`fw.egress` applies to the protocol as to any other."""
    for egress, free in (
        ("none", False),
        ("*/udp", False),
        (f"4000/{NEW}", True),
        (f"4000/{NEW} to {OUT[address]}", True),
    ):
        made = policy(egress=egress)
        assert leaves(made, address, 4000) is stays(made, address, 4000, outbound=True) is free
        assert not leaves(made, address, 4001)
        assert not stays(made, address, 4001, outbound=True)
    assert leaves(policy(egress="all"), address, 4000)


def test_it_is_kept_over_restarts() -> None:
    """Rules for it are written to the state file, and read back."""
    (rule,) = parse({"fw.allow": f"4000/{NEW}"}).spec.allow
    assert codec.rule({"proto": NEW, "first": 4000, "last": 4000}) == rule == Rule(NEW, 4000, 4000)


def test_messages_name_it() -> None:
    """A mistyped protocol gets a message with the new one, and its drops are shown with its name and port."""
    (problem,) = parse({"fw.allow": "80/tpc"}).problems
    assert f"(tcp, udp, sctp or {NEW})" in problem.text
    packet = bytes([0x45, 0, 0, 28, 0, 0, 0, 0, 64, NUMBER, 0, 0]) + OUT[V4].packed + V4.packed
    dropped = header(packet + struct.pack("!HHHH", 40000, 4000, 8, 0))
    assert dropped
    assert (dropped.proto, dropped.port) == (NEW, 4000)
    drop = dict.fromkeys(("from_container", "to_container", "icmp_type", "reason"))
    drop |= {"proto": NEW, "port": 4000, "from": "a", "to": "b", "direction": "to"}
    assert line(drop).startswith(f"b 4000/{NEW} from a")


def test_what_cannot_be_published_is_refused() -> None:
    """Docker and `fwctl check` get an error for `-p` with a protocol whose entry says that it cannot be published."""
    with pytest.raises(FwError, match="only tcp, udp and sctp can be published"):
        port_bindings({"Options": {"com.docker.network.portmap": [{"Proto": NUMBER, "Port": 80}]}})
    found = _short(Value(f"80:80/{NEW}", Place("compose.yml", 1)))
    assert isinstance(found, str)
    assert "is not a protocol (tcp, udp or sctp)" in found
