"""A bridge is exempt only if Docker's list does not name it, and a Docker bridge never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker.bridges import SETTLE, Bridges
from plugin.kernel.link_monitor import Link
from plugin.nftables.elements import bridge_elements
from plugin.nftables.sets import Element
from tests.pure.strategies import examples


class Host:
    """A host's bridges by name, a clock, and Docker's list."""

    def __init__(self, remembered: frozenset[str] = frozenset()) -> None:
        self.now = 100.0
        self.uplinks: set[str] = set()
        self.bridges = Bridges(lambda: self.uplinks, remembered, lambda: self.now)
        self.links: dict[str, Link] = {}
        self._next = 10

    def have(self, *names: str, ours: bool = False) -> None:
        """Add these bridges; the others stay."""
        for name in names:
            self.links[name] = Link(self._next, name, bridge=True, ours=ours)
            self._next += 1
        self.bridges.see(self.links.values())

    def lose(self, name: str) -> None:
        del self.links[name]
        self.bridges.see(self.links.values())

    def ask(self, *dockers: str) -> None:
        self.bridges.set_listed(frozenset(dockers), self.now)

    def known(self, name: str) -> set[object]:
        return set(getattr(self.bridges.facts(), name))

    def unmanaged(self) -> set[str]:
        found = self.known("unmanaged")
        return {name for name, link in self.links.items() if link.index in found}


def test_a_bridge_is_protected_until_docker_has_listed_its_own() -> None:
    """A bridge with an unknown name becomes exempt once Docker has listed its own bridges without it, not before."""
    host = Host()
    host.have("virbr0", "front1", "docker0", "br-0123456789ab")
    assert host.unmanaged() == set()
    assert host.bridges.waiting()
    host.now += SETTLE
    host.ask("docker0", "br-0123456789ab", "front1")
    assert host.unmanaged() == {"virbr0"}
    assert not host.bridges.waiting()


def test_a_bridge_that_docker_is_creating_is_protected() -> None:
    """Docker creates the bridge before it lists the network: a list counts only for bridges that existed before it."""
    host = Host()
    host.have("front1")
    host.now += SETTLE / 2
    host.ask()
    assert host.unmanaged() == set()
    assert host.bridges.waiting()
    host.ask("front1")
    host.now += SETTLE
    host.ask("front1")
    assert host.unmanaged() == set()
    assert not host.bridges.waiting()


def test_a_new_network_protects_bridges_until_the_next_list() -> None:
    """After Docker reports a new network, no bridge except the host's uplink is exempt until Docker's next list: Docker
    may have created one recently, or taken over an existing one (`com.docker.network.bridge.name=virbr0`)."""
    host = Host()
    host.have("old0", "br0")
    host.uplinks = {"br0"}
    host.now += 100
    host.have("front1")
    host.now += SETTLE
    host.ask()
    assert host.unmanaged() == {"old0", "front1", "br0"}
    before = host.now
    host.now += 1
    host.bridges.mark_unknown()
    assert host.bridges.unsure() == {"old0", "front1"}
    assert host.unmanaged() == {"br0"}
    assert host.bridges.waiting()
    host.bridges.set_listed(frozenset(), before)
    assert host.unmanaged() == {"br0"}, "an answer that was asked for before says nothing of the new network"
    host.ask("old0")
    assert host.unmanaged() == {"front1", "br0"}
    assert host.bridges.unsure() == set()
    assert host.known("dockers") == {"old0"}


def test_a_bridge_recreated_under_its_name_is_protected() -> None:
    """An exempt bridge is removed, and Docker creates one with the same name: it is protected from its first packet."""
    host = Host()
    host.have("net0")
    host.now += SETTLE
    host.ask()
    assert host.unmanaged() == {"net0"}
    host.lose("net0")
    host.have("net0")
    assert host.unmanaged() == set()


def test_the_hosts_uplink_is_exempt_at_once() -> None:
    """A host whose default route leaves through a bridge stays reachable for its containers, unless Docker claims the
    bridge."""
    host = Host()
    host.uplinks = {"br0", "docker0"}
    host.have("br0", "docker0")
    assert host.unmanaged() == {"br0"}
    host.now += SETTLE
    host.ask("br0")
    assert host.unmanaged() == set()


def test_bridges_exempt_before_a_boot_stay_exempt() -> None:
    """Bridges that were exempt before a boot stay exempt until Docker's first list, and after it unless Docker claims
    them."""
    host = Host(frozenset({"virbr0", "was0", "docker0"}))
    host.have("virbr0", "was0", "docker0", "new0")
    assert host.unmanaged() == {"virbr0", "was0"}
    assert host.bridges.unmanaged() == {"virbr0", "was0"}
    host.ask("was0")
    assert host.unmanaged() == {"virbr0"}
    host.lose("virbr0")
    host.have("virbr0")
    assert host.unmanaged() == set()


def test_dockers_bridges_are_known_by_name_or_by_dockers_list() -> None:
    """Names that Docker generates count at once, others when Docker has listed them; no missing bridge and no docker-fw
    bridge does."""
    host = Host()
    host.have("br0", "front1", "docker0", "br-0123456789ab", "br-lan", "docker_gwbridge", "br-0123456789a")
    host.have("fw-0123456789ab", ours=True)
    by_name = {"docker0", "br-0123456789ab", "docker_gwbridge"}
    assert host.known("dockers") == host.bridges.dockers() == by_name
    # The egress look-up by container address applies to every protected bridge, known or not.
    assert host.known("guarded") == host.links.keys() - {"fw-0123456789ab"}
    host.ask("front1", "gone0")
    assert host.known("dockers") == {*by_name, "front1"}
    assert "fw-0123456789ab" not in host.known("there")


def test_addresses_of_one_bridge_may_communicate() -> None:
    """On every bridge, Docker's or not, the addresses of one bridge may communicate with each other."""
    host = Host()
    host.have("virbr0", "docker0")
    pairs = {e for e in bridge_elements(host.bridges.facts()) if e.set == "same_bridge"}
    assert pairs == {Element("same_bridge", (name, name)) for name in ("virbr0", "docker0")}


@pytest.mark.parametrize("name", ['a"b', "br*", "-x", "ü", "a;b", "$x", "a\\b"])
def test_an_odd_name_never_reaches_the_table(name: str) -> None:
    """A bridge with any name on the host neither breaks the table's text nor matches anything except itself."""
    host = Host()
    host.have(name, name + "2")
    host.now += SETTLE
    host.ask(name + "2")
    assert host.known("dockers") == host.known("guarded") == host.known("there") == set()


def test_a_renamed_docker_bridge_stays_protected() -> None:
    """A renamed Docker bridge stays protected as long as it exists, though Docker lists it by its old name."""
    host = Host()
    host.have("br-0123456789ab")
    host.links["lan0"] = Link(host.links.pop("br-0123456789ab").index, "lan0", bridge=True)
    host.bridges.see(host.links.values())
    host.now += 2 * SETTLE
    host.ask("br-0123456789ab")
    assert host.unmanaged() == set()
    assert host.known("dockers") == {"lan0"}


def test_an_incomplete_list_exempts_no_bridge() -> None:
    """Docker's list contained an entry that could not be read: a missing bridge may belong to it, so no further bridge
    becomes exempt."""
    host = Host()
    host.have("front1")
    host.now += 2 * SETTLE
    host.bridges.set_listed(frozenset(), host.now, complete=False)
    assert host.unmanaged() == set()
    host.ask()
    assert host.unmanaged() == {"front1"}


_names = st.sampled_from(["docker0", "br-0123456789ab", "front1", "virbr0", "br-lan"])
_steps = st.one_of(
    st.tuples(st.just("have"), _names),
    st.tuples(st.just("lose"), _names),
    st.tuples(st.just("ask"), st.frozensets(_names)),
    st.tuples(st.just("wait"), st.floats(0, 5)),
    st.tuples(st.just("doubt"), st.none()),
)


@given(st.lists(_steps, max_size=25))
@examples(300)
def test_a_bridge_that_docker_claims_is_always_protected(steps: list[tuple[str, object]]) -> None:
    """In any order of additions, removals and lists: a bridge that Docker's last list contains, or whose name Docker
    generates, is protected."""
    host = Host()
    last: frozenset[str] = frozenset()
    for what, value in steps:
        if what == "have" and value not in host.links:
            host.have(str(value))
        elif what == "lose" and value in host.links:
            host.lose(str(value))
        elif what == "ask":
            last = value  # type: ignore[assignment]
            host.ask(*last)
        elif what == "wait":
            host.now += value  # type: ignore[operator]
        elif what == "doubt":
            host.bridges.mark_unknown()
        assert not host.unmanaged() & {*last, "docker0", "br-0123456789ab"}
