"""The registry of promises: one entry each. Expectations are those of Docker alone; see `differences` for ours.

The cases follow moby's integration tests and Docker's documentation, which each entry names; the words, the networks
and the probes are our own.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.promises.model import Promise, To, probes, to

_PORTS = "moby: integration/networking/port_mapping_linux_test.go"
_BRIDGE = "moby: integration/networking/bridge_linux_test.go"
_DRIVER = "moby: integration/network/bridge/bridge_linux_test.go"
_NETWORK = "moby: integration/network/network_linux_test.go"
_DNS = "moby: integration/networking/resolvconf_test.go"
_SERVICE = "moby: integration/network/service_test.go"
_DOCS = "docs.docker.com: engine/network"

#: With dockerd's defaults and without docker-proxy; with IPv6 rules, where these are not the default.
EVERYWHERE = ("default", "ip6tables", "no-proxy")
#: Where docker-proxy plays no part.
UNPROXIED = ("default", "ip6tables")
#: Before 27 Docker filters and translates IPv6 only if it is asked to, by an experimental option.
UNFILTERED = {f"<27 {profile}": "open" for profile in ("default", "no-proxy", "live-restore", "docker0")}
#: Before 28 a published port answers at the container's own address too, to machines with a route to it.
DIRECT = {"<28": "open"}
#: Before 28 docker-proxy answers a container's datagrams from another address than the one they were sent to.
UDP_BY_PROXY = {"<28": "silent"}
#: Without docker-proxy, Docker before 29 does not let a container use another network's published port, and does not
#: translate IPv6 packets to the host's loopback.
NO_PROXY = {"no-proxy": "silent"}
#: Without docker-proxy, nothing serves the host's IPv6 addresses for a container that has IPv4 alone.
NO_PROXY6 = {"no-proxy": "refused"}
#: Without docker-proxy, Docker before 28 itself listens on published ports and serves nothing there. IPv4 packets are
#: translated before they arrive there; in the profile `no-proxy` it has no rules for IPv6.
LISTENING = {"tcp": "hollow", "udp": "silent"}


def published(what: str, but: Mapping[str, str] | None = None, but6: Mapping[str, str] | None = None) -> To:
    """Return where a probe of a published port goes; see `to`."""
    return to(what, but=but, but6={**(but6 or {}), "<28 no-proxy": LISTENING[what[:3]]})


#: Docker 20.10 gives containers of an internal network a default route, and drops what they send by it: over IPv6 only
#: if it filters IPv6.
INTERNAL = {"<26": "silent"}
INTERNAL6 = {"<26 default": "open", "<26 no-proxy": "open"}
#: If it filters IPv6, it drops neighbour discovery within an internal network too.
INTERNAL_NEIGHBOURS6 = {"<26 ip6tables": "silent"}

_PUBLISHED = (
    Promise(
        "published from another machine",
        "A published port answers on every address of the host.",
        f"{_PORTS} TestAccessPublishedPortFromRemoteHost",
        ("web",),
        (*probes("remote", published("tcp host:8080"), published("udp host:8053"), published("tcp second:8080")),),
        EVERYWHERE,
    ),
    Promise(
        "published from the host",
        "The host reaches a published port on its own addresses, and on loopback.",
        f"{_PORTS} TestAccessPublishedPortFromHost",
        ("web",),
        (
            *probes(
                "host",
                published("tcp host:8080"),
                published("udp host:8053"),
                published("tcp lo:8080", but6=NO_PROXY),
                published("tcp gw/plain:8080"),
            ),
        ),
        EVERYWHERE,
    ),
    Promise(
        "published from a neighbour",
        "A container of the same network reaches a published port on the host's addresses and on the gateway's.",
        f"{_PORTS} TestAccessPublishedPortFromCtr",
        ("web", "mate"),
        (
            *probes(
                "mate",
                published("tcp host:8080"),
                published("tcp gw/plain:8080"),
                published("udp host:8053", but={**UDP_BY_PROXY, "<28 no-proxy": "open"}),
            ),
        ),
        EVERYWHERE,
    ),
    Promise(
        "published from itself",
        "A container reaches its own published port on the host's addresses (hairpin).",
        f"{_PORTS} TestAccessPublishedPortFromCtr, TestPortMappedHairpinTCP",
        ("web",),
        (*probes("web", published("tcp host:8080"), published("tcp gw/plain:8080")),),
        EVERYWHERE,
    ),
    Promise(
        "published from another network",
        "A container of another network reaches a published port on the host's addresses, and on its own gateway's.",
        f"{_PORTS} TestAccessPublishedPortFromAnotherNetwork, TestPortMappedHairpinUDP",
        ("web", "stranger"),
        (
            *probes(
                "stranger",
                published("tcp host:8080", but=NO_PROXY),
                published("tcp gw/other:8080", but=NO_PROXY),
                published("tcp gw/plain:8080", but=NO_PROXY),
                published("udp host:8053", but={**UDP_BY_PROXY, **NO_PROXY}),
            ),
        ),
        EVERYWHERE,
    ),
    Promise(
        "published from the default network",
        "A container on the default bridge reaches ports that others publish, and the other way round.",
        f"{_BRIDGE} TestAccessToPublishedPort",
        ("web", "zero", "stranger"),
        (*probes("zero", to("tcp host:8080", family=4, but=NO_PROXY)),),
        EVERYWHERE,
    ),
    Promise(
        "published on the default network",
        "A port that a container on the default bridge publishes answers machines, the host and other networks.",
        f"{_BRIDGE} TestAccessToPublishedPort",
        ("zero", "stranger"),
        (
            *probes("remote, host", to("tcp host:8099", but6=NO_PROXY6)),
            *probes("stranger", to("tcp host:8099", but=NO_PROXY, but6=NO_PROXY6)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "a range of ports",
        "`-p 8100-8102:9000-9002` publishes each port of the range.",
        f"{_DOCS}/port-publishing",
        ("web",),
        (*probes("remote, host", *(published(f"tcp host:{port}") for port in (8100, 8101, 8102))),),
        EVERYWHERE,
    ),
    Promise(
        "what is not published",
        "A port of the host that no container publishes is refused by the host.",
        f"{_DOCS}/packet-filtering-firewalls",
        ("web",),
        (
            *probes(
                "remote, host",
                to("tcp host:8999", "refused"),
                to("udp host:8999", "refused"),
                to("tcp host:81", "refused"),
            ),
        ),
        EVERYWHERE,
    ),
    Promise(
        "one address of the host",
        "`-p ADDRESS:8083:80` answers on that address of the host, and on no other one.",
        f"{_PORTS} TestMixAnyWithSpecificHostAddrs",
        ("second", "stranger"),
        (
            *probes("remote, host", published("tcp second:8083"), to("tcp host:8083", "refused")),
            *probes("stranger", published("tcp second:8083", but=NO_PROXY), to("tcp host:8083", "refused")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "loopback",
        "`-p 127.0.0.1:8084:80` and `-p [::1]:8084:80` answer the host alone; another port of the container is public.",
        f"{_PORTS} TestAccessPortPublishedOnLoopbackAddress",
        ("local",),
        (
            *probes(
                "host", published("tcp lo:8084", but6=NO_PROXY), to("tcp host:8084", "refused"), to("tcp local:80")
            ),
            *probes("remote", to("tcp host:8084", "refused"), published("tcp host:8184")),
            *probes("mate", to("tcp host:8084", "refused"), to("tcp local:80")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "loopback is not reached by a route",
        "A port published on loopback is not open at the container's own address to a machine with a route to it.",
        f"{_PORTS} TestAccessPortPublishedOnLoopbackAddress, TestDirectRemoteAccessOnExposedPort",
        ("local", "stranger"),
        (
            *probes("stranger", to("tcp local:80", "silent", but6=UNFILTERED)),
            *probes("remote", to("tcp local:80", "silent", but=DIRECT)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "several loopback addresses",
        "Two containers publish the same port on different addresses of 127.0.0.0/8.",
        f"{_PORTS} TestPortMappingOnDistinctLoopbackAddrs",
        ("loop2", "loop3"),
        (*probes("host", to("tcp lo2:8086", family=4)),),
        EVERYWHERE,
    ),
    Promise(
        "several loopback addresses, the second",
        "Two containers publish the same port on different addresses of 127.0.0.0/8.",
        f"{_PORTS} TestPortMappingOnDistinctLoopbackAddrs",
        ("loop3", "loop2"),
        (*probes("host", to("tcp lo3:8086", family=4)),),
        EVERYWHERE,
    ),
    Promise(
        "IPv6 for a container with IPv4 alone",
        "docker-proxy serves the host's IPv6 addresses for a container that has IPv4 only.",
        f"{_PORTS} TestProxy4To6",
        ("web4", "stranger", "mate"),
        (
            *probes("remote, host", to("tcp host:8081", but6=NO_PROXY6), to("udp host:8054", but6=NO_PROXY6)),
            *probes(
                "stranger, mate",
                to("tcp host:8081", but=NO_PROXY, but6=NO_PROXY6),
                to("udp host:8054", but={**UDP_BY_PROXY, **NO_PROXY}, but6={**NO_PROXY6, "<28 no-proxy": "refused"}),
            ),
            *probes("host", to("tcp lo:8081", but6=NO_PROXY6)),
            *probes("web4", to("tcp host:8081", family=4)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "IPv6 loopback for a container with IPv4 alone",
        "`-p [::1]:8085:80` answers the host for a container that has IPv4 only, and no other machine.",
        f"{_PORTS} TestProxy4To6",
        ("local4",),
        (
            *probes("host", to("tcp lo:8085", family=6, but=NO_PROXY6), to("tcp host:8085", "refused", family=6)),
            *probes("remote", to("tcp host:8085", "refused")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "a container with IPv6 alone",
        "A container on a network without IPv4 publishes on the host's IPv6 addresses; docker-proxy serves no IPv4.",
        f"{_BRIDGE} TestDisableIPv4",
        ("web6", "stranger"),
        (
            *probes("remote, host", to("tcp host:8082", family=6), to("udp host:8055", family=6)),
            *probes(
                "stranger",
                to("tcp host:8082", family=6, but=NO_PROXY),
                to("udp host:8055", family=6, but=NO_PROXY),
            ),
        ),
        EVERYWHERE,
        since=28,
    ),
    Promise(
        "a bridge with a name",
        "A network whose bridge the user named publishes, answers its neighbours and reaches the outside.",
        f"{_PORTS} TestAccessPublishedPortFromHost",
        ("front", "stranger"),
        (
            *probes("remote, host", published("tcp host:8091")),
            *probes("stranger", published("tcp host:8091", but=NO_PROXY)),
            *probes("front", to("tcp remote:7000")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "host_binding_ipv4",
        "`com.docker.network.bridge.host_binding_ipv4=127.0.0.1` publishes on that address unless `-p` names another.",
        f"{_DOCS}/drivers/bridge (options)",
        ("bound",),
        (
            *probes("host", to("tcp lo:8090", family=4), to("tcp host:8090", "refused", family=4)),
            *probes("remote", to("tcp host:8090", "refused", family=4)),
        ),
        EVERYWHERE,
    ),
)

_DIRECT = (
    Promise(
        "direct, nat",
        "Another machine with a route to a container reaches neither its published port nor another one.",
        f"{_PORTS} TestDirectRoutingOpenPorts, TestDirectRemoteAccessOnExposedPort",
        ("web",),
        (
            *probes(
                "remote",
                to("tcp web:80", "silent", but=DIRECT),
                to("tcp web:81", "silent", but6=UNFILTERED),
                to("udp web:54", "silent", but6=UNFILTERED),
                to("ping web", "silent", but6=UNFILTERED),
            ),
        ),
        UNPROXIED,
    ),
    Promise(
        "direct, nat-unprotected",
        "On a nat-unprotected network every port answers at the container's own address.",
        f"{_PORTS} TestDirectRoutingOpenPorts",
        ("unprotected", "stranger"),
        (
            *probes(
                "remote",
                to("tcp unprotected:80"),
                to("tcp unprotected:81"),
                to("ping unprotected"),
                to("tcp host:8093"),
            ),
            *probes("stranger", to("tcp unprotected:80", "silent"), to("tcp unprotected:81", "silent")),
        ),
        UNPROXIED,
        since=28,
    ),
    Promise(
        "direct, routed",
        "On a routed network a published port answers at the container's own address, and so does ping; nothing else.",
        f"{_PORTS} TestDirectRoutingOpenPorts",
        ("routed",),
        (
            *probes("remote", to("tcp routed:80"), to("tcp routed:81", "silent"), to("ping routed")),
            *probes("remote, host", to("tcp host:8092", "refused")),
            *probes("host, routed2", to("tcp routed:80"), to("tcp routed:81")),
        ),
        EVERYWHERE,
        since=27,
    ),
    Promise(
        "direct, nat for IPv4 and routed for IPv6",
        "The gateway mode applies to each family by itself.",
        f"{_PORTS} TestDisableNAT",
        ("mixed",),
        (
            *probes(
                "remote",
                to("tcp host:8094", family=4),
                to("tcp mixed:80", "silent", family=4),
                to("tcp mixed:80", family=6),
                to("tcp mixed:81", "silent"),
                to("tcp host:8094", "refused", family=6),
            ),
        ),
        UNPROXIED,
        since=27,
    ),
    Promise(
        "direct, a trusted interface",
        "`trusted_host_interfaces=eth0`: machines behind that link reach a published port at the container's address.",
        f"{_PORTS} TestDirectRemoteAccessOnExposedPort",
        ("trusting",),
        (*probes("remote", to("tcp trusting:80"), to("tcp trusting:81", "silent"), to("tcp host:8095")),),
        UNPROXIED,
        since=28,
    ),
    Promise(
        "direct, --allow-direct-routing",
        "`--allow-direct-routing`: a published port answers at the container's own address, another one does not.",
        f"{_PORTS} TestAllowDirectRemoteAccessOnExposedPort",
        ("web", "local"),
        (*probes("remote", to("tcp web:80"), to("tcp web:81", "silent"), published("tcp host:8080")),),
        ("direct",),
    ),
    Promise(
        "--ip6tables=false",
        "Without Docker's IPv6 rules every port of a container answers at its own IPv6 address.",
        f"{_BRIDGE} TestNoIP6Tables",
        ("web", "stranger"),
        (
            *probes("remote", to("tcp web:80", family=6), to("tcp web:81", family=6), to("ping web", family=6)),
            *probes("remote, host, stranger", published("tcp host:8080")),
            *probes("stranger", to("tcp web:81", family=6)),
        ),
        ("no-ip6tables",),
    ),
    Promise(
        "routed, not the way out",
        "A port is published by the network that is the way out, and answers directly on a second, routed one.",
        f"{_PORTS} TestRoutedNonGateway",
        ("ways",),
        (
            *probes(
                "remote",
                published("tcp host:8098"),
                to("tcp ways/plain:80", "silent"),
                to("tcp ways/routed:80", "silent"),
            ),
        ),
        since=28,
    ),
)

_BETWEEN = (
    Promise(
        "neighbours",
        "Containers of one network reach each other on every port, by address and by name.",
        f"{_BRIDGE} TestBridgeICC",
        ("web", "mate"),
        (
            *probes("mate", to("tcp web:80"), to("tcp web:81"), to("udp web:54"), to("sctp web:8"), to("ping web")),
            *probes("mate", to("name web")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "networks are isolated",
        "A container of one network does not reach those of another one, on any port, published or not.",
        f"{_BRIDGE} TestBridgeINC, TestInterNetworkDirectRouting",
        ("web", "stranger"),
        (
            *probes(
                "stranger",
                to("tcp web:80", "silent", but6=UNFILTERED),
                to("tcp web:81", "silent", but6=UNFILTERED),
                to("ping web", "silent", but6=UNFILTERED),
            ),
            *probes("stranger", to("name web", "refused")),
        ),
        UNPROXIED,
    ),
    Promise(
        "the default network is isolated",
        "Containers of the default bridge and those of other networks do not reach each other.",
        f"{_BRIDGE} TestBridgeINC",
        ("web", "zero"),
        (*probes("zero", to("tcp web:80", "silent", family=4), to("ping web", "silent", family=4)),),
        UNPROXIED,
    ),
    Promise(
        "from nat to routed",
        "A container of a nat network reaches the published port of a routed one, and ping; no other port.",
        f"{_BRIDGE} TestBridgeINCRouted, TestInterNetworkDirectRouting",
        ("routed", "stranger"),
        (*probes("stranger", to("tcp routed:80"), to("tcp routed:81", "silent"), to("ping routed")),),
        UNPROXIED,
        since=28,
    ),
    Promise(
        "from routed to nat",
        "A container of a routed network does not reach those of a nat network, but their published ports.",
        f"{_BRIDGE} TestBridgeINCRouted, TestAccessToPublishedPort",
        ("web", "routed"),
        (
            *probes("routed", to("tcp web:80", "silent"), to("tcp web:81", "silent"), to("ping web", "silent")),
            *probes("routed", published("tcp host:8080", but=NO_PROXY)),
        ),
        EVERYWHERE,
        since=28,
    ),
    Promise(
        "no inter-container communication",
        "`enable_icc=false`: containers of the network do not reach each other, except on published ports of the host.",
        f"{_DOCS}/drivers/bridge (enable_icc)",
        ("apart", "apart2", "stranger"),
        (
            *probes(
                "apart2",
                to("tcp apart:80", "silent", but6=UNFILTERED),
                to("tcp apart:81", "silent", but6=UNFILTERED),
                to("ping apart", "silent", but6=UNFILTERED),
            ),
            *probes("apart2, stranger", published("tcp host:8087", but=NO_PROXY)),
            *probes("remote, host", published("tcp host:8087")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "--icc=false on the default network",
        "Containers of the default bridge do not reach each other, but published ports answer.",
        f"{_DRIVER} TestLegacyLink",
        ("zero", "zero2"),
        (
            *probes(
                "zero2", to("tcp zero:80", "silent", but6=UNFILTERED), to("tcp zero:81", "silent", but6=UNFILTERED)
            ),
            *probes("zero2", to("tcp host:8099")),
            *probes("remote, host", to("tcp host:8099")),
        ),
        ("docker0",),
    ),
    Promise(
        "--link",
        "`--link` opens the port that the other container exposes, in spite of --icc=false.",
        f"{_DRIVER} TestLegacyLink",
        ("zero", "linked"),
        (*probes("linked", to("tcp zero:80", family=4), to("tcp zero:81", "silent", family=4)),),
        ("docker0",),
    ),
    Promise(
        "an internal network",
        "Containers of an internal network reach each other and their gateway, and nothing else.",
        f"{_BRIDGE} TestInternalNwConnectivity, TestBridgeICC",
        ("inside", "inside2", "deeper", "mate"),
        (
            *probes(
                "inside2",
                to("tcp inside:80", but6=INTERNAL_NEIGHBOURS6),
                to("tcp inside:81", but6=INTERNAL_NEIGHBOURS6),
                to("ping inside", but6=INTERNAL_NEIGHBOURS6),
                to("name inside"),
            ),
            *probes("inside", to("ping gw/internal")),
            *probes(
                "inside",
                to("tcp remote:7000", "unsent", but=INTERNAL, but6=INTERNAL6),
                to("ping remote", "unsent", but=INTERNAL, but6=INTERNAL6),
                to("tcp mate:80", "unsent", but=INTERNAL, but6=INTERNAL6),
            ),
        ),
        UNPROXIED,
    ),
    Promise(
        "an internal network from outside",
        "Nothing reaches a container on an internal network but its neighbours and the host; `-p` publishes nothing.",
        f"{_BRIDGE} TestInternalNwConnectivity, TestBridgeINC",
        ("inside", "deeper", "stranger"),
        (
            *probes(
                "remote, stranger",
                to("tcp inside:80", "silent", but6=INTERNAL6),
                to("ping inside", "silent", but6=INTERNAL6),
            ),
            *probes("remote, host", to("tcp host:8088", "refused")),
            *probes("deeper", to("tcp inside:80", "unsent", but=INTERNAL, but6=INTERNAL6)),
            *probes("host", to("tcp inside:80"), to("ping inside")),
        ),
        UNPROXIED,
    ),
    Promise(
        "an isolated network",
        "`gateway_mode=isolated`: containers reach each other, and the host has no address there.",
        f"{_DRIVER} TestIsolated",
        ("lonely", "lonely2"),
        (
            *probes("lonely2", to("tcp lonely:80"), to("ping lonely"), to("name lonely")),
            *probes("remote", to("tcp lonely:80", "silent")),
            *probes("lonely", to("tcp remote:7000", "unsent")),
        ),
        UNPROXIED,
        since=28,
    ),
    Promise(
        "the network of another container",
        "`--network container:web`: both have one address, and all their ports.",
        f"{_DOCS} (container networks)",
        ("sidecar", "web", "mate"),
        (*probes("mate", to("tcp web:82")),),
        UNPROXIED,
    ),
    Promise(
        "the host's network",
        "`--network host`: the container's ports are the host's.",
        f"{_DOCS}/drivers/host",
        ("hosts", "mate", "stranger"),
        (*probes("remote, host, mate, stranger", to("tcp host:8200"), to("udp host:8200")),),
        UNPROXIED,
    ),
    Promise(
        "no network",
        "`--network none`: the container has loopback alone.",
        f"{_NETWORK} TestRunContainerWithBridgeNone",
        ("none",),
        (*probes("none", to("tcp remote:7000", "unsent"), to("tcp lo:80", but6={"<26": "unsent"})),),
        ("default",),
    ),
)

_OUT = (
    Promise(
        "outbound",
        "A container reaches other machines; over IPv4 its packets have the host's address.",
        f"{_DOCS}/packet-filtering-firewalls",
        ("mate",),
        (
            *probes(
                "mate, web4, zero",
                to("tcp remote:7000", family=4, peer="host"),
                to("udp remote:7000", family=4, peer="host"),
                to("ping remote", family=4),
            ),
            *probes("mate", to("tcp remote:7000", family=6, but={})),
            *probes("mate", to("udp remote:7000", family=6), to("ping remote", family=6)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "outbound without masquerading",
        "`enable_ip_masquerade=false`: the container's packets keep their address, and its published port answers.",
        f"{_DOCS}/drivers/bridge (enable_ip_masquerade)",
        ("seen", "stranger"),
        (
            *probes(
                "seen",
                to("tcp remote:7000", "silent", peer="client", but={"<28": "open"}),
                to("udp remote:7000", "silent", peer="client", but={"<28": "open"}),
            ),
            *probes("remote, host", published("tcp host:8089")),
            *probes("stranger", published("tcp host:8089", but=NO_PROXY)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "outbound with another address of the host",
        "`com.docker.network.host_ipv4`: the container's packets have that address of the host.",
        f"{_NETWORK} TestHostIPv4BridgeLabel",
        ("leaving",),
        (*probes("leaving", to("tcp remote:7000", family=4, peer="second")),),
        UNPROXIED,
        since=26,
    ),
    Promise(
        "the host's own services",
        "A container reaches a program of the host, on each address of the host.",
        f"{_DOCS} (host-gateway)",
        ("mate",),
        (
            *probes("mate, stranger, remote", to("tcp host:7100"), to("udp host:7100")),
            *probes("mate", to("tcp gw/plain:7100")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "embedded DNS",
        "Containers of one network find each other by name; those of another network do not.",
        f"{_BRIDGE} TestDNSNamesForNonSwarmScopedNetworks; {_DNS} TestInternalNetworkLocalDNS",
        ("web", "mate", "stranger", "both"),
        (
            *probes("mate", to("name web"), to("name both"), to("name inside", "refused")),
            *probes("both", to("name mate"), to("name inside")),
            *probes("stranger", to("name mate", "refused")),
        ),
        UNPROXIED,
    ),
)

_SEVERAL = (
    Promise(
        "a front and an internal network",
        "A container on a network and an internal one publishes by the first, and reaches both.",
        f"{_DNS} TestInternalNetworkDNS; {_BRIDGE} TestGatewaySelection",
        ("both", "inside"),
        (
            *probes("remote, host", published("tcp host:8096")),
            *probes("both", to("tcp inside:80", but6=INTERNAL_NEIGHBOURS6), to("tcp mate:80"), to("tcp remote:7000")),
            *probes("inside", to("tcp both/internal:80", but6=INTERNAL_NEIGHBOURS6)),
            *probes("inside", to("tcp both/plain:80", "unsent", but=INTERNAL, but6=INTERNAL6)),
        ),
        EVERYWHERE,
    ),
    Promise(
        "two networks",
        "A container on two networks publishes once, and answers its neighbours on both.",
        f"{_BRIDGE} TestGatewaySelection",
        ("two", "mate", "stranger"),
        (
            *probes("remote, host, stranger", published("tcp host:8097")),
            *probes("mate", published("tcp host:8097", but=NO_PROXY)),
            *probes("stranger", to("tcp two/other:80")),
            *probes("mate", to("tcp two/plain:80")),
        ),
        EVERYWHERE,
    ),
    Promise(
        "gw-priority",
        "The network with the highest `gw-priority` is the container's way out, and publishes its ports.",
        f"{_NETWORK} TestCreateWithPriority, TestConnectWithPriority",
        ("chosen", "mate", "stranger"),
        (
            *probes("remote, host", to("tcp host:8206")),
            *probes("chosen", to("tcp remote:7000", peer="host")),
            *probes("mate", to("tcp chosen/plain:80")),
            *probes("stranger", to("tcp chosen/other:80")),
        ),
        EVERYWHERE,
        since=28,
    ),
)

#: What must be as before after an event; the containers `steady` and `again` are for these.
_STAYS = (
    *probes("remote, host", published("tcp host:8201")),
    *probes("stranger", published("tcp host:8201", but=NO_PROXY)),
    *probes("remote", published("udp host:8202"), to("tcp steady:81", "silent", but6=UNFILTERED)),
    *probes("mate", to("tcp steady:81"), to("name steady")),
    *probes("stranger", to("tcp steady:81", "silent", but6=UNFILTERED)),
    *probes("steady", to("tcp remote:7000")),
)

_EVENTS = (
    Promise(
        "a container restarts",
        "After `docker restart` the container's published ports answer again, though clients were connected.",
        f"{_PORTS} TestRestartUserlandProxyUnder2MSL",
        ("again", "stranger"),
        (
            *probes("remote, host, again", published("tcp host:8203")),
            *probes("stranger", published("tcp host:8203", but=NO_PROXY)),
            *probes("remote", published("udp host:8204"), to("tcp again:81", "silent", but6=UNFILTERED)),
            *probes("mate", to("tcp again:80"), to("tcp again:81"), to("name again")),
            *probes("again", to("tcp remote:7000")),
        ),
        EVERYWHERE,
        act="restart again",
    ),
    Promise(
        "a container changes its network",
        "Connected to another network instead, it publishes there, and answers its new neighbours.",
        f"{_BRIDGE} TestGatewaySelection",
        ("mover", "stranger", "mate"),
        (
            *probes("remote, host", published("tcp host:8205")),
            *probes("mate", published("tcp host:8205", but=NO_PROXY)),
            *probes("stranger", to("tcp mover/other:80"), to("tcp mover/other:81")),
            *probes("mate", to("tcp mover/other:80", "silent", but6=UNFILTERED)),
            *probes("mover", to("tcp remote:7000", peer="host", family=4)),
        ),
        EVERYWHERE,
        act="move mover",
    ),
    Promise(
        "others drop at the end of FORWARD",
        "A rule of another program that drops at the end of Docker's chain FORWARD, and its policy, change nothing.",
        f"{_BRIDGE} TestDropInForwardChain; {_DRIVER} TestFilterForwardPolicy",
        ("web", "stranger", "mate"),
        (
            *probes("remote, host, mate, web", published("tcp host:8080")),
            *probes("stranger", published("tcp host:8080", but=NO_PROXY)),
            *probes("mate", to("tcp web:81"), to("tcp remote:7000")),
        ),
        EVERYWHERE,
        act="drop in FORWARD",
    ),
    Promise(
        "dockerd restarts",
        "After a restart of dockerd containers with a restart policy run again, with their published ports.",
        f"{_DRIVER} TestPortMappingRestore",
        ("steady", "stranger", "mate"),
        _STAYS,
        ("default", "ip6tables", "no-proxy"),
        act="restart dockerd",
    ),
    Promise(
        "dockerd restarts with live-restore",
        "Containers run on while dockerd restarts, and what is published stays so.",
        f"{_SERVICE} TestDaemonRestartWithLiveRestore",
        ("steady", "stranger", "mate"),
        _STAYS,
        ("live-restore",),
        act="restart dockerd",
    ),
    Promise(
        "dockerd is killed with live-restore",
        "Containers run on when dockerd is killed and started again, and what is published stays so.",
        f"{_SERVICE} TestDaemonRestartWithLiveRestore",
        ("steady", "stranger", "mate"),
        _STAYS,
        ("live-restore",),
        act="kill dockerd",
    ),
)

PROMISES: tuple[Promise, ...] = (*_PUBLISHED, *_DIRECT, *_BETWEEN, *_OUT, *_SEVERAL, *_EVENTS)
