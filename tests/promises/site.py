"""The networks and containers of the suite, by name, and how dockerd is started. One entry each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

#: dockerd's arguments. The boxes on the default network have IPv6 in the profile `docker0`.
PROFILES: dict[str, tuple[str, ...]] = {
    "default": (),
    "ip6tables": ("--experimental", "--ip6tables"),
    "no-proxy": ("--userland-proxy=false",),
    "docker0": ("--icc=false", "--ipv6", "--fixed-cidr-v6", "2001:db8:d0::/64"),
    "live-restore": ("--live-restore",),
    "direct": ("--allow-direct-routing",),
    "no-ip6tables": ("--ip6tables=false",),
}
#: Which versions a profile is for: before 27 IPv6 rules are an experiment, from 27 on they are the default.
PROFILE_VERSIONS: dict[str, str] = {"ip6tables": "<27", "direct": ">=28", "no-ip6tables": ">=27"}

#: A second address of the host, in each family.
SECOND = {4: "198.51.100.101", 6: "2001:db8:ffff::101"}

#: Addresses of the host's loopback, or of a container's.
LOOPBACKS = {"lo": {4: "127.0.0.1", 6: "::1"}, "lo2": {4: "127.0.1.2"}, "lo3": {4: "127.0.1.3"}}
#: Servers of the host itself and of the other machine.
HOST_PORT, REMOTE_PORT = 7100, 7000

_OPTION = "com.docker.network.bridge"


@dataclass(frozen=True)
class Network:
    """A network: the options of `docker network create`, and the first major version that takes them."""

    options: str
    since: int = 0

    def gateway(self, family: int) -> str:
        """Return the host's address on the network, which is the subnet's first; "" if it has no such family."""
        subnets = map(ip_network, re.findall(r"--subnet (\S+)", self.options))
        return next((str(subnet[1]) for subnet in subnets if subnet.version == family), "")


def _dual(number: int, more: str = "", since: int = 0) -> Network:
    subnets = f"--subnet 10.91.{number}.0/24 --ipv6 --subnet 2001:db8:91:{number}::/64"
    return Network(f"{subnets} {more}".strip(), since)


def _modes(mode: str) -> str:
    return " ".join(f"-o {_OPTION}.gateway_mode_ipv{family}={mode}" for family in (4, 6))


NETWORKS: dict[str, Network] = {
    "plain": _dual(1),
    "other": _dual(2),
    "four": Network("--subnet 10.91.3.0/24"),
    "six": Network("--ipv4=false --ipv6 --subnet 2001:db8:91:4::/64", 28),
    "no-icc": _dual(5, f"-o {_OPTION}.enable_icc=false"),
    "internal": _dual(6, "--internal"),
    "inner": _dual(7, "--internal"),
    "no-masquerade": _dual(8, f"-o {_OPTION}.enable_ip_masquerade=false"),
    "bound": _dual(9, f"-o {_OPTION}.host_binding_ipv4=127.0.0.1"),
    "named": _dual(10, f"-o {_OPTION}.name=front0"),
    "routed": _dual(11, _modes("routed"), 27),
    "unprotected": _dual(12, _modes("nat-unprotected"), 28),
    "mixed": _dual(13, f"-o {_OPTION}.gateway_mode_ipv6=routed", 27),
    "isolated": _dual(14, f"--internal {_modes('isolated')}", 28),
    "trusted": _dual(15, f"-o {_OPTION}.trusted_host_interfaces=eth0", 28),
    "as-second": _dual(16, f"-o com.docker.network.host_ipv4={SECOND[4]}", 26),
}


@dataclass(frozen=True)
class Box:
    """A container: its network (that of its way out first), the options of `docker run`, and its servers' ports.

    `also` are networks that it is connected to before it starts; `priority` is `gw-priority` of the first one.
    """

    network: str
    options: str = ""
    tcp: tuple[int, ...] = (80, 81)
    udp: tuple[int, ...] = ()
    sctp: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    priority: int = 0

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.network, *self.also)


BOXES: dict[str, Box] = {
    "web": Box(
        "plain",
        "-p 8080:80 -p 8053:53/udp -p 8100-8102:9000-9002",
        (80, 81, 9000, 9001, 9002),
        (53, 54),
        (8,),
    ),
    "mate": Box("plain"),
    "stranger": Box("other", "-p 8079:80"),
    "web4": Box("four", "-p 8081:80 -p 8054:53/udp", udp=(53,)),
    "web6": Box("six", "-p 8082:80 -p 8055:53/udp", udp=(53,)),
    "second": Box("plain", f"-p {SECOND[4]}:8083:80 -p [{SECOND[6]}]:8083:80"),
    "local": Box("plain", "-p 127.0.0.1:8084:80 -p [::1]:8084:80 -p 8184:81"),
    "local4": Box("four", "-p [::1]:8085:80"),
    "loop2": Box("four", "-p 127.0.1.2:8086:80"),
    "loop3": Box("four", "-p 127.0.1.3:8086:80"),
    "apart": Box("no-icc", "-p 8087:80"),
    "apart2": Box("no-icc"),
    "inside": Box("internal", "-p 8088:80"),
    "inside2": Box("internal"),
    "deeper": Box("inner"),
    "seen": Box("no-masquerade", "-p 8089:80"),
    "bound": Box("bound", "-p 8090:80"),
    "front": Box("named", "-p 8091:80"),
    "routed": Box("routed", "-p 8092:80"),
    "routed2": Box("routed"),
    "unprotected": Box("unprotected", "-p 8093:80"),
    "mixed": Box("mixed", "-p 8094:80"),
    "lonely": Box("isolated"),
    "lonely2": Box("isolated"),
    "trusting": Box("trusted", "-p 8095:80"),
    "leaving": Box("as-second"),
    "both": Box("plain", "-p 8096:80", also=("internal",)),
    "two": Box("other", "-p 8097:80", also=("plain",)),
    "ways": Box("plain", "-p 8098:80", also=("routed",)),
    "chosen": Box("plain", "-p 8206:80", also=("other",), priority=1),
    "zero": Box("bridge", "-p 8099:80"),
    "zero2": Box("bridge"),
    "linked": Box("bridge", "--link zero:alias"),
    "hosts": Box("host", tcp=(8200,), udp=(8200,)),
    "none": Box("none"),
    "sidecar": Box("container:web", tcp=(82,)),
    "steady": Box("plain", "--restart always -p 8201:80 -p 8202:53/udp", udp=(53,)),
    "again": Box("plain", "-p 8203:80 -p 8204:53/udp", udp=(53,)),
    "mover": Box("plain", "-p 8205:80"),
}
