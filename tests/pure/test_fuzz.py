"""Any request to the plugin's socket gets an answer that says what is wrong, and opens nothing by mistake.

The inputs are the same ones in each run; `make test-long` tries more, different ones.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.driver import driver
from plugin.driver.driver import Driver
from plugin.driver.http import create_app
from plugin.fwctl.api.commands import AdminCommands
from plugin.fwctl.api.droplog import DropLog
from plugin.fwctl.api.droplog_http import FOLLOWERS, add_route
from plugin.fwctl.api.routes import add_routes
from plugin.kernel.nflog import Logged
from plugin.model import Container, Defaults, PolicySpec, Rule
from plugin.nftables.document import element_text
from plugin.nftables.sets import Element
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from tests.fuzz.targets import TARGETS
from tests.inputs import inputs
from tests.pure.expected import desired
from tests.pure.fakes import Disk, Kernel, NoLinks, cut_no_flows
from tests.pure.strategies import ELEMENT_TEXT, HOSTILE_TEXTS, json_values
from tests.recorded import CREATE_ENDPOINT, CREATE_NETWORK, ENDPOINT_ID, NETWORK_ID

Body = dict[str, Any]
#: The longest readable error.
LONGEST = 8001
IDS = {"NetworkID": NETWORK_ID, "EndpointID": ENDPOINT_ID}
JOIN = {**IDS, "SandboxKey": "/var/run/docker/netns/1", "Options": {}}
#: A valid body for each call, in the order of a container's life.
DRIVER: dict[str, Body] = {
    "CreateNetwork": CREATE_NETWORK,
    "CreateEndpoint": CREATE_ENDPOINT,
    "EndpointOperInfo": IDS,
    "Join": JOIN,
    "ProgramExternalConnectivity": {**IDS, "Options": CREATE_ENDPOINT["Options"]},
    "RevokeExternalConnectivity": IDS,
    "Leave": IDS,
    "DeleteEndpoint": IDS,
    "DeleteNetwork": {"NetworkID": NETWORK_ID},
    "DiscoverNew": {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.1", "Self": True}},
    "DiscoverDelete": {"DiscoveryType": 1, "DiscoveryData": {"Address": "192.0.2.1", "Self": True}},
    "AllocateNetwork": {"NetworkID": NETWORK_ID, "Options": {}, "IPv4Data": [], "IPv6Data": []},
    "FreeNetwork": {"NetworkID": NETWORK_ID},
    "GetCapabilities": {},
}
POSTS: dict[str, Body] = {
    "/Plugin.Activate": {},
    **{f"/NetworkDriver.{name}": body for name, body in DRIVER.items()},
    "/allow": {"container": "web", "rules": ["8080", "53/udp from 192.0.2.0/24"], "seconds": 60},
    "/deny": {"container": "web", "rules": ["22"], "seconds": None},
    "/revert": {"container": "web"},
    "/ban": {"bans": [{"address": "203.0.113.7", "seconds": 600}, {"address": "2001:db8:5::/48"}]},
    "/unban": {"addresses": ["203.0.113.7"]},
    "/explain": {"from": "internet", "to": "web", "what": "8080", "family": 4},
    "/plan": {"settings": {"FW_ALLOW": "8080"}},
}
GETS = {"/status", "/bans", "/export", "/drops"}
#: A SYN to the container's port 80.
TCP4 = bytes.fromhex("4500002800010000400600000a000002ac12000204d20050000000000000000050020000")
values = (
    st.sampled_from(HOSTILE_TEXTS)
    | st.text(max_size=12)
    | json_values
    | st.sampled_from([None, True, 0, -1, 2**31, 2**63, 2**64, 10**400, 0.5, float("nan"), float("inf"), [], {}, [[]]])
)
keys = st.sampled_from(["fw.allow", "fw.deny", "fw.egress", "fw.rate", "fw.policy", "fw.network.a.allow", "fw.x"])


def some(count: int) -> settings:
    """Use this number of inputs, see `inputs`."""
    return inputs(count)


class Queries:
    """`fwctl`'s queries, none of which changes anything."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: [] if name == "places" else {}


class Plugin:
    """The real application, driver, admin commands and reconciler; no kernel, disk and Docker."""

    def __init__(self, unix: socket.socket) -> None:
        self.kernel, self.disk = Kernel(), Disk()
        self.state = Reconciler(self.kernel, self.disk, Defaults(PolicySpec(allow=(Rule("udp", 161, 161),))))  # type: ignore[arg-type]
        self.state.start(Facts(SavedState()))
        none: Any = NoLinks()
        made = Driver(self.state, none, none, none, none)
        queries: Any = Queries()
        self.app: Flask = create_app(made, queries)
        add_routes(self.app, AdminCommands(self.state, host_addresses=set), queries)
        self.drops = DropLog(self.state, lambda: True)
        self.drops.serving = lambda: False  # a follower gets the kept drops, and then the response ends
        add_route(self.app, self.drops)
        self.client: FlaskClient = self.app.test_client()
        self.client.environ_base["gunicorn.socket"] = unix

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Return the answer to a body, which is an object for every request."""
        reply = self.client.post(path, data=body if isinstance(body, bytes) else json.dumps(body).encode())
        assert reply.status_code in (200, 400, 404, 405, 413), reply.data[:300]
        answer: Any = json.loads(reply.data)
        assert isinstance(answer, dict)
        if error := answer.get("Err"):
            assert len(error) <= LONGEST, f"{len(error)} characters: {error[:200]}"
            assert "docker-fw failed" not in error, error
            assert "Traceback" not in error
            assert error.isprintable(), repr(error[:300])
        return answer

    def drive(self, *calls: str) -> None:
        for call in calls:
            assert "Err" not in self.post(f"/NetworkDriver.{call}", DRIVER[call])

    def check_table(self) -> None:
        """Check that the table equals the elements computed from the facts, and that they are about known addresses."""
        assert self.kernel.table == desired(self.state)
        assert self.kernel.table is not None
        known = {a for e in self.state.endpoints.values() for a in (e.addr4, e.addr6)}
        for element in self.kernel.table:
            if re.match("(egress_)?(allow|peer_ports|from|to|all)(_other|_published)?[46]", element.set):
                assert known & set(element.key), element


@contextmanager
def running() -> Iterator[Plugin]:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        yield Plugin(one)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not touch this machine's flows and links."""
    cut_no_flows(monkeypatch)
    monkeypatch.setattr(driver, "exists", lambda _: True)


# --- bodies -----------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, below in inner for each in _places(below, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, right: Body) -> Any:
    """Draw a valid body that is changed at one to three places: a value is replaced, removed or added."""
    root: Any = {"": copy.deepcopy(right)}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(root[""], ("",))))
        there = root
        for key in path[:-1]:
            there = there[key]
        match draw(st.sampled_from(["other", "other", "away", "more"])):
            case "away" if len(path) > 1:
                del there[path[-1]]
            case "more" if isinstance(there[path[-1]], dict):
                there[path[-1]][draw(keys | st.sampled_from(HOSTILE_TEXTS))] = copy.deepcopy(draw(values))
            case _:
                there[path[-1]] = copy.deepcopy(draw(values))
    return root[""]


@given(st.data())
@some(60)
def test_a_damaged_request_is_answered_and_opens_nothing(data: st.DataObject) -> None:
    """Any damaged request gets a reply or an error in words at any time of a container's life, never a traceback; and
    afterwards the table equals the facts."""
    path = data.draw(st.sampled_from(sorted(POSTS)))
    life = ["CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity"]
    with running() as plugin:
        plugin.drive(*life[: data.draw(st.integers(0, 4))])
        before = plugin.state.state
        answer = plugin.post(path, data.draw(damaged(POSTS[path])))
        if "Err" in answer and "Delete" not in path and "Create" not in path:
            assert dataclasses.replace(plugin.state.state, switched=before.switched) == before
        plugin.check_table()
        plugin.drive("Leave", "DeleteEndpoint", "DeleteNetwork")


@given(path=st.sampled_from(sorted(POSTS)), data=st.binary(max_size=60), cut=st.integers(0, 400))
@some(60)
def test_bytes_that_are_no_json_are_an_error(path: str, data: bytes, cut: int) -> None:
    """Invalid UTF-8, a truncated request and random bytes are answered, and the table equals the facts."""
    with running() as plugin:
        for body in (data, json.dumps(POSTS[path]).encode()[:cut], data + json.dumps(POSTS[path]).encode()):
            plugin.post(path, body)
        plugin.check_table()


@pytest.mark.parametrize("path", sorted(POSTS))
def test_deep_long_and_duplicate_json_is_answered(path: str) -> None:
    """JSON that is nested 100,000 times, or has a number of 5,000 digits, a megabyte of text, a duplicate key or more
    bytes than are read, is answered, and the table equals the facts."""
    bodies = [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"NetworkID": ' + b"9" * 5000 + b"}",
        b'{"container": NaN}',
        json.dumps({**POSTS[path], "NetworkID": "x" * (1 << 20)}).encode(),
        json.dumps({**POSTS[path], "Options": {"fw.allow": "80," * 300_000}}).encode(),
        b'{"NetworkID": "a", "NetworkID": {}}',
        b" " * (10 << 20),
    ]
    with running() as plugin:
        for body in bodies:
            plugin.post(path, body)
        plugin.check_table()


@given(
    st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=20),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "TRACE"]),
)
@some(10)
def test_odd_paths_and_methods_are_refused_with_json(text: str, method: str) -> None:
    """The answer is a 404 or 405 with JSON; nothing is done."""
    safe = quote(text.encode("utf-8", "surrogatepass"))
    with running() as plugin:
        for path in (f"/{safe}", f"/a//{safe}", f"/../allow/{safe}", f"/NetworkDriver.Join/{safe}", f"/allow%0a{safe}"):
            reply = plugin.client.open(path, method=method, data=b"{}")
            assert reply.status_code < 500
            if method != "HEAD" and reply.status_code >= 400:
                assert str(json.loads(reply.data)["Err"]).isprintable()
        assert plugin.state.state == SavedState()


@given(
    packets=st.lists(st.binary(max_size=80) | st.sampled_from([TCP4, TCP4[:30], TCP4 + b"\xff" * 20]), max_size=5),
    since=st.sampled_from([*HOSTILE_TEXTS, "-1", "0", "3", "1" * 5000]) | st.integers().map(str) | st.text(max_size=8),
    follow=st.sampled_from(["", "0", "1", "true", *HOSTILE_TEXTS]),
)
@some(30)
def test_any_drop_is_a_json_line(packets: list[bytes], since: str, follow: str) -> None:
    """Each line is a drop or a progress line, and no follower's place is lost, for any packet bytes, container name and
    query."""
    name = HOSTILE_TEXTS[len(since) % len(HOSTILE_TEXTS)]
    with running() as plugin:
        plugin.drive("CreateNetwork", "CreateEndpoint", "Join")
        of = dataclasses.replace(plugin.state.endpoints[ENDPOINT_ID], container=Container("c" * 64, name))
        plugin.state.edit_endpoint(ENDPOINT_ID, lambda _: of)
        plugin.drops.take([Logged(data) for data in packets])
        query = {"since": since.encode("utf-8", "replace"), "follow": follow.encode("utf-8", "replace")}
        for _ in range(FOLLOWERS + 1):
            reply = plugin.client.get("/drops", query_string=query, buffered=True)
            assert reply.status_code == 200
            lines = [json.loads(line) for line in reply.data.splitlines()]
            assert all(text.isprintable() for each in lines for text in each.values() if isinstance(text, str))
            assert all(("number" in each) != ("newest" in each) for each in lines)


def test_every_route_is_tested_here() -> None:
    """A new route needs a body for these tests."""
    with running() as plugin:
        rules = {str(rule): rule.methods or set() for rule in plugin.app.url_map.iter_rules()}
        calls = inspect.getclosurevars(plugin.app.view_functions["hook"]).nonlocals["calls"]
    assert {f"/{call}" for call in calls} <= set(POSTS)
    assert {path for path, methods in rules.items() if "POST" in methods} - {"/<call>"} <= set(POSTS)
    assert {path for path, methods in rules.items() if "GET" in methods} - {"/static/<path:filename>"} == GETS


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200) | values.map(lambda v: json.dumps(v).encode()))
@some(25)
def test_the_parsers_accept_any_bytes(name: str, data: bytes) -> None:
    """Each parser returns a value, or raises an intended error. `make fuzz` finds better bytes."""
    TARGETS[name](data)


# --- the table's text -------------------------------------------------------------------------------------------------


@given(st.data())
@some(30)
def test_no_text_from_outside_is_in_the_table(data: st.DataObject) -> None:
    """Elements are numbers, addresses and checked names of links, for any input from Docker or `fwctl`."""
    with running() as plugin:
        plugin.drive("CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity")
        for call in ("CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity"):
            plugin.post(f"/NetworkDriver.{call}", data.draw(damaged(DRIVER[call])))
        for path in ("/allow", "/ban"):
            plugin.post(path, data.draw(damaged(POSTS[path])))
        table: set[Element] = plugin.kernel.table or set()
        for element in (*table, *plugin.kernel.timed):
            assert re.fullmatch(ELEMENT_TEXT, element_text(element)), element
