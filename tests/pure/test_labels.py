"""The label language: what a user writes in `fw.allow`, what it opens, and what is said when it is wrong."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels import KEYS, MAX_LENGTH, MAX_RULES, PREFIX, Parsed, parse, parse_allow
from plugin.model import Rule
from tests.pure.strategies import examples, json_values, rules

PORT = "is not a port (1-65535, a range like 9000-9100, or *)"
PROTO = "is not a protocol (tcp, udp or sctp)"


def tcp(first: int, last: int = 0) -> Rule:
    return Rule("tcp", first, last or first)


#: LABELS.md's grammar as examples: the text, and the rules that it means.
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
}

#: What is wrong, and everything that is said about it.
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
    "**": [f'"**" {PORT}'],
    "8080,,9090": [f'"" {PORT}'],
    "8080,\n9090": [f'"" {PORT}'],
    ",": [f'"" {PORT}'],
    "9100-9000": ['"9100-9000": the range runs backwards; did you mean 9000-9100?'],
    "80/": [f'"80/": "" {PROTO}'],
    "80/icmp": [f'"80/icmp": "icmp" {PROTO}'],
    "80/tcp/udp": [f'"80/tcp/udp": "tcp/udp" {PROTO}'],
    "tcp/80": [f'"tcp/80": "80" {PROTO}'],
    "/udp": [f'"/udp" {PORT}'],
    "8080 from host": [f'"8080 from host" {PORT}'],
    "": ['is empty; write ports, like "8080, 53/udp", or leave the label out'],
    " \n ": ['is empty; write ports, like "8080, 53/udp", or leave the label out'],
    "808O, 8080, 0, 53/upd": [f'"808O" {PORT}', f'"0" {PORT}', f'"53/upd": "upd" {PROTO}'],
    "x" * 50: [f'"{"x" * 40}…" {PORT}'],
    "80\x00": [f'"80\x00" {PORT}'],
}


@pytest.mark.parametrize(("text", "expected"), RIGHT.items(), ids=repr)
def test_what_is_right_means_just_that(text: str, expected: list[Rule]) -> None:
    """Each example of the grammar opens exactly the ports that it names."""
    assert parse_allow(text) == (expected, [])


@pytest.mark.parametrize(("text", "messages"), WRONG.items(), ids=repr)
def test_what_is_wrong_is_quoted_with_what_would_be_right(text: str, messages: list[str]) -> None:
    """Each mistake is answered with its own words and what would be right, all of them at once, in order."""
    assert parse_allow(text)[1] == messages


@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_a_mistake_opens_nothing(text: str) -> None:
    """A label with one mistake opens none of its ports, not even the right ones."""
    assert parse({"fw.allow": text}).allow == ()
    assert parse({"fw.allow": text}).problems


def test_the_message_is_the_one_that_the_language_promises() -> None:
    """The design's own example of a message, to the letter (the driver puts the container's name in front)."""
    (problem,) = parse({"fw.allow": "808O"}).problems
    assert str(problem) == f'label fw.allow="808O": "808O" {PORT}'


def test_where_it_stood_is_told() -> None:
    """The same mistake in a network's options is told as one of the network's."""
    (problem,) = parse({"fw.allow": "0"}, "network option ").problems
    assert str(problem).startswith('network option fw.allow="0": ')


@pytest.mark.parametrize("key", ["fw.allow", "FW.ALLOW", "Fw.Allow"])
def test_keys_are_read_in_any_case(key: str) -> None:
    """The CLI lower-cases some keys and people capitalise others: it is the same key."""
    assert parse({key: "8080"}) == Parsed((tcp(8080),))


def test_the_same_key_twice_adds_up() -> None:
    """`fw.allow` and `FW.ALLOW` on one container are two lists that add up, and both must be right."""
    assert parse({"fw.allow": "8080", "FW.ALLOW": "9090, 8080"}).allow == (tcp(8080), tcp(9090))
    assert parse({"fw.allow": "8080", "FW.ALLOW": "x"}).allow == ()


@pytest.mark.parametrize("key", ["fw.alow", "fw.allows", "fw.Allow ", "fw.alllow", "fw.all"])
def test_a_near_miss_gets_a_suggestion(key: str) -> None:
    """A misspelt key is a mistake, and the key that was probably meant is named."""
    (problem,) = parse({key: "8080"}).problems
    assert str(problem) == f'label {key}="8080": is not a key of docker-fw; did you mean fw.allow?'


def test_a_key_like_no_other_gets_the_list() -> None:
    """A key that resembles none is a mistake, and the known ones are named."""
    (problem,) = parse({"fw.zzzzzzzz": "1"}).problems
    assert problem.text == f"is not a key of docker-fw (known: {', '.join(KEYS)})"


def test_every_mistake_of_a_container_at_once_in_the_order_of_keys() -> None:
    """Nobody has to start a container three times to learn of three mistakes."""
    said = parse({"fw.zzzzzzzz": "", "other": "", "fw.allow": "0, 8080, 70000", "fw.alow": "1"})
    assert [(p.where, p.value) for p in said.problems] == [
        ("label fw.allow", "0, 8080, 70000"),
        ("label fw.allow", "0, 8080, 70000"),
        ("label fw.alow", "1"),
        ("label fw.zzzzzzzz", ""),
    ]
    assert said.allow == ()


@pytest.mark.parametrize("value", [None, 8080, True, ["8080"], {"8080": ""}, 8080.0], ids=repr)
def test_a_value_that_is_no_text_is_a_mistake(value: object) -> None:
    """YAML may make a number of `8080`; where that reaches us it is refused with what would be right."""
    (problem,) = parse({"fw.allow": value}).problems
    assert str(problem) == f'label fw.allow="{value!r}": must be text, like "8080"'


@pytest.mark.parametrize("key", ["fwallow", "com.example.fw.allow", "fw", "", "traefik.enable", "ｆｗ.allow"])
def test_labels_of_others_are_left_alone(key: str) -> None:
    """What does not begin with `fw.` is somebody else's: no rule, no mistake."""
    assert parse({key: "8080"}) == Parsed()


@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_documented_example_of_each_key_is_right(key: str) -> None:
    """Every key's example in the documentation can be pasted as it is."""
    assert key.startswith(PREFIX)
    assert not parse({key: KEYS[key][1]}).problems


@given(st.lists(rules, min_size=1, max_size=20), st.sampled_from([",", ", ", "\n", " , "]))
@examples(70)
def test_a_rule_as_it_is_shown_can_be_written(listed: list[Rule], separator: str) -> None:
    """What `status` shows (`9000-9100/udp`) is what a label may say, and means the same."""
    assert parse_allow(separator.join(map(str, listed))) == (listed, [])


# --- any text at all ----------------------------------------------------------------------------------------------

#: Text that looks much like the grammar's, so that chance finds its edges, or like nothing.
_scraps = st.sampled_from(
    ["80", "8080", "65535", "65536", "0", "9000-9100", "-", "/", "udp", "tcp", "sctp", "/udp", "*", ",", "\n", " ",
     "\t", "x", "١", "\u2028", "\x0b", "\u00a0", "1" * 30, "from", "any", "Ⅷ", "\ud800", "\x00", '"']
)  # fmt: skip
any_text = st.text(max_size=200) | st.lists(_scraps, max_size=30).map("".join)


def _allowed_by_digits(text: str) -> list[set[int]]:
    """For each comma- or line-separated part of the text, the numbers that its ASCII digits spell."""
    return [{int(digits) for digits in re.findall(r"[0-9]+", part)} for part in re.split(r"[,\n]", text)]


@given(any_text)
@examples(500)
def test_no_text_ever_opens_more_than_its_digits_say(text: str) -> None:
    """Any text: no crash; each rule's ends are numbers in one part of the text, or it says `*`."""
    found, mistakes = parse_allow(text)
    parts = _allowed_by_digits(text)
    stars = text.count("*")
    assert len(found) + len(mistakes) <= max(1, len(parts))
    for rule in found:
        assert 1 <= rule.first <= rule.last <= 65535
        if (rule.first, rule.last) == (1, 65535) and stars:
            continue
        assert any(rule.first in numbers and rule.last in numbers for numbers in parts)
        if rule.first != rule.last:
            assert "-" in text
        assert rule.proto == "tcp" or rule.proto in text.lower()


label_maps = st.dictionaries(
    st.sampled_from(["fw.allow", "FW.allow", "fw.alow", "fw.", "fw.allow.", "com.example"]) | st.text(max_size=12),
    any_text | st.sampled_from(["8080", "53/udp"]) | json_values,
    max_size=5,
)


@given(label_maps)
@examples(250)
def test_with_a_mistake_there_is_no_rule_at_all(pairs: dict[str, object]) -> None:
    """Any labels at all: either everything of ours is right, or nothing is opened; and each mistake can be shown."""
    said = parse(pairs)
    assert not (said.allow and said.problems)
    assert said.allow == tuple(sorted(set(said.allow)))
    for problem in said.problems:
        assert str(problem).startswith(problem.where)
        assert problem.where.removeprefix("label ") in pairs
    ours = [key for key in pairs if key.lower().startswith(PREFIX)]
    if not ours:
        assert said == Parsed()


@given(label_maps, st.sampled_from(["fw.alow", "fw.", "fw.deny"]), any_text)
@examples(100)
def test_a_further_mistake_never_opens_anything(pairs: dict[str, object], key: str, value: str) -> None:
    """Labels with one more wrong key open a subset of what they opened: nothing."""
    assert parse({**pairs, key: value}).allow == ()


def test_what_is_too_long_is_not_parsed() -> None:
    """A label longer than anybody means is refused whole, and the message stays readable."""
    (problem,) = parse({"fw.allow": "80," * MAX_LENGTH}).problems
    assert str(problem).endswith(f"is {3 * MAX_LENGTH} characters long; at most {MAX_LENGTH} are read")
    assert len(str(problem)) < 400
    assert parse_allow(",".join(["80"] * MAX_RULES))[1] == []
    (message,) = parse_allow(",".join(["80"] * (MAX_RULES + 1)))[1]
    assert message == f"has {MAX_RULES + 1} rules; at most {MAX_RULES} are read, use ranges like 9000-9100"


@pytest.mark.parametrize(
    "text",
    ["9" * (8 << 20), " " * (8 << 20), "," * (8 << 20), "8080-" * (1 << 20), "\n" * (8 << 20), "😀" * (2 << 20),
     "1" + " " * (MAX_LENGTH - 2) + "1", "1-" + " " * (MAX_LENGTH - 2), " \t" * (MAX_LENGTH // 2 - 1) + "x"],
    ids=lambda text: f"{text[:3]!r}×{len(text)}",
)  # fmt: skip
def test_huge_values_cost_no_time(text: str) -> None:
    """The largest value that the plugin's socket takes is refused in a moment, whatever is in it."""
    began = time.process_time()
    said = parse({"fw.allow": text})
    assert time.process_time() - began < 0.5
    assert said.allow == ()
    assert all(len(str(problem)) < 500 for problem in said.problems)


def test_huge_keys_cost_no_time() -> None:
    """A key of megabytes is a mistake like another: told shortly, in a moment."""
    began = time.process_time()
    (problem,) = parse({"fw." + "a" * (8 << 20): "8080"}).problems
    assert time.process_time() - began < 0.5
    assert len(str(problem)) < 1000


def test_a_flood_of_wrong_labels_costs_no_time() -> None:
    """As many wrong keys as fit into a request are answered in bounded time, with a text a person can read."""
    began = time.process_time()
    said = parse({f"fw.{number}": "8080" for number in range(200_000)})
    assert time.process_time() - began < 1
    assert said.allow == ()
    assert said.problems
    assert sum(len(str(problem)) for problem in said.problems) < 100_000
