"""`fwctl plan` shows changes as a diff; `fwctl export` writes the current table to a file."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest

from plugin.docker.proxy_ports import own_ports
from plugin.fwctl.api import export, plan
from plugin.labels.parser import parse
from plugin.model import Defaults, Overriding
from plugin.nftables import drift
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.document import document, skeleton
from plugin.nftables.drift import Line, TableDump
from plugin.nftables.features import Features
from plugin.nftables.sets import SETS, WATCHED, Change, Element
from plugin.policy.overrides import with_one
from plugin.settings import Settings, read
from tests.pure.site import FRONT, PLAIN, Site, container, guest, ours, published

pytestmark = pytest.mark.usefixtures("no_flows")

WEB, APP = container("web", {"fw.allow": "8080"}, "net"), container("app", {"fw.allow": "8080"})
MARK = 0x08000000


@pytest.fixture
def site() -> Site:
    return Site(ours(2, WEB), guest(FRONT, 2, APP, *published(8080, 28080), *published(9000, 29000)))


def lines(changes: list[dict[str, Any]]) -> list[str]:
    return [f"{line['sign']} {line['text']}  {line['who']}".rstrip() for line in changes]


# --- the kernel's table has changed -----------------------------------------------------------------------------------

TEXT = """table inet docker-fw {
	chain forward {
		type filter hook forward priority filter - 1; policy accept;
		ct state established accept
		goto deny
	}

	# why
	chain deny {
		drop
	}
}
add rule inet docker-fw deny counter
"""
PUT = (Line(b"a", "forward", 1), Line(b"b", "forward", 2), Line(b"c", "deny", 3), Line(b"d", "deny", 4))


def dump(elements: set[Element], **fields: Any) -> TableDump:
    return TableDump(
        **{
            "generation": 1,
            "sets": frozenset(SETS),
            "elements": frozenset(elements),
            "leaving": frozenset(),
            "lines": PUT,
            **fields,
        }
    )


def drifted(site: Site, there: TableDump, timed: tuple[Element, ...] = ()) -> list[str]:
    wanted = set(site.state.should()[1])
    return lines(drift.drift(wanted, timed, there, TEXT, PUT, drift.names(site.state.snapshot())))


def test_an_unchanged_table_is_no_difference(site: Site) -> None:
    """The plan for an unchanged table has no line."""
    assert drifted(site, dump(set(site.state.should()[1]))) == []


def test_changed_elements_are_shown_with_their_owners(site: Site) -> None:
    """Added elements are to be removed, removed ones to be added; sorted, with the container or network."""
    there = set(site.state.should()[1])
    there |= {Element("allow4", (IPv4Address("10.1.0.2"), 6, 9999))}
    there |= {Element("allow6", (IPv6Address("2001:db8:9::9"), 17, 53))}
    there -= {Element("allow4", (IPv4Address("172.18.0.2"), 6, 22)), Element("protected_bridges", ("fw-ffffffffffff",))}
    assert drifted(site, dump(there)) == [
        "- allow4 10.1.0.2 . tcp . 9999  web",
        "+ allow4 172.18.0.2 . tcp . 22  app",
        "- allow6 2001:db8:9::9 . udp . 53",
        '+ protected_bridges "fw-ffffffffffff"  net',
    ]


def test_packets_and_time_make_no_difference(site: Site) -> None:
    """Quarantined flows of cut UDP, bans with a duration, and bans that are about to end are no difference."""
    bans = {ip_network("203.0.113.7"): 1060.0}
    lasting, timed = ban_elements(bans, 1000)
    quarantined = Element("quarantine4", (IPv4Address("10.1.0.2"), 17, 53, IPv4Address("203.0.113.7"), 53))
    leaving = Element("banned4", (IPv4Address("203.0.113.9"),))
    there = {*site.state.should()[1], *timed, quarantined, leaving}
    wanted = {*site.state.should()[1], *lasting}
    changes = drift.drift(wanted, list(timed), dump(there | lasting, leaving=frozenset({leaving})), TEXT, PUT, {})
    assert changes == []
    changes = drift.drift(wanted, list(timed), dump((there | lasting) - timed.keys()), TEXT, PUT, {})
    assert lines(changes) == ["+ banned4 203.0.113.7", "- banned4 203.0.113.9"]


def test_a_missing_rule_is_shown_as_text_and_another_by_its_place(site: Site) -> None:
    """The line contains the command that shows the rule."""
    there = dump(set(site.state.should()[1]), lines=(PUT[0], Line(b"x", "forward", 9), *PUT[2:3]))
    assert drifted(site, there) == [
        "+ chain forward: goto deny",
        "+ chain deny: counter",
        "- chain forward: a rule that is not docker-fw's, handle 9 (nft -a list chain inet docker-fw forward)",
    ]


def test_a_missing_table_is_one_line(site: Site) -> None:
    """A missing table is one line, and not thousands of missing elements."""
    nothing = TableDump(1, frozenset(), frozenset(), frozenset(), ())
    assert drifted(site, nothing) == ["+ table inet docker-fw is missing"]


def test_missing_and_unknown_sets_are_shown(site: Site) -> None:
    """Sets for the rates of containers are no difference."""
    wanted = set(site.state.should()[1])
    rates = {"sources4__10.0.0.2__5_minute_5", "networks_host6__10.0.0.2__5_minute_5", "proven6__2001-db8--2__1_day_5"}
    sets = (frozenset(SETS) - {"quarantine4"}) | rates | {"theirs"}
    assert drifted(site, dump(wanted, sets=sets)) == ["+ set quarantine4", "- set theirs"]
    old = frozenset(SETS) - {"docker_proxy"}  # a kernel without control groups
    assert drifted(site, dump(wanted, sets=old)) == []


def test_every_rule_of_the_real_table_has_its_text() -> None:
    """The text of each chain has one line for each rule, so that a line describes the right rule."""
    found = drift._by_chain(skeleton(MARK, chains=["rate_hook", "limit4__10.0.0.2__5_minute_10"]))
    assert set(found) >= {
        "forward",
        "input",
        "inbound6",
        "deny",
        "rate_hook",
        "rate_limit4",
        "limit4__10.0.0.2__5_minute_10",
    }
    assert all(not line.startswith(("#", "type ", "chain ", "}")) for chain in found.values() for line in chain)
    assert found["accept_marked"] == [f"meta mark set meta mark | {MARK:#010x} accept"]


# --- other settings ---------------------------------------------------------------------------------------------------


def under(site: Site, defaults: Defaults) -> tuple[ElementCompiler, ElementCompiler]:
    return compiled(PLAIN, site.state.facts), compiled(defaults, site.state.facts)


def of(**labels: str) -> Defaults:
    return Defaults(parse({f"fw.{key}": value for key, value in labels.items()}, "setting ").spec)


def test_the_same_settings_change_nothing(site: Site) -> None:
    """A setting that every container's labels already contain changes nothing either."""
    for defaults in (Defaults(), of(allow="8080")):
        before, after = under(site, defaults)
        assert plan.policies(before.view, after.view) == []
        assert not plan.difference(before, after)


def test_a_plan_shows_policy_and_elements(site: Site) -> None:
    """The policy is listed by container, with the origin; the same change is listed as elements of the table."""
    before, after = under(site, of(allow="9100", deny="22", egress="443"))
    changes = plan.policies(before.view, after.view)
    assert lines(changes)[:5] == [
        "- accepts 22/tcp  app on front",
        "- egress: everything  app on front",
        "+ accepts 9100/tcp  app on front",
        "+ egress: 443/tcp  app on front",
        "- accepts 22/tcp  web on net",
    ]
    assert {line["origin"] for line in changes if "9100" in line["text"]} == {"setting fw.allow"}
    change = drift.elements(plan.difference(before, after), drift.names(before.view))
    assert "+ allow4 10.1.0.2 . tcp . 9100  web" in lines(change)
    assert "- allow6 2001:db8:a::2 . tcp . 22  app" in lines(change)
    assert '+ egress_restricted "br-front"  front' in lines(change)
    # The actual state has not changed.
    assert site.kernel.opens(IPv4Address("10.1.0.2")) == {22, 80, 443, 8080}
    assert not plan.difference(*under(site, Defaults()))


def test_published_ports_are_decided_again(site: Site) -> None:
    """FW_PUBLISHED=allow opens docker-proxy's ports too, and a closed base closes them."""
    before, after = under(site, Defaults(published=True))
    change = plan.difference(before, after)
    assert {e.set for e in change.remove if 29000 in e.key} == {"host_closed"}
    assert {e.set for e in change.add if 29000 in e.key} == {"host_open"}
    changes = lines(plan.policies(before.view, after.view))
    assert "+ accepts 9000/tcp through its published port  app on front" in changes


def test_a_plan_resolves_names(site: Site) -> None:
    """A setting that names a container applies to its current address."""
    before, after = under(site, of(allow="9100 from container:app"))
    assert any(e.set == "from4" and e.key[-1] == IPv4Address("172.18.0.2") for e in plan.difference(before, after).add)


def test_containers_are_shown_as_they_would_be_read(site: Site) -> None:
    """FW_IMAGE_LABELS=trust: the containers as they would be read."""
    trusted = dataclasses.replace(WEB, spec=parse({"fw.allow": "8080, 9000"}).spec)
    change = plan.with_containers({ours(2, WEB).id: trusted})
    before, after = (compiled(PLAIN, facts) for facts in (site.state.facts, change(site.state.facts)))
    assert lines(plan.policies(before.view, after.view)) == ["+ accepts 9000/tcp  web on net"]


def test_ports_of_dockerd_change_elements_only(site: Site) -> None:
    """FW_DOCKERD_PORTS changes elements only."""
    before = compiled(PLAIN, site.state.facts)
    settings: Settings = read({"FW_DOCKERD_PORTS": "2375"})
    after = compiled(PLAIN, dataclasses.replace(site.state.facts, dockerd=own_ports(settings.dockerd_ports, ())))
    assert lines(drift.elements(plan.difference(before, after), {})) == ["+ dockerd_ports tcp . 2375"]


def test_another_mark_changes_rules() -> None:
    """Each rule with the mark is listed, before and after."""
    changes = lines(plan.rule_differences(0x08000000, 0x04000000))
    assert "- meta mark set meta mark | 0x08000000 accept" in changes
    assert "+ meta mark set meta mark | 0x04000000 accept" in changes
    assert plan.rule_differences(0x08000000, 0x08000000) == []


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_exported_file_is_complete(site: Site) -> None:
    """One transaction, whatever is in the kernel; exempt bridges by name; version and time; and all elements."""
    banned, timed = ban_elements({ip_network("203.0.113.7"): 1060.0}, 1000)
    elements = {*site.state.should()[1], *banned, Element("unmanaged", (7,)), Element("docker_proxy", (12,))}
    unmanaged, when = {"virbr0", "lxdbr0"}, "2030-01-01 00:00:00 UTC"
    text = export.file(MARK, elements, timed, unmanaged, Features(), version="1.2.3", when=when)
    head, _, rest = text.partition("\n\n")
    assert head.startswith("#!/usr/sbin/nft -f\n# docker-fw 1.2.3: ")
    assert when in head
    assert head.endswith(
        "\ntable inet docker-fw {}\ndelete table inet docker-fw\n"
        "table bridge docker-fw {}\ndelete table bridge docker-fw"
    )
    assert all(line.startswith("#") for line in head.splitlines()[:-4])
    assert rest.startswith("table inet docker-fw {\n")
    assert 'oifname != { "lxdbr0", "virbr0" }' in rest
    assert "add element inet docker-fw unmanaged" not in rest
    assert "cgroupv2" not in rest
    assert "add element inet docker-fw banned4 { 203.0.113.7 timeout 61s }" in rest
    kept = {
        *WATCHED,
        *(e for e in elements if e.set not in ("unmanaged", "docker_proxy")),
    }  # no process renews a lease in it
    right = document(MARK, kept, Features(cgroups=False, listeners=False), unmanaged=unmanaged, timed=timed)
    assert rest == right


def test_temporary_ports_are_not_in_the_file() -> None:
    """No process would close it later: neither the container's port nor docker-proxy's."""
    site = Site(guest(FRONT, 2, APP, *published(9000, 29000)))
    rule = parse({"fw.allow": "9000"}).spec.allow[0]
    site.state.edit_state(lambda state: with_one(state, Overriding(APP.id, rule, until=1e12)))
    assert {e.set for e in site.kernel.table if 29000 in e.key} == {"host_open", "host_neighbours", "served_ports"}
    elements = compiled(PLAIN, dataclasses.replace(site.state.facts, suspended=True)).all_elements()
    assert not any(9000 in element.key for element in elements)
    assert {e.set for e in elements if 29000 in e.key} == {"host_closed", "host_neighbours", "served_ports"}


def test_an_empty_change_changes_nothing() -> None:
    """A change without elements changes nothing, and is no error."""
    assert drift.elements(Change(), {}) == []
