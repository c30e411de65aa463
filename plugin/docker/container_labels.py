"""Derive the policy of a container on each of its networks from its labels, as Docker lists them. Pure.

Docker merges an image's labels into the container's, so a label equal to the image's counts as the image's. It opens
nothing unless a setting trusts images; the part of it that can only close counts. Sometimes it is unknown which labels
are the image's (`plugin.docker.images`); then any label may be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import starmap
from typing import Any

from plugin.labels import parser
from plugin.labels.grammar import MAX_LENGTH
from plugin.labels.keys import KEYS, PREFIX, UNSET
from plugin.labels.parser import ParsedLabels
from plugin.model import Container, PolicySpec, Problem

_COMPOSE = "com.docker.compose."
#: Maximum number of an image's ignored labels that are named in notices.
_MAX_NOTICES = 16
#: Labels of more characters than this are parsed anew each time, not cached.
_MAX_CACHED = 1 << 16
#: Labels that compose gives to a container and never to an image.
_CONTAINER_ONLY = ("container-number", "config-hash")


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """A container's labels, before they are applied to a network.

    `own`: labels that count; `image_labels`: the image's, which do not count. `networks`: the names of its networks.
    `unsure`: it is unknown which labels are the image's, so all of `image_labels` may be the user's.
    """

    id: str
    name: str
    own: tuple[tuple[str, str], ...] = ()
    image_labels: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    project: str = ""
    service: str = ""
    networks: tuple[str, ...] = ()
    unsure: bool = False


def firewall_labels(listed: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a listed container that configure docker-fw."""
    labels = listed.get("Labels") or {}
    return {key: value for key, value in labels.items() if key.lower().startswith(PREFIX)}


def needs_image(listed: Mapping[str, Any]) -> bool:
    """True if the labels of the container's image must be known."""
    return bool(firewall_labels(listed)) or _COMPOSE + "project" in (listed.get("Labels") or {})


def is_relevant(key: str) -> bool:
    """True for labels that are ever compared with an image's. All others are dropped."""
    return key.lower().startswith(PREFIX) or key.startswith(_COMPOSE)


def own_names(listed: Mapping[str, Any]) -> list[str]:
    """Return the names of a listed container, without those that links give it (they have a second slash).

    A container that is being renamed has two: Docker reports the new name before it gives up the old one, and nothing
    afterwards (moby's daemon/rename.go).
    """
    return [name[1:] for name in listed.get("Names") or [] if name.count("/") == 1]


def read(listed: Mapping[str, Any], image: Mapping[str, str] | None, *, unknown: str = "") -> ContainerLabels:
    """Return the labels of a container as `GET /containers/json` lists it.

    `image`: the image's labels; None if they are trusted. `unknown`: why the image's labels are unknown. Then every
    label counts as the image's, which is a problem.
    """
    name = next(iter(own_names(listed)), listed["Id"][:12])
    labels, image = firewall_labels(listed), image or {}
    image_labels = labels if unknown else {key: value for key, value in labels.items() if image.get(key) == value}
    own = {key: value for key, value in labels.items() if key not in image_labels} | parser.only_closing(image_labels)
    return ContainerLabels(
        id=listed["Id"],
        name=name,
        own=tuple(sorted(own.items())),
        image_labels=tuple(sorted((key, value) for key, value in image_labels.items() if key not in own)),
        problems=_unknown_origin(image_labels, own, unknown) if unknown else (),
        **_compose(listed.get("Labels") or {}, image, known=not unknown),
        networks=tuple(sorted((listed.get("NetworkSettings") or {}).get("Networks") or {})),
        unsure=bool(unknown),
    )


def _compose(labels: Mapping[str, Any], image: Mapping[str, str], *, known: bool) -> dict[str, str]:
    """Return the container's compose project and service, by which rules of other containers can name it as a peer.

    compose puts both labels on the images that it builds too, so they prove nothing by themselves. A label that
    compose gives to containers alone proves it, unless the image has that one as well.
    """
    own = any(labels.get(key) and labels[key] != image.get(key) for key in map(_COMPOSE.__add__, _CONTAINER_ONLY))
    names = {name: _name(labels, name) for name in ("project", "service")}
    return names if own and known else dict.fromkeys(names, "")


def _unknown_origin(image_labels: Mapping[str, str], own: Mapping[str, str], unknown: str) -> tuple[Problem, ...]:
    """Return the problem that these labels may be the user's, unless they could have no further effect."""
    ignored = {key: value for key, value in image_labels.items() if key not in own}
    if not ignored:
        return ()
    text = f"it is unknown whether this label comes from the image: {unknown}"
    problems, keys = parser.parse(ignored).problems, {parser.split(key)[1] for key in ignored}
    closes = any(problem.closes for problem in problems) or any(starmap(_may_close, ignored.items()))
    confines = any(problem.confines for problem in problems) or any(key in KEYS and KEYS[key].confines for key in keys)
    first = min(ignored)
    return (Problem("label " + first, ignored[first], text, closes, confines),)


def _may_close(key: str, value: str) -> bool:
    """True unless the label can only open, or is not about inbound traffic. A `from` removes its port from the base."""
    network, name = parser.split(key)
    entry = KEYS.get(name)
    # A label for one network has no effect on any if the name is wrong, and that may close.
    return entry is None or entry.may_close(value) or (network is not None and not entry.only_opens(entry.of(UNSET)))


def compose_key(network: Mapping[str, Any]) -> str:
    """Return the network's compose project and its key in the compose file, as PROJECT/KEY.

    The result is "" if compose did not create the network.
    """
    labels = network.get("Labels") or {}
    project, key = (_name(labels, name) for name in ("project", "network"))
    return f"{project}/{key}" if project and key else ""


def _name(labels: Mapping[str, Any], name: str) -> str:
    """Return a name that compose set; "" if it is longer than any rule can be."""
    found = str(labels.get(_COMPOSE + name) or "")
    return found if len(found) <= MAX_LENGTH else ""


def on_network(labels: ContainerLabels, network: str, key: str = "") -> Container:
    """Return the container with its policy on the network of that name.

    `key`: from `compose_key`, maybe of another project.
    """
    parsed = _parsed(labels.own)
    project, _, compose_name = key.partition("/")
    names = set(_names(labels, network))
    if compose_name and project == labels.project:
        names.add(compose_name)
    problems, notices = _unknown_networks(labels, parsed, network, names)
    return Container(
        id=labels.id,
        name=labels.name,
        spec=parser.for_network(parsed, names),
        image_spec=_closing(parser.for_network(_parsed(labels.image_labels), names)),
        problems=(*labels.problems, *parsed.problems, *problems),
        notices=(*_ignored(labels), *notices),
        network=network,
        project=labels.project,
        service=labels.service,
    )


def _ignored(labels: ContainerLabels) -> Iterator[str]:
    """Yield notices about labels that come from the image and have no effect."""
    comes = "may come" if labels.unsure else "comes"
    for label, value in labels.image_labels[:_MAX_NOTICES]:
        entry = KEYS.get(parser.split(label)[1])
        effect = "opens nothing" if entry is None or entry.opens else "is ignored"
        yield f'label {label[:80]}="{value[:80]}" {comes} from the image and {effect} (FW_IMAGE_LABELS=trust allows it)'
    if (more := len(labels.image_labels) - _MAX_NOTICES) > 0:
        yield f"{more} more labels {'may come' if labels.unsure else 'come'} from the image and open nothing"


def _unknown_networks(
    labels: ContainerLabels, parsed: ParsedLabels, network: str, names: set[str]
) -> tuple[list[Problem], list[str]]:
    """Return problems and notices about `fw.network.NAME.…` if the container is on no network of that name."""
    known = {name for each in labels.networks for name in _names(labels, each)} | names
    there = ", ".join(sorted({*labels.networks, network})[:8])
    problems, notices = [], []
    for name, spec in parsed.networks:
        if name not in known:
            where, text = f"label fw.network.{name}", f"the container is not on network {name[:64]!r}"
            if _only_opens(spec):
                notices.append(f"{where} has no effect: {text} (it is on {there})")
            else:
                problems.append(Problem(where, "…", f"{text}; it is on {there}", confines=_confines(spec)))
    return problems, notices


def _parsed(pairs: tuple[tuple[str, str], ...]) -> ParsedLabels:
    """Parse labels.

    The result is cached, except for labels that are refused for their size: parsing those takes no time.
    """
    size = sum(len(key) + len(str(value)) for key, value in pairs)
    return _cached(pairs) if size <= _MAX_CACHED else parser.parse(dict(pairs))


@lru_cache(maxsize=4096)
def _cached(pairs: tuple[tuple[str, str], ...]) -> ParsedLabels:
    return parser.parse(dict(pairs))


def _names(labels: ContainerLabels, network: str) -> Iterator[str]:
    """Yield the network's name, and its key in the compose file unless the file sets another name."""
    yield network
    if labels.project and network.startswith(labels.project + "_"):
        yield network[len(labels.project) + 1 :]


def _only_opens(spec: PolicySpec) -> bool:
    return all(key.only_opens(key.of(spec)) for key in KEYS.values() if key.says(spec))


def _confines(spec: PolicySpec) -> bool:
    return any(key.confines and key.says(spec) for key in KEYS.values())


def _closing(spec: PolicySpec) -> PolicySpec:
    """Return the part of an image's policy that only closes. It counts if neither container nor network configure it.

    `fw.rate` is not part of it: each rate costs the kernel memory, and an image must not spend the host's.
    """
    return PolicySpec(**{key.field: key.of(spec) for key in KEYS.values() if key.closes_elsewhere})


def known_names(networks: Collection[Mapping[str, Any]]) -> frozenset[str]:
    """Return the names of all networks that Docker lists."""
    return frozenset(str(network["Name"]) for network in networks if isinstance(network.get("Name"), str))
