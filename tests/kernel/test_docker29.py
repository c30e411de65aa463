"""Test docker-fw beside the tables of Docker 29's nftables backend, with real packets through both.

No Docker 29 runs here, but its tables are in the kernel. `docker29/*.nft` are these tables, after moby's source and
golden files, for this lab's bridges and addresses: `tables.nft` is what dockerd loads first, each other file is a
network.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from plugin.docker.client import DockerApi
from plugin.docker.engine import Engine
from plugin.fwctl.api.docker_firewall import without_effect
from plugin.model import BridgeNetwork, Container, Defaults, PolicySpec, Published, Rule
from plugin.nftables.sets import Element
from tests.kernel.fakedocker import FakeDocker
from tests.kernel.packets import Packet, arrived, icmp, new_flow, ping
from tests.kernel.site import MARK, Box, Site
from tests.lab.netns import FORWARDING

PROTOS = ("tcp", "udp", "sctp")
PORTS = (21, 22, 53, 80, 443, 5432, 8080)
EVERYTHING = {f"{port}/{proto}" for port in PORTS for proto in PROTOS}
BASE = {"22/tcp", "80/tcp", "443/tcp"}
WEB, DNS, SQL = Rule("tcp", 8080, 8080), Rule("udp", 53, 53), Rule("tcp", 5432, 5432)
#: Seconds without an answer after which a probe counts as silent; an answer takes a few milliseconds.
SILENCE = 0.5
_ports = itertools.cycle(range(20000, 60000))
HOSTS = (str(Site.HOST4), str(Site.HOST6))


def dockerd(option: bool) -> list[str]:
    """Return the transactions of a dockerd that starts, with or without --bridge-accept-fwmark."""
    there = Path(__file__).with_name("docker29")
    texts = [(there / f"{name}.nft").read_text() for name in ("tables", *MODES)]
    return texts if option else [re.sub(r'.* comment "ALLOW FW MARK"\n', "", text) for text in texts]


def published(*ports: tuple[int, int]) -> tuple[Published, ...]:
    """Return `-p HOST:CONTAINER`, as Docker's API reports it."""
    return tuple(
        Published("tcp", any_, *pair) for any_ in (IPv4Address("0.0.0.0"), IPv6Address("::")) for pair in ports
    )


#: The networks' files; their gateway modes, bridges, numbers in the lab's addresses, and published ports.
MODES = {
    "nat": ("nat", "br-290000000110", 110, published((18080, 80), (15432, 5432))),
    # `-p 80 -p 5432`: in routed mode no port of the host is involved, and Docker's API lists none of them.
    "routed": ("routed", "br-290000000111", 111, ()),
    "nat-unprotected": ("nat-unprotected", "br-290000000112", 112, published((28080, 80), (25432, 5432))),
    "internal": ("nat", "br-290000000113", 113, ()),
    "no-icc": ("routed", "front29", 114, ()),
}


class Bed:
    """A host with Docker 29's networks, one container on each; on `routed` and `no-icc` also a neighbour."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.host.sysctl(FORWARDING)
        self.ours = site.box(site.network(7), 2)
        self.boxes: dict[str, Box] = {}
        for name, (_, bridge, number, ports) in MODES.items():
            box = self.boxes[name] = site.docker_box(bridge, number)
            box.endpoint = dataclasses.replace(box.endpoint, published=ports)
        self.neighbours = {name: self._neighbour(name) for name in ("routed", "no-icc")}

    def _neighbour(self, name: str) -> Box:
        _, bridge, number, _ = MODES[name]
        self.site.host.ip(f"link add e{number} type veth peer name i{number}", f"link set e{number} master {bridge} up")
        box = self.site.settle(
            f"i{number}",
            bridge,
            (f"10.{number}.0.3/24", f"2001:db8:{number}::3/64"),
            (f"10.{number}.0.1", f"2001:db8:{number}::1"),
        )
        pair = (box, self.boxes[name])
        macs = {b: b.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip() for b in pair}
        for here, there in (pair, pair[::-1]):
            here.ip(*(f"neigh replace {a} lladdr {macs[there]} dev eth0 nud permanent" for a in (there.v4, there.v6)))
        return box

    def network(self, name: str) -> BridgeNetwork:
        mode, bridge, _, _ = MODES[name]
        return BridgeNetwork("d" * 64, name, bridge, internal=name == "internal", mode4=mode, mode6=mode)

    def elements(self, *allow: Rule, known: bool = True) -> set[Element]:
        """Return docker-fw's elements for Docker 29's networks, each container with these labels."""
        return {element for name in self.boxes for element in self.guests(name, *allow, known=known)}

    def guests(self, name: str, *allow: Rule, **more: Any) -> set[Element]:
        """Return the elements for one of the networks; `more` as in `Site.docker_elements`."""
        net = self.network(name)
        fields = {"mode4": net.mode4, "mode6": net.mode6, "internal": net.internal}
        return self.site.docker_elements(self.boxes[name], net.bridge, *allow, **more, **fields)

    # --- tables -------------------------------------------------------------------------------------------------------

    def dockerd(self, option: bool) -> Iterator[None]:
        """Load Docker 29's tables as a dockerd that starts (again) does: transaction by transaction."""
        for text in dockerd(option):
            self.site.run("nft", "-f", "-", input=text)
            yield

    def clear(self, *tables: str) -> None:
        text = "".join(f"table {t} {{}}\ndelete table {t}\n" for t in tables)
        self.site.run("nft", "-f", "-", input=text)

    def load(self, *allow: Rule, option: bool = True, first: str = "ours", known: bool = True) -> None:
        """Load both, in either order, and nothing else; the containers have these labels."""
        self.clear("ip docker-bridges", "ip6 docker-bridges", "inet docker-fw")
        if first != "ours":
            list(self.dockerd(option))
        self.site.load(self.site.known(self.ours, *allow), more=self.elements(*allow, known=known))
        if first == "ours":
            list(self.dockerd(option))

    # --- packets ------------------------------------------------------------------------------------------------------

    def arriving(self, to: Box, source: Box | None = None) -> set[str]:
        """Return the ports on which a new flow reaches the container, in both families alike, of some of each protocol.

        The source cannot be on a nat network: its packets arrive with another source address than they were sent with.
        """
        names: dict[Packet, tuple[str, int]] = {}
        from4, from6 = (Site.OUT4, Site.OUT6) if source is None else (source.v4, source.v6)
        pairs: list[tuple[Any, Any]] = [(from4, to.v4), (from6, to.v6)]
        for src, dst in pairs:
            for proto, port in itertools.product(PROTOS, PORTS):
                names[new_flow(proto, src, dst, port, next(_ports))] = (f"{port}/{proto}", dst.version)
        got = {names[packet] for packet in self.delivered([*names], to, source)}
        found = {name for name, _ in got}
        assert got == {(name, family) for name in found for family in (4, 6)}
        return found

    def delivered(self, packets: list[Packet], to: Box, source: Box | None = None) -> set[Packet]:
        """Return which of them arrive. An echo request to another address follows them, which always passes."""
        witness = self.boxes["nat-unprotected"] if source is self.ours else self.ours
        sniffers = [self.site.sniffer(to), self.site.sniffer(witness)]
        for sniffer in sniffers:
            list(sniffer.read())
        last = ping(Site.OUT6 if source is None else source.v6, witness.v6)
        self.site.send([*packets, last], source)
        seen, _ = arrived(sniffers, last)
        return seen & set(packets)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Site() as site:
        yield Bed(site)


@pytest.fixture(params=["ours", "dockerd's"])
def first(request: pytest.FixtureRequest) -> str:
    """Return the owner of the tables that are loaded first: the order must not matter."""
    return str(request.param)


def targets(addresses: Iterable[object], *ports: int, proto: str = "tcp") -> list[tuple[str, str, int]]:
    return [(proto, str(address), port) for address in addresses for port in ports]


def of(box: Box) -> tuple[str, str]:
    """Return a container's own addresses."""
    return str(box.v4), str(box.v6)


# --- nat ----------------------------------------------------------------------------------------------------------


def test_nat_a_published_port_obeys_the_policy(bed: Bed, first: str) -> None:
    """`-p 18080:80` answers from outside, because 80 is open, and `-p 15432:5432` with a label.

    Neither answers if no container is known.
    """
    web, probe = bed.boxes["nat"], bed.site.wan.probe
    with web.probe.serve(tcp=[80, 5432]):
        bed.load(first=first)
        found = probe(targets(HOSTS, 18080, 15432), timeout=SILENCE)
        assert list(found.values()) == ["open", "silent"] * 2
        bed.load(SQL, first=first)
        assert set(probe(targets(HOSTS, 18080, 15432), timeout=SILENCE).values()) == {"open"}
        bed.load(known=False, first=first)
        assert set(probe(targets(HOSTS, 18080, 15432), timeout=SILENCE).values()) == {"silent"}


def test_nat_the_container_sees_who_calls(bed: Bed) -> None:
    """A published port is reached through Docker's DNAT, with the outsider's own address.

    So docker-fw's rules match it.
    """
    bed.load()
    with bed.boxes["nat"].probe.serve(tcp=[80]):
        answers = bed.site.wan.probe.ask(targets(HOSTS, 18080))
    assert [a.peer for a in answers.values()] == [bed.site.wan.V4, bed.site.wan.V6]


def test_nat_the_containers_own_address_is_dockers_to_close(bed: Bed, first: str) -> None:
    """No packet reaches a nat network's container directly, not even on open ports; no option changes that."""
    for option in (True, False):
        bed.load(WEB, SQL, option=option, first=first)
        assert bed.arriving(bed.boxes["nat"]) == set()


def test_nat_with_the_setting_a_published_port_is_open_by_itself(bed: Bed) -> None:
    """FW_PUBLISHED=allow opens `-p 15432:5432` to clients of the published port, but not the container's port."""
    for name, port in (("nat", 15432), ("nat-unprotected", 25432)):
        box = bed.boxes[name]
        bed.load()
        bed.site.load(more=bed.elements() | bed.guests(name, defaults=Defaults(published=True)))
        with box.probe.serve(tcp=[5432]):
            by_port, directly = targets(HOSTS, port), targets(of(box), 5432)
            found = bed.site.wan.probe([*by_port, *directly], timeout=SILENCE)
        assert {found[t] for t in by_port} == {"open"}
        assert {found[t] for t in directly} == {"silent"}


# --- routed -------------------------------------------------------------------------------------------------------


def test_routed_with_the_option_the_policy_is_the_whole_truth(bed: Bed, first: str) -> None:
    """With --bridge-accept-fwmark base and labels are open on the container's own address, and nothing else."""
    routed = bed.boxes["routed"]
    bed.load(first=first)
    assert bed.arriving(routed) == BASE
    bed.load(WEB, DNS, first=first)
    assert bed.arriving(routed) == {*BASE, "8080/tcp", "53/udp"}
    with routed.probe.serve(tcp=[8080, 5432], udp=[53]):
        tried = [*targets(of(routed), 8080, 5432), *targets(of(routed), 53, proto="udp")]
        assert list(bed.site.wan.probe(tried, timeout=SILENCE).values()) == ["open", "silent"] * 2 + ["open"] * 2
    bed.load(WEB, DNS, known=False, first=first)
    assert bed.arriving(routed) == set()


def test_routed_without_the_option_only_what_is_published_is_open(bed: Bed, first: str) -> None:
    """Without the option Docker drops unpublished ports, base and labels too; published ports also need the policy."""
    bed.load(WEB, DNS, option=False, first=first)
    assert bed.arriving(bed.boxes["no-icc"]) == set()  # nothing is published there
    assert bed.arriving(bed.boxes["routed"]) == {"80/tcp"}  # -p 80 -p 5432
    bed.load(SQL, option=False, first=first)
    assert bed.arriving(bed.boxes["routed"]) == {"80/tcp", "5432/tcp"}


@pytest.mark.parametrize("option", [True, False], ids=["option", "none"])
def test_routed_only_useful_icmp_arrives(bed: Bed, option: bool) -> None:
    """Docker accepts every ICMP message to a routed network; docker-fw accepts echo and errors only."""
    routed = bed.boxes["routed"]
    good = [ping(Site.OUT4, routed.v4), ping(Site.OUT6, routed.v6)]
    bad = [icmp(Site.OUT4, routed.v4, 13), icmp(Site.OUT6, routed.v6, 139)]  # a timestamp's, a node's information
    bed.load(option=option)
    assert bed.delivered([*good, *bad], routed) == set(good)
    bed.clear("inet docker-fw")
    assert bed.delivered([*good, *bad], routed) == {*good, *bad}


# --- nat-unprotected ----------------------------------------------------------------------------------------------


def test_unprotected_ours_is_the_only_guard(bed: Bed, first: str) -> None:
    """Docker lets everything through to a nat-unprotected network: base and labels are open, the rest is silent."""
    box = bed.boxes["nat-unprotected"]
    for option in (True, False):
        bed.load(option=option, first=first)
        assert bed.arriving(box) == BASE
    bed.load(WEB, DNS, first=first)
    assert bed.arriving(box) == {*BASE, "8080/tcp", "53/udp"}
    bed.load(known=False, first=first)
    assert bed.arriving(box) == set()
    with box.probe.serve(tcp=[80, 5432]):
        by_port = targets(HOSTS, 28080, 25432)
        bed.load(first=first)
        assert list(bed.site.wan.probe(by_port, timeout=SILENCE).values()) == ["open", "silent"] * 2
        bed.load(SQL, first=first)
        assert set(bed.site.wan.probe(by_port, timeout=SILENCE).values()) == {"open"}


def test_dockers_tables_alone_are_as_open_as_that(bed: Bed) -> None:
    """Without docker-fw, all of nat-unprotected is open, and elsewhere what is published.

    So the silence in the other tests is the effect of docker-fw.
    """
    bed.load()
    bed.clear("inet docker-fw")
    assert bed.arriving(bed.boxes["nat-unprotected"]) == EVERYTHING
    assert bed.arriving(bed.boxes["routed"]) == {"80/tcp", "5432/tcp"}
    with bed.boxes["nat"].probe.serve(tcp=[5432]):
        assert set(bed.site.wan.probe(targets(HOSTS, 15432)).values()) == {"open"}


# --- internal, and within one network -----------------------------------------------------------------------------


def test_an_internal_network_stays_shut(bed: Bed, first: str) -> None:
    """From outside and from other networks nothing reaches an internal network, whatever its labels say."""
    bed.load(WEB, DNS, first=first)
    inner = bed.boxes["internal"]
    assert bed.arriving(inner) == set()
    for source in (bed.boxes["routed"], bed.ours):
        assert bed.arriving(inner, source) == set()


@pytest.mark.parametrize("netfilter", [0, 1])
def test_containers_of_one_network_talk(bed: Bed, first: str, netfilter: int) -> None:
    """Within one bridge every port is open, also where the firewall sees its packets."""
    with _bridge_netfilter(bed, netfilter):
        bed.load(first=first)
        assert bed.arriving(bed.boxes["routed"], bed.neighbours["routed"]) == EVERYTHING


@pytest.mark.parametrize("option", [True, False], ids=["option", "none"])
def test_no_icc_stays_dockers_decision(bed: Bed, first: str, option: bool) -> None:
    """enable_icc=false isolates the containers of a network, open ports too: docker-fw's mark does not override it."""
    with _bridge_netfilter(bed, 1):  # as dockerd sets it for such a network
        bed.load(WEB, option=option, first=first)
        assert bed.arriving(bed.boxes["no-icc"], bed.neighbours["no-icc"]) == set()
        assert bed.arriving(bed.boxes["no-icc"]) == ({*BASE, "8080/tcp"} if option else set())


@contextmanager
def _bridge_netfilter(bed: Bed, value: int) -> Iterator[None]:
    """Set whether the firewall sees the packets of a bridge."""
    names = [f"net/bridge/bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables")]
    bed.site.host.sysctl(dict.fromkeys(names, value))
    try:
        yield
    finally:
        bed.site.host.sysctl(dict.fromkeys(names, 0))


# --- between networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nat", "routed", "nat-unprotected", "no-icc", "ours"])
def test_between_networks_only_the_policy(bed: Bed, first: str, source: str) -> None:
    """From another network: base and labels where Docker isolates nothing (→ nat-unprotected), and published ports.

    The mark, which overrules Docker's drop, is not set between two networks: → routed only what Docker itself accepts.
    """
    bed.load(WEB, DNS, first=first)
    policy = {*BASE, "8080/tcp", "53/udp"}
    wanted = {"nat": set(), "routed": {"80/tcp"}, "nat-unprotected": policy, "internal": set(), "no-icc": set()}
    all_boxes = {**bed.boxes, "ours": bed.ours}
    start = all_boxes.pop(source)
    whose = {
        (proto, address, port): name
        for name, box in all_boxes.items()
        for proto, ports in (("tcp", (22, 80, 443, 5432, 8080)), ("udp", (53,)))
        for address in of(box)
        for port in ports
    }
    by_port = {"nat": targets(HOSTS, 18080, 15432), "nat-unprotected": targets(HOSTS, 28080, 25432)}
    by_port.pop(source, None)
    with ExitStack() as serving:
        for box in all_boxes.values():
            serving.enter_context(box.probe.serve(tcp=[22, 80, 443, 5432, 8080], udp=[53]))
        found = start.probe([*whose, *itertools.chain(*by_port.values())], timeout=SILENCE)
    reached = [(whose[target], f"{target[2]}/{target[0]}") for target in whose if found[target] == "open"]
    expected = {(name, port) for name in all_boxes for port in {**wanted, "ours": policy}[name]}
    assert set(reached) == expected
    assert len(reached) == 2 * len(expected), "in both families"
    for tried in by_port.values():
        assert [found[target] for target in tried] == ["open", "silent"] * 2


# --- the way out, and the host ------------------------------------------------------------------------------------


def test_the_way_out_is_dockers(bed: Bed, first: str) -> None:
    """A container reaches the outside, with the host's address from a nat network and its own from a routed one."""
    bed.load(first=first)
    with bed.site.wan.probe.serve(tcp=[9001], udp=[9001]):
        for name, box in bed.boxes.items():
            away = [t for proto in ("tcp", "udp") for t in targets((Site.OUT4, Site.OUT6), 9001, proto=proto)]
            found = box.probe.ask(away, timeout=SILENCE)
            if name == "internal":
                assert {a.verdict for a in found.values()} == {"silent"}
                continue
            peers = HOSTS if MODES[name][0].startswith("nat") else of(box)
            assert [a.peer for a in found.values()] == [*peers, *peers]


def test_the_host_reaches_its_containers(bed: Bed, first: str) -> None:
    """The host reaches every port of every container, known or not, directly and through the published ports."""
    bed.load(known=False, first=first)
    for box in bed.boxes.values():
        with box.probe.serve(tcp=[80, 5432], udp=[53]):
            tried = [*targets(of(box), 80, 5432), *targets(of(box), 53, proto="udp")]
            tried += targets(HOSTS, *{p.host_port for p in box.endpoint.published})
            assert set(bed.site.host.probe(tried).values()) == {"open"}


def test_a_network_of_ours_beside_them(bed: Bed, first: str) -> None:
    """Docker 29's tables change nothing for a docker-fw network: base and labels, published ports, outbound traffic."""
    bed.load(first=first)
    ports = published((8081, 80), (8082, 5432))
    bed.site.load(bed.site.known(bed.ours, WEB, published=ports), more=bed.elements())
    assert bed.arriving(bed.ours) == {*BASE, "8080/tcp"}
    with bed.ours.probe.serve(tcp=[80, 5432]), bed.site.wan.probe.serve(tcp=[9001]):
        found = bed.site.wan.probe(targets(HOSTS, 8081, 8082), timeout=SILENCE)
        assert list(found.values()) == ["open", "silent"] * 2
        assert set(bed.ours.probe(targets((Site.OUT4, Site.OUT6), 9001)).values()) == {"open"}


# --- reports to the user ----------------------------------------------------------------------------------------------


#: Bugs of plugin/ that these tests found; strict, so that a fix must remove the mark.
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *itertools.product(("nat", "nat-unprotected", "internal", "no-icc"), (WEB, SQL)),
        ("routed", WEB),
        ("routed", SQL),
    ],
    ids=str,
)
def test_a_label_without_effect_is_reported_as_such(bed: Bed, name: str, rule: Rule) -> None:
    """Without the option, status reports that a label has no effect exactly if no outsider gets in by it.

    Or else it names the measure that lets clients in: publishing the port.
    """
    box = bed.boxes[name]
    endpoint = dataclasses.replace(box.endpoint, container=Container("c", "c", PolicySpec(allow=(rule,))))
    notes = without_effect(bed.network(name), endpoint, Engine("29.7.2", "nftables"), MARK)
    by_port = [p.host_port for p in box.endpoint.published if p.container_port == rule.first]
    bed.load(rule, option=False)
    with box.probe.serve(tcp=[rule.first]):
        tried = [*targets(of(box), rule.first), *targets(HOSTS, *by_port)]
        reached = "open" in bed.site.wan.probe(tried, timeout=SILENCE).values()
    assert bool(notes) is not reached or (reached and f"-p {rule.first}" in notes[0])


def test_the_recommended_option_makes_the_label_effective(bed: Bed) -> None:
    """The status message names the option with which Docker writes the very rule that opens the label's port."""
    network = bed.network("routed")
    endpoint = dataclasses.replace(
        bed.boxes["routed"].endpoint, container=Container("c", "c", PolicySpec(allow=(WEB,)))
    )
    (sentence,) = without_effect(network, endpoint, Engine("29.7.2", "nftables"), MARK)
    found = re.search(r"--bridge-accept-fwmark=(\w+)/(\w+)", sentence)
    assert found, sentence
    mark, mask = (int(number, 0) for number in found.groups())
    (rule,) = {line.strip() for text in dockerd(True) for line in text.splitlines() if line.endswith('FW MARK"')}
    assert rule == f'meta mark and {mask} == {mark} counter accept comment "ALLOW FW MARK"'


class Api29(FakeDocker):
    """Docker's API that serves only requests of `versions`, and reports its firewall from 1.49 on (as in moby)."""

    release, versions = "29.7.2", (40, 55)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        least, most = self.versions
        asked = re.match(r"/v1\.(\d+)/", request.path)
        version = int(asked[1]) if asked else most
        if version < least:
            self._reply(request, {"message": f"client version 1.{version} is too old. Minimum supported …"}, 400)
        elif request.path == "/version":
            version = {"Version": self.release, "ApiVersion": f"1.{most}", "MinAPIVersion": f"1.{least}"}
            self._reply(request, version)
        elif request.path.endswith("/info"):
            self._reply(request, {"FirewallBackend": {"Driver": "nftables"}} if version >= 49 else {})
        else:
            super()._answer(request)


@pytest.mark.parametrize(("release", "versions"), [("29.1.5", (44, 52)), ("29.2.1", (44, 53)), ("29.7.2", (40, 55))])
def test_the_api_of_each_29_reports_its_firewall(tmp_path: Path, release: str, versions: tuple[int, int]) -> None:
    """From whatever API versions a Docker 29 still serves, docker-fw learns its backend and the other facts."""
    docker = Api29(tmp_path / "docker.sock")
    docker.release, docker.versions = release, versions
    try:
        api = DockerApi(str(docker.path))
        api.look()
        assert api.engine == Engine(release, "nftables")
    finally:
        docker.close()


# --- dockerd starts again -----------------------------------------------------------------------------------------


def closed(bed: Bed) -> list[tuple[str, str, int]]:
    """Return what is closed whatever Docker has loaded; a server listens behind each (docker-proxy's on the host)."""
    found = targets(HOSTS, 15432, 25432)
    for box in bed.boxes.values():
        found += [*targets(of(box), 5432, 8080), *targets(of(box), 123, proto="udp")]
    return found


@pytest.fixture
def served(bed: Bed) -> Iterator[None]:
    """Run servers on closed and open ports, and in docker-proxy's place on the host."""
    with ExitStack() as serving:
        for box in bed.boxes.values():
            serving.enter_context(box.probe.serve(tcp=[80, 5432, 8080], udp=[123]))
        serving.enter_context(bed.site.host.probe.serve(tcp=[18080, 15432, 28080, 25432]))
        yield


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("gone", [False, True], ids=["emptied", "deleted"])
@pytest.mark.parametrize("option", [True, False], ids=["option", "none"])
def test_closed_ports_are_closed_at_each_step_of_a_start(bed: Bed, option: bool, gone: bool) -> None:
    """dockerd starts again: it empties its tables (or finds none), then adds its networks; closed ports stay closed.

    In between Docker protects nothing, and docker-proxy's port is not forwarded to the container.
    """
    bed.load(option=option)
    if gone:
        bed.clear("ip docker-bridges", "ip6 docker-bridges")
        assert set(bed.site.wan.probe(closed(bed), timeout=0.2).values()) == {"silent"}
    for _ in bed.dockerd(option):
        assert set(bed.site.wan.probe(closed(bed), timeout=0.2).values()) == {"silent"}
        assert bed.arriving(bed.boxes["nat-unprotected"]) == BASE
    assert set(bed.site.wan.probe(targets(HOSTS, 18080, 28080)).values()) == {"open"}


@pytest.mark.usefixtures("served")
def test_closed_ports_are_closed_while_dockerd_starts_over_and_over(bed: Bed) -> None:
    """Closed ports are probed while Docker 29's tables are removed and added: none answers.

    Open ports do, in the end.
    """
    bed.load()
    with bed.site.wan.probe.hammer(*closed(bed), every=0.002) as hammer:
        for _ in range(10):
            list(bed.dockerd(True))
            bed.clear("ip docker-bridges", "ip6 docker-bridges")
            list(bed.dockerd(True))
    assert not hammer.result.opened
    assert {shot.target for shot in hammer.result.shots} == set(closed(bed))
    assert set(bed.site.wan.probe(targets(HOSTS, 18080, 28080)).values()) == {"open"}
    assert bed.arriving(bed.boxes["routed"]) == BASE
