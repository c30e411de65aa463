"""Names that look like options, nft's language, a shell's or paths are shown unchanged, and never interpreted."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from plugin.docker import container_labels
from plugin.docker import parse as listing
from plugin.docker.bridges import Bridges
from plugin.docker.engine import Engine
from plugin.docker.tracker import EndpointTracker
from plugin.fwctl.api import plan, status
from plugin.fwctl.api.explain import Around, explain
from plugin.fwctl.api.flow_ends import containers
from plugin.fwctl.check.run import run as check
from plugin.fwctl.cli import render, render_answers, terminal
from plugin.fwctl.drop_record import Drop, Header, line
from plugin.fwctl.host import boot_table
from plugin.kernel.link_monitor import Link
from plugin.labels.parser import parse
from plugin.model import Defaults, FwError
from plugin.nftables.document import document, element_text
from plugin.nftables.features import Features
from plugin.nftables.hooks import HOOKS
from plugin.nftables.sets import Element, chains_for
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView, evaluated
from plugin.state.reconciler import Reconciler
from plugin.text import printable
from tests.inputs import inputs
from tests.pure.answers import QUIET_STATUS
from tests.pure.fakes import Disk, Kernel
from tests.pure.strategies import ELEMENT_TEXT, HOSTILE_TEXTS

pytestmark = pytest.mark.usefixtures("no_flows")

MARK = 0x08000000
#: Names from outside, as Docker, compose, the kernel and images let others choose them.
NAMES = [
    *HOSTILE_TEXTS,
    "-x", "* {", '"; flush ruleset; "', '";flush', 'a"}#', "x*", "br-*", "`reboot`", "${IFS}", "a/b", "a\tb",
    "\\", "'", "@unmanaged", "include", "\u05d0\u05d1", "e\u0301", "网络", "x" * 10_000, "[bold red]x[/]", "{}", "%s%n",
]  # fmt: skip
names = st.sampled_from(NAMES) | st.text(max_size=16)
COMPOSE, BRIDGE = "com.docker.compose.", "com.docker.network.bridge."
A = Engine("28.5.2")


class Host:
    """Docker's lists and the kernel's links, with names from outside, read as docker-fw reads them."""

    def __init__(self, draw: Any) -> None:
        self.texts: list[str] = []

        def text() -> str:
            self.texts.append(draw(names))
            return self.texts[-1]

        self.kernel = Kernel()
        self.state = Reconciler(self.kernel, Disk(), Defaults())  # type: ignore[arg-type]
        self.state.start(Facts(SavedState()))
        bridge = text()
        network = {
            "Id": "a" * 64,
            "Name": text(),
            "Driver": "bridge",
            "Options": {BRIDGE + "name": bridge, BRIDGE + "gateway_mode_ipv4": text()},
            "Labels": {COMPOSE + "project": text(), COMPOSE + "network": text()},
            "IPAM": {"Config": [{"Subnet": "172.18.0.0/16"}]},
        }
        # Also a bridge with a valid name, so that its container is on a known network.
        right = {**network, "Id": "b" * 64, "Name": text(), "Options": {BRIDGE + "name": "br-right"}}
        self.links = [bridge, text(), "br-right", "br-lan"]
        self.dockers, _ = listing.bridges([network, right])
        self.bridges = Bridges(set)
        self.bridges.see(Link(n, name, bridge=True) for n, name in enumerate(self.links, 2))
        self.bridges.set_listed(self.dockers, self.bridges.now() + 60)
        self.state.observe(lambda facts: dataclasses.replace(facts, bridges=self.bridges.facts()))
        self.tracker = EndpointTracker(self.state)
        labels = {
            "fw.allow": f"8080, 5432 from service:{text()}",
            f"fw.network.{text()}.allow": "9000",
            f"fw.{text()}": "1",
            "fw.egress": text(),
            COMPOSE + "project": text(),
            COMPOSE + "service": text(),
            COMPOSE + "config-hash": "x",
        }
        places = {"EndpointID": "e" * 64, "NetworkID": "b" * 64, "IPAddress": "172.18.0.2"}
        listed = {
            "Id": "c" * 64,
            "Names": ["/" + text()],
            "ImageID": "i",
            "State": "running",
            "Labels": labels if draw(st.booleans()) else {"fw.allow": "8080"},
            "Ports": [{"Type": "tcp", "IP": "0.0.0.0", "PublicPort": 18080, "PrivatePort": 8080}],
            "NetworkSettings": {"Networks": {right["Name"]: places}},
        }
        who = container_labels.read(listed, {})
        self.name = who.name
        known = [found for raw in (network, right) if (found := self._network(raw))]
        keys = {"b" * 64: container_labels.compose_key(right)}
        self.tracker.replace(known, listing.endpoints(listed, who, keys), asked=1 << 30)
        self.not_guarded = {text(): listing.not_guarded({"HostConfig": {"NetworkMode": "container:" + text()}})}

    @staticmethod
    def _network(raw: Any) -> Any:
        try:
            return listing.network(raw)
        except ValueError:
            return None

    @property
    def inventory(self) -> PolicyView:
        return self.state.snapshot()

    def status(self) -> dict[str, Any]:
        return {
            **QUIET_STATUS,
            "guarded": status.guarded_networks(self.inventory, A, MARK, {}),
            "apart": self.not_guarded,
            "foreign": sorted(self.bridges.unmanaged()),
        }


def some(count: int) -> settings:
    return inputs(count, suppress_health_check=list(HealthCheck))


def skeletons(text: str) -> tuple[str, list[str]]:
    """Return the table's text without its elements, and the elements."""
    elements = re.findall(r"^add element inet docker-fw \w+ \{ (.*) \}$", text, re.MULTILINE)
    return re.sub(r"^add element .*\n", "", text, flags=re.MULTILINE), elements


@given(st.data())
@some(60)
def test_names_from_outside_are_in_no_command(data: st.DataObject) -> None:
    """The table contains only numbers, addresses and checked names of links, and the text around them is always the
    same, for any names of networks, bridges, links, containers, projects, services and networks in labels."""
    host = Host(data.draw)
    assert host.kernel.table is not None
    assert any(element.set == "ingress_drops4" for element in host.kernel.table)
    for element in host.kernel.table:
        assert re.fullmatch(ELEMENT_TEXT, element_text(element)), element
    # As `fwctl export` writes it.
    kept = [element for element in host.kernel.table if element.set != "unmanaged"]
    chains = {name for element in kept for name in chains_for(element)}
    text = document(MARK, (), Features(cgroups=False), chains=chains)
    assert skeletons(document(MARK, kept, Features(cgroups=False)))[0] == text
    assert all(name in HOOKS or re.fullmatch(r"limit[\w.-]*", name) for name in chains)


@given(st.lists(names, max_size=6), st.lists(names, max_size=6))
@some(60)
def test_the_boot_table_contains_checked_names_only(dockers: list[str], others: list[str]) -> None:
    """A bridge with an odd name is closed, and its name is nowhere in the file, whether it is Docker's or another of
    the host's."""

    class Api:
        def bridges(self) -> tuple[frozenset[str], bool]:
            return frozenset(dockers), True

    there = {n: Link(n, name, bridge=True) for n, name in enumerate((*dockers, *others, "br-lan"), 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boot_table.link_monitor, "links", lambda: there)
        patch.setattr("plugin.docker.bridges.SETTLE", 0.0)
        found = boot_table.bridges(Api(), set, lambda _: None)  # type: ignore[arg-type]
    text = boot_table.nft_text(MARK, *found)
    checked = r'"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"'
    around, elements = skeletons(text)
    for each in elements:
        assert re.fullmatch(rf"{checked}(, {checked})*|{checked} \. {checked}(, {checked} \. {checked})*", each), each
    plain = boot_table.nft_text(MARK, (), {"br-lan"})
    around = re.sub(rf"ifname != \{{ {checked}(, {checked})* \}}", 'ifname != { "br-lan" }', around)
    assert around == skeletons(plain)[0]


def _shown(host: Host) -> Iterator[str]:
    """Yield the output of `fwctl`, for pipes and terminals, each with the name of the command."""
    answer = json.loads(json.dumps(host.status()))
    yield render.status(answer)
    yield render.ports(answer)
    yield render.dry_run(
        {
            "refuses": "",
            "guarded": answer["guarded"],
            "apart": answer["apart"],
            "cut": [{"from": "203.0.113.1", "container": host.name, "address": "", "port": 22, "proto": "tcp"}],
        }
    )
    for width in (80, 200):
        file = io.StringIO()
        on = Console(file=file, width=width, color_system=None, highlight=False, markup=False)
        on.print(terminal.status(answer, width))
        on.print(terminal.ports(answer))
        yield file.getvalue()
    inventory = host.inventory
    around = Around((), host.not_guarded, A, MARK, 1.0)
    for who in (host.name, *host.texts[:3]):
        try:
            yield render.plain(render_answers.explain(explain(inventory, "internet", who, "8080", around)))
        except FwError as error:
            yield printable(str(error))
    closed = parse({"fw.policy": "closed"}, "setting ").spec

    answer = {"drift": [], "elements": [], "rules": [], "notes": [], "changes": True}
    answer["policy"] = plan.policies(inventory, evaluated(Defaults(closed), inventory.facts))
    yield render.plain(render_answers.plan(answer))
    endpoint = host.tracker.guests[0].as_known
    assert endpoint.addr4
    drop = Drop(1, 1.0, "to", Header(endpoint.addr4, endpoint.addr4, "tcp", 1), target=host.name, came_by=host.links[0])
    yield line(drop.as_data())


@given(st.data())
@some(40)
def test_fwctl_shows_names_and_sends_nothing_to_a_terminal(data: st.DataObject) -> None:
    """In each of its tables and lists a name is text: no escape sequence, no extra line, no markup, no text
    direction."""
    for text in _shown(Host(data.draw)):
        assert all(c.isprintable() or c == "\n" for c in text), repr(text[:300])
        text.encode()


@given(st.data())
@some(30)
def test_check_reads_any_name_in_a_compose_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Names of services, networks, bridges and containers are shown as text and as JSON, and no path is opened because
    of them."""
    text = data.draw(names.filter(bool)), data.draw(names), data.draw(names), data.draw(names)
    file = {
        "name": text[1],
        "services": {
            text[0]: {
                "image": "x",
                "container_name": text[1],
                "labels": {"fw.allow": f"80 from service:{text[2]}"},
                "networks": [text[2]],
            }
        },
        "networks": {text[2]: {"name": text[3], "driver_opts": {"com.docker.network.bridge.name": text[1]}}},
    }
    path = tmp_path_factory.mktemp("names") / "compose.yml"
    path.write_text(json.dumps(file))
    for as_json in (False, True):
        out = io.StringIO()
        assert check([str(path)], {}, as_json, out, Defaults()) in (0, 1, 2)
        assert all(c.isprintable() or c == "\n" for c in out.getvalue())


def test_a_container_is_found_by_its_exact_name() -> None:
    """A name from outside is compared, never interpreted: as no pattern, and as no beginning of an ID."""
    host = Host(lambda _: "-x")
    assert containers(host.inventory) == {"c" * 64: "-x"}


def test_each_element_is_on_a_line_of_its_own() -> None:
    """The tests above remove elements only, and detect any additional text."""
    assert skeletons(document(MARK, {Element("dockers", ("docker0",))}))[0] == document(MARK, ())
    assert skeletons(document(MARK, {Element("dockers", ('";\nflush ruleset',))}))[0] != document(MARK, ())
