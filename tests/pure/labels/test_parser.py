"""The label language: its keys in every place, their meaning, and the messages when they are wrong."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels.grammar import MAX_LENGTH, MAX_RATES, UNITS
from plugin.labels.keys import EVERYTHING, KEYS, PREFIX
from plugin.labels.parser import MAX_PROBLEMS, ParsedLabels, for_network, only_closing, over, parse, split
from plugin.model import Peer, PolicySpec, Rate, Rule
from tests.pure.messages import PORT
from tests.pure.strategies import any_text, examples, json_values, specs

SSH, WEB, HTTPS, MORE, DNS = (
    Rule("tcp", 22, 22),
    Rule("tcp", 80, 80),
    Rule("tcp", 443, 443),
    Rule("tcp", 8080, 8080),
    Rule("udp", 53, 53),
)
TEN = Peer("prefix", "10.0.0.0/8")


def messages(pairs: dict[str, object], where: str = "label ") -> list[str]:
    return [str(problem) for problem in parse(pairs, where).problems]


# --- each key -----------------------------------------------------------------------------------------------------

MEANS: dict[tuple[str, str], PolicySpec] = {
    ("fw.allow", "8080, 53/udp, 8080"): PolicySpec(allow=(MORE, DNS)),
    ("fw.allow", "22 from 10.0.0.0/8"): PolicySpec(allow=(Rule("tcp", 22, 22, (TEN,)),)),
    ("fw.deny", "80, 22"): PolicySpec(deny=(SSH, WEB)),
    ("fw.policy", "default"): PolicySpec(policy="default"),
    ("fw.policy", " Closed\n"): PolicySpec(policy="closed"),
    ("fw.policy", "OPEN"): PolicySpec(policy="open"),
    ("fw.egress", "all"): PolicySpec(egress=EVERYTHING),
    ("fw.egress", " None "): PolicySpec(egress=()),
    ("fw.egress", "443, 53/udp to 10.0.0.0/8"): PolicySpec(egress=(HTTPS, Rule("udp", 53, 53, (TEN,)))),
    ("fw.egress", "8125/udp to host"): PolicySpec(egress=(Rule("udp", 8125, 8125, (Peer("host"),)),)),
    ("fw.rate", "22 5/minute burst 10"): PolicySpec(rate=(Rate("tcp", 22, 22, 5, "minute", 10),)),
    ("fw.log", "drop"): PolicySpec(log="drop"),
    ("fw.log", "NONE"): PolicySpec(log="none"),
}


@pytest.mark.parametrize(("pair", "expected"), MEANS.items(), ids=repr)
def test_a_valid_label_sets_its_own_field_only(pair: tuple[str, str], expected: PolicySpec) -> None:
    """Each key sets its own field only, sorted and without duplicates; blanks and the case of keywords do not
    matter."""
    key, value = pair
    assert parse({key: value}) == ParsedLabels(expected)
    assert parse({key.upper(): value}) == ParsedLabels(expected)
    assert parse({key: value}, "network option ") == ParsedLabels(expected)


def test_a_rule_has_the_key_it_comes_from() -> None:
    """`fwctl` shows the origin of each rule: the exact key, as it was written."""
    parsed = parse({"fw.Allow": "8080", "fw.network.front.allow": "9090", "fw.rate": "22 5/minute"})
    assert [rule.origin for rule in parsed.spec.allow] == ["label fw.Allow"]
    assert [rule.origin for _, more in parsed.networks for rule in more.allow] == ["label fw.network.front.allow"]
    assert [rate.origin for rate in parsed.spec.rate or ()] == ["label fw.rate"]
    ((rule,), (option,)) = (parse({key: "1"}, "setting ").spec.allow for key in ("fw.allow", "FW.ALLOW"))
    assert (rule.origin, option.origin) == ("setting fw.allow", "setting FW.ALLOW")
    assert rule == option


WRONG_WORDS: dict[tuple[str, str], str] = {
    ("fw.policy", "clsed"): '"clsed" is not default, closed or open; did you mean closed?',
    ("fw.policy", ""): '"" is not default, closed or open',
    ("fw.policy", "xyz"): '"xyz" is not default, closed or open',
    ("fw.policy", "closed open"): '"closed open" is not default, closed or open; did you mean closed?',
    ("fw.policy", "y" * 50): f'"{"y" * 40}…" is not default, closed or open',
    ("fw.log", "dropped"): '"dropped" is not drop or none; did you mean drop?',
    ("fw.log", "true"): '"true" is not drop or none',
    ("fw.egress", "nothing"): f'"nothing" {PORT}',
    ("fw.egress", ""): 'is empty; write all, none or "443, 53/udp", or leave the label out',
    ("fw.deny", "808O"): f'"808O" {PORT}',
    ("fw.rate", "22"): '"22" is not a rate, like 22 5/minute burst 10 (per second, minute, hour or day)',
}


@pytest.mark.parametrize(("pair", "message"), WRONG_WORDS.items(), ids=repr)
def test_a_wrong_label_is_quoted_with_advice(pair: tuple[str, str], message: str) -> None:
    """Each mistake is reported with the label, its value, the wrong part and what would be right."""
    key, value = pair
    assert messages({key: value}) == [f'label {key}="{value}": {message}']


def test_the_message_is_the_documented_one() -> None:
    """The design's own example of a message, word for word (the driver puts the container's name in front)."""
    assert messages({"fw.allow": "808O"}) == [f'label fw.allow="808O": "808O" {PORT}']


def test_the_message_names_the_place() -> None:
    """A mistake in a network's options is reported as one of the network."""
    assert messages({"fw.allow": "0"}, "network option ") == [f'network option fw.allow="0": "0" {PORT}']


# --- possible intentions of a mistake -----------------------------------------------------------------------------

WEIGHS: list[tuple[str, str, bool, bool]] = [
    ("fw.allow", "808O", False, False),
    ("fw.log", "x", False, False),
    ("fw.egress", "x", False, True),
    ("fw.deny", "x", True, False),
    ("fw.policy", "x", True, False),
    ("fw.rate", "x", True, False),
    ("fw.dney", "22", True, False),
    ("fw.alow", "22", True, False),
    ("fw.egres", "none", True, True),
    ("fw.zzzzzzzz", "1", True, True),
    ("fw.network.front", "none", True, True),
    ("fw.network.front.allow", "x", False, False),
    ("fw.network.front.egress", "x", False, True),
    ("fw.network.front.deny", "x", True, False),
    ("fw.network.front.egres", "none", True, True),
]


@pytest.mark.parametrize(("key", "value", "closes", "restricts_egress"), WEIGHS)
def test_each_mistake_has_its_possible_intentions(key: str, value: str, closes: bool, restricts_egress: bool) -> None:
    """A wrong fw.allow or fw.log was not meant to close, a wrong fw.egress was meant to restrict egress; an unknown key
    may have been meant to do either."""
    (problem,) = parse({key: value}).problems
    assert (problem.closes, problem.confines) == (closes, restricts_egress)
    (problem,) = parse({key: 5}).problems  # not a text
    assert (problem.closes, problem.confines) == (closes, restricts_egress)


def test_after_a_mistake_labels_that_close_still_apply() -> None:
    """With a mistake in another label nothing opens: labels that deny, close, restrict egress and limit still apply."""
    right = {
        "fw.deny": "80",
        "fw.policy": "closed",
        "fw.egress": "443 to 10.0.0.0/8",
        "fw.rate": "22 5/minute",
        "fw.log": "drop",
        "fw.network.front.egress": "none",
        "fw.network.front.policy": "closed",
    }
    parsed = parse({**right, "fw.allow": "808O"})
    assert (parsed.spec, parsed.networks) == (parse(right).spec, parse(right).networks)


def test_after_a_mistake_labels_that_open_are_ignored() -> None:
    """With a mistake in another label no port, no base and no egress is opened: these labels are ignored."""
    opens = {
        "fw.allow": "8080",
        "fw.policy": "open",
        "fw.egress": "all",
        "fw.network.front.policy": "open",
        "fw.network.front.allow": "9090",
        "fw.network.back.egress": "all",
    }
    parsed = parse({**opens, "fw.log": "x"})
    assert (parsed.spec, parsed.networks) == (PolicySpec(), ())


def test_after_a_mistake_a_chosen_base_remains() -> None:
    """`fw.policy: default` under a setting that opens everything closes: a mistake in another label does not revert
    it."""
    assert parse({"fw.policy": "default", "fw.log": "x"}).spec == PolicySpec(policy="default")


def test_after_a_mistake_a_rule_with_from_accepts_no_source() -> None:
    """With a mistake in another label a rule with `from` takes its port out of the base and accepts no source."""
    for wrong in ({"fw.log": "x"}, {"FW.ALLOW": "808O"}, {"fw.zzzzzz": ""}):
        assert parse({"fw.allow": "22 from 10.0.0.0/8, 8080", **wrong}).spec == PolicySpec(deny=(SSH,))
    assert parse({"fw.allow": "22 from 10.0.0.0/33, 8080"}).spec == PolicySpec(deny=(SSH,))


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["fw.allow", "FW.ALLOW", "Fw.Allow"])
def test_keys_are_read_in_any_case(key: str) -> None:
    """The CLI lower-cases some keys and people capitalise others: it is the same key."""
    assert parse({key: "8080"}) == ParsedLabels(PolicySpec(allow=(MORE,)))


def test_the_same_key_twice_adds_up() -> None:
    """`fw.allow` and `FW.ALLOW` on one container are two lists that add up, and both must be right."""
    assert parse({"fw.allow": "8080", "FW.ALLOW": "53/udp, 8080"}).spec.allow == (MORE, DNS)
    assert parse({"fw.allow": "8080", "FW.ALLOW": "x"}).spec.allow == ()
    assert parse({"fw.deny": "22", "FW.deny": "80"}).spec.deny == (SSH, WEB)
    both = parse({"fw.rate": "22 5/minute", "FW.Rate": "80 1/day"}).spec.rate
    assert both == (Rate("tcp", 22, 22, 5, "minute", 5), Rate("tcp", 80, 80, 1, "day", 5))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"fw.policy": "open"}, {"FW.policy": "closed"}, PolicySpec(policy="closed")),
        ({"fw.policy": "default"}, {"FW.policy": "open"}, PolicySpec(policy="default")),
        ({"fw.policy": "closed"}, {"FW.policy": "default"}, PolicySpec(policy="closed")),
        ({"fw.egress": "all"}, {"FW.egress": "none"}, PolicySpec(egress=())),
        ({"fw.egress": "all"}, {"FW.egress": "443"}, PolicySpec(egress=(HTTPS,))),
        ({"fw.egress": "443, 80"}, {"FW.egress": "none"}, PolicySpec(egress=())),
        ({"fw.egress": "443, 53/udp"}, {"FW.egress": "*"}, PolicySpec(egress=(HTTPS,))),
        (
            {"fw.egress": "443 to 10.0.0.0/8"},
            {"FW.egress": "443, 80"},
            PolicySpec(egress=(Rule("tcp", 443, 443, (TEN,)),)),
        ),
        ({"fw.egress": "443"}, {"FW.egress": "80"}, PolicySpec(egress=())),
        ({"fw.egress": "443 to 10.0.0.1"}, {"FW.egress": "443 to 10.0.0.2"}, PolicySpec(egress=())),
        (
            {"fw.egress": "443 to 10.0.0.0/8 host"},
            {"FW.egress": "443 to 10.0.0.0/8"},
            PolicySpec(egress=(Rule("tcp", 443, 443, (TEN,)),)),
        ),
    ],
)
def test_of_the_same_key_twice_the_closing_value_applies(
    one: dict[str, str], other: dict[str, str], expected: PolicySpec
) -> None:
    """If two values of a key contradict each other, the one that closes more applies, in whatever order they are
    written."""
    assert parse({**one, **other}).spec == parse({**other, **one}).spec == expected


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *((key, "fw.allow") for key in ("fw.alow", "fw.allows", "fw.Allow ", "fw.alllow", "fw.all", "fw.allow.x")),
        ("fw.dney", "fw.deny"),
        ("fw.denies", "fw.deny"),
        ("fw.polcy", "fw.policy"),
        ("FW.POLICIES", "fw.policy"),
        ("fw.egres", "fw.egress"),
        ("fw.ingress", "fw.egress"),
        ("fw.rates", "fw.rate"),
        ("fw.logs", "fw.log"),
        ("fw.network.front.alow", "fw.network.front.allow"),
        ("fw.network.a.b.EGRES", "fw.network.a.b.egress"),
        ("FW.Network.Front.alow", "FW.Network.Front.allow"),
    ],
)
def test_a_near_miss_gets_a_suggestion(key: str, meant: str) -> None:
    """A misspelt key is a mistake, and the key that was probably meant is named."""
    assert messages({key: "8080"}) == [f'label {key}="8080": is not a key of docker-fw; did you mean {meant}?']


def test_an_unknown_key_gets_the_list_of_keys() -> None:
    """A key that resembles none is a mistake, and the known ones are named."""
    (problem,) = parse({"fw.zzzzzzzz": "1"}).problems
    assert problem.text == (
        "is not a key of docker-fw (known: fw.allow, fw.deny, fw.policy, fw.egress, fw.rate, fw.log, "
        "fw.network.NAME.KEY)"
    )


def test_all_mistakes_are_reported_in_the_order_of_keys() -> None:
    """One start of a container is enough to learn of three mistakes."""
    parsed = parse({"fw.zzzzzzzz": "", "other": "", "fw.allow": "0, 8080, 70000", "fw.alow": "1", "fw.log": "x"})
    assert [(p.where, p.value) for p in parsed.problems] == [
        ("label fw.allow", "0, 8080, 70000"),
        ("label fw.allow", "0, 8080, 70000"),
        ("label fw.alow", "1"),
        ("label fw.log", "x"),
        ("label fw.zzzzzzzz", ""),
    ]
    assert parsed.spec.allow == ()


@pytest.mark.parametrize("value", [None, 8080, True, ["8080"], {"8080": ""}, 8080.0], ids=repr)
@pytest.mark.parametrize("key", KEYS)
def test_a_value_that_is_no_text_is_a_mistake(key: str, value: object) -> None:
    """YAML may read `8080` as a number; if docker-fw receives one, it refuses it and says what would be right."""
    assert messages({key: value}) == [f'label {key}="{value!r}": must be text, like "{KEYS[key].example}"']
    assert parse({key: value}).spec == PolicySpec()


@pytest.mark.parametrize(
    "key", ["fwallow", "com.example.fw.allow", "fw", "", "traefik.enable", "ｆｗ.allow", "network.front.fw.allow"]
)
def test_labels_of_other_programs_are_ignored(key: str) -> None:
    """A label that does not start with `fw.` belongs to another program: no rule, no mistake."""
    assert parse({key: "8080"}) == ParsedLabels()


@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_documented_example_of_each_key_is_valid(key: str) -> None:
    """Every key's example in the documentation can be pasted unchanged."""
    assert key.startswith(PREFIX)
    assert not parse({key: KEYS[key].example}).problems
    assert not parse({f"fw.network.front.{key.removeprefix(PREFIX)}": KEYS[key].example}).problems
    for value in re.findall(r"`([a-z]+)`", KEYS[key].values):
        assert not parse({key: value}).problems or key == "fw.egress"


# --- one network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("fw.network.front.allow", ("front", "fw.allow")),
        ("FW.Network.Front.ALLOW", ("Front", "fw.allow")),
        ("fw.network.a.b-c_d.allow", ("a.b-c_d", "fw.allow")),
        ("fw.network.allow.allow", ("allow", "fw.allow")),
        ("fw.network.front.allow.deny", ("front.allow", "fw.deny")),
        ("fw.network.front.x", ("front", "fw.x")),
        ("fw.network..allow", (None, "fw.allow")),
        ("fw.network.allow", (None, "fw.allow")),
        ("fw.network.", (None, "fw.")),
        ("fw.network", (None, "fw.network")),
        ("fw.networks.front.allow", (None, "fw.networks.front.allow")),
        ("FW.Allow", (None, "fw.allow")),
    ],
)
def test_a_networks_name_is_read_between_the_keywords(key: str, expected: tuple[str | None, str]) -> None:
    """`fw.network.NAME.KEY`: NAME may have dots and is kept unchanged; keywords are read in any case."""
    assert split(key) == expected


def test_each_key_may_be_set_for_one_network() -> None:
    """Each key may be set for one network; network names are case-sensitive, keywords are not."""
    parsed = parse(
        {
            "fw.network.front.allow": "8080",
            "fw.network.front.Deny": "22",
            "FW.NETWORK.Front.egress": "none",
            "fw.network.my.net.policy": "closed",
            "fw.allow": "53/udp",
        }
    )
    assert parsed == ParsedLabels(
        PolicySpec(allow=(DNS,)),
        (),
        (
            ("Front", PolicySpec(egress=())),
            ("front", PolicySpec(allow=(MORE,), deny=(SSH,))),
            ("my.net", PolicySpec(policy="closed")),
        ),
    )
    assert for_network(parsed, {"back"}) == PolicySpec(allow=(DNS,))
    assert for_network(parsed, {"front"}) == PolicySpec(allow=(DNS, MORE), deny=(SSH,))
    assert for_network(parsed, {"Front", "my.net"}) == PolicySpec(allow=(DNS,), egress=(), policy="closed")
    assert for_network(parsed, ()) == PolicySpec(allow=(DNS,))


def test_of_two_names_of_one_network_the_closing_value_applies() -> None:
    """A network has a name, and a key in the compose file. Labels that use both are merged like a key in two cases."""
    pairs = {"policy": ("open", "closed"), "egress": ("all", "443"), "allow": ("53/udp", "8080")}
    for first, second in (("front", "shop_front"), ("shop_front", "front")):
        parsed = parse(
            {f"fw.network.{first}.{key}": one for key, (one, _) in pairs.items()}
            | {f"fw.network.{second}.{key}": other for key, (_, other) in pairs.items()}
        )
        assert for_network(parsed, {"front", "shop_front"}) == PolicySpec((MORE, DNS), policy="closed", egress=(HTTPS,))
        assert for_network(parsed, {first}).policy == "open"


def test_the_rates_of_two_names_of_one_network_are_bounded() -> None:
    """The name of a chain holds all rates of a port, and the kernel limits its length."""
    rates = ", ".join(f"22 {n}/minute" for n in range(1, MAX_RATES + 1))
    parsed = parse({"fw.network.front.rate": rates, "fw.network.shop_front.rate": "22 100/day"})
    assert for_network(parsed, {"front", "shop_front"}).rate == (Rate("tcp", 22, 22, 100, "day", 5),)


@pytest.mark.parametrize("key", ["fw.network.allow", "fw.network..allow", "fw.network.", "fw.network", "FW.network.x"])
def test_a_network_label_without_name_or_key_gets_advice(key: str) -> None:
    """`fw.network.allow` does not mean a network called allow."""
    what = "is not a key of docker-fw; for one network write fw.network.NAME.allow"
    assert messages({key: "8080"}) == [f'label {key}="8080": {what}']


@pytest.mark.parametrize("where", ["network option ", "driver option ", "setting "])
def test_only_a_containers_label_may_name_a_network(where: str) -> None:
    """A network, an attachment and a setting have one place: there the key is written without the network."""
    assert messages({"fw.network.front.allow": "1"}, where) == [
        f'{where}fw.network.front.allow="1": is for container labels; here write fw.allow'
    ]
    (problem,) = parse({"fw.network.front.egress": "none"}, where).problems
    assert problem.closes
    assert problem.confines


# --- labels in several places -------------------------------------------------------------------------------------


def test_lists_add_up_and_other_values_are_overridden() -> None:
    """Allowed and denied ports add up; of policy, egress, rate and log the more specific place applies."""
    rate, other = (Rate("tcp", 22, 22, n, "minute", 5) for n in (5, 6))
    general = PolicySpec((MORE,), (SSH,), "closed", (HTTPS,), (rate,), "drop")
    assert over(general, PolicySpec()) == over(PolicySpec(), general) == general
    special = PolicySpec((DNS, MORE), (WEB, SSH), "open", (), (other,), "none")
    assert over(general, special) == PolicySpec((MORE, DNS), (SSH, WEB), "open", (), (other,), "none")
    assert over(general, PolicySpec(rate=())).rate == ()
    assert over(general, PolicySpec(egress=EVERYTHING)).egress == EVERYTHING


@given(specs, specs, specs)
@examples(60)
def test_merging_places_is_associative(one: PolicySpec, two: PolicySpec, three: PolicySpec) -> None:
    """Merging three places gives the same result in either grouping."""
    assert over(over(one, two), three) == over(one, over(two, three))


# --- labels of an image -------------------------------------------------------------------------------------------


def test_labels_of_an_image_that_only_close_apply() -> None:
    """An image's labels apply if they can only close: denied ports, a closed base, no egress."""
    closing = {
        "fw.deny": "22",
        "FW.Policy": " Closed",
        "Fw.Egress": "NONE",
        "fw.network.front.deny": "80",
        "fw.network.front.policy": "closed",
    }
    opening = {
        "fw.allow": "8080",
        "fw.policy": "default",
        "FW.POLICY": "open",
        "fw.egress": "443",
        "FW.EGRESS": "all",
        "fw.rate": "22 5/minute",
        "fw.log": "none",
        "fw.zzz": "",
        "fw.network.front.allow": "1",
    }
    assert only_closing({**closing, **opening}) == closing


# --- any labels at all --------------------------------------------------------------------------------------------

label_maps = st.dictionaries(
    st.sampled_from(
        [
            "fw.allow",
            "FW.allow",
            "fw.alow",
            "fw.",
            "fw.allow.",
            "com.example",
            "fw.deny",
            "fw.policy",
            "fw.egress",
            "fw.rate",
            "fw.log",
            "fw.network.front.allow",
            "fw.network.x",
            "fw.network.a.b.deny",
        ]
    )
    | st.text(max_size=12),
    any_text | st.sampled_from(["8080", "53/udp", "closed", "none", "22 from 10.0.0.1", "22 5/minute"]) | json_values,
    max_size=5,
)


@given(label_maps)
@examples(250)
def test_with_a_mistake_there_is_no_rule_at_all(pairs: dict[str, object]) -> None:
    """Any labels: either all of docker-fw's labels are right, or nothing is opened; and each mistake can be shown."""
    parsed = parse(pairs)
    for each in (parsed.spec, *(more for _, more in parsed.networks)):
        assert not (each.allow and parsed.problems)
        assert not (each.policy == "open" and parsed.problems)
        assert list(each.allow) == sorted(set(each.allow))
        assert list(each.deny) == sorted(set(each.deny))
        assert all(rate.unit in UNITS and 1 <= rate.burst <= 65535 for rate in each.rate or ())
    for problem in parsed.problems:
        assert str(problem).startswith(problem.where)
        assert problem.where.removeprefix("label ") in pairs
    ours = [key for key in pairs if key.lower().startswith(PREFIX)]
    if not ours:
        assert parsed == ParsedLabels()
    for name, more in parsed.networks:
        assert any(key.lower().startswith("fw.network.") and f".{name}." in key for key in ours)
        assert more != PolicySpec()


@given(label_maps, st.sampled_from(["fw.alow", "fw.", "fw.dney", "fw.network.allow"]), any_text)
@examples(100)
def test_a_further_mistake_never_opens_anything(pairs: dict[str, object], key: str, value: str) -> None:
    """Labels with one more wrong key open a subset of before: nothing."""
    assert parse({**pairs, key: value}).spec.allow == ()


# --- sizes --------------------------------------------------------------------------------------------------------


def test_a_label_that_is_too_long_is_not_parsed() -> None:
    """A label that is longer than any real one is refused as a whole, and the message stays readable."""
    (problem,) = parse({"fw.allow": "80," * MAX_LENGTH}).problems
    assert str(problem).endswith(f"is {3 * MAX_LENGTH} characters long; at most {MAX_LENGTH} are read")
    assert len(str(problem)) < 400


@pytest.mark.parametrize("key", [*KEYS, "fw.alow", "fw.network.front.policy"])
@pytest.mark.parametrize(
    "text",
    ["x" * (8 << 20), "closed" * (1 << 20), " \t" * (4 << 20) + "x", "5/minute," * (1 << 18)],
    ids=lambda text: f"{text[:3]!r}×{len(text)}",
)
def test_huge_values_cost_no_time(key: str, text: str) -> None:
    """The largest value that the plugin's socket accepts is refused in a moment, for every key."""
    start = time.process_time()
    parsed = parse({key: text})
    assert time.process_time() - start < 0.5
    assert parsed.spec in (PolicySpec(), PolicySpec(egress=()))
    assert all(len(str(problem)) < 500 for problem in parsed.problems)


FULL = ", ".join(str(3 * n + 1) for n in range(256))
WIDE = "1-65534 from " + " ".join(f"10.{n}.0.0/24" for n in range(150))
#: Made by the test: each process of a run imports this, and it takes a quarter of a gigabyte.
MANY: dict[str, tuple[Callable[[], dict[str, str]], str]] = {
    "networks": (
        lambda: {f"fw.network.n{n}.allow": FULL for n in range(10_000)},
        "there are more than 2048 rules before it",
    ),
    "small ones": (lambda: {f"fw.network.n{n}.log": "drop" for n in range(10_000)}, "at most 256 keys are read"),
    "spellings": (
        lambda: {"".join(letters): FULL for letters in itertools.product(*((c, c.upper()) for c in "fw.allow"))},
        "there are more than 2048 rules before it",
    ),
    "elements": (
        lambda: {f"fw.network.n{n}.allow": WIDE for n in range(10_000)},
        "the keys before it expand to more than 40000 rules: ports times peers",
    ),
    "mistakes": (lambda: {f"fw.x{n}": "1" for n in range(10_000)}, "there are too many mistakes"),
    "megabytes": (
        lambda: {f"fw.{n}" + "a" * (1 << 20): "1" * (1 << 20) for n in range(100)},
        "there are too many mistakes",
    ),
}


@pytest.mark.parametrize("which", MANY)
def test_thousands_of_labels_take_bounded_time_and_close(which: str) -> None:
    """10,000 labels, or labels that mean millions of rules: the rest is not read, which is reported, and nothing is
    open. The stored problems are as short as the shown ones."""
    make, why = MANY[which]
    pairs = make()
    start = time.process_time()
    parsed = parse(pairs)
    assert time.process_time() - start < 1
    assert parsed.problems[-1].text == f"was not read, nor the keys after it: {why}"
    assert parsed.problems[-1].closes
    assert parsed.problems[-1].confines
    assert not parsed.spec.allow
    assert not any(spec.allow for _, spec in parsed.networks)
    assert all(len(problem.where) + len(problem.value) < 3000 for problem in parsed.problems)


def test_usual_labels_are_far_below_the_bounds() -> None:
    """A long list of ports, a long egress list, and a hundred networks of one container."""
    pairs = {f"fw.network.n{n}.allow": "8080, 9000-9100, 5432 from service:api" for n in range(100)}
    assert not parse({**pairs, "fw.allow": FULL, "fw.egress": FULL, "fw.rate": "22 5/minute"}).problems


@pytest.mark.parametrize("key", ["fw." + "a" * (8 << 20), "fw.network." + "a." * (4 << 20), "fw.network." + "." * 9999])
def test_huge_keys_cost_no_time(key: str) -> None:
    """A key of megabytes is a mistake like any other: reported briefly, in a moment."""
    start = time.process_time()
    (problem,) = parse({key: "8080"}).problems
    assert time.process_time() - start < 0.5
    assert len(str(problem)) < 1000


def test_many_wrong_labels_take_bounded_time() -> None:
    """As many wrong keys as fit into a request are answered in bounded time, with a readable text."""
    start = time.process_time()
    parsed = parse({f"fw.{number}": "8080" for number in range(200_000)})
    assert time.process_time() - start < 1
    assert parsed.spec == PolicySpec()
    assert len(parsed.problems) == MAX_PROBLEMS + 1
    assert sum(len(str(problem)) for problem in parsed.problems) < 100_000


def test_labels_that_were_not_read_close() -> None:
    """The rest is not read after too many mistakes, which is a mistake of its own that closes and restricts egress."""
    wrong = {"fw.allow": ",".join(["x"] * MAX_PROBLEMS), "fw.deny": "22", "fw.policy": "closed"}
    parsed = parse(wrong)
    (last,) = [problem for problem in parsed.problems if problem.closes]
    assert str(last) == 'label fw.deny="22": was not read, nor the keys after it: there are too many mistakes'
    assert last.confines


def test_different_rates_of_one_place_are_bounded() -> None:
    """The number of rates is bounded even if the key is written many times, in upper and lower case: the rates read so
    far are ignored."""
    keys = ["fw.rate", "FW.rate", "fw.RATE", "Fw.Rate"]
    parsed = parse({key: ", ".join(f"22 {n}{m}/hour" for m in range(5)) for n, key in enumerate(keys, 1)})
    assert [p.text for p in parsed.problems if "different rates" in p.text]
    assert len(parsed.spec.rate or ()) <= 8
