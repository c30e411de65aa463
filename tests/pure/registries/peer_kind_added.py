"""Properties of a kind of peer with only its entry, and a hint for `fwctl check`: `test_peer_kinds` runs this."""

from __future__ import annotations

import json
from dataclasses import asdict
from ipaddress import IPv4Address

from plugin.fwctl.cli.render import _rule
from plugin.labels.parser import parse
from plugin.model import Container, Peer, Policy, Rule
from plugin.policy.facts import ElementOwner, Kind
from plugin.policy.peers import PeerIndex, Who, names
from plugin.state import codec

#: A container by the beginning of its ID.
NEW = Peer("id", "0123456789ab")
WEB, DB = Container("0123456789ab" + "0" * 52, "web"), Container("f" * 64, "db")
V4 = IPv4Address("172.18.0.2")
ASKER, OTHER, AT_WEB = (ElementOwner(Kind.ENDPOINT, name) for name in ("asker", "other", "web"))


def test_it_is_parsed_with_its_own_pattern() -> None:
    """`fw.allow` and `fw.egress` accept `id:…`; a value that its pattern refuses is a mistake with its own message."""
    assert parse({"fw.allow": "22 from id:0123456789ab"}).spec.allow == (Rule("tcp", 22, 22, (NEW,)),)
    assert parse({"fw.egress": "22 to ID:0123456789ab"}).spec.egress == (Rule("tcp", 22, 22, (NEW,)),)
    (problem,) = parse({"fw.allow": "22 from id:web"}).problems
    assert '"id:web" has no ID after the colon' in problem.text
    (problem,) = parse({"fw.allow": "22 from nowhere"}).problems
    assert "id:NAME" in problem.text


def test_it_is_resolved_and_follows_its_container() -> None:
    """The peer matches the container's addresses while the container exists, and none otherwise; the owners of rules
    that name it are known."""
    index, rule = PeerIndex(), Rule("tcp", 22, 22, (NEW,))
    index.asks(ASKER, (rule,), DB)
    assert index.asking(ASKER)
    assert index.resolved(Policy(accepts=(rule,)), DB).accepts == ()
    assert index.dependents(index.put(OTHER, Who((V4 + 1,), names(DB)))) == set()
    assert index.dependents(index.put(AT_WEB, Who((V4,), names(WEB)))) == {ASKER}
    assert index.resolved(Policy(accepts=(rule,)), DB).accepts == (Rule("tcp", 22, 22, (Peer("prefix", str(V4)),)),)
    assert index.dependents(index.put(AT_WEB, None)) == {ASKER}
    assert index.resolved(Policy(egress=(rule,)), DB).egress == ()


def test_it_is_kept_over_restarts() -> None:
    """Rules with the peer are written to the state file, and read back."""
    rule = Rule("tcp", 22, 22, (NEW,))
    assert codec.rule(json.loads(json.dumps(asdict(rule)))) == rule


def test_it_is_shown_with_its_current_addresses() -> None:
    """`fwctl status` shows the peer as it is written, with its current addresses."""
    shown = {"what": "22/tcp", "peers": [str(NEW)], "addresses": [str(V4)], "origin": ""}
    assert _rule(shown, "from") == "22/tcp from id:0123456789ab = 172.18.0.2"
    assert _rule({**shown, "addresses": []}, "from") == "22/tcp from id:0123456789ab = no container now"
