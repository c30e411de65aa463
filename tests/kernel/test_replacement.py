"""Test that no table is ever open for lack of its elements, whatever is refused, flushed or in the way."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from plugin.model import Defaults, FwError, PolicySpec, Published, Rule
from plugin.nftables import dump
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.client import NftError
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.features import PROBES, Features
from plugin.nftables.sets import Change, Element
from plugin.policy.facts import ProxyFacts
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.packets import Listener, Packet, Sniffer, arrived, tcp, udp
from tests.kernel.site import Box, Site
from tests.kernel.talks import Talks
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

PORT = 9090
#: Tables that other programs may change, as where kernel or nft has no owners.
NOT_OWNED = Features(owned=False)
BANNED = IPv4Address("192.0.2.66")
CLOSED = [Published(*each, PORT, PORT) for each in itertools.product(("tcp", "udp"), (IPv4Address(0), IPv6Address(0)))]
_ports = itertools.cycle(range(20000, 60000))


@pytest.fixture
def web(site: Site) -> Box:
    """Return a container on a docker-fw network."""
    site.host.sysctl(FORWARDING)
    return site.box(site.network(1), 2)


def known(site: Site, web: Box) -> ElementCompiler:
    """Return facts that close something of every kind.

    The container may initiate nothing, docker-proxy has a closed port, an address is banned, dockerd has a control
    group.
    """
    facts = site.inventory(Site.known(web, spec=PolicySpec(egress=()))).view.facts
    facts = facts.keeping(lambda state: dataclasses.replace(state, bans={ip_network(BANNED): 0.0}))
    proxies = ProxyFacts(frozenset({1 << 50}))
    return compiled(Defaults(), dataclasses.replace(facts, suspects=frozenset(CLOSED), proxies=proxies))


def elements(inventory: ElementCompiler) -> set[Element]:
    return inventory.all_elements() | ban_elements(inventory.view.state.bans, 0)[0]


def hears(site: Site, ear: Sniffer | Listener, shot: Packet, source: NamedNetns | None, last: Packet) -> bool:
    """Return True if a packet arrives; `last` is sent by the host after it, and always passes."""
    for _ in ear.read():
        pass
    site.send([shot], source)
    site.send([last], site.host)
    return shot in arrived([ear], last)[0]


def passing(site: Site, web: Box) -> set[str]:
    """Return which new flows pass, of some that no docker-fw table may accept."""
    sport, lo = next(_ports), IPv4Address("127.0.0.1")
    shots: dict[str, tuple[Sniffer | Listener, Packet, NamedNetns | None, Packet]] = {
        "to docker-proxy's closed port": (
            site.listener, tcp(site.OUT4, site.HOST4, PORT, sport), None, udp(lo, lo, 9, sport),
        ),
        "from a banned address to the host": (
            site.listener, udp(BANNED, site.HOST4, 53, sport), None, udp(lo, lo, 10, sport),
        ),
        "out of a container that may initiate nothing": (
            site.sniffer(site.wan), udp(web.v4, site.OUT4, 53, sport), web, udp(site.HOST4, site.OUT4, 9, sport),
        ),
        "to a container's closed port": (
            site.sniffer(web), tcp(site.OUT4, web.v4, 5432, sport), None, udp("10.1.0.1", web.v4, 9, sport),
        ),
    }  # fmt: skip
    return {name for name, shot in shots.items() if hears(site, *shot)}


class Moments:
    """The flows that pass after each transaction of a firewall."""

    def __init__(self, site: Site, web: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed: list[set[str]] = []
        for name in ("run", "send"):
            client = site.nft._client
            monkeypatch.setattr(client, name, self._looked_at(getattr(client, name), site, web))

    def _looked_at(self, transaction: Callable[..., Any], site: Site, web: Box) -> Callable[..., Any]:
        def one(*args: Any, **more: Any) -> Any:
            try:
                return transaction(*args, **more)
            finally:
                self.passed.append(passing(site, web))

        return one


TOUCHES = {
    "nothing": "list tables",
    "flush ruleset": "flush ruleset",
    "flush the table's rules": "flush table inet docker-fw",
    "a rule that accepts": "insert rule inet docker-fw forward accept; insert rule inet docker-fw input accept",
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_a_replaced_table_is_closed_from_its_first_transaction(
    site: Site, web: Box, monkeypatch: pytest.MonkeyPatch, touch: str
) -> None:
    """Whatever changed the table: what its elements close is closed before the elements are added."""
    wanted = elements(known(site, web))
    site.nft.replace(wanted)
    site.nft.features = NOT_OWNED
    site.nft.replace(wanted)
    site.run("nft", touch)
    moments = Moments(site, web, monkeypatch)
    site.nft.replace(wanted)
    assert moments.passed, "no transaction was seen"
    assert not set().union(*moments.passed)
    assert site.nft.intact()
    left = standing_elements(site)
    assert not [element for element in left if element.set.startswith("loading")]


def standing_elements(site: Site) -> Iterable[Element]:
    with site.inside():
        return dump.read().elements


def test_the_first_table_of_a_host_is_closed_from_its_first_transaction(
    site: Site, web: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the table is loaded all flows pass; after its first transaction none of them does."""
    wanted = elements(known(site, web))
    assert len(passing(site, web)) == 4
    moments = Moments(site, web, monkeypatch)
    site.nft.replace(wanted)
    tried = 1 + sum(1 + probe.leaves for probe in PROBES)  # of features: each loads a table of its own
    assert not set().union(*moments.passed[tried:])


def test_elements_that_the_kernel_does_not_take_open_nothing(site: Site, web: Box) -> None:
    """The table is active, closed, and loaded whole when the kernel accepts it again; established flows continue."""
    wanted = elements(known(site, web))
    site.nft.features = NOT_OWNED
    site.nft.replace(wanted)
    one, two = (Element("publish4_any", (6, 81), (IPv4Address(f"10.1.0.{n}"), 80)) for n in (2, 3))
    site.run("nft", "flush ruleset")
    with pytest.raises(NftError):
        site.nft.replace({*wanted, one, two})
    assert site.nft.incomplete
    assert not passing(site, web)
    site.nft.replace(wanted)
    assert not site.nft.incomplete
    assert not passing(site, web)
    assert site.nft.intact()


def test_a_transaction_that_is_refused_once_leaves_nothing_shut(
    site: Site, web: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel accepts the elements at the second try, new connections pass at once, not after a minute."""
    batch, refusals = site.nft._client.send, [NftError("Cannot allocate memory")]

    def refuses_once(*args: Any, **more: Any) -> None:
        if refusals:
            raise refusals.pop()
        batch(*args, **more)

    monkeypatch.setattr(site.nft._client, "send", refuses_once)
    site.nft.replace(elements(known(site, web)))
    assert not refusals
    assert not [element for element in standing_elements(site) if element.set.startswith("loading")]
    assert not passing(site, web)
    opened = [tcp(a, b, 80, next(_ports)) for a, b in ((site.OUT4, web.v4), (site.OUT6, web.v6))]
    assert site.deliver(opened, web) == set(opened)


@pytest.fixture
def reconciler(site: Site, web: Box, tmp_path: Path) -> Reconciler:
    site.nft.features = NOT_OWNED
    made = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults())
    inventory = known(site, web)
    with site.inside():
        made.start(inventory.view.facts)
    return made


def test_a_refused_change_never_puts_half_a_table_there(
    site: Site, web: Box, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that the kernel refuses, and the whole table that is loaded then, open nothing at any moment."""
    endpoint = Site.known(web, spec=PolicySpec(allow=(Rule("tcp", 8080, 8080),), egress=()))
    with site.inside():
        reconciler.put_endpoint(endpoint)
        assert not passing(site, web)
        # Another program deleted an element that the next change is to remove.
        site.run("nft", "delete element inet docker-fw allow4 { " + str(web.v4) + " . tcp . 8080 }")
        moments = Moments(site, web, monkeypatch)
        reconciler.put_endpoint(Site.known(web, spec=PolicySpec(egress=())))
    assert len(moments.passed) > 1, "the change was not refused"
    assert not set().union(*moments.passed)
    assert site.nft.intact()


def test_closing_does_not_wait_for_changes_that_the_kernel_refuses(
    site: Site, web: Box, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that closes something, and is refused for another part, closes it in its first transaction.

    This is before the whole table is loaded, and it stays closed if the kernel refuses that too.
    """
    with site.inside():
        reconciler.put_endpoint(Site.known(web, Rule("tcp", 5432, 5432)))
    assert passing(site, web) >= {"to a container's closed port"}
    change, seen = site.nft.change, []

    def refuses(what: Change, timed: Any = None) -> None:
        if any(element.set == "allow4" for element in what.add):
            raise NftError("no")
        change(what, timed or {})
        seen.append(passing(site, web))

    def whole(*_: Any) -> None:
        raise NftError("no")

    monkeypatch.setattr(site.nft, "change", refuses)
    monkeypatch.setattr(site.nft, "replace", whole)
    with site.inside(), pytest.raises(FwError):
        reconciler.put_endpoint(Site.known(web, Rule("tcp", 8080, 8080)))
    assert seen
    assert "to a container's closed port" not in seen[0]


def test_flows_from_a_time_without_rules_are_cut_at_docker_proxys_ports_too(
    site: Site, web: Box, reconciler: Reconciler
) -> None:
    """An outsider's flows to a closed published port end with the repair; those that a rule accepts continue.

    This covers connections and datagrams. A flow to the same port number on an address where no container publishes it
    is left alone.
    """
    with Talks() as talks, site.inside():
        # Docker's own rules match on the state of connections, so the kernel still tracks them.
        site.run("nft", "flush ruleset")
        site.run("nft", "table inet other { chain c { type filter hook input priority 0; ct state new; }; }")
        talks.open("docker-proxy's", "tcp", site.wan, site.host, site.HOST4, PORT, source=site.OUT4)
        talks.open("by udp", "udp", site.wan, site.host, site.HOST4, PORT, source=site.OUT4)
        talks.open("of both families", "tcp", site.wan, site.host, site.HOST6, PORT, source=site.OUT6)
        talks.open("the host's own", "tcp", site.wan, site.host, site.HOST4, PORT + 1, source=site.OUT4)
        assert talks.going("the host's own") == set(talks.all)
        assert reconciler.repair()
        assert talks.going("the host's own") == {"the host's own"}


def test_a_flow_that_docker_proxys_answer_opened_is_cut_too(site: Site, web: Box, reconciler: Reconciler) -> None:
    """A flow that a client opened may be forgotten while there are no rules (Docker itself deletes UDP flows).

    Then docker-proxy's next answer opens one in the other direction. The repair ends that too, and the next answer
    opens none. A flow from a port that is not published is left alone.
    """
    with Talks() as talks, site.inside():
        site.run("nft", "flush ruleset")
        site.run("nft", "table inet other { chain c { type filter hook input priority 0; ct state new; }; }")
        talks.open("IPv4", "udp", site.wan, site.host, site.HOST4, PORT, source=site.OUT4)
        talks.open("IPv6", "udp", site.wan, site.host, site.HOST6, PORT, source=site.OUT6)
        talks.open("the host's own", "udp", site.wan, site.host, site.HOST4, PORT + 1, source=site.OUT4)
        site.forget_flows()
        for talk in talks.all.values():
            talk.says(by_client=False, word=b"the answer to a question that is forgotten")
        assert talks.going("the host's own") == set(talks.all)
        assert reconciler.repair()
        for talk in talks.all.values():
            talk.says(by_client=False, word=b"one more")
        assert talks.going("the host's own") == {"the host's own"}


def refuses_all(nft: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise NftError("Cannot allocate memory")

    monkeypatch.setattr(nft._client, "run", no)
    monkeypatch.setattr(nft._client, "send", no)


def test_a_container_removed_while_the_kernel_refuses_is_closed_once_it_accepts(
    site: Site, web: Box, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is removed while the kernel has no memory for a single change.

    As soon as it has, the container's ports are closed, because its address may be another's. The table's rules are
    unchanged, so no other mechanism would fix that.
    """
    with site.inside():
        reconciler.put_endpoint(Site.known(web, Rule("tcp", 5432, 5432)))
        assert "to a container's closed port" in passing(site, web)
        with monkeypatch.context() as short:
            refuses_all(site.nft, short)
            reconciler.drop_endpoint(Site.known(web).id)
        assert reconciler.incomplete
        reconciler.repair()
        assert "to a container's closed port" not in passing(site, web)
        assert not reconciler.incomplete


def test_a_kernel_that_cannot_match_a_listening_socket_takes_the_table(
    site: Site, web: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no rule can match a packet's socket (no nft_socket), the table is loaded without that one, and closes."""
    run = site.nft._client.run

    def old(text: str) -> None:
        if "socket transparent" in text:
            raise NftError("Could not process rule: No such file or directory")
        run(text)

    monkeypatch.setattr(site.nft._client, "run", old)
    site.nft.replace(elements(known(site, web)))
    assert not site.nft.features.listeners
    assert not passing(site, web)
