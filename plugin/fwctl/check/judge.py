"""Services and networks of compose files → what each would accept, by the plugin's own labels and policy. Pure.

Every mistake in a key of docker-fw's goes to `notes`, at the line of that key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

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

#: Where a rule was said, as its origin tells → the line.
Places = Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class Opening:
    """A published port, or a part of a range, and to whom it is open: "everybody", "some", "nobody" or "host"."""

    port: Port
    part: Rule
    to: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A service on one network. `refused`: it does not start there. `said`: the words that count, with the settings."""

    service: Service
    net: Net
    policy: Policy
    spec: PolicySpec
    places: Places
    published: tuple[Opening, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def refused(self) -> bool:
        """True if the container would not start: a label is wrong on a network of docker-fw."""
        return self.net.kind == "own" and bool(self.problems)


@dataclass(frozen=True, slots=True)
class _Options:
    """A network's options, read once."""

    parsed: parser.ParsedLabels
    places: Places


def judge(stack: Stack, defaults: Defaults, notes: Notes) -> list[Judged]:
    """Every service on every network where docker-fw has a say."""
    options = {key: _network_options(net, notes) for key, net in stack.nets.items()}
    found: list[Judged] = []
    work = 0
    for service in stack.services.values():
        parsed = parser.parse({key: value.text for key, value in service.labels.items()})
        places = {f"label {key}": value.place for key, value in service.labels.items()}
        _tell(parsed.problems, places, service.name, notes)
        strangers(service, stack, notes)
        for attachment in service.attachments:
            not_guarded = attachment.net.kind == "apart"
            own = _NONE if not_guarded else parser.parse(_texts(attachment.options), "driver option ")
            more = {f"driver option {key}": value.place for key, value in attachment.options.items()}
            _tell(own.problems, more, service.name, notes)
            network = options.get(attachment.net.key, _Options(_NONE, {}))
            told = (network, _Options(parsed, places), own, more)
            work += 1 + sum(len(p.spec.allow) + len(p.spec.egress or ()) for p in (parsed, own, network.parsed))
            local = any(port.local for port in service.ports)
            work += sum(port.last - port.first for port in service.ports) if defaults.published or local else 0
            if work > MAX_WORK:
                raise Unreadable(service.place, f"there are more than {MAX_WORK} rules, counted for every network")
            if attachment.net.kind != "apart":
                found.append(_judged(stack, service, attachment, told, defaults))
    return found


_NONE = parser.ParsedLabels()


def _judged(
    stack: Stack,
    service: Service,
    attachment: Attachment,
    told: tuple[_Options, _Options, parser.ParsedLabels, Places],
    defaults: Defaults,
) -> Judged:
    network, container, own, more = told
    net = attachment.net
    problems = (*container.parsed.problems, *own.problems)
    there: Network | BridgeNetwork
    if net.kind == "own":
        problems = (*network.parsed.problems, *problems)
        there = Network(net.key, "", internal=net.internal, spec=network.parsed.spec)
    else:
        there = BridgeNetwork(
            net.key, net.name, "", internal=net.internal, spec=network.parsed.spec, problems=network.parsed.problems
        )
    who = Container(
        "",
        service.container,
        parser.for_network(container.parsed, net.names),
        problems,
        network=net.name,
        project=stack.project,
        service=service.name,
    )
    by_port = _published(service.ports, everything=defaults.published)
    endpoint = Endpoint("", net.key, joined=True, spec=own.spec, container=who, published=by_port)
    decided = decide.of(there, endpoint, defaults)
    decided = dataclasses.replace(decided, published=tuple(_in_ranges(decided.published)))
    openings = tuple(opening for port in service.ports for opening in _openings(port, decided))
    return Judged(
        service,
        net,
        decided,
        decide.words(there, endpoint, defaults),
        {**network.places, **container.places, **more},
        openings,
        (*network.parsed.problems, *problems),
    )


def _published(ports: Iterable[Port], *, everything: bool) -> tuple[Published, ...]:
    """One for each port, on loopback or anywhere; on which port of the host's makes no difference to the policy.

    Not `everything`: those on loopback, and what is published elsewhere of these.
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
    """Neighbouring ports as one rule."""
    found: list[Rule] = []
    for rule in sorted(rules):
        if found and found[-1].proto == rule.proto and found[-1].last + 1 >= rule.first:
            found[-1] = dataclasses.replace(found[-1], last=max(found[-1].last, rule.last))
        else:
            found.append(rule)
    return found


def _openings(port: Port, decided: Policy) -> Iterable[Opening]:
    """The parts of a published range that are open to the same people."""
    whole = [Rule(port.proto, port.first, port.last)]
    if port.local:
        return [Opening(port, whole[0], "host")]
    rules = (*decided.accepts, *decided.published)
    restricted = list(decide.minus(whole, (rule for rule in rules if not rule.peers)))
    closed = list(decide.minus(restricted, rules))
    everybody, some = decide.minus(whole, restricted), decide.minus(restricted, closed)
    parts = [("everybody", list(everybody)), ("some", list(some)), ("nobody", closed)]
    return [Opening(port, part, to) for to, found in parts for part in found]


def _network_options(net: Net, notes: Notes) -> _Options:
    options = net.options or {}
    if net.kind == "apart":
        for key in (key for key in options if key.lower().startswith(PREFIX)):
            notes.warn(options[key].place, f"network {net.key}: {key} has no effect: {net.why}")
        return _Options(_NONE, {})
    parsed = parser.parse(_texts(options), "network option ")
    places = {f"network option {key}": value.place for key, value in options.items()}
    for problem in parsed.problems:
        notes.mistake(_at(problem, places, net.place), f"network {net.key}: {problem}")
    return _Options(parsed, places)


def _texts(options: Mapping[str, Value]) -> dict[str, object]:
    return {key: value.text for key, value in options.items()}


def _tell(problems: Iterable[Problem], places: Places, service: str, notes: Notes) -> None:
    for problem in problems:
        notes.mistake(_at(problem, places, Place("")), str(problem), service)


def _at(problem: Problem, places: Places, otherwise: Place) -> Place:
    return places.get(problem.where, otherwise)


def strangers(service: Service, stack: Stack, notes: Notes) -> None:
    """`fw.network.NAME.…` where NAME is no network of the service's: it would never count."""
    nets = stack.on(service.name)
    for key, value in service.labels.items():
        name, short = parser.split(key)
        if name is None or short not in KEYS or any(name in net.names for net in nets) or service.shares:
            continue
        known = [net.key for net in nets]
        there = f" ({', '.join(known)})" if known else ""
        text = f'label {key}: "{name}" is none of the networks of {service.name}{there}{near(name, known)}'
        notes.mistake(value.place, text, service.name)
