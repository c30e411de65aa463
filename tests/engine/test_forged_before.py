"""Test flows that an outsider forges before a Docker network exists, on a real engine of a host that routes.

The host forwards between its outside links, as a router does, and the network's gateway mode is `routed`. Otherwise
Docker's own rules drop such packets first: the policy of FORWARD, and from Docker 28 on `raw PREROUTING`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from tests.engine.outside import dockers
from tests.kernel.packets import Packet, Sender, Sniffer, arrived, ping, udp
from tests.lab.netns import FORWARDING
from tests.product import Fw
from tests.waiting import until

#: Addresses that the outsider sends from, and that the host routes to it.
FAR = ("203.0.113.99", "2001:db8:5::99")
#: A network that the outsider guesses, and the address of a container on it.
SUBNETS, ADDRESSES = ("10.89.0.0/24", "2001:db8:89::/64"), ("10.89.0.2", "2001:db8:89::2")
ROUTED = [f"com.docker.network.bridge.gateway_mode_ipv{n}=routed" for n in (4, 6)]


@contextmanager
def forwarding(fw: Fw) -> Iterator[None]:
    """Let the host forward packets between its outside links."""
    fw.host.netns.sysctl(FORWARDING)
    commands = ("iptables", "ip6tables")
    before = {command: fw.host.run([command, "-S", "FORWARD"]).stdout.split()[2] for command in commands}
    fw.wan.route(1, *FAR)
    for command in commands:
        fw.host.run([command, "-P", "FORWARD", "ACCEPT"])
    try:
        yield
    finally:
        for command, verdict in before.items():
            fw.host.run([command, "-P", "FORWARD", verdict])
        fw.wan.ip(*(f"route del {address}" for address in FAR))


def forged(fw: Fw) -> tuple[list[Packet], list[Packet]]:
    """Return first packets of flows from these addresses to the outsider, and the outsider's replies to them.

    Where docker-fw enabled forwarding of IPv6, for a network of another test, it drops what the host only forwards.
    Docker enables that of IPv4.
    """
    closed = fw.host.run(["nft", "list", "set", "inet", "docker-fw", "no_transit"]).stdout
    pairs = list(zip(ADDRESSES, FAR, strict=True))[: 1 if "ipv6" in closed else 2]
    return [udp(a, far, 53, 4000) for a, far in pairs], [udp(far, a, 4000, 53) for a, far in pairs]


#: These flows' ports, as conntrack shows them.
PORTS = "sport=4000 dport=53"


def known(fw: Fw, *words: str) -> int:
    """Return how many flows of conntrack have all the words in their line."""
    lines = [fw.host.netns.run(["conntrack", "-L", "-f", family]).stdout for family in ("ipv4", "ipv6")]
    return sum(all(word in line for word in words) for line in "".join(lines).splitlines())


def test_a_flow_forged_before_a_docker_network_exists_reaches_no_container(fw: Fw) -> None:
    """A second after a container joined, nothing reaches its UDP server on a port that no label opens.

    Nor do the same packets later. The container has its default route through another network: of the addresses on
    that one Docker itself removes all flows when the container starts.
    """
    with ExitStack() as stack:
        stack.enter_context(forwarding(fw))
        send = stack.enter_context(closing(Sender(fw.wan.path)))
        app = fw.run(stack.enter_context(dockers(fw)))
        first, replies = forged(fw)
        # Neither machine may know yet which link-layer address the other has: a packet can then wait, or be lost.

        def sent(packets: list[Packet]) -> bool:
            send(packets)
            return True

        until(lambda: sent(first) and known(fw, PORTS) == len(first), "the flows are known")
        until(lambda: sent(replies) and known(fw, PORTS, "[UNREPLIED]") == 0, "they have replies")
        name = "z-joined"  # Docker takes the first by name for the default route
        options = [word for option in ROUTED for word in ("-o", option)]
        options += [word for subnet in SUBNETS for word in ("--subnet", subnet)]
        fw.engine.docker("network", "create", "--ipv6", *options, name)
        stack.callback(fw.engine.docker, "network", "rm", name)
        fw.engine.docker("network", "connect", "--ip", ADDRESSES[0], "--ip6", ADDRESSES[1], name, app)
        stack.callback(fw.remove, app)
        stack.enter_context(fw.engine.serve(app, udp=[4000]))
        sniffer = stack.enter_context(closing(Sniffer(fw.engine.netns(app).path, "eth1")))

        def reached(packets: list[Packet]) -> set[Packet]:
            last = ping(FAR[0], ADDRESSES[0])
            send([*packets, last])
            return arrived([sniffer], last)[0] & set(replies)

        until(lambda: not reached(replies), "the flows are cut", 1)
        assert reached([*first, *replies]) == set()
