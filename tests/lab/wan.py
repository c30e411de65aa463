"""The outside world: one network that hosts are connected to, with an outsider on it."""

from __future__ import annotations

from pathlib import Path

from .claims import Claim
from .netns import NamedNetns
from .probe import Agent

#: the prefixes that an outsider reaches through a host: containers', public and private
BEHIND_HOST = ("2001:db8::/32", "fd00::/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


class Wan(NamedNetns):
    """An outsider on the hosts' network, in a network namespace of its own.

    It has ``198.51.100.2`` and ``2001:db8:ffff::2`` on the network that the hosts are on, and plays
    "the Internet" by ``203.0.113.7`` and ``2001:db8:5::7``, which hosts reach by their default route.
    The first host (``.1``, ``::1``) gets the wan's routes to all container prefixes: an outsider can
    try a container's address directly. There is no route to ``203.0.113.0/24`` elsewhere, and none
    back to a container's IPv4 but through the host, so masquerading shows by the source address.
    """

    V4, V6 = "198.51.100.2", "2001:db8:ffff::2"
    FAR_V4, FAR_V6 = "203.0.113.7", "2001:db8:5::7"

    def __init__(self) -> None:
        self._claim = Claim("w")
        super().__init__(self._claim.name)
        self._claim.record.netns.append(self.name)
        self._claim.save()
        self._hosts = 0
        self.make()
        # The bridge forwards frames between hosts without any rule.
        self.ip(
            "link add lan type bridge stp_state 0 mcast_snooping 0 nf_call_iptables 0 nf_call_ip6tables 0",
            f"addr add {self.V4}/24 dev lan",
            f"addr add {self.V6}/64 dev lan nodad",
            f"addr add {self.FAR_V4}/32 dev lo",
            f"addr add {self.FAR_V6}/128 dev lo",
            "link set lan up",
        )
        if Path("/proc/sys/net/bridge").exists():  # br_netfilter is loaded
            self.sysctl({f"net/bridge/bridge-nf-call-{kind}": 0 for kind in ("iptables", "ip6tables")})

    def __enter__(self) -> Wan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it, with its processes."""
        self._claim.release()

    def attach(self) -> int:
        """Return a number for a new host on this network: 1, 3, 4, … (2 is the wan itself)."""
        self._hosts += 1
        return self._hosts + (self._hosts > 1)

    def wire(self, number: int, host: NamedNetns, *, advertised: bool = False) -> None:
        """Connect host `number`, like a machine that has just booted: link ``eth0``, addresses, routes.

        If `advertised`, its IPv6 default route is not set but learnt from `advertise`.
        """
        port = f"host{number}"
        self.ip(f"link add {port} type veth peer name eth0 netns {host.name}", f"link set {port} master lan up")
        host.ip(
            f"addr add {self.host_v4(number)}/24 dev eth0",
            f"addr add {self.host_v6(number)}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {self.V4}",
            *([] if advertised else [f"route add ::/0 via {self.V6}"]),
        )
        if number == 1:
            self.route(number, *BEHIND_HOST)

    def unplug(self, number: int) -> None:
        """Disconnect host `number`: its link and the routes through it are removed."""
        self.run(["ip", "link", "delete", f"host{number}"], check=False)

    def route(self, number: int, *prefixes: str) -> None:
        """Route the prefixes through host `number` (replacing other routes to them)."""
        for prefix in prefixes:
            via = self.host_v6(number) if ":" in prefix else self.host_v4(number)
            self.ip(f"route replace {prefix} via {via}")

    def advertise(self, lifetime: int = 1800) -> None:
        """Send one router advertisement to all hosts: "I am your default router, for `lifetime` seconds".

        A `lifetime` of 0 withdraws it. Hosts see the wan by a link-local address.
        """
        Agent.get().ask("advertise", netns=self.path, link="lan", lifetime=lifetime)

    @staticmethod
    def host_v4(number: int) -> str:
        """Return the IPv4 address of a host on this network."""
        return f"198.51.100.{number}"

    @staticmethod
    def host_v6(number: int) -> str:
        """Return the IPv6 address of a host on this network."""
        return f"2001:db8:ffff::{number}"
