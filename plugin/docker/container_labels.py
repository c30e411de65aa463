"""A container as Docker lists it → what its labels say on each of its networks. Pure.

Docker merges an image's labels into the container's, so a label equal to the image's is taken for the image's: it opens
nothing unless a setting trusts images, and whatever of it can only close counts. Which labels are the image's is not
always known (`plugin.docker.images`); then any may be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plugin.labels import parser
from plugin.labels.grammar import MAX_LENGTH
from plugin.labels.keys import KEYS, PREFIX, UNSET
from plugin.labels.parser import ParsedLabels
from plugin.model import Container, PolicySpec, Problem

_COMPOSE = "com.docker.compose."
#: Labels of an image of which a container's user is told; characters of labels whose reading is kept.
_TOLD, _KEPT = 16, 1 << 16
#: What compose says of a container and never of an image.
_OF_ONE = ("container-number", "config-hash")


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """`own`: labels that count, `image_labels`: the image's, which do not. `networks`: those it is on, by name.

    `unsure`: it is not known which are the image's, so all of `image_labels` may be the user's.
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


def ours(listed: Mapping[str, Any]) -> dict[str, str]:
    """The labels of a listed container that are docker-fw's."""
    told = listed.get("Labels") or {}
    return {key: value for key, value in told.items() if key.lower().startswith(PREFIX)}


def asks_for_image(listed: Mapping[str, Any]) -> bool:
    """True if it matters what labels the container's image has."""
    told = listed.get("Labels") or {}
    return bool(ours(listed)) or _COMPOSE + "project" in told


def matters(key: str) -> bool:
    """True for the labels of an image that are ever compared with a container's."""
    return key.lower().startswith(PREFIX) or key.startswith(_COMPOSE)


def read(listed: Mapping[str, Any], image: Mapping[str, str] | None, *, unknown: str = "") -> ContainerLabels:
    """A container as `GET /containers/json` lists it. `image`: the image's labels; None if they are trusted.

    `unknown`: why these are not known; then every label is taken for the image's, and that is a problem.
    """
    names = listed.get("Names") or []
    # A linked container has several names; its own is the one without a second slash.
    name = next((n[1:] for n in names if n.count("/") == 1), listed["Id"][:12])
    told = listed.get("Labels") or {}
    spec, image = ours(listed), image or {}
    image_labels = spec if unknown else {key: value for key, value in spec.items() if image.get(key) == value}
    own = {key: value for key, value in spec.items() if key not in image_labels} | parser.only_closing(image_labels)
    return ContainerLabels(
        id=listed["Id"],
        name=name,
        own=tuple(sorted(own.items())),
        image_labels=tuple(sorted((key, value) for key, value in image_labels.items() if key not in own)),
        problems=_unasked(image_labels, own, unknown) if unknown else (),
        **_compose(told, image, known=not unknown),
        networks=tuple(sorted((listed.get("NetworkSettings") or {}).get("Networks") or {})),
        unsure=bool(unknown),
    )


def _compose(told: Mapping[str, Any], image: Mapping[str, str], *, known: bool) -> dict[str, str]:
    """Which compose project and service the container is of: others' rules may speak of it as a peer.

    compose marks the images that it builds with both, so these say nothing by themselves; what it says of one container
    it says of no image, and an image that does makes its containers nobody's.
    """
    own = any(told.get(key) and told[key] != image.get(key) for key in map(_COMPOSE.__add__, _OF_ONE))
    names = {name: _name(told, name) for name in ("project", "service")}
    return names if own and known else dict.fromkeys(names, "")


def _unasked(image_labels: Mapping[str, str], own: Mapping[str, str], unknown: str) -> tuple[Problem, ...]:
    left = {key: value for key, value in image_labels.items() if key not in own}
    if not left:
        return ()
    text = f"it is not known whether the image brought this label: {unknown}"
    wrong, keys = parser.parse(left).problems, {parser.split(key)[1] for key in left}
    closes = any(problem.closes for problem in wrong) or any(_may_close(key, value) for key, value in left.items())
    confines = any(problem.confines for problem in wrong) or any(key in KEYS and KEYS[key].confines for key in keys)
    first = min(left)
    return (Problem("label " + first, left[first], text, closes, confines),)


def _may_close(key: str, value: str) -> bool:
    """True unless it can only open, or is not about what comes in. A `from` takes its port out of the base."""
    network, name = parser.split(key)
    entry = KEYS.get(name)
    # What is for one network is about none if the name is wrong, and that may close.
    return entry is None or entry.may_close(value) or (network is not None and not entry.only_opens(entry.of(UNSET)))


def compose_key(network: Mapping[str, Any]) -> str:
    """The compose project that made the network and what its file calls it, as PROJECT/KEY; "" if none did."""
    told = network.get("Labels") or {}
    project, key = (_name(told, name) for name in ("project", "network"))
    return f"{project}/{key}" if project and key else ""


def _name(told: Mapping[str, Any], name: str) -> str:
    """One that is longer than any rule can say is nobody's, and not kept."""
    found = str(told.get(_COMPOSE + name) or "")
    return found if len(found) <= MAX_LENGTH else ""


def at(who: ContainerLabels, network: str, key: str = "") -> Container:
    """The container as it is on the network of that name. `key`: of `compose_key`; it may be another project's."""
    parsed = _parsed(who.own)
    project, _, called = key.partition("/")
    mine = {*_names(who, network), *((called,) if called and project == who.project else ())}
    notices = [_of_the_image(label, value, unsure=who.unsure) for label, value in who.image_labels[:_TOLD]]
    if len(who.image_labels) > _TOLD:
        came = "may have come" if who.unsure else "came"
        notices.append(f"{len(who.image_labels) - _TOLD} more labels {came} with the image and open nothing")
    problems = [*who.problems, *parsed.problems]
    known = {name for each in who.networks for name in _names(who, each)} | mine
    for name, spec in parsed.networks:
        if name not in known:
            where, text = f"label fw.network.{name}", f"the container is on no network {name[:64]!r}"
            there = ", ".join(sorted({*who.networks, network})[:8])
            if _only_opens(spec):
                notices.append(f"{where} has no effect: {text} (it is on {there})")
            else:
                problems.append(
                    Problem(
                        where,
                        "…",
                        f"{text}; it is on {there}",
                        confines=_confines(spec),
                    )
                )
    return Container(
        id=who.id,
        name=who.name,
        spec=parser.for_network(parsed, mine),
        image_spec=_closing(parser.for_network(_parsed(who.image_labels), mine)),
        problems=tuple(problems),
        notices=tuple(notices),
        network=network,
        project=who.project,
        service=who.service,
    )


def _of_the_image(label: str, value: str, *, unsure: bool) -> str:
    came = "may have come" if unsure else "came"
    entry = KEYS.get(parser.split(label)[1])
    nothing = "opens nothing" if entry is None or entry.opens else "counts for nothing"
    return f'label {label[:80]}="{value[:80]}" {came} with the image and {nothing} (FW_IMAGE_LABELS=trust lets it)'


def _parsed(pairs: tuple[tuple[str, str], ...]) -> ParsedLabels:
    """What is refused for its size is so in no time, and not kept."""
    size = sum(len(key) + len(str(value)) for key, value in pairs)
    return _kept(pairs) if size <= _KEPT else parser.parse(dict(pairs))


@lru_cache(maxsize=4096)
def _kept(pairs: tuple[tuple[str, str], ...]) -> ParsedLabels:
    return parser.parse(dict(pairs))


def _names(who: ContainerLabels, network: str) -> Iterator[str]:
    """The network's name, and what compose's file calls it if nobody named it otherwise."""
    yield network
    if who.project and network.startswith(who.project + "_"):
        yield network[len(who.project) + 1 :]


def _only_opens(spec: PolicySpec) -> bool:
    return all(key.only_opens(key.of(spec)) for key in KEYS.values() if key.says(spec))


def _confines(spec: PolicySpec) -> bool:
    return any(key.confines and key.says(spec) for key in KEYS.values())


def _closing(spec: PolicySpec) -> PolicySpec:
    """Of what an image says that which only closes where nobody else says anything."""
    return PolicySpec(**{key.field: key.of(spec) for key in KEYS.values() if key.closes_elsewhere})


def known_names(networks: Collection[Mapping[str, Any]]) -> frozenset[str]:
    """The names of Docker's networks, as it lists them."""
    return frozenset(str(network["Name"]) for network in networks if isinstance(network.get("Name"), str))
