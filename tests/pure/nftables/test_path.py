"""A packet's way through the tables: its verdict, and its work, counted in expressions and not in time.

`tests/golden/path.json` has the work of each way (`ways.ways`), so a change that makes one dearer is visible as a diff:
`FW_GOLDEN=write pytest -n0 tests/pure/nftables/test_path.py` rewrites it.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from plugin.model import Address, Network
from plugin.nftables.sets import WATCHED
from plugin.policy import verdict
from plugin.policy.decide import prefix_of
from plugin.policy.view import PolicyView
from plugin.protocols import BY_NAME, OTHER, WITH_PORTS
from tests.mutation.nft_text import is_rule, lines, whole_text
from tests.pure.nftables.drawn import Case, Drawn, dense_cases, random_facts
from tests.pure.nftables.examples import MARK
from tests.pure.nftables.expressions import Cost, UnknownText, compiled
from tests.pure.nftables.former import Seen, differences
from tests.pure.nftables.packets import Flow, Link, Packet, Routes, Socket, icmp, ports, tcp
from tests.pure.nftables.path import Tables
from tests.pure.nftables.ways import DOCKERS, ETH0, HOST, OURS, OUTSIDE, WEB, Way, tables, ways

GOLDEN = Path(__file__).parents[2] / "golden/path.json"


# --- ways ---------------------------------------------------------------------------------------------------------


def work(way: Way) -> dict[str, list[int]]:
    """Return the work of a way at each hook where it has any: expressions, look-ups in sets, look-ups in the routes."""
    found = {f"{step.family} {step.hook}": tables(way.feature).walk(*step).cost for step in way.steps}
    return {hook: list(cost) for hook, cost in found.items() if cost.expressions}


def test_the_work_of_each_way_equals_the_golden_file() -> None:
    """A packet costs what was last reviewed, and no packet pays for a feature that its host does not use."""
    found = {name: work(way) for name, way in ways().items()}
    if os.environ.get("FW_GOLDEN") == "write":
        rows = (f" {json.dumps(name)}: {json.dumps(hooks)}" for name, hooks in found.items())
        GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    assert found == json.loads(GOLDEN.read_text()), "if that is wanted: FW_GOLDEN=write pytest " + __file__


@pytest.mark.parametrize("name", ways())
def test_a_way_has_its_verdict(name: str) -> None:
    """Each way ends as its name says, at its last hook, and is accepted at those before."""
    way = ways()[name]
    *before, last = [tables(way.feature).walk(*step) for step in way.steps]
    assert [each.verdict for each in before] == ["accept"] * len(before)
    assert last.verdict == way.verdict, "\n".join(map(str, last.matched))


def test_an_accepted_packet_of_a_docker_fw_network_has_the_mark() -> None:
    """Docker's own firewall lets it pass by that; packets of Docker networks and of other programs have none."""
    for name, way in ways().items():
        step = next((each for each in way.steps if each.hook == "forward"), None)
        if step and way.verdict == "accept":
            outcome = tables(way.feature).walk(*step)
            ours = OURS in (step.packet.iif, step.packet.oif) and DOCKERS not in (step.packet.iif, step.packet.oif)
            assert outcome.mark == (MARK if ours else 0), name


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "text", "kinds"),
    [
        ("inet", "ct state new jump x", "ct bitwise cmp immediate"),
        ("inet", "ct state != related jump x", "ct cmp immediate"),
        ("inet", "iifname . oifname @x accept", "meta meta lookup immediate"),
        (
            "inet",
            "ip6 daddr . meta l4proto . th dport & 0xfff0 | 0x8 @x accept",
            "meta cmp payload meta payload bitwise lookup immediate",
        ),
        ("inet", "meta nfproto ipv6 icmpv6 type nd-redirect accept", "meta cmp meta cmp payload cmp immediate"),
        ("inet", "tcp flags & (fin | syn | rst | ack) != syn return", "meta cmp payload bitwise cmp immediate"),
        ("inet", "th dport 0 meta l4proto { tcp, udp } drop", "payload cmp meta lookup immediate"),
        ("inet", "ip6 saddr fe80::/10 accept", "meta cmp payload bitwise cmp immediate"),
        ("inet", "ip daddr 127.0.0.0/8 return", "meta cmp payload cmp immediate"),
        ("inet", "fib saddr oifname @x fib saddr . iif oif missing drop", "fib lookup fib cmp immediate"),
        ("inet", "meta mark set meta mark | 0x08000000 accept", "meta bitwise meta immediate"),
        ("inet", "ct label set 92", "immediate ct"),
        ("inet", 'iifgroup 0x1 counter name "c" reject with tcp reset', "meta cmp meta cmp objref reject"),
        ("inet", "socket mark >= 0x0 return", "socket byteorder cmp immediate"),
        ("inet", "socket transparent >= 0 return", "socket cmp immediate"),
        ("inet", "meta l4proto tcp reject with tcp reset", "meta cmp reject"),
        ("inet", "meta pkttype host reject", "meta cmp reject"),
        ("bridge", "arp htype != 1 drop", "payload cmp payload cmp immediate"),
        ("bridge", "ip6 saddr :: accept", "meta cmp payload cmp immediate"),
    ],
)
def test_a_rule_becomes_the_expressions_that_nft_lists(family: str, text: str, kinds: str) -> None:
    """A rule has the expressions of `nft --debug=netlink`, with the matches that nft adds."""
    assert compiled(family, text).kinds == tuple(kinds.split())


def test_every_rule_is_understood() -> None:
    """No rule of the tables is ignored, whether its feature is in use or not."""
    rules = [line for line in lines(whole_text()) if is_rule(line)]
    assert len([compiled(line.family, line.text) for line in rules]) == len(rules) > 700


@pytest.mark.parametrize(
    "text",
    [
        "ip6 dscp 0 accept",
        "th dport 22-80 accept",
        "meta mark set 1",
        "ct state != { new, invalid } drop",
        'iifname != "fw*" drop',
        "counter packets 0 bytes 0",
        "limit rate 5/second accept queue",
        "tcp dport 22 accept",
        "accept accept x",
    ],
)
def test_unknown_text_is_an_error(text: str) -> None:
    """A rule that the model does not know stops the test, and is never taken for one that matches nothing."""
    with pytest.raises(UnknownText):
        compiled("inet", text)


@pytest.mark.parametrize(
    "text",
    [
        "table inet x {\n\tchain c {\n\t\tjump d\n\t}\n}\n",
        "table inet x {\n\tchain c {\n\t\tip saddr @s drop\n\t}\n}\n",
        "table inet x {\n\tset s {\n\t\ttypeof ip saddr\n\t\tflags interval\n\t}\n}\n",
        "table inet x {\n\tchain c {\n",
        "table inet x {\n\tchain c {\n\t\ttype filter hook forward priority 5; policy drop;\n\t}\n}\n",
        "flush ruleset\n",
    ],
)
def test_an_unknown_table_is_an_error(text: str) -> None:
    """A chain or set that does not exist stops it too, and so does text that is no table of docker-fw."""
    with pytest.raises(UnknownText):
        Tables(text)


def _table(*rules: str, more: str = "") -> Tables:
    body = "\n".join(f"\t\t{rule}" for rule in rules)
    head = "type filter hook forward priority filter - 1; policy accept;"
    sets = "\tset s {\n\t\ttypeof ip6 saddr\n\t}\n\tset d {\n\t\ttypeof oifname\n\t\tflags dynamic,timeout\n\t}\n"
    called = '\tchain called {\n\t\tiifname "eth0" return\n\t\tdrop\n\t}\n'
    return Tables(f"table inet x {{\n{sets}{called}\tchain base {{\n\t\t{head}\n{body}\n\t}}\n}}\n{more}")


_TCP = Packet(OUTSIDE[6], WEB[6], 6, tcp(40000, 80), ETH0, OURS)


@pytest.mark.parametrize(
    ("rules", "verdict", "cost"),
    [
        ((), "accept", Cost()),
        # The first comparison fails: load, mask, compare.
        (("ct state established accept",), "accept", Cost(3)),
        # The family's load and comparison, the load, the look-up; then the verdict.
        (("ip6 saddr @s drop",), "drop", Cost(5, 1)),
        (("ip saddr 1.2.3.4 drop",), "accept", Cost(2)),
        (("ip6 saddr != @s drop",), "accept", Cost(4, 1)),
        # The called chain returns, and the next rule drops.
        (("jump called", "drop"), "drop", Cost(1 + 3 + 1)),
        # After `goto` the base chain ends, with its policy.
        (("goto called", "drop"), "accept", Cost(1 + 3)),
        (("fib saddr type local drop", "fib saddr . iif oif missing drop"), "drop", Cost(2 + 3, 0, 2)),
        # A limit that is exceeded ends the rule.
        (("limit rate 5/second burst 5 packets accept", "drop"), "drop", Cost(1 + 1)),
        (("limit rate over 5/second burst 5 packets drop",), "drop", Cost(2)),
        (("update @d { oifname limit rate 5/second burst 5 packets } accept", "drop"), "drop", Cost(2 + 1, 1)),
    ],
)
def test_work_and_verdict_are_those_counted_by_hand(rules: tuple[str, ...], verdict: str, cost: Cost) -> None:
    """A rule costs its expressions up to the first that fails; the next rule follows."""
    packet = Packet(OUTSIDE[6], WEB[6], 6, tcp(40000, 80), ETH0, OURS, over=255)
    outcome = _table(*rules, more="add element inet x s { 2001:db8:9::9 }\n").walk("inet", "forward", packet)
    assert (outcome.verdict, outcome.cost) == (verdict, cost)


def test_a_packet_without_a_field_matches_no_rule_about_it() -> None:
    """A later fragment has no ports, a packet without a flow no direction, and one to the host no outgoing link."""
    later = Packet(OUTSIDE[6], WEB[6], 6, b"", ETH0, None, Flow("invalid"), fragment=185)
    for rule in (
        "th dport != 1 drop",
        "ct direction original drop",
        "ct status & assured == 0x0 drop",
        "oifgroup != 0x7 drop",
        "tcp flags & (fin | syn | rst | ack) != syn drop",
        "socket transparent 0 drop",
        'meta iifkind "bridge" drop',
    ):
        assert _table(rule).walk("inet", "forward", later).verdict == "accept", rule
    assert _table('oifname != "lo" drop').walk("inet", "forward", later).verdict == "drop"


def test_an_element_that_a_packet_added_is_there_for_its_next_rule() -> None:
    """A full set takes none, and the rule that would add it ends."""
    rules = ("update @d { oifname timeout 5s } continue", "oifname @d drop")
    assert _table(*rules).walk("inet", "forward", _TCP).verdict == "drop"
    full = Packet(OUTSIDE[6], WEB[6], 6, tcp(40000, 80), ETH0, OURS, full=True)
    assert _table(*rules).walk("inet", "forward", full).verdict == "accept"


# --- the reference ------------------------------------------------------------------------------------------------


def _link_of(view: PolicyView, address: Address) -> Link:
    """Return the link behind which an address is."""
    for network in view.networks():
        if any(address in subnet for subnet in network.subnets):
            return OURS if isinstance(network, Network) else DOCKERS
    return ETH0


def _sent(view: PolicyView, asked: verdict.Packet, random: Random) -> Packet:
    """Return the packet of a question, as the hook forward or input sees it."""
    assert asked.source is not None
    v, source = asked.target.version, _link_of(view, asked.source)
    proto = BY_NAME[asked.proto].number if asked.proto in BY_NAME else 89
    header = ports(40000, asked.port)
    if asked.proto == "tcp":
        header = tcp(40000, asked.port)
    elif asked.proto == verdict.ICMP:
        proto, header = (1, icmp(8)) if v == 4 else (58, icmp(128))
    elif asked.proto not in WITH_PORTS:
        header = ports(random.randrange(65536), random.randrange(65536))
    return Packet(
        asked.source,
        asked.target,
        proto,
        header,
        source,
        None if asked.host else _link_of(view, asked.target),
        Flow(status=frozenset({"dnat"} if asked.by == "dnat" else ())),
        Routes(source.name, True, target_type="local" if asked.host else "unicast"),
        Socket((17, 99)),
    )


class _Questions:
    """Questions to the reference near the ports and sources of a view's rules."""

    def __init__(self, view: PolicyView, random: Random) -> None:
        self.random = random
        ends = [found[1] for owner in view.owners() if (found := view.endpoint(owner))]
        policies = [each.policy for each in view.answers_of(view.owners()).values()]
        rules = [rule for each in policies for rule in (*each.accepts, *(each.egress or ()))]
        prefixes = [prefix_of(peer) for rule in rules for peer in rule.peers if peer.kind == "prefix"]
        self.inside: list[Address] = [a for end in ends for a in (end.addr4, end.addr6) if a]
        self.outside = [*OUTSIDE.values(), *(each.network_address for each in prefixes)]
        edges = {port for rule in rules for port in (rule.first - 1, rule.first, rule.last, rule.last + 1)}
        self.ports = [22, 80, 443, *sorted(port for port in edges if 0 < port < 65536)]
        self.closed_on_host = {port.host_port for end in ends for port in end.published}

    def ask(self) -> verdict.Packet:
        """Return one."""
        proto = self.random.choice(["tcp", "tcp", "udp", "udp", "sctp", "gre", "ah", verdict.ICMP, OTHER])
        port = self.random.choice(self.ports) if proto in WITH_PORTS else 0
        v = self.random.choice([4, 6])
        ends = [(self.outside, self.inside), (self.inside, self.outside), (self.inside, self.inside)]
        source, target = (
            self.random.choice([each for each in among if each.version == v]) for among in self.random.choice(ends)
        )
        by: Literal["", "dnat"] = self.random.choice(["", "", "", "dnat"])
        if target in self.outside or port in self.closed_on_host or self.random.randrange(4):
            return verdict.Packet(source, target, proto, port, by="" if target in self.outside else by)
        return verdict.Packet(source, HOST[v], proto, port, host=True)


@cache
def _facts() -> list[Drawn]:
    return random_facts(12)


@pytest.mark.parametrize("number", range(12))
def test_the_text_gives_the_verdict_of_the_reference(number: int) -> None:
    """For random policies and packets, the text of the tables decides as `policy.verdict` does."""
    drawn, random = _facts()[number], Random(number)
    view = drawn.compiler.view
    view.watched = drawn.flags["watched"]
    leased = set(WATCHED) if view.watched else set()
    ignored = ("proxy_unidentified", "unfound_protocols", "host_closed")  # listeners, which the reference does not know
    made = {each for each in drawn.elements | leased if not each.set.startswith(ignored)}
    sending, asking = Tables(Case("", "", frozenset(made)).text), _Questions(view, random)
    found = set()
    for _ in range(150):
        asked = asking.ask()
        wanted = verdict.verdict(view, asked)
        outcome = sending.walk("inet", "input" if asked.host else "forward", _sent(view, asked, random))
        ways_ = "\n".join(map(str, (*wanted.steps, *outcome.matched)))
        assert (outcome.verdict == "accept") is wanted.accepted, f"{asked}\n{ways_}"
        found.add(wanted.accepted)
    assert found == {True, False}


# --- two texts ----------------------------------------------------------------------------------------------------


def test_equal_texts_do_not_differ() -> None:
    """The comparison of two commits finds no difference where there is none."""
    case, seen = dense_cases()[1], Seen()
    one = Tables(case.text, case.more)
    assert not list(differences("", one, Tables(case.text, case.more), 0, 300, seen))
    assert len(seen.never(seen.reached)) < len(seen.all) / 2


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        ("ct state new jump quarantine", "ct state invalid jump quarantine"),
        ("oifgroup 0x66770001 goto accept_marked", "oifgroup 0x66770001 accept"),
        ("meta nfproto ipv6 fib saddr type local goto deny", "meta nfproto ipv4 fib saddr type local goto deny"),
        ("rt type 0 goto deny", "rt type 2 goto deny"),
        ("meta nfproto @peer_families jump peer_ports6", "meta nfproto @loading jump peer_ports6"),
        ("frag frag-off != 0 iifname . ether saddr . ip6 saddr @bound6 accept", "frag frag-off != 0 accept"),
        ("ct label 91 jump elsewhere", "ct label 92 jump elsewhere"),
    ],
)
def test_a_weaker_text_differs(rule: str, other: str) -> None:
    """The comparison finds a rule that is changed in one condition, also a rare one."""
    found = [case for case in dense_cases() if rule in case.text]
    assert found
    for number, case in enumerate(found[:4]):
        former, weaker = Tables(case.text, case.more), Tables(case.text.replace(rule, other), case.more)
        if next(differences("", former, weaker, number, 2500, Seen()), None):
            return
    pytest.fail("no packet shows the difference")
