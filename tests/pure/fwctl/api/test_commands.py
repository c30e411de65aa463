"""The changes that `fwctl` makes, and their routes: nothing opens by mistake, and a wrong request is an error."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from plugin.driver.http import create_app
from plugin.fwctl.api.commands import MAX_OVERRIDES, AdminCommands
from plugin.fwctl.api.routes import add_routes
from plugin.model import FwError, Overriding, Rule
from plugin.policy.overrides import expired
from plugin.policy.saved import SavedState
from plugin.state import applier
from tests.pure.fakes import Clock, cut_no_flows
from tests.pure.site import BACK, FRONT, HOST, Site, container, guest, ours, published
from tests.pure.strategies import examples

WEB, DB = container("web", {"fw.allow": "8080"}), container("db", {"fw.allow": "5432 from container:api"})
API = container("api")
WEB4 = IPv4Address("10.1.0.2")


#: Each test resets it.
CLOCK = Clock()


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not touch this machine's flows and clock."""
    CLOCK.now = 1_000_000.0
    monkeypatch.setattr(applier, "time", SimpleNamespace(time=CLOCK))
    cut_no_flows(monkeypatch)


class Desk:
    """Admin commands on a site."""

    def __init__(self, *endpoints: Any) -> None:
        self.site = Site(*(endpoints or (ours(2, WEB), ours(3, DB), ours(4, API))))
        self.clock = CLOCK
        self.woken = 0
        not_protected = {"tool": "has the host's network, which docker-fw does not filter"}
        self.orders = AdminCommands(self.site.state, lambda: not_protected, self._wake, self.clock, lambda: set(HOST))

    def _wake(self) -> None:
        self.woken += 1

    def allow(self, who: str, *texts: str, seconds: float | None = None) -> dict[str, Any]:
        return self.orders.override(who, texts, seconds, deny=False)

    def deny(self, who: str, *texts: str, seconds: float | None = None) -> dict[str, Any]:
        return self.orders.override(who, texts, seconds, deny=True)

    def opens(self, address: IPv4Address = WEB4) -> set[int]:
        return self.site.kernel.opens(address)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- allow, deny, revert ----------------------------------------------------------------------------------------------


def test_allow_and_deny_override_labels(desk: Desk) -> None:
    """Ports of a running container, in the kernel and on the disk; `revert` undoes both."""
    assert desk.opens() == {22, 80, 443, 8080}
    answer = desk.allow("web", "9000, 9001")
    assert answer["container"] == "web"
    assert [(each["kind"], each["rule"], each["until"]) for each in answer["said"]] == [
        ("allow", "9000/tcp", None),
        ("allow", "9001/tcp", None),
    ]
    assert desk.opens() == {22, 80, 443, 8080, 9000, 9001}
    desk.deny("web", "22", "8080")
    assert desk.opens() == {80, 443, 9000, 9001}
    assert len(desk.site.disk.kept.overrides) == 4
    assert desk.orders.revert("web") == {"reverted": [{"container": "web", "id": WEB.id}]}
    assert desk.opens() == {22, 80, 443, 8080}
    assert desk.site.disk.kept.overrides == ()
    assert desk.orders.revert("web") == {"reverted": []}


def test_a_rule_for_some_sources_closes_the_port_to_others(desk: Desk) -> None:
    """As in a label: `allow web "22 from 203.0.113.7"` closes 22 to all others; deny closes it to all."""
    desk.allow("web", "22 from 203.0.113.7")
    assert 22 not in desk.opens()
    assert any(e.set == "from4" and e.key[0] == WEB4 for e in desk.site.kernel.table)
    desk.deny("web", "22")
    assert not any(e.set == "from4" and e.key[0] == WEB4 for e in desk.site.kernel.table)


def test_deny_closes_a_port_that_a_label_opens(desk: Desk) -> None:
    """`fwctl deny` closes a port that a label opens, also if the label names a single peer."""
    db = IPv4Address("10.1.0.3")
    assert any(e.set == "from4" and e.key[0] == db for e in desk.site.kernel.table)
    desk.deny("db", "5432")
    assert not any(e.set in ("from4", "peer_ports4") and e.key[0] == db for e in desk.site.kernel.table)


def test_a_container_is_found_by_its_name_or_its_id(desk: Desk) -> None:
    """A name must match exactly; an ID may be shortened, as long as it is unambiguous. For an unknown name, similar
    ones are suggested."""
    desk.allow(WEB.id[:12].upper(), "9000")
    assert 9000 in desk.opens()
    for who, why in (
        ("wbe", "did you mean web"),
        ("WEB", "no container 'WEB'"),
        ("we", "no container 'we'"),
        ("", "no container"),
        ("tool", "tool has the host's network"),
        ("x" * 5000, "no container"),
        ("web; flush ruleset", "no container"),
    ):
        with pytest.raises(FwError, match=re.escape(why)) as error:
            desk.allow(who, "9000")
        assert len(str(error.value)) < 400
    other = Desk(ours(2, container("web1")), ours(3, dataclasses.replace(API, id="web1" + "f" * 60)))
    assert other.allow("web1", "9000")["id"] == "web1".ljust(64, "0")  # a name takes precedence over an ID
    one, two = (dataclasses.replace(who, id="ab12" + digit * 60) for who, digit in ((WEB, "0"), (DB, "1")))
    alike = Desk(ours(2, one), ours(3, two))
    with pytest.raises(FwError, match=r"is ambiguous: db \(ab12.*\), web \(ab12.*\); give more of the ID"):
        alike.allow("ab12", "9000")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("808O", '"808O" is not a port (1-65535, a range like 9000-9100, or *)'),
        ("", "is empty"),
        ("8080/icmp", '"icmp" is not a protocol'),
        ("8080 from nobody", '"nobody" is not an address'),
        ("8080 to 10.0.0.0/8", 'write "from" here'),
        ("9100-9000", "did you mean 9000-9100"),
        ("x" * 5000, "characters"),
    ],
)
def test_a_wrong_rule_is_refused_with_a_labels_message(desk: Desk, text: str, why: str) -> None:
    """A request with one mistake is refused as a whole."""
    before = desk.opens()
    with pytest.raises(FwError) as error:
        desk.allow("web", "9000", text)
    assert why in str(error.value)
    assert desk.opens() == before
    assert desk.site.disk.kept.overrides == ()


def test_deny_has_no_peers(desk: Desk) -> None:
    """deny applies to every peer; the message says how to keep a port open for some."""
    with pytest.raises(FwError, match="closed to all sources"):
        desk.deny("web", "22 from 10.0.0.0/8")


def test_overrides_of_one_container_are_bounded(desk: Desk) -> None:
    """A script cannot fill the disk; earlier overrides remain."""
    desk.allow("web", *(str(20_000 + 2 * n) for n in range(MAX_OVERRIDES - 1)))
    with pytest.raises(FwError, match="remove some with fwctl revert"):
        desk.allow("web", "9000", "9002")
    desk.allow("web", "9000")
    assert len(desk.site.state.state.overrides) == MAX_OVERRIDES


def test_a_full_disk_opens_nothing(desk: Desk) -> None:
    """An override that cannot be saved is not applied, except one that only closes: `fwctl` reports that it may end."""
    desk.site.disk.full = True
    with pytest.raises(FwError, match="No space left"):
        desk.allow("web", "9000")
    assert 9000 not in desk.opens()
    for change in (lambda: desk.deny("web", "8080"), lambda: desk.orders.ban([("198.51.100.7", None)])):
        with pytest.raises(FwError, match=r"No space left.*in effect, and a restart or a power cut may undo it"):
            change()
    assert 8080 not in desk.opens()


def test_a_disk_that_fails_later_is_reported(desk: Desk) -> None:
    """`fwctl` says so if a power cut would undo a change. The change is in effect, and another try says so again."""

    def fails() -> None:
        raise FwError("could not flush the state file")

    desk.site.disk.flushing = fails
    for _ in range(2):
        for change in (lambda: desk.deny("web", "8080"), lambda: desk.orders.ban([("198.51.100.7", None)])):
            with pytest.raises(FwError, match="in effect, and a restart or a power cut may undo it"):
                change()
    assert 8080 not in desk.opens()
    for undo in (lambda: desk.orders.revert("web"), lambda: desk.orders.unban(None)):
        with pytest.raises(FwError, match="in effect, and a restart or a power cut may undo it"):
            undo()
    assert 8080 in desk.opens()


def test_a_refusal_by_the_kernel_is_reported(desk: Desk) -> None:
    """An override that the kernel refuses is an error, and is not stored either."""
    desk.site.kernel.refuses = 2
    with pytest.raises(FwError, match="the kernel refused"):
        desk.allow("web", "9000")
    assert desk.site.state.state.overrides == desk.site.disk.kept.overrides == ()


def test_overrides_apply_to_docker_proxys_port() -> None:
    """On Docker networks the host's port is closed and opened together with the container's."""
    app = container("app", {"fw.allow": "8080"})
    desk = Desk(guest(FRONT, 2, app, *published(8080, 18080)))

    def served() -> set[str]:
        return {e.set for e in desk.site.kernel.table if e.set in ("host_open", "host_closed") and 18080 in e.key}

    assert served() == {"host_open"}
    desk.deny("app", "8080", seconds=60)
    assert served() == {"host_closed"}
    desk.clock.now += 61
    desk.orders.end()
    assert served() == {"host_open"}


# --- duration ---------------------------------------------------------------------------------------------------------


def test_overrides_expire(desk: Desk) -> None:
    """An override ends when its duration is over and not before; `end` returns the time until its next call, and the
    labels apply again unchanged."""
    assert desk.orders.end() == 30
    desk.allow("web", "9000", seconds=60)
    desk.deny("web", "22", seconds=10)
    assert desk.woken == 2
    assert desk.orders.end() == 10
    assert desk.opens() == {80, 443, 8080, 9000}
    desk.clock.now += 10
    assert desk.orders.end() == 30  # the clock may be set meanwhile
    assert desk.opens() == {22, 80, 443, 8080, 9000}
    desk.clock.now += 50
    assert desk.orders.end() == 30
    assert desk.opens() == {22, 80, 443, 8080}
    assert desk.site.disk.kept.overrides == ()


def test_a_full_disk_keeps_no_port_open(desk: Desk) -> None:
    """A port that was opened for a time closes even if that cannot be saved; one that was closed stays closed, and the
    save is retried."""
    desk.allow("web", "9000", seconds=10)
    desk.deny("web", "22", seconds=10)
    desk.site.disk.full = True
    desk.clock.now += 11
    assert desk.orders.end() <= 5
    assert desk.opens() == {80, 443, 8080}
    desk.site.disk.full = False
    desk.orders.end()
    assert desk.opens() == {22, 80, 443, 8080}


def test_temporary_ports_are_closed_while_docker_fw_is_stopped(desk: Desk) -> None:
    """At a clean stop, ports that were opened for a time close, and the overrides are kept; after the next start they
    apply until their end."""
    desk.allow("web", "9000", seconds=60)
    desk.allow("web", "9001")
    desk.deny("web", "8080", seconds=60)
    desk.allow("db", "22 from 203.0.113.7", seconds=60)
    db = IPv4Address("10.1.0.3")
    desk.site.state.suspend()
    assert desk.opens() == {22, 80, 443, 9001}
    assert desk.opens(db) == {80, 443}  # the denied sources do not get access instead
    assert not any(e.set == "from4" and e.key[:3] == (db, 6, 22) for e in desk.site.kernel.table)
    kept = desk.site.disk.kept
    assert len(kept.overrides) == 4
    again = Site(ours(2, WEB), ours(3, DB), ours(4, API), state=expired(kept, desk.clock.now + 30))
    assert again.kernel.opens(WEB4) == {22, 80, 443, 9000, 9001}
    late = Site(ours(2, WEB), ours(3, DB), ours(4, API), state=expired(kept, desk.clock.now + 61))
    assert late.kernel.opens(WEB4) == {22, 80, 443, 8080, 9001}


def test_an_override_is_removed_with_its_container() -> None:
    """An override is removed by Docker's event of the container's removal, or by a list without the container; it stays
    while the container is only stopped."""
    desk = Desk(guest(FRONT, 2, WEB), guest(BACK, 3, DB), ours(4, API))
    for who in ("web", "db", "api"):
        desk.allow(who, "9000")
    desk.site.tracker.leaves("", WEB.id)
    desk.site.guests = [endpoint for endpoint in desk.site.guests if endpoint.container != WEB]
    desk.site.see(WEB.id, DB.id)  # stopped, but still listed
    assert {each.container for each in desk.site.state.state.overrides} == {WEB.id, DB.id, API.id}
    desk.site.tracker.forget(WEB.id)
    assert {each.container for each in desk.site.state.state.overrides} == {DB.id, API.id}
    # A container on a docker-fw network exists as long as it has its endpoint.
    desk.site.guests = []
    desk.site.see()
    assert {each.container for each in desk.site.state.state.overrides} == {API.id}
    desk.site.state.drop_endpoint(ours(4, API).id)
    desk.site.see()
    assert desk.site.state.state.overrides == desk.site.disk.kept.overrides == ()


def test_an_override_of_a_stopped_container_is_reverted_by_id() -> None:
    """A stopped container has no known name, so its overrides are reverted by its ID; `--all` removes every
    override."""
    desk = Desk(guest(FRONT, 2, WEB), ours(4, API))
    desk.allow("web", "9000")
    desk.site.guests = []
    desk.site.see(WEB.id)
    assert desk.orders.revert(WEB.id[:12]) == {"reverted": [{"container": None, "id": WEB.id}]}
    desk.allow("api", "9000")
    assert len(desk.orders.revert(None)["reverted"]) == 1
    assert desk.site.state.state.overrides == ()


# --- bans -------------------------------------------------------------------------------------------------------------


def test_bans_are_in_the_kernel_and_on_the_disk(desk: Desk) -> None:
    """A ban has a duration, which the kernel counts, or is permanent; a later ban of an address replaces its
    duration."""
    answer = desk.orders.ban([("203.0.113.7", 60), ("2001:db8:77::/48", None), ("2001:db8:78:1:2::/80", None)])
    assert (answer["cut"], answer["notes"]) == (0, [])
    assert [each["address"] for each in answer["banned"]] == ["203.0.113.7", "2001:db8:77::/48", "2001:db8:78:1::/64"]
    names = {e.set for e in desk.site.kernel.table if e.set.startswith("ban")}
    assert names == {"ban_families", "ban_prefix_families", "banned6_48", "banned6_64"}
    assert {e.set for e in desk.site.kernel.timed} == {"banned4", "lease"}
    assert len(desk.site.disk.kept.bans) == 3
    desk.orders.ban([("203.0.113.7", None)])
    assert {e.set for e in desk.site.kernel.timed} == {"lease"}
    assert {e.set for e in desk.site.kernel.table if e.set.startswith("banned4")} == {"banned4"}
    assert desk.orders.unban(["203.0.113.7", "203.0.113.8"]) == {
        "unbanned": ["203.0.113.7"],
        "absent": ["203.0.113.8"],
        "still": [],
    }
    assert len(desk.orders.unban(None)["unbanned"]) == 2
    assert not any(e.set.startswith("ban") for e in desk.site.kernel.table)
    assert desk.orders.unban(None) == {"unbanned": [], "absent": [], "still": []}


def test_a_wider_ban_of_an_address_is_reported(desk: Desk) -> None:
    """Removing the narrower ban does not unban the address while the wider one remains."""
    desk.orders.ban([("203.0.113.0/24", None), ("203.0.113.7", None)])
    assert desk.orders.unban(["203.0.113.7"])["still"] == [{"address": "203.0.113.7", "by": "203.0.113.0/24"}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("198.51.100.1", "cannot ban 198.51.100.1: it is the host's own address"),
        ("198.51.100.0/24", "cannot ban 198.51.100.0/24: it contains 198.51.100.1, the host's own address"),
        ("2001:db8:ffff::1:0:0:0/80", "the host's own address"),  # its /64 contains the host's address
        ("10.1.0.1", "cannot ban 10.1.0.1: it is the gateway of the network on fw-ffffffffffff"),
        ("10.0.0.0/8", "it contains 10.1.0.1, the gateway"),
        ("2001:db8:1::/64", "the gateway"),
        ("127.0.0.0/8", "not an address on the Internet"),
        ("ff02::1", "not an address on the Internet"),
        ("web", "is not an address"),
    ],
)
def test_the_host_does_not_ban_itself(desk: Desk, text: str, why: str) -> None:
    """The host's own addresses, a gateway, loopback and multicast are refused, and no other address of that call is
    banned."""
    with pytest.raises(FwError) as error:
        desk.orders.ban([("203.0.113.7", None), (text, 60)])
    assert why in str(error.value)
    assert desk.site.state.state.bans == {}


def test_every_mistake_of_a_list_is_reported(desk: Desk) -> None:
    """All mistakes are reported at once; of very many, only the first ones."""
    with pytest.raises(FwError) as error:
        desk.orders.ban([(f"x{n}", None) for n in range(20)])
    assert str(error.value).count("cannot ban") == 8
    assert str(error.value).endswith("and 12 more")


def test_expired_bans_are_not_shown_and_are_removed(desk: Desk) -> None:
    """The kernel ends them by itself, to the second; the stored bans follow."""
    desk.orders.ban([("203.0.113.7", 10), ("203.0.113.8", None)])
    desk.clock.now += 11
    assert [each["address"] for each in desk.orders.bans()["bans"]] == ["203.0.113.8"]
    assert len(desk.site.state.state.bans) == 2
    desk.clock.now += 60
    desk.site.kernel.timed.clear()  # as the kernel has done
    desk.orders.end()
    assert list(desk.site.disk.kept.bans) == [ip_network("203.0.113.8")]


# --- routes -----------------------------------------------------------------------------------------------------------


class Asked:
    """Answers queries, for tests of the routes."""

    def __init__(self) -> None:
        self.last: Any = None

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> Any:
            self.last = (name, *arguments)
            return [] if name == "places" else {"asked": name}

        return answer


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def app(desk: Desk, asked: Asked) -> Flask:
    made = create_app(asked, asked)  # type: ignore[arg-type]
    add_routes(made, desk.orders, asked)  # type: ignore[arg-type]
    return made


@pytest.fixture
def unix() -> Iterator[socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield one


@pytest.fixture
def client(app: Flask, unix: socket.socket) -> FlaskClient:
    made = app.test_client()
    made.environ_base["gunicorn.socket"] = unix
    return made


def post(client: FlaskClient, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(path, data=data)
    assert reply.content_type == "application/json"
    return reply.status_code, reply.get_json()


def test_each_request_makes_its_call(client: FlaskClient, desk: Desk, asked: Asked) -> None:
    """Each call is made with the body that `fwctl` sends, or that a program may send."""
    status, answer = post(client, "/allow", {"container": "web", "rules": ["9000"], "seconds": 60})
    assert (status, answer["container"], answer["said"][0]["until"], answer["places"]) == (200, "web", 1_000_060.0, [])
    assert post(client, "/deny", {"container": "web", "rules": ["22"]})[0] == 200
    assert desk.opens() == {80, 443, 8080, 9000}
    assert post(client, "/revert", {"container": "web"})[0] == 200
    assert post(client, "/revert", {"all": True})[1] == {"reverted": []}
    bans = [{"address": "203.0.113.7", "seconds": 1.5}, {"address": "203.0.113.8"}]
    assert post(client, "/ban", {"bans": bans})[0] == 200
    assert len(client.get("/bans").get_json()["bans"]) == 2
    assert post(client, "/unban", {"addresses": ["203.0.113.7"]})[1]["unbanned"] == ["203.0.113.7"]
    assert post(client, "/unban", {"all": True})[0] == 200
    assert post(client, "/explain", {"from": "internet", "to": "web", "what": "80", "family": 4})[0] == 200
    assert asked.last == ("explain", "internet", "web", "80", 4)
    assert post(client, "/plan", {})[0] == 200
    assert post(client, "/plan", {"settings": {"FW_ALLOW": "80"}})[0] == 200
    assert asked.last == ("plan", {"FW_ALLOW": "80"})
    assert client.get("/export").get_json() == {"asked": "export"}


_WHO = "the name of a container, or the beginning of its ID"
WRONG: list[tuple[str, Any, str]] = [
    ("/allow", b"", "not JSON"), ("/allow", b"{", "not JSON"), ("/allow", b"[" * 100_000, "not JSON"),
    ("/allow", b"\xff\xfe", "not JSON"), ("/allow", [], "must be a JSON object with container and rules"),
    ("/allow", None, "must be a JSON object"), ("/allow", {}, "rules is missing: it must be a list of rules"),
    ("/allow", {"rules": ["80"]}, f"container is missing: it must be {_WHO}"),
    ("/allow", {"container": 7, "rules": ["80"]}, f"container must be {_WHO}, not 7"),
    ("/allow", {"container": " ", "rules": ["80"]}, "container must be"),
    ("/allow", {"container": "web", "rules": "80"}, 'rules must be a list of rules, like ["8080", "53/udp"], not "8'),
    ("/allow", {"container": "web", "rules": []}, "rules must be"),
    ("/allow", {"container": "web", "rules": [80]}, "rules must be"),
    ("/allow", {"container": "web", "rules": ["80"] * 257}, "at most 256"),
    ("/allow", {"container": "web", "rules": ["80"], "seconds": "1h"}, "seconds must be a number of seconds"),
    ("/allow", {"container": "web", "rules": ["80"], "seconds": True}, "seconds must be"),
    ("/allow", {"container": "web", "rules": ["80"], "seconds": 0}, "seconds must be"),
    ("/allow", {"container": "web", "rules": ["80"], "seconds": -1}, "seconds must be"),
    ("/allow", {"container": "web", "rules": ["80"], "seconds": 1e300}, "seconds must be"),
    ("/allow", b'{"container": "web", "rules": ["80"], "seconds": NaN}', "not JSON: NaN is no number"),
    ("/allow", {"container": "web", "rules": ["80"], "for": "1h"}, "a field 'for', which is none of"),
    ("/deny", {"container": "web", "rules": ["x"]}, '"x" is not a port'),
    ("/deny", {"container": "nobody", "rules": ["80"]}, "no container 'nobody'"),
    ("/revert", {}, "container is missing: it must be"), ("/revert", {"all": False}, "all must be true"),
    ("/revert", {"all": True, "container": "web"}, "all must be the only field"),
    ("/ban", {"bans": ["203.0.113.7"]}, "bans[0] must be a JSON object with address and seconds"),
    ("/ban", {"bans": [{"address": "203.0.113.7"}, {"adress": "203.0.113.7"}]}, "bans[1] has a field 'adress'"),
    ("/ban", {"bans": [{"address": None}]}, "bans[0].address must be"), ("/ban", {"bans": {}}, "bans must be a list"),
    ("/ban", {"bans": [{"address": "10.1.0.1"}]}, "is the gateway"), ("/ban", {"addresses": []}, "a field 'addresses'"),
    ("/unban", {"addresses": ["x"]}, "is not an address"), ("/unban", {}, "addresses is missing: it must be"),
    ("/explain", {"from": "internet", "to": "web"}, "what is missing: it must be a port"),
    ("/explain", {"from": "internet", "to": "web", "what": "80", "family": 5}, "family must be 4, 6, or null for both"),
    ("/explain", {"from": "internet", "to": "web", "what": "80", "family": True}, "family must be"),
    ("/plan", {"settings": ["FW_ALLOW=80"]}, "settings must be an object"),
    ("/plan", {"settings": {"FW_ALLOW": 80}}, "settings must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "why"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_body_is_a_400_that_names_the_field(
    client: FlaskClient, desk: Desk, path: str, body: Any, why: str
) -> None:
    """Any wrong body is answered with one sentence that says what would be right, without a traceback, and changes
    nothing."""
    status, answer = post(client, path, body)
    assert (status, list(answer)) == (400, ["Err"])
    assert why in answer["Err"]
    assert len(answer["Err"]) < 1000
    assert desk.site.state.state == dataclasses.replace(
        SavedState(), networks=desk.site.state.networks, endpoints=desk.site.state.endpoints
    )


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["web", "8080", "203.0.113.7", "1h", "8080 from 10.0.0.0/8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(
    ["container", "rules", "seconds", "all", "bans", "addresses", "from", "to", "what", "settings", "family"]
)


@given(
    path=st.sampled_from(["/allow", "/deny", "/revert", "/ban", "/unban", "/explain", "/plan"]),
    body=_values | st.dictionaries(_fields, _values, max_size=4),
)
@examples(400)
def test_no_body_causes_a_traceback(path: str, body: Any) -> None:
    """A body that cannot be read gives a 400, and the state remains one that can be saved."""
    desk = Desk(ours(2, WEB))
    app = Flask("test")
    add_routes(app, desk.orders, Asked())  # type: ignore[arg-type]
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        client = app.test_client()
        client.environ_base["gunicorn.socket"] = one
        status, answer = post(client, path, body)
    assert status in (200, 400), answer
    if status == 400:
        assert list(answer) == ["Err"]
        assert "Traceback" not in answer["Err"]
        assert desk.site.state.state.overrides == ()


def test_only_the_plugins_own_socket_is_answered(app: Flask, desk: Desk) -> None:
    """No answer over TCP, should the application ever listen there, nor if the socket is unknown."""
    with socket.socket(socket.AF_INET) as tcp:
        for environ in ({"gunicorn.socket": tcp}, {}):
            client = app.test_client()
            client.environ_base.update(environ)
            for path in ("/allow", "/deny", "/revert", "/ban", "/unban", "/explain", "/plan"):
                assert client.post(path, data=b'{"all": true}').status_code == 403
            for path in ("/bans", "/export"):
                reply = client.get(path)
                assert reply.status_code == 403
                assert reply.get_json() == {"Err": "this is answered on the plugin's socket only"}


def test_other_methods_and_paths_do_nothing(client: FlaskClient) -> None:
    """GET changes nothing, and a typo is a 404."""
    for path in ("/allow", "/ban", "/revert"):
        assert client.get(path).status_code == 405
    assert post_plain(client, "/alow") == 404


def post_plain(client: FlaskClient, path: str) -> int:
    return client.post(path, data=b"{}").status_code


def test_a_large_body_is_refused_unread(client: FlaskClient) -> None:
    """A body of more than 8 MiB, which is more than a blocklist, is refused."""
    assert client.post("/ban", data=b" " * (9 << 20)).status_code == 413


def test_an_internal_error_is_reported_without_a_traceback(
    client: FlaskClient, asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is a 500 with one sentence; the traceback is in docker-fw's log."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(type(asked), "export", fails, raising=False)
    reply = client.get("/export")
    assert (reply.status_code, reply.get_json()) == (
        500,
        {"Err": "docker-fw failed on /export: ZeroDivisionError: division by zero"},
    )
    assert "Traceback" in caplog.text


def test_text_from_outside_does_not_reach_the_table(client: FlaskClient, desk: Desk) -> None:
    """The table contains addresses, numbers and checked interface names only, for any request."""
    evil = "22; flush ruleset #"
    for path, body in (
        ("/allow", {"container": "web", "rules": [evil]}),
        ("/allow", {"container": evil, "rules": ["80"]}),
        ("/allow", {"container": "web", "rules": [f"80 from container:{evil}"]}),
        ("/ban", {"bans": [{"address": evil}]}),
    ):
        assert post(client, path, body)[0] == 400
    assert post(client, "/allow", {"container": "web", "rules": ["80 from container:x.y"]})[0] == 200
    for element in desk.site.kernel.table:
        for value in element.key:
            assert not isinstance(value, str) or re.fullmatch(r"[a-z0-9_.-]+", value)


def test_an_override_is_stored_with_its_origin(desk: Desk) -> None:
    """An override is stored with its origin, so that `fwctl status` shows what opened the port."""
    desk.allow("web", "9000")
    (kept,) = desk.site.disk.kept.overrides
    assert kept == Overriding(WEB.id, Rule("tcp", 9000, 9000))
    assert kept.rule.origin == "fwctl allow"
