"""The places: the real plugin on a host, an outsider, and containers that are attacked, or hostile.

with Bed.made(lanes=4) as bed, bed.spot("outsider", "Docker") as spot:  # a container that no other case uses meanwhile
    spot.attack(case)  # → Seen: what arrived, what changed, what the tool printed
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from pathlib import Path

from plugin.kernel.names import bridge_name
from tests.kernel.netns import nowhere
from tests.kernel.packets import ping
from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER, BRIDGED_FRAMES_UNTRACKED, Box, Site
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING
from tests.waiting import until

from .arrivals import Arrivals, Ears, Frame, from_mac, is_from_the_link, is_own_housekeeping, to
from .case import CLOSED_TCP, CLOSED_UDP, LABELS, OPEN_TCP, OPEN_UDP, Case, Kind, Sender

#: Subnets 10.N.0.0/24 and 2001:db8:N::/64, and bridges: for attacks from outside, and for those of a neighbour.
NUMBERS: dict[tuple[Sender, Kind], int] = {
    ("outsider", "docker-fw"): 1,
    ("outsider", "Docker"): 100,
    ("neighbour", "docker-fw"): 2,
    ("neighbour", "Docker"): 101,
}
BRIDGES = {100: BR_DOCKER, 101: "br-ba9876543210"}
#: Ports that the target's servers listen on.
TCP, UDP = (22, 80, 443, OPEN_TCP, CLOSED_TCP), (OPEN_UDP, CLOSED_UDP)
#: Seconds for any tool. One that takes longer fails the run.
PATIENCE = 240
#: A container that sends nothing by itself: no router solicitations.
SILENT = {"net/ipv6/conf/eth0/router_solicitations": 0}


@dataclass(frozen=True)
class Seen:
    """What a case did."""

    arrived: frozenset[str]
    changed: frozenset[str]
    #: The ports on which the target's servers received something: "tcp 8080".
    served: frozenset[str]
    printed: str
    seconds: float


class Bed:
    """The host with the real plugin, and for each sender and kind of network containers to attack."""

    def __init__(self, site: Site, fw: Running) -> None:
        self.site, self.fw = site, fw
        self._free: dict[tuple[Sender, Kind], queue.Queue[Box]] = {place: queue.Queue() for place in NUMBERS}
        self._hostile: dict[Kind, Box] = {}
        #: What `listed` returned before the first attack.
        self.accepted: dict[str, frozenset[str]] = {}

    @classmethod
    @contextmanager
    def made(cls, lanes: int) -> Iterator[Bed]:
        """Start the plugin, with `lanes` containers of each kind to attack from outside and one for a neighbour."""
        with nowhere(), Site() as site:
            site.host.sysctl({**FORWARDING, **BRIDGED_FRAMES_UNTRACKED})
            with closing(Running(site)) as fw:
                bed = cls(site, fw)
                bed._fill(lanes)
                yield bed

    def _fill(self, lanes: int) -> None:
        count = {"outsider": lanes, "neighbour": 2}
        made = {place: self._dockers(number, count[place[0]]) for place, number in NUMBERS.items() if number in BRIDGES}
        self.fw.spawn()
        until(self.fw.answers, "the plugin answers", 90)
        made |= {place: self._ours(number, count[place[0]]) for place, number in NUMBERS.items() if place not in made}
        everyone = [str(box.v6) for boxes in made.values() for box in boxes]
        until(lambda: all(f"{OPEN_TCP}/6" in self.fw.opens(each) for each in everyone), "labels are known", 60)
        self.accepted = self.listed()
        for (sender, kind), boxes in made.items():
            if sender == "neighbour":
                self._hostile[kind] = boxes.pop()
            for box in boxes:
                box.sysctl(SILENT)
                self._free[sender, kind].put(box)

    def _dockers(self, number: int, count: int) -> list[Box]:
        """Return new containers on a network of Docker's bridge driver, as Docker lists them."""
        identity = f"{number:012x}".ljust(64, "d")
        subnets = (f"10.{number}.0.0/24", f"2001:db8:{number}::/64")
        self.fw.docker.bridge_network(identity, f"app{number}", *subnets, bridge=BRIDGES[number])
        boxes = [self.site.docker_box(BRIDGES[number], number, host) for host in range(2, 2 + count)]
        for host, box in enumerate(boxes, 2):
            self.fw.docker.container(f"d{number}.{host}", box.endpoint.id, identity, LABELS)
            listed = self.fw.docker.containers[box.endpoint.id]["NetworkSettings"]["Networks"]["net"]
            listed.update(IPAddress=str(box.v4), GlobalIPv6Address=str(box.v6))
        return boxes

    def _ours(self, number: int, count: int) -> list[Box]:
        """Return new containers on a docker-fw network."""
        network = self.fw.network(number)
        self.fw.well("CreateNetwork", network)
        return [self.fw.move(self.fw.start_container(network, host, LABELS)) for host in range(2, 2 + count)]

    @contextmanager
    def spot(self, sender: Sender, kind: Kind) -> Iterator[Spot]:
        """Take a target that no other case uses meanwhile; it waits until one is free."""
        free = self._free[sender, kind]
        target = free.get(timeout=PATIENCE)
        attacker: NamedNetns = self._hostile[kind] if sender == "neighbour" else self.site.wan
        try:
            yield Spot(self, sender, kind, target, attacker)
        finally:
            free.put(target)

    def listed(self) -> dict[str, frozenset[str]]:
        """Return the ports that `fwctl status` lists as open, "tcp 8080", for each address of a container."""
        status = self.fw.status()
        endpoints = [each for net in (*status["networks"], *status["guarded"]) for each in net["endpoints"]]
        return {
            address: frozenset(" ".join(reversed(rule.split("/"))) for rule in endpoint["accepts"])
            for endpoint in endpoints
            for address in endpoint["addresses"]
        }


@dataclass(frozen=True)
class Spot:
    """An attacker and its target."""

    bed: Bed
    sender: Sender
    kind: Kind
    target: Box
    attacker: NamedNetns

    @property
    def number(self) -> int:
        """Return the number of the target's subnets."""
        return NUMBERS[self.sender, self.kind]

    @property
    def link(self) -> str:
        """Return the attacker's link."""
        return "eth0" if self.sender == "neighbour" else "lan"

    @property
    def bridge(self) -> str:
        """Return the bridge of the target's network."""
        return BRIDGES.get(self.number) or bridge_name(str(self.bed.fw.network(self.number)["NetworkID"]))

    @property
    def gateway(self) -> str:
        """Return the host's address on the target's network."""
        return f"2001:db8:{self.number}::1"

    def words(self) -> dict[str, object]:
        """Return the words of a command's template."""
        return {
            "link": self.link,
            "v4": self.target.v4,
            "v6": self.target.v6,
            "mine": self.attacker_address,
            "gateway": self.gateway,
            "network": f"2001:db8:{self.number}::",
            "outside": Site.OUT6,
            "local": link_local(self.attacker, self.link),
            "router": link_local(self.bed.site.host, self.bridge),
            "mac": mac_of(self.attacker, self.link),
            "target_mac": mac_of(self.target, "eth0"),
            "next_mac": mac_of(self.bed.site.host, "eth0" if self.sender == "outsider" else self.bridge),
        }

    def attack(self, case: Case) -> Seen:
        """Run the tool, and return what arrived before an echo request that was sent afterwards."""
        pictured = self.sender == "neighbour"
        with closing(Ears(self.target.path)) as ears, self.target.probe.serve(tcp=TCP, udp=UDP) as servers:
            before = self._pictured() if pictured else {}
            list(ears.read())
            start = time.monotonic()
            printed = self._run(case)
            seconds = time.monotonic() - start
            frames = self._until_last(ears)
            after = self._pictured() if pictured else {}
            served = frozenset(f"{each['proto']} {each['port']}" for each in servers.seen())
        changed = changes(before, after)
        if changed:
            self.repair()
        return Seen(Arrivals.of(frames), changed, served, printed, seconds)

    def _run(self, case: Case) -> str:
        """Run the tool and what the target does meanwhile; return the tool's output."""
        words = self.words()
        with self.attacker.popen(
            shlex.split(case.command.format(**words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as tool:
            try:
                if case.target_does:
                    until(lambda: reads_packets(tool.pid), f"{case.tool} listens", 30)
                    self.target.run(["sh", "-c", case.target_does.format(**words)], check=False)
                return str(tool.communicate(timeout=case.ended_after or PATIENCE)[0])
            except subprocess.TimeoutExpired:
                if not case.ended_after:
                    raise
                tool.kill()
                return str(tool.communicate(timeout=PATIENCE)[0])
            finally:
                tool.kill()

    def _until_last(self, ears: Ears) -> list[Frame]:
        """Return what arrived of the attack: from outside all packets to the target, else the attacker's frames."""
        host = self.sender == "outsider"
        last = ping(self.attacker_address, self.target.v6)
        self.bed.site.send([last], self.attacker)
        frames: list[Frame] = []

        def seen() -> bool:
            frames.extend(ears.read())
            return any(each.data[40:] == last.data for each in frames)

        until(seen, "the last echo request arrives", 30)
        frames = [each for each in frames if each.data[40:] != last.data]
        if host:
            return [each for each in to(frames, self.target.v4, self.target.v6) if not is_from_the_link(each)]
        own = {str(self.attacker_address), link_local(self.attacker, self.link)}
        mine = from_mac(frames, mac_of(self.attacker, self.link))
        return [each for each in mine if not is_own_housekeeping(each, own)]

    @property
    def attacker_address(self) -> IPv6Address:
        """Return the address that the attacker sends from."""
        return self.attacker.v6 if isinstance(self.attacker, Box) else Site.OUT6

    def _pictured(self) -> dict[str, object]:
        """Return what the target and the host know of the network, after both have looked for each other."""
        self.target.probe([("ping", self.gateway), ("ping", str(self.attacker_address))])
        self.bed.site.host.probe.ping(str(self.target.v6))
        return {
            **picture("target", self.target, "eth0", self.gateway, str(self.attacker_address)),
            **picture("host", self.bed.site.host, self.bridge, str(self.target.v6)),
        }

    def repair(self) -> None:
        """Make the target and the host forget what they learnt, and look for each other again."""
        for netns, link in ((self.target, "eth0"), (self.bed.site.host, self.bridge)):
            netns.run(["ip", "neigh", "flush", "dev", link, "nud", "permanent"], check=False)
            netns.run(["ip", "neigh", "flush", "dev", link], check=False)
            netns.run(["ip", "-6", "route", "flush", "cache"], check=False)
        for line in self.target.run(["ip", "-6", "route", "show", "proto", "ra"]).stdout.splitlines():
            self.target.run(["ip", "-6", "route", "del", *line.split(" expires")[0].split()], check=False)
        for word in addresses(self.target, "eth0"):
            if word.startswith("2001:db8:bad"):
                self.target.run(["ip", "addr", "del", word, "dev", "eth0"], check=False)


def reads_packets(pid: int) -> bool:
    """Return True if the process has a packet socket, so that it receives frames."""
    with contextlib.suppress(OSError):
        sockets = {os.readlink(each.path) for each in os.scandir(f"/proc/{pid}/fd")}
        inodes = {line.split()[8] for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]}
        return any(f"socket:[{inode}]" in sockets for inode in inodes)
    return False


def picture(name: str, netns: NamedNetns, link: str, *neighbours: str) -> dict[str, object]:
    """Return routes, addresses, and the MACs of these neighbours, asked in one go."""
    asked = ("-6 route show", f"-6 route get {Site.OUT6}", f"-br addr show dev {link}", f"neigh show dev {link}")
    script = "; echo --; ".join(f"ip {each}" for each in asked)
    routes, way_out, own, known = netns.run(["sh", "-c", script]).stdout.split("--\n")
    found = [line.split() for line in known.splitlines()]
    return {
        f"{name}: routes": {line.partition(" expires")[0].strip() for line in (routes + way_out).splitlines()},
        f"{name}: addresses": set(own.split()[2:]),
        f"{name}: neighbours": {w[0]: w[2] for w in found if w[0] in neighbours and w[1:2] == ["lladdr"]},
    }


def addresses(netns: NamedNetns, link: str) -> set[str]:
    """Return the addresses of a link, with their prefix lengths."""
    return set(netns.run(["ip", "-br", "addr", "show", "dev", link]).stdout.split()[2:])


def changes(before: dict[str, object], after: dict[str, object]) -> frozenset[str]:
    """Return what differs between two pictures."""
    return frozenset(name for name, value in after.items() if value != before[name])


@lru_cache
def mac_of(netns: NamedNetns, link: str) -> str:
    """Return the MAC of a link."""
    return netns.run(["ip", "-o", "link", "show", "dev", link]).stdout.split("link/ether ")[1].split()[0]


@lru_cache
def link_local(netns: NamedNetns, link: str) -> str:
    """Return the link-local address of a link."""
    (found,) = [each for each in addresses(netns, link) if each.startswith("fe80:")]
    return found.partition("/")[0]
