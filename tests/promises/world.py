"""A world: an engine, with or without docker-fw, on which the networks and containers of some promises run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.lab import Engine, LabError, Wan
from tests.lab.netns import Netns
from tests.lab.probe import Answer, Target
from tests.product import Fw
from tests.promises.model import Probe, Promise, Seen, Setup
from tests.promises.registry import PROMISES
from tests.promises.site import BOXES, HOST_PORT, LOOPBACKS, NETWORKS, REMOTE_PORT, SECOND, Box
from tests.waiting import crowded, until

#: The settings under which docker-fw promises to change nothing.
SETTINGS = ("FW_POLICY=open", "FW_PUBLISHED=allow")
#: Seconds until a probe without an answer is silent, and until a server behind docker-proxy must have answered. A
#: probe that should be answered is tried again with more patience.
TIMEOUT, PATIENCE, TRIES = 0.5, 1.5, 2

#: How many containers start at the same time.
AT_ONCE = 4

#: Asks Docker's embedded DNS server for a name, and prints the response's code and the number of addresses.
ASK = """
import socket, struct, sys
name = b"".join(bytes((len(part),)) + part.encode() for part in sys.argv[1].split(".")) + b"\\0"
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(3)
asking.sendto(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1), ("127.0.0.11", 53))
try:
    answer = struct.unpack("!6H", asking.recv(512)[:12])
except TimeoutError:  # Docker 20.10 leaves the names that it does not know unanswered
    answer = (7, 2, 1, 0, 0, 0)
print(answer[1] & 15, answer[3])
"""
#: The host's resolver: nothing listens there, so that a name of no container is refused at once.
RESOLVER = f"nameserver {Wan.V4}\n"


#: A promise's name, and one of its probes.
Asked = tuple[str, Probe]
Found = dict[Asked, Seen]


def chosen(setup: Setup, promises: Iterable[Promise] = PROMISES) -> list[Promise]:
    """Return the promises that are tried in this setup."""
    return [promise for promise in promises if promise.applies(setup)]


def needed(setup: Setup, promises: Iterable[Promise]) -> list[str]:
    """Return the boxes that these promises need and that this version can have, in the order of the registry."""
    names = {name for promise in promises for name in promise.boxes}
    for promise in promises:
        for probe in promise.probes:
            names |= {probe.source, probe.place.partition("/")[0]}
    return [name for name, box in BOXES.items() if name in names and possible(setup, box)]


def possible(setup: Setup, box: Box) -> bool:
    return all(NETWORKS[each].since <= setup.major for each in box.networks if each in NETWORKS)


def in_waves(boxes: list[str]) -> tuple[list[str], list[str]]:
    """Return the boxes that can start at the same time, and then those that need a running one of the first."""
    needing = [
        name for name in boxes if BOXES[name].network.startswith("container:") or "--link" in BOXES[name].options
    ]
    return [name for name in boxes if name not in needing], needing


class World:
    """The containers of these promises, on an engine with or without docker-fw (`fw`). Use it in a `with`."""

    def __init__(self, engine: Engine, setup: Setup, promises: list[Promise], fw: Fw | None = None) -> None:
        self.engine, self.setup, self.promises, self.fw = engine, setup, promises, fw
        self._stack = ExitStack()
        self._netns: dict[str, Netns] = {}
        self._servers: dict[str, ExitStack] = {}
        self._addresses: dict[tuple[str, int], str] = {}
        self._owners: dict[str, str] = {}

    def __enter__(self) -> World:
        try:
            host, wan = self.engine.host, self.engine.wan
            # Deprecated, so that the host does not choose it as a source.
            host.netns.ip(
                f"addr add {SECOND[4]}/24 dev eth0", f"addr add {SECOND[6]}/64 dev eth0 nodad preferred_lft 0"
            )
            self._stack.callback(
                host.netns.ip, f"addr del {SECOND[4]}/24 dev eth0", f"addr del {SECOND[6]}/64 dev eth0"
            )
            self._stack.enter_context(wan.probe.serve(tcp=[REMOTE_PORT], udp=[REMOTE_PORT], name="remote"))
            self._stack.enter_context(host.probe.serve(tcp=[HOST_PORT], udp=[HOST_PORT], name="host"))
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the containers and networks; the engine remains."""
        for servers in self._servers.values():
            servers.close()
        self._stack.close()

    def settle(self) -> None:
        """Wait until docker-fw, if it is there, knows every container, and the servers in it run."""
        for name in [name for name in self._servers if name not in self._netns]:
            self._serve(name)
        if self.fw is not None:
            until(self.fw.answers, "docker-fw answers", 30)
            until(lambda: not self._unknown(), "docker-fw knows every container", 60)

    def _unknown(self) -> set[str]:
        """Return the containers that docker-fw has not seen completely."""
        assert self.fw
        endpoints = [each for network in self.fw.status()["guarded"] for each in network["endpoints"]]
        known = {each["container"] for each in endpoints} - {e["container"] for e in endpoints if not e["known"]}
        return {name for name in self._servers if BOXES[name].network in (*NETWORKS, "bridge")} - known

    # --- containers -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        boxes = needed(self.setup, self.promises)
        self._stack.callback(self._remove, boxes)
        used = dict.fromkeys(network for name in boxes for network in BOXES[name].networks)
        lines = [f"docker network create {NETWORKS[name].options} {name}" for name in used if name in NETWORKS]
        self.engine.host.run(["sh", "-ec", "\n".join(lines)], timeout=120)
        for wave in in_waves(boxes):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._start, wave, timeout=600))
        self._servers = {name: ExitStack() for name in boxes}
        self.settle()

    def _start(self, name: str) -> None:
        self.engine.host.run(["sh", "-ec", self._run_line(name)], timeout=300)

    def _remove(self, boxes: list[str]) -> None:
        if self.engine.pid:
            self.engine.try_docker("rm", "-f", *boxes)
            networks = {network for name in boxes for network in BOXES[name].networks} & set(NETWORKS)
            self.engine.try_docker("network", "rm", *networks)

    @staticmethod
    def _run_line(name: str) -> str:
        box = BOXES[name]
        network = f"name={box.network},gw-priority={box.priority}" if box.priority else box.network
        where = "" if box.network == "bridge" else f"--network {network}"  # --link is refused with `--network bridge`
        options = f"--name {name} {where} --stop-signal KILL {box.options} busybox sleep inf"
        if not box.also:
            return f"docker run -d {options}"
        joined = "".join(f"docker network connect {each} {name}\n" for each in box.also)
        return f"docker create {options}\n{joined}docker start {name}"

    def _serve(self, name: str) -> None:
        box = BOXES[name]
        self._servers[name].close()
        self._netns[name] = self.engine.netns(name)
        self._forget(name)
        self._note_owners(name)
        serving = self.engine.serve(name, tcp=box.tcp, udp=box.udp, sctp=box.sctp)
        self._servers[name].enter_context(serving)

    def restarted(self, *names: str) -> None:
        """Note that these containers' processes are others now; their servers are started anew."""
        for name in names:
            self._netns.pop(name, None)
        self.settle()

    def only(self, names: list[str]) -> None:
        """Note that no other containers run any more."""
        for name in [name for name in self._servers if name not in names]:
            self._servers.pop(name).close()
            self._netns.pop(name, None)

    def move(self, name: str, old: str, new: str) -> None:
        """Connect a container to another network."""
        self.engine.docker("network", "disconnect", old, name)
        self.engine.docker("network", "connect", new, name)
        self._forget(name)
        self._note_owners(name)
        self.settle()

    def _forget(self, name: str) -> None:
        for key in [key for key in self._addresses if key[0].partition("/")[0] == name]:
            del self._addresses[key]

    # --- probes -----------------------------------------------------------------------------------------------------

    def probe(self, asked: Iterable[Asked]) -> Found:
        """Send all these probes, those of one source at once; those that fail are sent again, with more patience."""
        found: Found = {}
        waiting = [each for each in asked if self._can(each[1])]
        for attempt in range(TRIES + 1):
            found |= self._once(waiting, PATIENCE if attempt else TIMEOUT)
            waiting = [each for each in waiting if not self.as_expected(each, found[each])]
        return found

    def as_expected(self, asked: Asked, seen: Seen) -> bool:
        return seen.verdict == self.setup.choose(asked[1].expected, asked[1].but)

    def _can(self, probe: Probe) -> bool:
        """Return True if the boxes of this probe exist here, and can have addresses of its family."""
        name, _, network = probe.place.partition("/")
        if not {probe.source, name} & set(BOXES) <= set(self._servers):
            return False
        if probe.proto == "name":
            return True
        if name in LOOPBACKS:
            return probe.family in LOOPBACKS[name]
        where = network or (BOXES[name].network if name in BOXES else "")
        if where == "bridge":
            return probe.family == 4 or self.setup.profile == "docker0"
        return where not in NETWORKS or bool(NETWORKS[where].gateway(probe.family))

    def _once(self, asked: list[Asked], timeout: float) -> Found:
        found: Found = {}
        for source in dict.fromkeys(each[1].source for each in asked):
            mine = [each for each in asked if each[1].source == source]
            names = [each for each in mine if each[1].proto == "name"]
            targets = {each: self._target(each[1]) for each in mine if each[1].proto != "name"}
            answers = self._from(source).probe.ask(targets.values(), timeout=timeout, linger=timeout) if targets else {}
            found |= {each: self._seen(each[1], answers[target]) for each, target in targets.items()}
            found |= {each: self._resolve(each[1]) for each in names}
        return found

    def _from(self, source: str) -> Netns:
        return {"host": self.engine.host.netns, "remote": self.engine.wan}.get(source) or self._netns[source]

    def _target(self, probe: Probe) -> Target:
        address = self.address(probe)
        return (probe.proto, address) if probe.proto == "ping" else (probe.proto, address, probe.port)

    def _seen(self, probe: Probe, answer: Answer) -> Seen:
        if answer.verdict != "open":
            return Seen(answer.verdict)
        if probe.proto in ("ping", "sctp"):
            return Seen("open")
        return Seen("open", answer.detail, self._client(probe, answer.peer)) if answer.peer else Seen("hollow")

    def _client(self, probe: Probe, peer: str) -> str:
        """Return whose address the server saw."""
        host, wan = self.engine.host, self.engine.wan
        known = {host.v4: "host", host.v6: "host", SECOND[4]: "second", SECOND[6]: "second"}
        known |= {wan.V4: "remote", wan.V6: "remote"}
        who = known.get(peer) or self._owners.get(peer, peer)
        return "client" if who == probe.source else who

    def _resolve(self, probe: Probe) -> Seen:
        code, count = self._netns[probe.source].run([sys.executable, "-c", ASK, probe.place]).stdout.split()
        return Seen("open" if code == "0" and count != "0" else "refused")

    # --- addresses --------------------------------------------------------------------------------------------------

    def address(self, probe: Probe) -> str:
        """Return the address that a probe goes to. LabError if it has none."""
        place, family = probe.place, probe.family
        key = (place, family)
        if key not in self._addresses:
            self._addresses[key] = self._look_up(place, family)
        return self._addresses[key]

    def _look_up(self, place: str, family: int) -> str:
        fixed = {
            "host": {4: self.engine.host.v4, 6: self.engine.host.v6},
            "remote": {4: self.engine.wan.V4, 6: self.engine.wan.V6},
            "second": SECOND,
            **LOOPBACKS,
        }
        if place in fixed:
            return fixed[place][family]
        name, _, network = place.partition("/")
        if name == "gw":
            return NETWORKS[network].gateway(family)
        there = self.engine.inspect(name)["NetworkSettings"]["Networks"][network or BOXES[name].network]
        address = str(there[{4: "IPAddress", 6: "GlobalIPv6Address"}[family]])
        if not address:
            raise LabError(f"{place} has no IPv{family} address")
        return address

    def _note_owners(self, name: str) -> None:
        """Remember whose addresses a container and the gateways of its networks have."""
        for address in [address for address, owner in self._owners.items() if owner == name]:
            del self._owners[address]
        for there in self.engine.inspect(name)["NetworkSettings"]["Networks"].values():
            self._owners |= {there[key]: name for key in ("IPAddress", "GlobalIPv6Address") if there[key]}
            self._owners |= {there[key]: "gateway" for key in ("Gateway", "IPv6Gateway") if there[key]}


# --- what happens to the engine ---------------------------------------------------------------------------------------


#: Connects, says so, and holds the connection.
_TALK = """
import socket, sys, time
talking = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(talking.recv(9), flush=True)
time.sleep(60)
"""


def restart_again(world: World) -> None:
    # A connection through the published port is open while the container restarts.
    argv = [sys.executable, "-c", _TALK, world.engine.host.v4, "8203"]
    with world.engine.wan.popen(argv, stdout=subprocess.PIPE) as client:
        assert client.stdout
        assert client.stdout.readline()
        world.engine.docker("restart", "-t", "0", "again")
        client.kill()
    world.restarted("again")


def move_mover(world: World) -> None:
    world.move("mover", "plain", "other")


def move_back(world: World) -> None:
    world.move("mover", "other", "plain")


def _drop_in_forward(world: World, script: str) -> None:
    # Of a family that Docker does not filter, such rules would drop everything.
    setup = world.setup
    commands = ["iptables", *(["ip6tables"] if setup.major >= 27 or setup.profile == "ip6tables" else [])]
    for command in commands:
        world.engine.host.run(["sh", "-ec", script.replace("TABLES", command)])


def drop_in_forward(world: World) -> None:
    _drop_in_forward(world, "TABLES -A FORWARD -j DROP; TABLES -P FORWARD DROP")


def drop_no_more(world: World) -> None:
    _drop_in_forward(world, "TABLES -D FORWARD -j DROP")


def restart_dockerd(world: World) -> None:
    world.engine.stop()
    _start_dockerd(world)
    _after_dockerd(world, "restart dockerd")


def kill_dockerd(world: World) -> None:
    world.engine.kill()
    _start_dockerd(world)
    _after_dockerd(world, "kill dockerd")


def _start_dockerd(world: World) -> None:
    # It first removes what each container left, with a dozen calls of iptables one after the other, and the kernel lets
    # one that deletes a rule end only after an RCU grace period (`nf_tables_trans_destroy_flush_work`): seconds in all,
    # but minutes on a busy machine, with docker-fw and without it (20.10.24: 9 containers took 261 s at a load of 37).
    world.engine.start(wait=False)
    world.engine.ready(240 * crowded())


def _after_dockerd(world: World, act: str) -> None:
    """Start what this act's probes need: without live-restore dockerd starts only containers with a restart policy."""
    if world.setup.profile != "live-restore":
        boxes = needed(world.setup, [promise for promise in world.promises if promise.act == act])
        running = world.engine.docker("ps", "--format", "{{.Names}}").split()
        world.engine.docker("start", *(name for name in boxes if name not in running))
        world.only(boxes)
        world.restarted(*boxes)
    world.settle()


def _nothing(_: World) -> None:
    pass


#: What happens, and how it is undone; in this order.
ACTS: dict[str, tuple[Callable[[World], None], Callable[[World], None]]] = {
    "": (_nothing, _nothing),
    "restart again": (restart_again, _nothing),
    "move mover": (move_mover, move_back),
    "drop in FORWARD": (drop_in_forward, drop_no_more),
    "restart dockerd": (restart_dockerd, _nothing),
    "kill dockerd": (kill_dockerd, _nothing),
}


def run(world: World, acts: Iterable[str] = tuple(ACTS)) -> Found:
    """Try all promises of a world, each after what it says happens; return what every probe found."""
    found: Found = {}
    for act in acts:
        promises = [promise for promise in world.promises if promise.act == act]
        if promises:
            do, undo = ACTS[act]
            do(world)
            found |= world.probe([(promise.name, probe) for promise in promises for probe in promise.probes])
            undo(world)
    return found
