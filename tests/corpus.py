"""The registry of other projects' bugs that docker-fw could have too, and where a test shows that it has not.

`python -m tests.corpus` writes docs/corpus.md. A pure test checks that each test named here exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs/corpus.md"
START, END = "<!-- generated: python -m tests.corpus -->", "<!-- end of the generated table -->"


@dataclass(frozen=True, slots=True)
class Case:
    """One bug. `origin`: its name in its tracker, `url` where that is, `bug` what went wrong, in our own words.

    `tests`: module and function, with `:`, below tests/. `ours`: what holds in docker-fw.
    """

    origin: str
    url: str
    bug: str
    ours: str
    tests: tuple[str, ...]


_INCUS, _LXD = "https://github.com/lxc/incus", "https://github.com/canonical/lxd"
CASES = (
    Case(
        "CVE-2025-52889",
        f"{_INCUS}/security/advisories/GHSA-9q7c-qmhm-jv86",
        "DHCP, DNS and similar services of the host were accepted ahead of the rules against forged senders.",
        "The bridge table checks each frame's sender first, whatever the frame is for, and accepts nothing else.",
        (
            "kernel/test_incus.py:test_cve_2025_52889_no_service_of_the_host_is_open_to_a_forged_sender",
            "kernel/test_hostile.py:test_no_packet_leaves_with_anothers_address",
        ),
    ),
    Case(
        "CVE-2025-52890",
        f"{_INCUS}/security/advisories/GHSA-p7fw-vjjm-2rwp",
        "Established flows, ARP and neighbour discovery were accepted ahead of the rules against forged senders.",
        "No rule for frames uses connection tracking; ARP and neighbour discovery are bound to the port's addresses.",
        (
            "kernel/test_incus.py:test_cve_2025_52890_an_established_flow_excuses_no_forged_sender",
            "kernel/test_hostile.py:test_the_hosts_neighbour_entries_stay_true",
        ),
    ),
    Case(
        "incus#4025",
        f"{_INCUS}/issues/4025",
        "Rules for ICMPv6 compared the IPv6 header's next header, so extension headers hid the message.",
        "Rules look behind extension headers, and fragments are judged as whole packets. AH is a protocol of its own.",
        (
            "kernel/test_incus.py:test_incus_4025_no_extension_header_hides_a_port_or_a_type",
            "kernel/test_verdicts.py:test_a_routing_header_0_is_dropped",
            "kernel/test_verdicts.py:test_other_extension_headers_hide_nothing",
            "kernel/test_verdicts.py:test_fragments_are_judged_as_wholes",
            "kernel/test_verdicts.py:test_an_authentication_header_is_a_protocol",
            "kernel/test_hostile.py:test_no_trick_reaches_a_closed_port_of_another_network",
        ),
    ),
    Case(
        "incus#4022",
        f"{_INCUS}/issues/4022",
        "A rule with peers of one family was wider than written in the other family.",
        "Each family has the rule's own peers; without any, the port is closed there.",
        ("kernel/test_incus.py:test_incus_4022_a_rule_of_one_family_opens_nothing_in_the_other",),
    ),
    Case(
        "incus#4026, LXD#6831, LXD#14376",
        f"{_INCUS}/issues/4026",
        "Filtering demanded br_netfilter, or failed while it was on.",
        "Every promise about one network holds with br_netfilter on and off.",
        (
            "kernel/test_verdicts.py:test_containers_of_one_network_talk_freely",
            "kernel/test_verdicts.py:test_neighbours_find_each_other",
            "kernel/test_verdicts.py:test_a_router_on_the_same_bridge_is_no_way_round",
            "kernel/test_guard.py:test_containers_of_one_network_talk_freely",
            "kernel/test_incus.py:test_cve_2025_52889_no_service_of_the_host_is_open_to_a_forged_sender",
        ),
    ),
    Case(
        "incus#2077, incus#2631, incus#3910",
        f"{_INCUS}/issues/2631",
        "Rules of another program, in a form that the parser of nft's listing did not know, stopped the start.",
        "docker-fw reads only its own tables, by netlink, and no listing of others.",
        (
            "kernel/test_incus.py:test_incus_2631_rules_of_other_programs_stop_nothing",
            "kernel/test_nft.py:test_a_blocklist_of_another_tool_is_never_read",
            "kernel/test_nft.py:test_tables_of_others_are_left_alone",
            "kernel/test_host_tables.py:test_another_programs_table_under_our_name_refuses_the_start",
        ),
    ),
    Case(
        "incus#1919, incus#3307",
        f"{_INCUS}/issues/1919",
        "DNS of all instances was dropped as soon as a network had any rule.",
        "The default policy restricts no egress; with a list, port 53 must be in it, as LABELS.md says.",
        (
            "kernel/test_incus.py:test_incus_1919_names_are_resolved",
            "engine/test_dns.py:test_names_leave_by_the_hosts_resolver",
        ),
    ),
    Case(
        "incus-os#1273",
        "https://github.com/lxc/incus-os/issues/1273",
        "Forwards to an instance stopped working when a neighbour on the bridge got rules.",
        "A published port obeys the labels of the container that it leads to, and those of no other.",
        (
            "kernel/test_incus.py:test_incus_os_1273_a_neighbours_rules_change_no_published_port",
            "kernel/test_verdicts.py:test_a_published_port_obeys_the_policy",
            "kernel/test_guard.py:test_a_neighbours_published_port_is_no_way_to_anothers",
            "kernel/test_guard.py:test_docker_proxys_packets_to_a_neighbour_reach_no_other_network",
            "kernel/test_peers.py:test_two_containers_ports_are_not_mixed_up",
        ),
    ),
    Case(
        "incus#4027, incus#3906",
        f"{_INCUS}/issues/4027",
        "A filter of sources dropped DHCP's requests, which have no source address yet.",
        "On Docker networks a container without an address can request one. docker-fw networks have no DHCP.",
        ("kernel/test_forged.py:test_a_container_without_an_address_can_request_one",),
    ),
    Case(
        "LXD#7808",
        f"{_LXD}/pull/7808",
        "Frames in a VLAN, or in two, bypassed filters of IPv4, IPv6 and ARP.",
        "A docker-fw network carries IPv4, IPv6 and ARP without a tag, and no other frame.",
        ("kernel/test_hostile.py:test_no_packet_leaves_with_anothers_address",),
    ),
    Case(
        "LXD#7476 (CVE-2020-13401)",
        f"{_LXD}/pull/7476",
        "A container's router advertisement changed the routes of the host.",
        "Router advertisements and redirects of a container reach neither the host nor another network.",
        (
            "kernel/test_verdicts.py:test_no_router_advertisement_nor_redirect_from_a_container",
            "kernel/test_icmpv6.py:test_to_the_host",
        ),
    ),
    Case(
        "LXD#8705",
        f"{_LXD}/issues/8705",
        "With IPv6 disabled on the host, no network could be created.",
        "A network of one family needs nothing of the other.",
        ("kernel/test_verdicts.py:test_single_stack_networks", "kernel/test_links.py:test_families_are_on_or_off"),
    ),
    Case(
        "LXD#10941",
        f"{_LXD}/issues/10941",
        "Whether rules applied between instances of one bridge depended on the firewall that was in use.",
        "Containers of one network talk freely, on each kind of network; LABELS.md and SECURITY.md say so.",
        (
            "kernel/test_verdicts.py:test_containers_of_one_network_talk_freely",
            "kernel/test_egress.py:test_containers_of_one_network_talk_whatever_their_egress_label",
        ),
    ),
    Case(
        "incus#2851, LXD#18066",
        f"{_INCUS}/issues/2851",
        "The default action did not apply until a rule that allows something existed.",
        "Closed is the absence of elements: no rule is needed for it, inbound or by `fw.egress: none`.",
        (
            "kernel/test_verdicts.py:test_a_network_is_closed_before_it_is_known",
            "kernel/test_egress.py:test_none_forbids_every_outbound_flow",
        ),
    ),
)


def table() -> str:
    """Return the generated part of the document."""
    lines = ["| origin | the bug | in docker-fw | tests |", "|---|---|---|---|"]
    for case in CASES:
        tests = "<br>".join(f"`{test}`" for test in case.tests)
        lines.append(f"| [{case.origin}]({case.url}) | {case.bug} | {case.ours} | {tests} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the document with its generated part as it should be."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
