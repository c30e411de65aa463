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
from plugin.nftables.document import document, skeleton
from plugin.nftables.drift import Line, TableDump
from plugin.nftables.sets import SETS, WATCHED, Change, Element
from plugin.policy.overrides import with_one
from plugin.policy.view import PolicyView, evaluated
from plugin.settings import Settings, read
from tests.pure.site import FRONT, PLAIN, Site, container, guest, ours, published

pytestmark = pytest.mark.usefixtures("no_flows")

WEB, APP = container("web", {"fw.allow": "8080"}, "net"), container("app", {"fw.allow": "8080"})
MARK = 0x08000000


@pytest.fixture
def site() -> Site:
    return Site(ours(2, WEB), guest(FRONT, 2, APP, *published(8080, 28080), *published(9000, 29000)))


def lines(told: list[dict[str, Any]]) -> list[str]:
    return [f"{line['sign']} {line['text']}  {line['who']}".rstrip() for line in told]


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


def standing(elements: set[Element], **fields: Any) -> TableDump:
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


def test_what_is_as_it_should_be_is_no_difference(site: Site) -> None:
    """There is no line."""
    assert drifted(site, standing(set(site.state.should()[1]))) == []


def test_elements_that_somebody_changed_are_told_with_whose_they_are(site: Site) -> None:
    """Added elements are to be removed, removed ones to be added; sorted, with the container or network."""
    there = set(site.state.should()[1])
    there |= {Element("allow4", (IPv4Address("10.1.0.2"), 6, 9999))}
    there |= {Element("allow6", (IPv6Address("2001:db8:9::9"), 17, 53))}
    there -= {Element("allow4", (IPv4Address("172.18.0.2"), 6, 22)), Element("protected_bridges", ("fw-ffffffffffff",))}
    assert drifted(site, standing(there)) == [
        "- allow4 10.1.0.2 . tcp . 9999  web", "+ allow4 172.18.0.2 . tcp . 22  app",
        "- allow6 2001:db8:9::9 . udp . 53", '+ protected_bridges "fw-ffffffffffff"  net',
    ]  # fmt: skip


def test_what_packets_and_time_do_is_no_difference(site: Site) -> None:
    """Quarantined flows of cut UDP, bans with a duration, and bans that are about to end are no difference."""
    bans = {ip_network("203.0.113.7"): 1060.0}
    lasting, timed = ban_elements(bans, 1000)
    held = Element("quarantine4", (IPv4Address("10.1.0.2"), 53, IPv4Address("203.0.113.7"), 53))
    leaving = Element("banned4", (IPv4Address("203.0.113.9"),))
    there = {*site.state.should()[1], *timed, held, leaving}
    wanted = {*site.state.should()[1], *lasting}
    told = drift.drift(wanted, list(timed), standing(there | lasting, leaving=frozenset({leaving})), TEXT, PUT, {})
    assert told == []
    told = drift.drift(wanted, list(timed), standing((there | lasting) - timed.keys()), TEXT, PUT, {})
    assert lines(told) == ["+ banned4 203.0.113.7", "- banned4 203.0.113.9"]


def test_a_rule_that_is_gone_is_told_in_our_words_and_another_by_its_place(site: Site) -> None:
    """The line contains the command that shows the rule."""
    there = standing(set(site.state.should()[1]), lines=(PUT[0], Line(b"x", "forward", 9), *PUT[2:3]))
    assert drifted(site, there) == [
        "+ chain forward: goto deny", "+ chain deny: counter",
        "- chain forward: a rule that is not docker-fw's, handle 9 (nft -a list chain inet docker-fw forward)",
    ]  # fmt: skip


def test_a_table_that_is_gone_is_one_line(site: Site) -> None:
    """There are not thousands of lines."""
    nothing = TableDump(1, frozenset(), frozenset(), frozenset(), ())
    assert drifted(site, nothing) == ["+ table inet docker-fw is missing"]


def test_sets_that_are_missing_or_somebody_elses_are_told(site: Site) -> None:
    """Sets for the rates of containers are no difference."""
    wanted = set(site.state.should()[1])
    rates = {"sources4__10.0.0.2__5_minute_5", "networks_host6__10.0.0.2__5_minute_5", "proven6__2001-db8--2__1_day_5"}
    sets = (frozenset(SETS) - {"quarantine4"}) | rates | {"theirs"}
    assert drifted(site, standing(wanted, sets=sets)) == ["+ set quarantine4", "- set theirs"]
    old = frozenset(SETS) - {"docker_proxy"}  # a kernel without control groups
    assert drifted(site, standing(wanted, sets=old)) == []


def test_every_rule_of_the_real_table_has_its_words() -> None:
    """The text of each chain has one line for each rule, so that a line describes the right rule."""
    found = drift._by_chain(skeleton(MARK, rates=["rate_hook", "limit4__10.0.0.2__5_minute_10"]))
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


def under(site: Site, defaults: Defaults) -> tuple[PolicyView, PolicyView]:
    return evaluated(PLAIN, site.state.facts), evaluated(defaults, site.state.facts)


def of(**labels: str) -> Defaults:
    return Defaults(parse({f"fw.{key}": value for key, value in labels.items()}, "setting ").spec)


def test_the_same_settings_change_nothing(site: Site) -> None:
    """A setting that every container's labels already contain changes nothing either."""
    for defaults in (Defaults(), of(allow="8080")):
        before, after = under(site, defaults)
        assert plan.policies(before, after) == []
        assert not plan.difference(before, after)


def test_a_plan_tells_policy_and_elements(site: Site) -> None:
    """The policy is listed by container, with the origin; the same change is listed as elements of the table."""
    before, after = under(site, of(allow="9100", deny="22", egress="443"))
    told = plan.policies(before, after)
    assert lines(told)[:5] == [
        "- accepts 22/tcp  app on front", "- egress: everything  app on front",
        "+ accepts 9100/tcp  app on front", "+ egress: 443/tcp  app on front", "- accepts 22/tcp  web on net",
    ]  # fmt: skip
    assert {line["origin"] for line in told if "9100" in line["text"]} == {"setting fw.allow"}
    change = drift.elements(plan.difference(before, after), drift.names(before))
    assert "+ allow4 10.1.0.2 . tcp . 9100  web" in lines(change)
    assert "- allow6 2001:db8:a::2 . tcp . 22  app" in lines(change)
    assert '+ egress_restricted "br-front"  front' in lines(change)
    # The actual state has not changed.
    assert site.kernel.opens(IPv4Address("10.1.0.2")) == {22, 80, 443, 8080}
    assert not plan.difference(*under(site, Defaults()))


def test_published_ports_are_judged_anew(site: Site) -> None:
    """FW_PUBLISHED=allow opens docker-proxy's ports too, and a closed base closes them."""
    before, after = under(site, Defaults(published=True))
    change = plan.difference(before, after)
    assert {e.set for e in change.remove if 29000 in e.key} == {"host_closed"}
    assert {e.set for e in change.add if 29000 in e.key} == {"host_open"}
    assert "+ accepts 9000/tcp through its published port  app on front" in lines(plan.policies(before, after))


def test_a_plan_follows_names(site: Site) -> None:
    """A setting that names a container applies to its current address."""
    before, after = under(site, of(allow="9100 from container:app"))
    assert any(e.set == "from4" and e.key[-1] == IPv4Address("172.18.0.2") for e in plan.difference(before, after).add)


def test_labels_that_would_be_read_otherwise(site: Site) -> None:
    """FW_IMAGE_LABELS=trust: the containers as they would be read."""
    trusted = dataclasses.replace(WEB, spec=parse({"fw.allow": "8080, 9000"}).spec)
    change = plan.with_containers({ours(2, WEB).id: trusted})
    before, after = (evaluated(PLAIN, facts) for facts in (site.state.facts, change(site.state.facts)))
    assert lines(plan.policies(before, after)) == ["+ accepts 9000/tcp  web on net"]


def test_ports_of_dockerds_own(site: Site) -> None:
    """FW_DOCKERD_PORTS changes elements only."""
    before = site.state.snapshot()
    settings: Settings = read({"FW_DOCKERD_PORTS": "2375"})
    after = evaluated(PLAIN, dataclasses.replace(before.facts, dockerd=own_ports(settings.dockerd_ports, ())))
    assert lines(drift.elements(plan.difference(before, after), {})) == ["+ dockerd_ports tcp . 2375"]


def test_another_mark_is_other_rules() -> None:
    """Each rule with the mark is listed, before and after."""
    told = lines(plan.rule_differences(0x08000000, 0x04000000))
    assert "- meta mark set meta mark | 0x08000000 accept" in told
    assert "+ meta mark set meta mark | 0x04000000 accept" in told
    assert plan.rule_differences(0x08000000, 0x08000000) == []


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_stands_alone(site: Site) -> None:
    """One transaction, whatever is in the kernel; exempt bridges by name; version and time; and all elements."""
    banned, timed = ban_elements({ip_network("203.0.113.7"): 1060.0}, 1000)
    elements = {*site.state.should()[1], *banned, Element("unmanaged", (7,)), Element("docker_proxy", (12,))}
    unmanaged, when = {"virbr0", "lxdbr0"}, "2030-01-01 00:00:00 UTC"
    text = export.file(MARK, elements, timed, unmanaged, logs=True, binds=True, version="1.2.3", when=when)
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
    assert "add element inet docker-fw foreign" not in rest
    assert "cgroupv2" not in rest
    assert "add element inet docker-fw banned4 { 203.0.113.7 timeout 61s }" in rest
    kept = {
        *WATCHED,
        *(e for e in elements if e.set not in ("unmanaged", "docker_proxy")),
    }  # no process renews a lease in it
    right = document(MARK, kept, cgroups=False, holds=False, unmanaged=unmanaged, timed=timed)
    assert rest == right


def test_what_is_open_for_a_time_is_not_in_the_file() -> None:
    """No process would close it later: neither the container's port nor docker-proxy's."""
    site = Site(guest(FRONT, 2, APP, *published(9000, 29000)))
    rule = parse({"fw.allow": "9000"}).spec.allow[0]
    site.state.edit_state(lambda state: with_one(state, Overriding(APP.id, rule, until=1e12)))
    assert {e.set for e in site.kernel.table if 29000 in e.key} == {"host_open", "host_neighbours"}
    inventory = evaluated(PLAIN, dataclasses.replace(site.state.facts, suspended=True))
    elements = {element for owner in inventory.owners() for element in inventory.elements(owner)}
    assert not any(9000 in element.key for element in elements)
    assert {e.set for e in elements if 29000 in e.key} == {"host_closed", "host_neighbours"}


def test_a_change_of_nothing_is_nothing() -> None:
    """It is no error either."""
    assert drift.elements(Change(), {}) == []
