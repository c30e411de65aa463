"""An outsider, a host, and containers on the host's bridges, created by the plugin's own code.

with Site() as site:
    net = site.network(1)                         # a docker-fw bridge: 10.1.0.1/24, 2001:db8:1::1/64
    web = site.box(net, 2)                        # a container on it: 10.1.0.2, 2001:db8:1::2
    site.load(site.known(web, Rule("tcp", 8080, 8080)))
    site.deliver([tcp(site.OUT4, web.v4, 8080, 1)])  # → the packets that arrived
    site.wan.probe.tcp(str(web.v4), 8080)         # or the lab's probes
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType
from typing import Any

import pytest

from plugin.kernel import netlink as nl
from plugin.kernel.links import Links, mac_of
from plugin.kernel.names import bridge_name, container_side
from plugin.kernel.sysctl import Sysctl
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, PolicySpec, Published, Rule
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.elements import guarded_elements, guest_elements
from plugin.nftables.sets import WATCHED, Element
from plugin.nftables.table import KernelTable
from plugin.policy import decide
from plugin.policy.facts import EGRESS, BridgeFacts, ElementOwner, Facts, Kind
from plugin.policy.saved import SavedState
from tests.kernel.netns import inside
from tests.kernel.packets import Listener, Packet, Sender, Sniffer, arrived, icmp, new_flow, ping, written
from tests.lab import NamedNetns, Wan
from tests.lab.claims import Claim
from tests.waiting import until

MARK = 0x08000000
#: A bridge name as Docker chooses one.
BR_DOCKER = "br-0123456789ab"
#: For `Site.host.sysctl`: frames within a bridge do not pass the host's IP rules and its connection tracking.
BRIDGED_FRAMES_UNTRACKED = {f"net/bridge/bridge-nf-call-{kind}": 0 for kind in ("iptables", "ip6tables")}
#: Settings without any policy.
PLAIN = Defaults()
_names = itertools.count(1)


class Box(NamedNetns):
    """A container: a network namespace with `eth0` on a bridge of the host."""

    def __init__(self, name: str, network: Network | None, endpoint: Endpoint) -> None:
        super().__init__(name)
        self.network = network
        self.endpoint = endpoint

    @property
    def v4(self) -> IPv4Address:
        assert self.endpoint.addr4
        return self.endpoint.addr4

    @property
    def v6(self) -> IPv6Address:
        assert self.endpoint.addr6
        return self.endpoint.addr6

    def address(self, version: int) -> Any:
        """Return its IPv4 (4) or IPv6 (6) address."""
        return self.v4 if version == 4 else self.v6


def claimed(*bridges: str) -> set[Element]:
    """Return the elements for bridges that Docker claims, with any containers, while docker-fw follows Docker."""
    return set(WATCHED) | {
        element
        for bridge in bridges
        for element in (
            Element("dockers", (bridge,)),
            Element("protected_bridges", (bridge,)),
            Element("same_bridge", (bridge, bridge)),
        )
    }


def docker_network(name: str, bridge: str, number: int) -> BridgeNetwork:
    """Return the network of `Site.docker_box`'s containers with this number, as Docker lists it."""
    subnets = (IPv4Network(f"10.{number}.0.0/24"), IPv6Network(f"2001:db8:{number}::/64"))
    return BridgeNetwork(name.ljust(64, "d"), name, bridge, subnets)


def seen(*bridges: str) -> BridgeFacts:
    """Return the same as facts."""
    return BridgeFacts(dockers=frozenset(bridges), guarded=frozenset(bridges), there=frozenset(bridges))


def egress_restricting(bridge: str) -> set[Element]:
    """Return the element that stops unknown addresses on a bridge from initiating."""
    return {Element("egress_restricted", (bridge,))}


def of_endpoint(inventory: ElementCompiler, endpoint: Endpoint) -> frozenset[Element]:
    """Return the elements of an endpoint on a docker-fw network, with those that its network gets because of it."""
    return inventory.elements(ElementOwner(Kind.ENDPOINT, endpoint.id)) | inventory.elements(EGRESS)


class Site:
    """One host (`host`, eth0: 198.51.100.1, 2001:db8:ffff::1) and an outsider on the wan (`wan`)."""

    HOST4, HOST6 = IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ffff::1")
    #: the outsider's addresses that the host sends to by its default route
    OUT4, OUT6 = IPv4Address(Wan.FAR_V4), IPv6Address(Wan.FAR_V6)

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._claim = Claim("k")
        self._stack.callback(self._claim.release)
        self.wan = self._stack.enter_context(Wan())
        self.host = NamedNetns(self._name("h"))
        self.host.make()
        self.wan.wire(self.wan.attach(), self.host)
        self.networks: dict[str, Network] = {}
        self.boxes: list[Box] = []
        with self.inside():
            self.nft = KernelTable(MARK)
            self.sysctl = Sysctl("/proc/sys/net")
            self.links = Links(self.sysctl)
        self._senders: dict[str, Sender] = {}
        self._sniffers: dict[str, Sniffer] = {}
        self._listener: Listener | None = None
        self._neighbours(self.host, "eth0", self.wan, "lan", Wan.V4, Wan.V6)
        self._neighbours(self.wan, "lan", self.host, "eth0", str(self.HOST4), str(self.HOST6))

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for thing in (*self._senders.values(), *self._sniffers.values(), self._listener):
            if thing:
                thing.close()
        self._stack.close()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Put this thread into the host's network namespace."""
        with inside(self.host.path):
            yield

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine on the host."""
        return self.host.run(argv, check=check, input=input)

    # --- networks and containers ----------------------------------------------------------------------------------

    def network(self, number: int, *, forward: bool = True, **fields: Any) -> Network:
        """Add a network 10.NUMBER.0.0/24, 2001:db8:NUMBER::/64 (unless `fields` differ), and its bridge."""
        network_id = f"{number:012x}".ljust(64, "0")
        network = dataclasses.replace(
            Network(
                network_id,
                bridge_name(network_id),
                IPv4Interface(f"10.{number}.0.1/24"),
                IPv6Interface(f"2001:db8:{number}::1/64"),
                masquerade=False,
            ),
            **fields,
        )
        with self.inside():
            self.links.make_bridge(network)
            if forward:
                self.sysctl.forward(self.sysctl.missing(dataclasses.replace(network, internal=False)))
        self.networks[network.id] = network
        return network

    def box(self, network: Network, number: int) -> Box:
        """Add a container on a docker-fw network, by the plugin's own veth pair; its labels are not known."""
        four = network.gateway4.network[number] if network.gateway4 else None
        six = network.gateway6.network[number] if network.gateway6 else None
        assert isinstance(four, IPv4Address | None)
        assert isinstance(six, IPv6Address | None)
        endpoint = Endpoint(
            f"{next(_names):012x}".ljust(64, "e"), network.id, four, six, mac_of(four, six), joined=True
        )
        box = Box(self._name("c"), network, endpoint)
        box.make()
        with self.inside():
            self.links.attach(network, endpoint)
        self._settle(box, container_side(endpoint.id), network.bridge, network.gateway4, network.gateway6)
        return box

    def docker_box(self, bridge: str, number: int, host: int = 2) -> Box:
        """Add a container, 10.NUMBER.0.HOST, on a bridge that is not docker-fw's.

        The bridge is created if it does not exist, with a MAC of its own as Docker does it. Otherwise its MAC would be
        another one after a later container, and the earlier containers would send to the old one.
        """
        gateway4, gateway6 = IPv4Interface(f"10.{number}.0.1/24"), IPv6Interface(f"2001:db8:{number}::1/64")
        if self.run("ip", "link", "show", bridge, check=False).returncode:
            self.host.ip(
                f"link add {bridge} address 02:42:0a:{number:02x}:00:01 type bridge",
                f"addr add {gateway4} dev {bridge}",
                f"addr add {gateway6} dev {bridge} nodad",
                f"link set {bridge} up",
            )
        endpoint = Endpoint(
            f"{next(_names):012x}".ljust(64, "e"), "", gateway4.network[host], gateway6.network[host], joined=True
        )
        box = Box(self._name("d"), None, endpoint)
        box.make()
        inner, port = container_side(endpoint.id), f"d{number}" + ("" if host == 2 else f".{host}")
        self.host.ip(f"link add {port} type veth peer name {inner}", f"link set {port} master {bridge} up")
        self._settle(box, inner, bridge, gateway4, gateway6)
        return box

    @staticmethod
    def docker_elements(
        box: Box,
        bridge: str,
        *allow: Rule,
        known: bool = True,
        published: tuple[Published, ...] = (),
        defaults: Defaults = PLAIN,
        spec: PolicySpec | None = None,
        **fields: Any,
    ) -> set[Element]:
        """Return the table's elements for a container on a Docker bridge (of this name, so not docker-fw's).

        Its policy is `allow`, or all of `spec`; `published` are its ports, in addition to the box's own.
        """
        network = BridgeNetwork("d" * 64, "app_default", bridge, **fields)
        container = Container("c" * 64, "web", spec or PolicySpec(allow=allow)) if known else None
        endpoint = dataclasses.replace(
            box.endpoint, container=container, published=(*box.endpoint.published, *published)
        )
        decided = decide.of(network, endpoint, defaults)
        found = {*guarded_elements(network), *guest_elements(network, endpoint, decided), *claimed(bridge)}
        return found if decided.egress is None else found | egress_restricting(bridge)

    def index(self, link: str) -> int:
        """Return the kernel's index of a link of the host."""
        return int(self.run("ip", "-o", "link", "show", link).stdout.split(":")[0])

    def lan_box(self, number: int) -> Box:
        """Add a machine on a further link of the host, 192.168.NUMBER.2 and 2001:db8:NUMBER::2; no bridge."""
        gateway4, gateway6 = IPv4Interface(f"192.168.{number}.1/24"), IPv6Interface(f"2001:db8:{number}::1/64")
        endpoint = Endpoint("f" * 64, "", gateway4.network[2], gateway6.network[2])
        box = Box(self._name("l"), None, endpoint)
        box.make()
        link, inner = f"lan{number}", f"inner{number}"
        self.host.ip(
            f"link add {link} type veth peer name {inner}",
            f"addr add {gateway4} dev {link}",
            f"addr add {gateway6} dev {link} nodad",
            f"link set {link} up",
        )
        self._settle(box, inner, link, gateway4, gateway6)
        return box

    def settle(self, inner: str, bridge: str, addresses: tuple[str, str], gateways: tuple[str, str]) -> Box:
        """Add a container whose link was created elsewhere (by the running plugin); addresses with prefix length."""
        four, six = IPv4Interface(addresses[0]), IPv6Interface(addresses[1])
        box = Box(self._name("m"), None, Endpoint("f" * 64, "", four.ip, six.ip, joined=True))
        box.make()
        self._settle(
            box,
            inner,
            bridge,
            IPv4Interface((gateways[0], four.network.prefixlen)),
            IPv6Interface((gateways[1], six.network.prefixlen)),
        )
        return box

    def _settle(
        self, box: Box, inner: str, bridge: str, gateway4: IPv4Interface | None, gateway6: IPv6Interface | None
    ) -> None:
        """Do what Docker does after Join: move the link, name and address it, add the default routes."""
        self.host.ip(f"link set {inner} netns {box.name} name eth0")
        lines = []
        for address, gateway in ((box.endpoint.addr4, gateway4), (box.endpoint.addr6, gateway6)):
            if address and gateway:
                nodad = "nodad" if address.version == 6 else ""
                lines.append(f"addr add {address}/{gateway.network.prefixlen} dev eth0 {nodad}")
        box.ip(*lines, "link set eth0 up", *(f"route add default via {g.ip}" for g in (gateway4, gateway6) if g))
        until(lambda: self._forwards(bridge) and _carries(box, "eth0"), f"{bridge} has a carrier")
        gateways = [str(g.ip) for g in (gateway4, gateway6) if g]
        self._neighbours(box, "eth0", self.host, bridge, *gateways)
        addresses = [str(a) for a in (box.endpoint.addr4, box.endpoint.addr6) if a]
        self._neighbours(self.host, bridge, box, "eth0", *addresses)
        self.boxes.append(box)

    def _forwards(self, bridge: str) -> bool:
        """True if a bridge and its ports carry packets."""
        ports = self.host.run(["ip", "-o", "link", "show", "master", bridge], check=False).stdout.splitlines()
        return _carries(self.host, bridge) and not any("LOWER_UP" in each and "qdisc noop " in each for each in ports)

    def acquaint(self, *boxes: Box) -> None:
        """Make the neighbours of containers of one network permanent, and those of the host."""
        for here, there in itertools.permutations(boxes, 2):
            self._neighbours(here, "eth0", there, "eth0", str(there.v4), str(there.v6))

    def resolve(self, link: str, box: Box, *addresses: str) -> None:
        """Make these addresses permanent neighbours of the host by this link: they are the box's."""
        self._neighbours(self.host, link, box, "eth0", *addresses)

    def _neighbours(self, here: NamedNetns, link: str, there: NamedNetns, its_link: str, *addresses: str) -> None:
        """Add permanent neighbour entries.

        So no packet waits for resolution, and none is judged as neighbour discovery.
        """
        mac = there.run(["ip", "-o", "link", "show", its_link]).stdout.split("link/ether ")[1].split()[0]
        here.ip(*(f"neigh replace {a} lladdr {mac} dev {link} nud permanent" for a in addresses))

    def _name(self, kind: str) -> str:
        name = f"{self._claim.name}{kind}{next(_names)}"
        self._claim.record.netns.append(name)
        self._claim.save()
        return name

    # --- policy ---------------------------------------------------------------------------------------------------

    @staticmethod
    def known(box: Box, *allow: Rule, spec: PolicySpec | None = None, **fields: Any) -> Endpoint:
        """Return the box's endpoint with its labels known: `allow`, or all of `spec`."""
        container = Container("c" * 64, "web", spec or PolicySpec(allow=allow))
        return dataclasses.replace(box.endpoint, container=container, **fields)

    def inventory(self, *endpoints: Endpoint, defaults: Defaults = PLAIN) -> ElementCompiler:
        """Return the facts of every docker-fw network, and of these endpoints."""
        return compiled(
            defaults, Facts(SavedState(dict(self.networks), {endpoint.id: endpoint for endpoint in endpoints}))
        )

    def load(self, *endpoints: Endpoint, more: Iterable[Element] = (), defaults: Defaults = PLAIN) -> None:
        """Load the table, with these endpoints and no others known."""
        self.nft.replace({*self.inventory(*endpoints, defaults=defaults).all_elements(), *more})

    # --- packets --------------------------------------------------------------------------------------------------

    def forget_flows(self) -> None:
        """Forget all flows: no packet belongs to an earlier one."""
        with self.inside(), nl.open_socket() as sock:
            nl.request(sock, (1 << 8) | 2, nl.NLM_F_ACK, nl.nfgen(0))  # IPCTNL_MSG_CT_DELETE, of everything

    def send(self, packets: Iterable[Packet], source: NamedNetns | None = None) -> None:
        """Send packets from the outsider, or from `source`."""
        packets = list(packets)
        if self._listener:
            self._listener.expect(packets)
        netns = (source or self.wan).path
        if netns not in self._senders:
            self._senders[netns] = Sender(netns)
        self._senders[netns](packets)

    def sniffer(self, netns: NamedNetns) -> Sniffer:
        if netns.path not in self._sniffers:
            self._sniffers[netns.path] = Sniffer(netns.path, "lan" if netns is self.wan else "eth0")
        return self._sniffers[netns.path]

    @property
    def listener(self) -> Listener:
        """Return the listener for packets that reach the host itself."""
        self._listener = self._listener or Listener(self.host.path)
        return self._listener

    def deliver(
        self,
        packets: Iterable[Packet],
        to: NamedNetns,
        source: NamedNetns | None = None,
        last: Packet | None = None,
        witness: NamedNetns | None = None,
    ) -> set[Packet]:
        """Send packets from the outsider (or `source`) and return which of them arrived at `to`.

        No time-out decides: a last packet follows on the same path, an echo request by default; or one from `witness`,
        if the packets on that path may not pass.
        """
        packets = list(packets)
        if last is None:
            last = ping(written(packets[-1].src), written(packets[-1].dst))
        sniffer = self.sniffer(to)
        for _ in sniffer.read():
            pass  # earlier packets
        self.send(packets, source)
        self.send([last], witness or source)
        try:
            (seen,) = arrived([sniffer], last)
        except AssertionError as lost:
            lost.add_note(self.where_packets_may_be())
            raise
        return seen & set(packets)

    def where_packets_may_be(self) -> str:
        """Return what the host knows of packets that did not arrive: counters, neighbours, routes and flows."""
        commands = ("ip -s link", "ip neigh", "ip route", "ip -6 route", "conntrack -L -f ipv6", "conntrack -S")
        said = [self.run(*command.split(), check=False).stdout for command in commands]
        said += [self.run("nft", "list", "counters", check=False).stdout, self.wan.run(["ip", "neigh"]).stdout]
        return "\n".join(said)


def _carries(netns: NamedNetns, link: str) -> bool:
    """True if packets can leave by a link.

    The kernel drops them for a moment after the link has its carrier, until a worker has given it a queue
    (`linkwatch_do_dev` in net/core/link_watch.c): seconds on a busy machine.
    """
    shown = netns.run(["ip", "-o", "link", "show", link]).stdout
    return "LOWER_UP" in shown and "qdisc noop " not in shown


def site_of_module(sysctls: Mapping[str, int | str] = MappingProxyType({})) -> Any:
    """Return the fixture `site` of a module: one host with an outsider for all of its tests, with these sysctls."""

    @pytest.fixture(scope="module")
    def site() -> Iterator[Site]:
        with Site() as made:
            made.host.sysctl(sysctls)
            yield made

    return site


_source_ports = itertools.cycle(range(20000, 60000))


def arriving(site: Site, to: Box, source: Box | None = None, pairs: Iterable[tuple[Any, Any]] = ()) -> set[str]:
    """Return the ports on which a new flow reaches the container in both families, of some of each protocol."""
    sent: dict[Packet, tuple[str, int]] = {}
    four, six = (source.v4, source.v6) if source else (Site.OUT4, Site.OUT6)
    pairs = list(pairs) or [(four, to.v4), (six, to.v6)]
    for src, dst in pairs:
        for proto in ("tcp", "udp", "sctp"):
            for port in (21, 22, 53, 80, 443, 8080):
                sent[new_flow(proto, src, dst, port, next(_source_ports))] = (f"{port}/{proto}", dst.version)
    got = {sent[packet] for packet in site.deliver(sent, to, source, icmp(pairs[-1][0], pairs[-1][1], 128))}
    names = {name for name, _ in got}
    assert got == {(name, family) for name in names for family in {dst.version for _, dst in pairs}}
    return names
