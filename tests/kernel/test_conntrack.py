"""Established flows outlive the rule that accepted them: the intended flows are cut, and no other."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plugin.kernel import conntrack
from plugin.model import Address, AddressPolicy, Policy, Published, Rule
from plugin.policy.decide import BASE
from plugin.state.closed_flows import cut_closed
from tests.kernel.packets import Packet, new_flow, ping, udp
from tests.kernel.site import Box, Site, site_of_module

site = site_of_module()


@pytest.fixture(scope="module")
def boxes(site: Site) -> Iterator[tuple[Box, Box]]:
    """Yield two containers with servers, so that no reset ends a flow at once."""
    network = site.network(1)
    one, two = site.box(network, 2), site.box(network, 3)
    with one.probe.serve(tcp=[53, 80]), two.probe.serve(tcp=[53, 80]), site.wan.probe.serve(tcp=[80]):
        yield one, two


@pytest.fixture(autouse=True)
def _fresh(site: Site, boxes: tuple[Box, Box]) -> None:
    """Start without flows, and with a table that accepts what the tests send."""
    site.load(*(site.known(box, Rule("udp", 53, 53), Rule("sctp", 9, 9)) for box in boxes))
    site.forget_flows()


Flow = tuple[str, str, str, str, str]


def flows(site: Site) -> set[Flow]:
    """Return every flow that the host's kernel tracks.

    A flow is (protocol, source, destination, destination port, source port).
    """
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in site.run("conntrack", "-L", "-f", family, check=False).stdout.splitlines():
            proto, src, dst = line.split()[0], *re.findall(r"(?:src|dst)=(\S+)", line)[:2]
            dport, sport = (re.search(rf"{which}port=(\d+)", line) for which in "ds")
            if proto != "unknown":  # the kernel's own IGMP
                found.add((proto, src, dst, dport[1] if dport else "", sport[1] if sport else ""))
    return found


def involving(site: Site, address: Address) -> set[Flow]:
    return {flow for flow in flows(site) if str(address) in flow[1:3]}


def make_flows(site: Site, box: Box) -> None:
    """Open flows of every kind, to the box and from it, in both families."""
    for out, address in ((Site.OUT4, box.v4), (Site.OUT6, box.v6)):
        inward: list[Packet] = [new_flow(p, out, address, n, 1000) for p, n in (("tcp", 80), ("udp", 53), ("sctp", 9))]
        site.deliver([*inward, ping(out, address)], box)
        outward = [new_flow(p, address, out, n, 2000) for p, n in (("tcp", 80), ("udp", 53))]
        site.deliver([*outward, ping(address, out)], site.wan, box)


def test_every_flow_of_an_address_is_cut(site: Site, boxes: tuple[Box, Box]) -> None:
    """When an address is released, no flow from or to it remains, of any protocol; its neighbour's flows all do."""
    gone, stays = boxes
    make_flows(site, gone)
    make_flows(site, stays)
    kept = {address: involving(site, address) for address in (stays.v4, stays.v6)}
    assert len(kept[stays.v4]) >= 7
    assert len(kept[stays.v6]) >= 7
    for addresses in ([gone.v4], [gone.v6], [gone.v6, gone.v4]):
        make_flows(site, gone)
        assert all(len(involving(site, address)) >= 7 for address in addresses)
        with site.inside():
            conntrack.cut_addresses(addresses)
        assert [involving(site, address) for address in addresses] == [set()] * len(addresses)
    assert {address: involving(site, address) for address in kept} == kept


def test_the_next_owner_of_an_address_inherits_nothing(site: Site, boxes: tuple[Box, Box]) -> None:
    """A connection that was open to the last owner of an address is closed to the next, from its first packet."""
    gone, _ = boxes
    site.deliver([udp(Site.OUT6, gone.v6, 53, 4000)], gone)
    site.send([udp(gone.v6, Site.OUT6, 4000, 53)], gone)  # a reply: established
    site.load()  # the address's next owner is not known yet
    still = udp(Site.OUT6, gone.v6, 53, 4000, b"still")
    assert site.deliver([still], gone) == {still}, "an established flow outlives its rule"
    with site.inside():
        conntrack.cut_addresses([gone.v6])
    assert site.deliver([udp(Site.OUT6, gone.v6, 53, 4000, b"again")], gone) == set()


def test_a_translated_flow_is_cut_by_the_containers_address(site: Site, boxes: tuple[Box, Box]) -> None:
    """A flow to a published port has the container's address in its replies only; it is cut all the same."""
    box, _ = boxes
    port = Published("udp", IPv4Address("0.0.0.0"), 5353, 53)
    six = Published("udp", IPv6Address("::"), 5353, 53)
    site.load(site.known(box, Rule("udp", 53, 53), published=(port, six)))
    for out, host, address in ((Site.OUT4, Site.HOST4, box.v4), (Site.OUT6, Site.HOST6, box.v6)):
        site.deliver([udp(out, host, 5353, 6000)], box, last=ping(out, address))
        (flow,) = flows(site) - {f for f in flows(site) if f[0].startswith("icmp")}
        assert flow == ("udp", str(out), str(host), "5353", "6000")
        with site.inside():
            conntrack.cut_addresses([address])
        assert flows(site) == set()


def test_a_published_ports_old_flows_are_cut(site: Site, boxes: tuple[Box, Box]) -> None:
    """UDP that arrived before its port was published still reaches the host until its flow is cut."""
    box, _ = boxes
    site.run("nft", "add table inet track; add chain inet track i { type filter hook input priority 0; }")
    for out, host in ((Site.OUT4, Site.HOST4), (Site.OUT6, Site.HOST6)):
        with site.host.probe.serve(udp=[5353, 5354]):
            site.send([udp(out, host, port, 6001) for port in (5353, 5354)])
            site.wan.probe.ping(str(host))
        before = {f for f in flows(site) if f[0] == "udp" and f[2] == str(host)}
        assert {f[3] for f in before} == {"5353", "5354"}
        any_ = IPv4Address("0.0.0.0") if host.version == 4 else IPv6Address("::")
        with site.inside():
            conntrack.cut_published([Published("udp", any_, 5353, 53)])
        assert {f for f in flows(site) if f[0] == "udp" and f[2] == str(host)} == {f for f in before if f[3] == "5354"}
    del box


def test_only_the_hosts_own_port_of_that_protocol_and_family(site: Site, boxes: tuple[Box, Box]) -> None:
    """Cutting udp/53 of IPv4 leaves tcp and IPv6 alone, and flows to other hosts' ports of that number."""
    box, _ = boxes
    site.load(site.known(box, Rule("udp", 53, 53), Rule("tcp", 53, 53)))
    site.run("nft", "add table inet track; add chain inet track i { type filter hook input priority 0; }")
    to = [(out, a) for out, a in ((Site.OUT4, box.v4), (Site.OUT6, box.v6))]
    to += [(Site.OUT4, Site.HOST4), (Site.OUT6, Site.HOST6)]
    with site.host.probe.serve(udp=[53]):
        for out, address in to:
            site.send([new_flow(proto, out, address, 53, 7000) for proto in ("tcp", "udp")])
            site.wan.probe.ping(str(address))
    before = {(proto, dst) for proto, _, dst, port, _ in flows(site) if port == "53"}
    assert before >= {(proto, str(a)) for proto in ("tcp", "udp") for _, a in to[:2]}
    assert ("udp", str(Site.HOST4)) in before
    with site.inside():
        conntrack.cut_published([Published("udp", IPv4Address("0.0.0.0"), 53, 53)])
    left = {(proto, dst) for proto, _, dst, port, _ in flows(site) if port == "53"}
    assert left == before - {("udp", str(Site.HOST4))}


def test_a_port_of_one_address_is_not_that_of_another(site: Site, boxes: tuple[Box, Box]) -> None:
    """One port number is published on two addresses of the host: cutting one's flows leaves the other's alone.

    A client that may continue through the one may not continue through the other.
    """
    more4, more6 = IPv4Address("198.51.100.9"), IPv6Address("2001:db8:ffff::9")
    site.host.ip(f"addr replace {more4}/24 dev eth0", f"addr replace {more6}/64 dev eth0 nodad")
    site.run("nft", "add table inet track; add chain inet track i { type filter hook input priority 0; }")
    ways = [(Site.OUT4, Site.HOST4), (Site.OUT4, more4), (Site.OUT6, Site.HOST6), (Site.OUT6, more6)]

    def talked_to() -> set[str]:
        return {f[2] for f in flows(site) if f[3] == "5355"}

    def talk() -> None:
        with site.host.probe.serve(udp=[5355]):
            for out, host in ways:
                site.send([udp(out, host, 5355, 6002)])
                site.wan.probe.ping(str(host))
        assert talked_to() == {str(host) for _, host in ways}

    talk()
    with site.inside():
        conntrack.cut_published([Published("udp", Site.HOST4, 5355, 53), Published("udp", Site.HOST6, 5355, 53)])
    assert talked_to() == {str(more4), str(more6)}
    talk()
    ports = [Published("udp", host, 5355, 53) for _, host in ways]
    with site.inside():
        conntrack.cut_published(ports, lambda port, source: port.host_ip in (Site.HOST4, Site.HOST6))
    assert talked_to() == {str(Site.HOST4), str(Site.HOST6)}
    del boxes


def test_only_outsiders_flows_to_closed_ports_are_cut(site: Site, boxes: tuple[Box, Box]) -> None:
    """When the rules are active again, permitted flows, the container's own, its host's and ping continue.

    Others end.
    """
    box, _ = boxes
    make_flows(site, box)
    site.send([new_flow("udp", "10.1.0.1", box.v4, 5353, 3000), ping("10.1.0.1", box.v4)], site.host)
    site.send([new_flow("udp", "2001:db8:1::1", box.v6, 5353, 3000)], site.host)
    subnets = ((box.v4, IPv4Network("10.1.0.0/24")), (box.v6, IPv6Network("2001:db8:1::/64")))
    before = flows(site)
    closed = {flow for flow in before if flow[0] in ("udp", "sctp") and flow[3] in ("53", "9") and flow[4] == "1000"}
    assert len(closed) == 4
    assert len([flow for flow in before if flow[3] == "5353"]) == 2
    with site.inside():
        cut_closed({address: AddressPolicy(subnet, Policy(accepts=BASE)) for address, subnet in subnets})
    assert flows(site) == before - closed


def test_icmp_that_no_rule_would_let_in_is_cut(site: Site, boxes: tuple[Box, Box]) -> None:
    """After a time without rules a ping continues, except to an internal network; other ICMP requests end."""
    box, _ = boxes
    site.deliver([ping(Site.OUT4, box.v4), ping(Site.OUT6, box.v6)], box)
    subnets = ((box.v4, IPv4Network("10.1.0.0/24")), (box.v6, IPv6Network("2001:db8:1::/64")))
    pings = {flow for flow in flows(site) if flow[0].startswith("icmp")}
    assert len(pings) >= 2
    asks = ("-s", str(Site.OUT4), "-d", str(box.v4), "-p", "icmp", "--icmp-type", "13", "--icmp-code", "0")
    site.run("conntrack", "-I", *asks, "--icmp-id", "7", "-t", "60")
    before = flows(site)
    with site.inside():
        cut_closed({address: AddressPolicy(subnet, Policy()) for address, subnet in subnets})
    left = site.run("conntrack", "-L", check=False).stdout
    assert "type=8" in left
    assert "type=13" not in left
    assert flows(site) <= before
    with site.inside():
        cut_closed({address: AddressPolicy(subnet, Policy(), internal=True) for address, subnet in subnets})
    assert not pings & flows(site)


def test_flows_from_an_internal_network_are_cut(site: Site, boxes: tuple[Box, Box]) -> None:
    """Flows opened from an internal network while no rule blocked them end, though the container may initiate all."""
    box, _ = boxes
    make_flows(site, box)
    opened = {flow for flow in flows(site) if flow[1] in (str(box.v4), str(box.v6))}
    assert len(opened) >= 4
    subnets = ((box.v4, IPv4Network("10.1.0.0/24")), (box.v6, IPv6Network("2001:db8:1::/64")))
    with site.inside():
        cut_closed({address: AddressPolicy(subnet, Policy(), internal=True) for address, subnet in subnets})
    assert not opened & flows(site)


def test_docker_proxys_sctp_is_cut(site: Site) -> None:
    """docker-proxy serves SCTP as well: an association to a published port ends with the others."""
    site.run("nft", "add table inet track; add chain inet track i { type filter hook input priority 0; }")
    # Without SCTP the host reports that it has none, which is no reply of the flow's.
    site.send([new_flow("sctp", Site.OUT4, Site.HOST4, port, 6002) for port in (3868, 3869)])
    site.wan.probe.ping(str(Site.HOST4))
    assert {f[3] for f in flows(site) if f[0] == "sctp"} == {"3868", "3869"}
    with site.inside():
        conntrack.cut_published([Published("sctp", IPv4Address("0.0.0.0"), 3868, 3868)])
    assert {f[3] for f in flows(site) if f[0] == "sctp"} == {"3869"}


def test_cutting_without_flows_is_no_error(
    site: Site, boxes: tuple[Box, Box], caplog: pytest.LogCaptureFixture
) -> None:
    """Cutting an address or a port without flows logs nothing, and ends none of the others' flows."""
    make_flows(site, boxes[0])
    before = flows(site)
    assert len(before) >= 14
    with site.inside():
        conntrack.cut_addresses([IPv4Address("192.0.2.99"), IPv6Address("2001:db8:99::99")])
        conntrack.cut_published([Published("udp", any_, 1, 1) for any_ in (IPv4Address("0.0.0.0"), IPv6Address("::"))])
        cut = conntrack.cut_prefixes([IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8:99::/48")])
    assert cut == conntrack.Cut()
    assert flows(site) == before
    assert caplog.messages == []


def test_flows_that_cannot_be_listed_are_an_error_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel refuses to list flows, the log reports an error, not a cut, and the caller continues."""

    def refused(*_: object) -> object:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(conntrack.nl, "kept_socket", refused)
    with site.inside():
        conntrack.cut_addresses([Site.OUT4])
    assert caplog.messages == ["could not cut flows: [Errno 1] Operation not permitted"]


def test_thousands_of_flows(site: Site, boxes: tuple[Box, Box]) -> None:
    """The kernel finds the flows itself: one address's thousands are removed, and the other's stay."""
    gone, stays = boxes
    for box in boxes:
        site.deliver([udp(Site.OUT6, box.v6, 53, port) for port in range(10000, 12000)], box)
    assert len(involving(site, gone.v6)) >= 2000
    with site.inside():
        conntrack.cut_addresses([gone.v6])
    assert involving(site, gone.v6) == set()
    assert len(involving(site, stays.v6)) >= 2000
