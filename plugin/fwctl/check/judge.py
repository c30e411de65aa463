"""The policy of compose services on each network, by the plugin's own labels and policy. Pure.

Every mistake in a docker-fw key is noted at the line of that key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import NamedTuple

from plugin.fwctl.check.compose.model import Notes, Place, Unreadable, Value
from plugin.fwctl.check.compose.ports import Port
from plugin.fwctl.check.compose.stack import Attachment, Net, Service, Stack, near
from plugin.labels import parser
from plugin.labels.keys import KEYS, PREFIX
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Policy,
    PolicySpec,
    Problem,
    Published,
    Rule,
)
from plugin.policy import decide

#: Rules of all services on all their networks: aliases make many of a few lines.
MAX_WORK = 100_000

#: The line of a rule, by the rule's origin.
Places = Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class Opening:
    """A published port, or a part of a range, and to whom it is open: "everybody", "some", "nobody" or "host"."""

    port: Port
    part: Rule
    to: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A service on one network. `spec`: its labels and options, with the host's settings."""

    service: Service
    net: Net
    policy: Policy
    spec: PolicySpec
    places: Places
    published: tuple[Opening, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def refused(self) -> bool:
        """True if docker-fw refuses to start the service there."""
        return self.net.kind == "own" and bool(self.problems)


class _Keys(NamedTuple):
    """docker-fw's keys of one place: of a service's labels, of its attachment to a network, or of a network."""

    parsed: parser.ParsedLabels = parser.ParsedLabels()
    places: Places = MappingProxyType({})


def judge(stack: Stack, defaults: Defaults, notes: Notes) -> list[Judged]:
    """Judge every service on every network that docker-fw protects."""
    networks = {key: _network_options(net, notes) for key, net in stack.nets.items()}
    found: list[Judged] = []
    work = 0
    for service in stack.services.values():
        parsed = parser.parse({key: value.text for key, value in service.labels.items()})
        labels = _Keys(parsed, {f"label {key}": value.place for key, value in service.labels.items()})
        _note(labels, service.name, notes)
        unknown_networks(service, stack, notes)
        for attachment in service.attachments:
            options = _attachment_options(attachment)
            _note(options, service.name, notes)
            network = networks.get(attachment.net.key, _Keys())
            work += _work(service, (labels, options, network), defaults)
            if work > MAX_WORK:
                raise Unreadable(service.place, f"there are more than {MAX_WORK} rules, counted for every network")
            if attachment.net.kind != "apart":
                found.append(_judged(stack, service, attachment.net, labels, options, network, defaults))
    return found


def _attachment_options(attachment: Attachment) -> _Keys:
    places = {f"driver option {key}": value.place for key, value in attachment.options.items()}
    if attachment.net.kind == "apart":
        return _Keys(places=places)
    return _Keys(parser.parse(_texts(attachment.options), "driver option "), places)


def _work(service: Service, keys: Iterable[_Keys], defaults: Defaults) -> int:
    """Estimate the work for one service on one network: its rules, and the ports that it publishes."""
    rules = sum(len(each.parsed.spec.allow) + len(each.parsed.spec.egress or ()) for each in keys)
    local = any(port.local for port in service.ports)
    return 1 + rules + (sum(port.last - port.first for port in service.ports) if defaults.published or local else 0)


def _judged(
    stack: Stack, service: Service, net: Net, labels: _Keys, options: _Keys, network: _Keys, defaults: Defaults
) -> Judged:
    problems = (*labels.parsed.problems, *options.parsed.problems)
    found: Network | BridgeNetwork
    if net.kind == "own":
        found = Network(net.key, "", internal=net.internal, spec=network.parsed.spec)
        refusing = (*network.parsed.problems, *problems)
    else:
        spec, wrong = network.parsed.spec, network.parsed.problems
        found = BridgeNetwork(net.key, net.name, "", internal=net.internal, spec=spec, problems=wrong)
        refusing = problems
    container = Container(
        "",
        service.container,
        parser.for_network(labels.parsed, net.names),
        refusing,
        network=net.name,
        project=stack.project,
        service=service.name,
    )
    by_port = _published(service.ports, everything=defaults.published)
    endpoint = Endpoint("", net.key, joined=True, spec=options.parsed.spec, container=container, published=by_port)
    decided = decide.of(found, endpoint, defaults)
    decided = dataclasses.replace(decided, published=tuple(_in_ranges(decided.published)))
    return Judged(
        service,
        net,
        decided,
        decide.words(found, endpoint, defaults),
        {**network.places, **labels.places, **options.places},
        tuple(opening for port in service.ports for opening in _openings(port, decided)),
        (*network.parsed.problems, *refusing),
    )


def _published(ports: Iterable[Port], *, everything: bool) -> tuple[Published, ...]:
    """Return one for each port, on loopback or any address; the host's port makes no difference to the policy.

    Unless `everything`: those on loopback, and the same ports where they are published elsewhere too.
    """
    ports = list(ports)
    local, elsewhere = (
        {(p.proto, number) for p in ports if p.local is loopback for number in range(p.first, p.last + 1)}
        for loopback in (True, False)
    )
    where = (("::1", local), ("::", elsewhere if everything else elsewhere & local))
    return tuple(
        Published(proto, ip_address(host), 0, number) for host, found in where for proto, number in sorted(found)
    )


def _in_ranges(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Join neighbouring ports to one rule."""
    found: list[Rule] = []
    for rule in sorted(rules):
        if found and found[-1].proto == rule.proto and found[-1].last + 1 >= rule.first:
            found[-1] = dataclasses.replace(found[-1], last=max(found[-1].last, rule.last))
        else:
            found.append(rule)
    return found


def _openings(port: Port, decided: Policy) -> Iterable[Opening]:
    """Split a published range into parts that are open to the same peers."""
    requested = [Rule(port.proto, port.first, port.last)]
    if port.local:
        return [Opening(port, requested[0], "host")]
    rules = (*decided.accepts, *decided.published)
    restricted = list(decide.minus(requested, (rule for rule in rules if not rule.peers)))
    closed = list(decide.minus(restricted, rules))
    everybody, some = decide.minus(requested, restricted), decide.minus(restricted, closed)
    parts = [("everybody", list(everybody)), ("some", list(some)), ("nobody", closed)]
    return [Opening(port, part, to) for to, found in parts for part in found]


def _network_options(net: Net, notes: Notes) -> _Keys:
    options = net.options or {}
    if net.kind == "apart":
        for key in (key for key in options if key.lower().startswith(PREFIX)):
            notes.warn(options[key].place, f"network {net.key}: {key} has no effect: {net.why}")
        return _Keys()
    parsed = parser.parse(_texts(options), "network option ")
    places = {f"network option {key}": value.place for key, value in options.items()}
    for problem in parsed.problems:
        notes.mistake(_at(problem, places, net.place), f"network {net.key}: {problem}")
    return _Keys(parsed, places)


def _texts(options: Mapping[str, Value]) -> dict[str, object]:
    return {key: value.text for key, value in options.items()}


def _note(keys: _Keys, service: str, notes: Notes) -> None:
    for problem in keys.parsed.problems:
        notes.mistake(_at(problem, keys.places, Place("")), str(problem), service)


def _at(problem: Problem, places: Places, otherwise: Place) -> Place:
    return places.get(problem.where, otherwise)


def unknown_networks(service: Service, stack: Stack, notes: Notes) -> None:
    """Note `fw.network.NAME.…` if NAME is not a network of the service: it would have no effect."""
    nets = stack.on(service.name)
    for key, value in service.labels.items():
        name, short = parser.split(key)
        if name is None or short not in KEYS or any(name in net.names for net in nets) or service.shares:
            continue
        known = [net.key for net in nets]
        there = f" ({', '.join(known)})" if known else ""
        text = f'label {key}: "{name}" is not a network of {service.name}{there}{near(name, known)}'
        notes.mistake(value.place, text, service.name)
