"""One value of the label language: its meaning, and the message when it is wrong.

Each value is also read by `tests.pure.naive`, which was written by the design and not by the code: they must agree.
"""

from __future__ import annotations

import re
import time
from ipaddress import ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plugin.labels import parser
from plugin.labels.grammar import (
    MAX_ELEMENTS,
    MAX_LENGTH,
    MAX_RULES,
    elements,
    parse_allow,
    parse_deny,
    parse_egress,
    parse_prefix,
    parse_rate,
    taken_back,
)
from plugin.model import Peer, Rate, Rule
from tests.pure import naive
from tests.pure.messages import PEER, PORT, PROTO, RATE
from tests.pure.strategies import (
    any_rules,
    any_text,
    examples,
    near_text,
    portless,
    prefix_peer,
    prefixes,
    rates,
    rules,
)


def tcp(first: int, last: int = 0, *peers: Peer) -> Rule:
    return Rule("tcp", first, last or first, peers)


def addr(*texts: str) -> tuple[Peer, ...]:
    return tuple(Peer("prefix", text) for text in texts)


#: LABELS.md's grammar as examples: the text, and its rules.
RIGHT: dict[str, list[Rule]] = {
    "8080": [tcp(8080)],
    "1": [tcp(1)],
    "65535": [tcp(65535)],
    "8080, 53/udp, 9000-9100": [tcp(8080), Rule("udp", 53, 53), tcp(9000, 9100)],
    "8080,53/udp,9000-9100": [tcp(8080), Rule("udp", 53, 53), tcp(9000, 9100)],
    "8080\n53/udp\n": [tcp(8080), Rule("udp", 53, 53)],
    "  8080  ,\t9090 ": [tcp(8080), tcp(9090)],
    "8080,": [tcp(8080)],
    "9000 - 9100": [tcp(9000, 9100)],
    "9000-9000": [tcp(9000)],
    "3868 / sctp": [Rule("sctp", 3868, 3868)],
    "53/UDP, 80/Tcp": [Rule("udp", 53, 53), tcp(80)],
    "*": [tcp(1, 65535)],
    "*/udp": [Rule("udp", 1, 65535)],
    "1-65535/sctp": [Rule("sctp", 1, 65535)],
    "00080": [tcp(80)],
    "8080, 8080": [tcp(8080), tcp(8080)],
    # protocols without ports
    "gre": [Rule("gre", 0, 0)],
    "GRE, Esp,ah": [Rule("gre", 0, 0), Rule("esp", 0, 0), Rule("ah", 0, 0)],
    "esp from 203.0.113.7": [Rule("esp", 0, 0, addr("203.0.113.7"))],
    # addresses and prefixes
    "5432 from 203.0.113.7": [tcp(5432, 0, *addr("203.0.113.7"))],
    "5432 from 2001:db8:5::/48 203.0.113.7": [tcp(5432, 0, *addr("2001:db8:5::/48", "203.0.113.7"))],
    "5432 from 2001:DB8:0:0::1": [tcp(5432, 0, *addr("2001:db8::1"))],
    "5432 from 10.0.0.1/32 10.0.0.1": [tcp(5432, 0, *addr("10.0.0.1"))],
    "5432 from 2001:db8::1/128": [tcp(5432, 0, *addr("2001:db8::1"))],
    "5432 from 0.0.0.0/0 ::/0": [tcp(5432, 0, *addr("0.0.0.0/0", "::/0"))],
    "5432 from 10.0.0.0/08": [tcp(5432, 0, *addr("10.0.0.0/8"))],
    "8080 - 8090 / udp from 10.0.0.0/8": [Rule("udp", 8080, 8090, addr("10.0.0.0/8"))],
    "80 from 10.0.0.1, 81": [tcp(80, 0, *addr("10.0.0.1")), tcp(81)],
    "80 FROM 10.0.0.1\n81 From ::1": [tcp(80, 0, *addr("10.0.0.1")), tcp(81, 0, *addr("::1"))],
    "80\tfrom \t 10.0.0.1": [tcp(80, 0, *addr("10.0.0.1"))],
    "80 from ::10.0.0.1": [tcp(80, 0, *addr("::a00:1"))],
    # names
    "6379 from service:api": [tcp(6379, 0, Peer("service", "api"))],
    "1 from CONTAINER:Web-1": [tcp(1, 0, Peer("container", "Web-1"))],
    "1 from project:shop network:front_end.2": [tcp(1, 0, Peer("network", "front_end.2"), Peer("project", "shop"))],
    "1 from service:from": [tcp(1, 0, Peer("service", "from"))],
    "1 from service:b service:a": [tcp(1, 0, Peer("service", "a"), Peer("service", "b"))],
    "1 from container:any": [tcp(1, 0, Peer("container", "any"))],
    # host and any
    "22 from host": [tcp(22, 0, Peer("host"))],
    "22 from HOST": [tcp(22, 0, Peer("host"))],
    "22 from any": [tcp(22)],
    "22 from Any 10.0.0.1": [tcp(22)],
}

#: A wrong text, and all messages about it.
WRONG: dict[str, list[str]] = {
    "808O": [f'"808O" {PORT}'],
    "0": [f'"0" {PORT}'],
    "65536": [f'"65536" {PORT}'],
    "-1": [f'"-1" {PORT}'],
    "+80": [f'"+80" {PORT}'],
    "80.0": [f'"80.0" {PORT}'],
    "8e1": [f'"8e1" {PORT}'],
    "0x50": [f'"0x50" {PORT}'],
    "8_080": [f'"8_080" {PORT}'],
    "000080": [f'"000080" {PORT}'],
    "٨٠": [f'"٨٠" {PORT}'],
    "８０": [f'"８０" {PORT}'],
    "²": [f'"²" {PORT}'],
    "80 81": [f'"80 81" {PORT}'],
    "80;81": [f'"80;81" {PORT}'],
    "80:81": [f'"80:81" {PORT}'],
    "80-": [f'"80-" {PORT}'],
    "-80": [f'"-80" {PORT}'],
    "80–90": [f'"80–90" {PORT}'],
    "1-2-3": [f'"1-2-3" {PORT}'],
    "0-80": [f'"0-80" {PORT}'],
    "80-65536": [f'"80-65536" {PORT}'],
    "all": [f'"all" {PORT}'],
    "any": [f'"any" {PORT}'],
    "**": [f'"**" {PORT}'],
    "8080,,9090": [f'"" {PORT}'],
    "8080,\n9090": [f'"" {PORT}'],
    ",": [f'"" {PORT}'],
    "9100-9000": ['"9100-9000": the range is reversed; did you mean 9000-9100?'],
    "80/": [f'"80/": "" {PROTO}'],
    "80/icmp": [f'"80/icmp": "icmp" {PROTO}'],
    "80/tcp/udp": [f'"80/tcp/udp": "tcp/udp" {PROTO}'],
    "tcp/80": [f'"tcp/80": "80" {PROTO}'],
    "/udp": [f'"/udp" {PORT}'],
    "": ['is empty; write ports, like "8080, 53/udp", or leave the label out'],
    " \n ": ['is empty; write ports, like "8080, 53/udp", or leave the label out'],
    "808O, 8080, 0, 53/upd": [f'"808O" {PORT}', f'"0" {PORT}', f'"53/upd": "upd" {PROTO}'],
    "x" * 50: [f'"{"x" * 40}…" {PORT}'],
    "80\x00": [f'"80\x00" {PORT}'],
    # protocols without ports
    "80/gre": [f'"80/gre": "gre" {PROTO}; it has no ports, write it alone'],
    "gre/tcp": [f'"gre/tcp" {PORT}'],
    "gre 80": [f'"gre 80" {PORT}'],
    "other": [f'"other" {PORT}'],
    "icmp": [f'"icmp" {PORT}'],
    "47": [],  # a port like any other
    # peers
    "22 from": [f'"22 from" names no peer; write from and {PEER.removeprefix("is not ")}'],
    "from 10.0.0.1": [f'"" {PORT}'],
    "22from 10.0.0.1": [f'"22from 10.0.0.1" {PORT}'],
    "22 form 10.0.0.1": [f'"22 form 10.0.0.1" {PORT}'],
    "22 to 10.0.0.1": ['"22 to 10.0.0.1": write "from" here, not "to"'],
    "22 from 10.0.0.1 from 10.0.0.2": [f'"22 from 10.0.0.1 from 10.0.0.2": "from" {PEER}'],
    "22 from everybody": [f'"22 from everybody": "everybody" {PEER}'],
    "22 from all": [f'"22 from all": "all" {PEER}'],
    "22 from x y": [f'"22 from x y": "x" {PEER}; "y" {PEER}'],
    "22 from any x": [f'"22 from any x": "x" {PEER}'],
    # addresses
    "22 from 10.0.0": [f'"22 from 10.0.0": "10.0.0" {PEER}'],
    "22 from 10.0.0.256": [f'"22 from 10.0.0.256": "10.0.0.256" {PEER}'],
    "22 from 010.0.0.1": [f'"22 from 010.0.0.1": "010.0.0.1" {PEER}'],
    "22 from 10.0.0.0/33": [f'"22 from 10.0.0.0/33": "10.0.0.0/33" {PEER}'],
    "22 from 10.0.0.0/255.0.0.0": [f'"22 from 10.0.0.0/255.0.0.0": "10.0.0.0/255.0.0.0" {PEER}'],
    "22 from 10.0.0.0/": [f'"22 from 10.0.0.0/": "10.0.0.0/" {PEER}'],
    "22 from 2001:db8::/129": [f'"22 from 2001:db8::/129": "2001:db8::/129" {PEER}'],
    "22 from [2001:db8::1]": [f'"22 from [2001:db8::1]": "[2001:db8::1]" {PEER}'],
    "22 from 2001:db8:::1": [f'"22 from 2001:db8:::1": "2001:db8:::1" {PEER}'],
    "22 from ١.1.1.1": [f'"22 from ١.1.1.1": "١.1.1.1" {PEER}'],
    "22 from fe80::1%eth0": [f'"22 from fe80::1%eth0": "fe80::1%eth0" {PEER}'],
    "22 from example.org": [f'"22 from example.org": "example.org" {PEER}'],
    "22 from 10.0.0.1/8": [
        '"22 from 10.0.0.1/8": "10.0.0.1/8" has bits beyond its length; did you mean 10.0.0.0/8?'
    ],
    "22 from 2001:db8::1/32": [
        '"22 from 2001:db8::1/32": "2001:db8::1/32" has bits beyond its length; did you mean 2001:db8::/32?'
    ],
    "22 from ::ffff:10.0.0.1": [
        '"22 from ::ffff:10.0.0.1": "::ffff:10.0.0.1" is an IPv4-mapped IPv6 address; write 10.0.0.1'
    ],
    "22 from ::FFFF:a00:0/104": [
        '"22 from ::FFFF:a00:0/104": "::FFFF:a00:0/104" is an IPv4-mapped IPv6 address; write 10.0.0.0/8'
    ],
    # names
    "1 from service:": ['"1 from service:": "service:" has no valid Docker name after the colon'],
    "1 from service: api": [
        f'"1 from service: api": "service:" has no valid Docker name after the colon; "api" {PEER}'
    ],
    "1 from network:-x": ['"1 from network:-x": "network:-x" has no valid Docker name after the colon'],
    "1 from project:a/b": ['"1 from project:a/b": "project:a/b" has no valid Docker name after the colon'],
    "1 from container:é": ['"1 from container:é": "container:é" has no valid Docker name after the colon'],
    "1 from image:nginx": [f'"1 from image:nginx": "image:nginx" {PEER}'],
    "1 from host:": [f'"1 from host:": "host:" {PEER}'],
    "1 from :api": [f'"1 from :api": ":api" {PEER}'],
}  # fmt: skip
RIGHT["47"] = [tcp(47)]
del WRONG["47"]


@pytest.mark.parametrize(("text", "expected"), RIGHT.items(), ids=repr)
def test_a_valid_value_has_exactly_its_meaning(text: str, expected: list[Rule]) -> None:
    """Each example of the grammar opens exactly the ports that it names, to exactly the peers that it names."""
    assert parse_allow(text) == (expected, [])


@pytest.mark.parametrize(("text", "messages"), WRONG.items(), ids=repr)
def test_a_wrong_value_is_quoted_with_advice(text: str, messages: list[str]) -> None:
    """Each mistake has its own message that says what would be right; all are reported at once, in order."""
    assert parse_allow(text)[1] == messages


@pytest.mark.parametrize("text", [*RIGHT, *WRONG], ids=repr)
def test_the_naive_reader_agrees_about_each_example(text: str) -> None:
    """The naive reading, which the other tests trust, agrees about each example."""
    found, mistakes = parse_allow(text)
    by_hand = naive.rules(text)
    assert (by_hand is None) == bool(mistakes)
    if by_hand is not None:
        assert [(i.proto, i.first, i.last) for i in by_hand] == [(r.proto, r.first, r.last) for r in found]


@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_a_mistake_opens_nothing(text: str) -> None:
    """A label with one mistake opens none of its ports, not even the right ones."""
    parsed = parser.parse({"fw.allow": text})
    assert parsed.spec.allow == ()
    assert parsed.problems


def test_both_mistakes_of_a_rule_are_reported() -> None:
    """The ports and the peers of one rule may both be wrong: both are reported, so that one start is enough to learn
    it."""
    (message,) = parse_allow("808O from 10.0.0.300")[1]
    assert message == f'"808O from 10.0.0.300": "808O" {PORT}; "10.0.0.300" {PEER}'


def test_the_message_about_many_wrong_peers_is_short() -> None:
    """At most eight wrong peers of one rule are reported."""
    (message,) = parse_allow("22 from " + "x " * 1000)[1]
    assert message.count(PEER) == 8


def test_the_longest_value_and_the_most_rules() -> None:
    """4096 characters and 256 rules are read, and not one more."""
    just = "1".rjust(MAX_LENGTH)
    assert parse_allow(just) == ([tcp(1)], [])
    assert parse_allow(" " + just) == ([], [f"is {MAX_LENGTH + 1} characters long; at most {MAX_LENGTH} are read"])
    most = ",".join(["80"] * MAX_RULES)
    assert parse_allow(most) == ([tcp(80)] * MAX_RULES, [])
    assert parse_allow(most + ",")[1] == []
    assert parse_allow(most + ",80") == (
        [],
        [f"has {MAX_RULES + 1} rules; at most {MAX_RULES} are read, use ranges like 9000-9100"],
    )
    for parse in (parse_deny, parse_egress, parse_rate):
        assert parse(" " + just)[1] == parse_allow(" " + just)[1]
        assert parse(most + ",80")[1] == parse_allow(most + ",80")[1]


# --- fw.deny ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22", [tcp(22)]),
        ("22, 80", [tcp(22), tcp(80)]),
        ("*/udp\n1-1024", [Rule("udp", 1, 65535), tcp(1, 1024)]),
        ("gre, *", [Rule("gre", 0, 0), tcp(1, 65535)]),
    ],
)
def test_a_valid_deny_has_its_meaning(text: str, expected: list[Rule]) -> None:
    """`fw.deny` is a list of ports, and of protocols without ports."""
    assert parse_deny(text) == (expected, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'is empty; write ports, like "22, 80", or leave the label out'),
        ("22x", f'"22x" {PORT}'),
        ("all", f'"all" {PORT}'),
        (
            "22 from 10.0.0.1",
            '"22 from 10.0.0.1": a denied port is closed to all sources; '
            'to open it to some, write fw.allow: "22 from 2001:db8::/32"',
        ),
        (
            "22 from any",
            '"22 from any": a denied port is closed to all sources; '
            'to open it to some, write fw.allow: "22 from 2001:db8::/32"',
        ),
        ("22 to 10.0.0.1", f'"22 to 10.0.0.1" {PORT}'),
        ("22/icmp", f'"22/icmp": "icmp" {PROTO}'),
    ],
)
def test_a_wrong_deny_is_quoted_with_advice(text: str, message: str) -> None:
    """A port is denied to all: for a `from`, the message says how to write it."""
    assert parse_deny(text) == ([], [message])


# --- fw.egress ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("443", [tcp(443)]),
        ("443, 53/udp to 2001:4860:4860::8888", [tcp(443), Rule("udp", 53, 53, addr("2001:4860:4860::8888"))]),
        ("8125/udp TO host", [Rule("udp", 8125, 8125, (Peer("host"),))]),
        ("5432 to service:db 10.0.0.0/8", [tcp(5432, 0, *addr("10.0.0.0/8"), Peer("service", "db"))]),
        ("* to any, gre", [tcp(1, 65535), Rule("gre", 0, 0)]),
    ],
)
def test_a_valid_egress_has_its_meaning(text: str, expected: list[Rule]) -> None:
    """`fw.egress` is a list of other hosts' ports, with `to` instead of `from`."""
    assert parse_egress(text) == (expected, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'is empty; write all, none or "443, 53/udp", or leave the label out'),
        ("443 from 10.0.0.1", '"443 from 10.0.0.1": write "to" here, not "from"'),
        ("443 to", f'"443 to" names no peer; write to and {PEER.removeprefix("is not ")}'),
        ("443 to x", f'"443 to x": "x" {PEER}'),
        ("none, 443", f'"none" {PORT}'),
    ],
)
def test_a_wrong_egress_is_quoted_with_advice(text: str, message: str) -> None:
    """Each mistake in `fw.egress` is quoted with what would be right."""
    assert parse_egress(text)[1] == [message]


# --- fw.rate ------------------------------------------------------------------------------------------------------

RIGHT_RATES: dict[str, list[Rate]] = {
    "22 5/minute burst 10": [Rate("tcp", 22, 22, 5, "minute", 10)],
    "22 5/minute": [Rate("tcp", 22, 22, 5, "minute", 5)],
    "53/udp 100/second, 22 1/Day": [Rate("udp", 53, 53, 100, "second", 5), Rate("tcp", 22, 22, 1, "day", 5)],
    "9000 - 9100 / sctp 97 / HOUR BURST 65535": [Rate("sctp", 9000, 9100, 97, "hour", 65535)],
    "* 1000000/second burst 1": [Rate("tcp", 1, 65535, 1_000_000, "second", 1)],
    "80 22/minute": [Rate("tcp", 80, 80, 22, "minute", 5)],
}
WRONG_RATES: dict[str, str] = {
    "": 'is empty; write ports, like "22 5/minute burst 10", or leave the label out',
    "22": f'"22" {RATE}',
    "5/minute": f'"5/minute" {RATE}',
    "22 5": f'"22 5" {RATE}',
    "22 5/fortnight": f'"22 5/fortnight" {RATE}',
    "22 5/minutes": f'"22 5/minutes" {RATE}',
    "22 0/minute": f'"22 0/minute" {RATE}',
    "22 1000001/minute": f'"22 1000001/minute" {RATE}',
    "22 5/minute burst": f'"22 5/minute burst" {RATE}',
    "22 5/minute burst x": f'"22 5/minute burst x" {RATE}',
    "22 5/minute burst 0": f'"22 5/minute burst 0" {RATE}',
    "22 5/minute burst 65536": f'"22 5/minute burst 65536" {RATE}',
    "22 1/day burst 65535": (
        '"22 1/day burst 65535": a source would have to be remembered for over 30 days; write a smaller burst'
    ),
    "22 5/minute burst 10 from 10.0.0.1": f'"22 5/minute burst 10 from 10.0.0.1" {RATE}',
    "22 ٥/minute": f'"22 ٥/minute" {RATE}',
    "22, 80 5/minute": f'"22" {RATE}',
    "0 5/minute": f'"0" {PORT}',
    "22/icmp 5/minute": f'"22/icmp": "icmp" {PROTO}',
    "gre 5/minute": '"gre 5/minute": gre has no ports; only tcp, udp and sctp can be limited',
    "all 5/minute": f'"all" {PORT}',
}


@pytest.mark.parametrize(("text", "expected"), RIGHT_RATES.items(), ids=repr)
def test_a_valid_rate_has_its_meaning(text: str, expected: list[Rate]) -> None:
    """`fw.rate` is a list of ports, each with the number of new flows in a time, and the burst (5 if not set)."""
    assert parse_rate(text) == (expected, [])
    assert _rates(text) == expected


@pytest.mark.parametrize(("text", "message"), WRONG_RATES.items(), ids=repr)
def test_a_wrong_rate_is_quoted_with_advice(text: str, message: str) -> None:
    """Each mistake in `fw.rate` is quoted with what would be right."""
    assert parse_rate(text)[1] == [message]
    assert naive.rates(text) is None


# --- rules as shown are valid labels ------------------------------------------------------------------------------

separators = st.sampled_from([",", ", ", "\n", " , "])


@given(st.lists(any_rules, min_size=1, max_size=12), separators)
@examples(100)
def test_a_rule_as_shown_is_a_valid_label(listed: list[Rule], separator: str) -> None:
    """The form that `status` shows (`9000-9100/udp from 2001:db8::/32`) is a valid label, with the same meaning."""
    assume(sum(map(elements, listed)) <= MAX_ELEMENTS)  # more are refused: no such list is ever shown
    assert parse_allow(separator.join(map(str, listed))) == (listed, [])
    to = separator.join(str(rule).replace(" from ", " to ") for rule in listed)
    assert parse_egress(to) == (listed, [])


@given(st.lists(rules | portless, min_size=1, max_size=5), st.lists(rates, min_size=1, max_size=5), separators)
@examples(50)
def test_a_deny_and_a_rate_as_shown_are_valid_labels(ports: list[Rule], limits: list[Rate], separator: str) -> None:
    """The form in which `status` shows denied ports and rates is a valid label."""
    assert parse_deny(separator.join(map(str, ports))) == (ports, [])
    assert parse_rate(separator.join(map(str, limits))) == (limits, [])


@given(prefixes)
@examples(200)
def test_every_prefix_can_be_written(prefix: object) -> None:
    """Every IPv4 and IPv6 prefix is a peer; a whole address is written without its length."""
    assert parse_prefix(str(prefix)) == prefix_peer(prefix)  # type: ignore[arg-type]


# --- any text at all ----------------------------------------------------------------------------------------------


@given(any_text)
@examples(400)
def test_no_text_opens_more_than_its_digits_say(text: str) -> None:
    """Any text: no crash; each rule's ends are numbers in one part of the text, or the text contains `*`."""
    found, mistakes = parse_allow(text)
    parts = [{int(digits) for digits in re.findall(r"[0-9]+", part)} for part in re.split(r"[,\n]", text)]
    assert len(found) + len(mistakes) <= max(1, len(parts))
    for rule in found:
        if rule.proto in ("gre", "esp", "ah"):
            assert rule.proto in text.lower()
            continue
        assert 1 <= rule.first <= rule.last <= 65535
        if (rule.first, rule.last) == (1, 65535) and "*" in text:
            continue
        assert any(rule.first in numbers and rule.last in numbers for numbers in parts)
        if rule.first != rule.last:
            assert "-" in text
        assert rule.proto == "tcp" or rule.proto in text.lower()


def _same(item: naive.Item, rule: Rule) -> bool:
    if (item.proto, item.first, item.last, item.peers is None) != (rule.proto, rule.first, rule.last, not rule.peers):
        return False
    return {_peer(token) for token in item.peers or ()} == set(rule.peers)


def _rates(text: str) -> list[Rate] | None:
    """Return the rates as the naive reader reads them; None if one is wrong."""
    found = naive.rates(text)
    if found is None:
        return None
    return [Rate(item.proto, item.first, item.last, count, unit, burst) for item, count, unit, burst in found]


def _peer(token: str) -> Peer:
    kind, _, name = token.partition(":")
    if kind.lower() in ("container", "service", "project", "network"):
        return Peer(kind.lower(), name)
    return Peer("host") if token.lower() == "host" else prefix_peer(ip_network(token))


@given(any_text | near_text)
@examples(500)
def test_an_accepted_text_is_valid_for_the_naive_reader(text: str) -> None:
    """Any text: a rule, a rate or a denied port is the same when it is read word by word."""
    for parse, read in (
        (parse_allow, naive.rules),
        (parse_egress, lambda t: naive.rules(t, "to")),
        (parse_deny, naive.denies),
    ):
        found, mistakes = parse(text)
        if not mistakes:
            by_hand = read(text)
            assert by_hand is not None
            assert len(by_hand) == len(found)
            assert all(map(_same, by_hand, found))
    limits, mistakes = parse_rate(text)
    assert mistakes or limits == _rates(text)


@given(near_text)
@examples(500)
def test_a_text_valid_for_the_naive_reader_is_accepted(text: str) -> None:
    """No text that the design allows is refused."""
    if naive.rules(text) is not None:
        assert parse_allow(text)[1] == []
    if naive.rules(text, "to") is not None:
        assert parse_egress(text)[1] == []
    if naive.denies(text) is not None:
        assert parse_deny(text)[1] == []
    if naive.rates(text) is not None:
        assert parse_rate(text)[1] == []


@given(any_text)
@examples(100)
def test_any_address_is_a_peer_or_a_short_message(text: str) -> None:
    """Any text as an address: a peer by its canonical name, or one readable line."""
    found = parse_prefix(text)
    if isinstance(found, Peer):
        assert parse_prefix(found.value) == found
    else:
        assert len(found) < 300


# --- restrictions of a wrong fw.allow -----------------------------------------------------------------------------

ALL = [
    *(Rule(proto, 1, 65535) for proto in ("tcp", "udp", "sctp")),
    *(Rule(proto, 0, 0) for proto in ("gre", "esp", "ah")),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("808O, 8080", []),
        ("22 from 10.0.0.0/33", [tcp(22)]),
        ("22/udp from x, 80, 443 from", [Rule("udp", 22, 22), tcp(443)]),
        ("22 from 10.0.0.1, 80x", [tcp(22)]),
        ("22 form 10.0.0.0/8, 80 10.0.0.1", [tcp(22), tcp(80)]),
        ("80 - 443 form 10.0.0.0/8, 80x", [tcp(80, 443)]),
        ("53 / udp form 10.0.0.0/8", [Rule("udp", 53, 53)]),
        ("80 - 443 / tcp service:web", [tcp(80, 443)]),
        ("80 - 443, 80x", []),
        ("8080:80", []),
        ("22 80 10.0.0.0/8", ALL),
        ("10.0.0.0/8 22", ALL),
        ("tcp/22 10.0.0.0/8", ALL),
        ("22@10.0.0.0/8", ALL),
        ("10.0.0.0/8:22", ALL),
        ("[2001:db8::1]:22", ALL),
        ("22@Service:web", ALL),
        ("2z from 10.0.0.1", ALL),
        ("22from 10.0.0.1", ALL),
        ("22 FROM10.0.0.1", ALL),
        ("from", ALL),
        ("1 from " + "x" * MAX_LENGTH, ALL),
        ("x" * MAX_LENGTH + ", 22 from 10.0.0.1", ALL),
        ("x" * (MAX_LENGTH - 4) + "22 from 10.0.0.1", ALL),
        ("x" * (MAX_LENGTH + 1), []),
    ],
)
def test_a_wrong_from_removes_its_port_from_the_base(text: str, expected: list[Rule]) -> None:
    """The author of "22 from 10.0.0.0/33" or "22@10.0.0.0/8" did not mean 22 to be open to all; an unclear rule takes
    every port."""
    assert taken_back(text) == expected


@given(any_text)
@examples(200)
def test_any_rule_with_peers_is_taken_back(text: str) -> None:
    """Any text: each rule with peers that could be read is among the ports that are taken back."""
    for rule in parse_allow(text)[0]:
        if rule.peers:
            assert any(
                t.proto == rule.proto and t.first <= rule.first and rule.last <= t.last for t in taken_back(text)
            ) or rule.proto not in ("tcp", "udp", "sctp")


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "9" * (8 << 20),
        " " * (8 << 20),
        "," * (8 << 20),
        "8080-" * (1 << 20),
        "\n" * (8 << 20),
        "😀" * (2 << 20),
        "1" + " " * (MAX_LENGTH - 2) + "1",
        "1-" + " " * (MAX_LENGTH - 2),
        " \t" * (MAX_LENGTH // 2 - 1) + "x",
        "1 from " * 580,
        ("1 " * (MAX_LENGTH // 2))[:-1],
        "22" + " 1/" * 1300,
        "22 " + "1" * 4000,
        "a " * 2000 + "1/second",
        "22 from " + "1:" * 2040,
        "from " * 800,
    ],
    ids=lambda text: f"{text[:3]!r}×{len(text)}",
)
@pytest.mark.parametrize("parse", [parse_allow, parse_deny, parse_egress, parse_rate])
def test_huge_values_cost_no_time(text: str, parse: object) -> None:
    """The largest value that the plugin's socket accepts is refused in a moment, whatever its content."""
    start = time.process_time()
    found, mistakes = parse(text)  # type: ignore[operator]
    taken_back(text)
    assert time.process_time() - start < 0.5
    assert found == []
    assert all(len(mistake) < 3000 for mistake in mistakes)


def test_one_value_has_a_bounded_number_of_elements() -> None:
    """Ports times prefixes: a value that means millions of elements is a mistake, and is reported without counting them
    out."""
    wide = " ".join(f"2001:db8:{n:x}::/57" for n in range(200))
    start = time.process_time()
    assert parse_allow(f"1-65534 from {wide}") == (
        [],
        ["expands to more than 20000 rules: ports times peers; use rounder ranges and prefixes"],
    )
    assert parse_egress("1-65534 to 2001:db8::/57 2001:db8:1::/57")[1]
    assert not parse_allow("1-65534 from 2001:db8::/56 10.0.0.0/8")[1]
    assert time.process_time() - start < 5


def test_the_number_of_different_rates_is_bounded() -> None:
    """Each rate needs kernel memory; many ports may have the same one."""
    same = ", ".join(f"{port} 5/minute" for port in range(100, 300))
    assert not parse_rate(same)[1]
    assert not parse_rate(", ".join(f"{port} {port}/minute" for port in range(1, 9)))[1]
    rates, (mistake,) = parse_rate(", ".join(f"{port} {port}/minute" for port in range(1, 201)))
    assert not rates
    assert "names 200 different rates" in mistake
    assert "may have 8" in mistake
