"""Test base chains that exist only while elements need them: they are there before the first, and go after the last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.nftables.client import NftError
from plugin.nftables.document import document
from plugin.nftables.hooks import HOOKS
from plugin.nftables.sets import RATED, SETS, Change, Element, SetSpec
from plugin.nftables.table import KernelTable
from tests.kernel.netns import empty, inside
from tests.kernel.site import MARK
from tests.lab import NamedNetns

V4, V6 = IPv4Address("203.0.113.7"), IPv6Address("2001:db8:9::7")
_VALUES = {
    "meta nfproto": 10,
    "meta l4proto": 17,
    "iifname": "br-a",
    "oifname": "br-a",
    "ip saddr": V4,
    "ip daddr": V4,
    "ip6 saddr": V6,
    "ip6 daddr": V6,
    "th sport": 7,
    "th dport": 8,
}
#: The sets that need a base chain, apart from those of rates, which have chains of their own as well.
NEEDING = {name: spec for name, spec in SETS.items() if spec.hooks and name not in RATED}


@pytest.fixture(scope="module")
def host() -> Iterator[NamedNetns]:
    with empty() as made:
        yield made


@pytest.fixture
def nft(host: NamedNetns) -> Iterator[KernelTable]:
    """Yield docker-fw's table, without any element."""
    host.run(["nft", "flush", "ruleset"])
    with inside(host.path):
        made = KernelTable(MARK)
        made.replace([])
        yield made


def there(host: NamedNetns) -> set[str]:
    """Return the base chains of `HOOKS` that the kernel has."""
    return {*re.findall(r"chain (\w+) \{", host.run(["nft", "list", "ruleset"]).stdout)} & HOOKS.keys()


def one(name: str, spec: SetSpec) -> Element:
    return Element(name, tuple(_VALUES[each] for each in spec.key))


@pytest.mark.parametrize("name", NEEDING)
def test_a_base_chain_is_there_while_its_set_has_an_element(host: NamedNetns, nft: KernelTable, name: str) -> None:
    """A feature that is not in use has no rule in the kernel; one that is in use has all of its own."""
    spec, element = NEEDING[name], one(name, NEEDING[name])
    assert there(host) == set()
    nft.change(Change(), {element: 60}) if spec.timed else nft.change(Change(add=(element,)))
    assert there(host) == {*spec.hooks}
    assert nft.intact()
    nft.replace([], {element: 60}) if spec.timed else nft.replace([element])
    assert there(host) == {*spec.hooks}
    nft.change(Change(remove=(element,)))
    assert there(host) == set()
    assert nft.intact()


def test_an_element_that_is_removed_and_added_again_keeps_its_chain(host: NamedNetns, nft: KernelTable) -> None:
    """One transaction may remove an element and add it, say with another time-out."""
    hooks = {*NEEDING["loading"].hooks, *NEEDING["ban_families"].hooks}
    ban, loading = (one(name, NEEDING[name]) for name in ("ban_families", "loading"))
    nft.change(Change(add=(ban,)), {loading: 60})
    nft.change(Change((ban, loading), (ban,)), {loading: 50})
    assert there(host) == hooks
    nft.change(Change((ban, loading)))
    assert there(host) == set()


def test_a_chain_stays_as_long_as_one_element_needs_it(host: NamedNetns, nft: KernelTable) -> None:
    """Two networks are internal: when one is removed the other one stays closed."""
    first, second = Element("internal", ("br-a",)), Element("internal", ("br-b",))
    nft.change(Change(add=(first, second)))
    nft.change(Change(remove=(first,)))
    assert there(host) == {*NEEDING["internal"].hooks}
    nft.change(Change(remove=(second,)))
    assert there(host) == set()


def test_a_closing_does_not_wait_for_chains_that_nothing_needs(host: NamedNetns) -> None:
    """They are removed by a command for which nft reads all sets of the host first. A new element keeps its chain."""
    queued, element = list[Callable[[], object]](), Element("internal", ("br-a",))
    host.run(["nft", "flush", "ruleset"])
    with inside(host.path):
        nft = KernelTable(MARK, later=queued.append)
        nft.replace([])
        hooks = {*NEEDING["internal"].hooks}
        for change in (Change(add=(element,)), Change(remove=(element,)), Change(add=(element,))):
            nft.change(change)
            assert there(host) == hooks
        queued.pop(0)()
        assert there(host) == hooks
        nft.change(Change(remove=(element,)))
        assert there(host) == hooks
        assert nft.intact()
        queued.pop(0)()
        assert there(host) == set()
        assert nft.intact()
        assert not queued


def test_a_refused_element_leaves_a_table_that_closes(host: NamedNetns, nft: KernelTable) -> None:
    """If the kernel refuses an element after its base chain was added, the table is whole, and works the next time."""
    with pytest.raises(NftError):
        nft.change(Change(remove=(Element("internal", ("br-z",)),), add=(Element("internal", ("br-a",)),)))
    assert nft.intact()
    nft.change(Change(add=(Element("internal", ("br-a",)),)))
    assert there(host) == {*NEEDING["internal"].hooks}
    nft.change(Change(remove=(Element("internal", ("br-a",)),)))
    assert there(host) == set()


def test_a_base_chain_that_another_program_removes_is_missed(host: NamedNetns, nft: KernelTable) -> None:
    """Where tables have no owner, root can remove it: docker-fw notices, and adds it with the next table."""
    nft.change(Change(add=(Element("internal", ("br-a",)),)))
    (chain,) = NEEDING["internal"].hooks
    done = host.run(["nft", f"flush chain inet docker-fw {chain}; delete chain inet docker-fw {chain}"], check=False)
    if nft.features.owned:
        assert done.returncode
        return
    assert not nft.intact()
    nft.replace([Element("internal", ("br-a",))])
    assert there(host) == {chain}


def test_a_table_as_a_file_has_the_chains_that_its_elements_need(host: NamedNetns) -> None:
    """So the table of the boot, and that of `fwctl export`, close as the running one does."""
    elements = [one(name, spec) for name, spec in NEEDING.items() if not spec.timed]
    timed = {one(name, spec): 60 for name, spec in NEEDING.items() if spec.timed}
    host.run(["nft", "flush", "ruleset"])
    host.run(["nft", "-f", "-"], input=document(MARK, elements, timed=timed))
    assert there(host) == {hook for spec in NEEDING.values() for hook in spec.hooks}


# --- failures ---------------------------------------------------------------------------------------------------------


@contextmanager
def failing(nft: KernelTable, call: str, *, committed: bool = False) -> Iterator[None]:
    """Let a call of `nftables.client` fail: refused, or `committed` by the kernel with a lost answer."""
    real = getattr(nft._client, call)

    def fails(*arguments: Any) -> None:
        if committed:
            real(*arguments)
        raise NftError("netlink: timed out" if committed else "No buffer space available")

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(nft._client, call, fails)
        yield


def test_what_closes_is_added_though_another_program_changed_the_rules(host: NamedNetns, nft: KernelTable) -> None:
    """A ban, an internal network or restricted egress does not wait for the repair of the rules."""
    if nft.features.owned:
        pytest.skip("no other program can change an owned table")
    host.run(["nft", "add", "rule", "inet", "docker-fw", "deny_host", "counter"])
    for name, spec in NEEDING.items():
        nft.change(Change(add=(one(name, spec),))) if not spec.timed else nft.change(Change(), {one(name, spec): 60})
        assert {*spec.hooks} <= there(host)
    assert not nft.intact()


def test_a_load_that_fails_half_way_forgets_the_former_chains(host: NamedNetns, nft: KernelTable) -> None:
    """The next element that closes gets its chain again: what the former table had does not count."""
    first, second = Element("internal", ("br-a",)), Element("internal", ("br-b",))
    nft.change(Change(add=(first,)))
    host.run(["nft", "delete table inet docker-fw"], check=False)
    with failing(nft, "run_again"), pytest.raises(NftError):
        nft.replace([first])
    assert there(host) == {*NEEDING["loading"].hooks}
    with suppress(NftError):
        nft.change(Change(add=(second,)))
    assert {*NEEDING["internal"].hooks} <= there(host)


def test_a_load_that_fails_half_way_stays_shut(host: NamedNetns, nft: KernelTable) -> None:
    """While elements that close are missing, no new flow passes, whatever other elements come and go."""
    proxies, ban = Element("docker_proxy", (1 << 50,)), one("ban_families", NEEDING["ban_families"])
    with failing(nft, "send"), pytest.raises(NftError):
        nft.replace([proxies, ban])
    nft.change(Change(remove=(ban,)))
    assert {*NEEDING["loading"].hooks} <= there(host)
    nft.replace([proxies])
    assert there(host) == set()


def test_elements_of_a_transaction_whose_answer_is_lost_keep_their_chain(host: NamedNetns, nft: KernelTable) -> None:
    """The kernel may have committed it."""
    first, second = Element("internal", ("br-a",)), Element("internal", ("br-b",))
    nft.change(Change(add=(first,)))
    with failing(nft, "send", committed=True), pytest.raises(NftError):
        nft.change(Change(add=(second,)))
    with suppress(NftError):
        nft.change(Change(remove=(first,)))
    assert {*NEEDING["internal"].hooks} <= there(host)


def test_a_load_whose_answer_is_lost_leaves_no_chain_to_chance(host: NamedNetns, nft: KernelTable) -> None:
    """The kernel may have the new table, without a chain that the former one had: the next element adds it."""
    first, second = Element("internal", ("br-a",)), Element("internal", ("br-b",))
    nft.change(Change(add=(first,)))
    with failing(nft, "run", committed=True), pytest.raises(NftError):
        nft.replace([])
    nft.change(Change(add=(second,)))
    assert there(host) == {*NEEDING["internal"].hooks}
    nft.replace([second])
    nft.change(Change(remove=(second,)))
    assert there(host) == set()


def test_a_chain_whose_removal_failed_is_added_again(host: NamedNetns, nft: KernelTable) -> None:
    """It may be gone: the next element that needs it does not rely on it."""
    element = Element("internal", ("br-a",))
    nft.change(Change(add=(element,)))
    with failing(nft, "run_again", committed=True):
        nft.change(Change(remove=(element,)))
    assert there(host) == set()
    nft.change(Change(add=(element,)))
    assert there(host) == {*NEEDING["internal"].hooks}


def test_a_check_of_the_rules_delays_no_change(host: NamedNetns, nft: KernelTable) -> None:
    """While the rules are read, which takes a while with thousands of rates, a container that leaves is closed."""
    reading, web = nft._fingerprint, Element("allow4", (V4, 6, 8080))
    nft.change(Change(add=(web,)))
    queued = [Change(remove=(web,))]

    def read(*sock: Any) -> Any:
        while queued:
            nft.change(queued.pop())
        return reading(*sock)

    with inside(host.path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nft, "_fingerprint", read)
        assert nft.intact()
    assert "8080" not in host.run(["nft", "list", "table", "inet", "docker-fw"]).stdout
