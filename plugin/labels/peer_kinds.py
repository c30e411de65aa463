"""The registry of peers by name: an entry says how a kind is written, whose name it is, which one a rule means. Pure.

Parsing, messages, the index of names, the state file and what `fwctl status` shows follow from it.
`plugin.fwctl.check.hints` says when such a peer matches no container, and fails when it is imported until it does.

Two kinds are no names: "prefix", whose value is an address or a prefix, and "host". The table knows these; names are
resolved to prefixes before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from plugin.model import Container

#: The compose project that a name is looked for in ("": anywhere), and the name; an empty one is no container's.
Name = tuple[str, str]
#: The names of Docker's networks; None until Docker has listed them.
Networks = Collection[str] | None
#: Docker's own rule for names (moby, daemon/names), and what compose makes of it.
_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
#: Kinds that are no names.
PREFIX, HOST = "prefix", "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerKind:
    """`kind`: what stands before the colon. `pattern`: what may stand behind it; `what` says so in a message.

    `of`: the name that a container has. `meant`: which name a rule means by this value; it gets the value, the compose
    project of the rule's own container ("" without one), and Docker's networks. None: none at all.
    `networks`: it depends on whether Docker has a network VALUE or PROJECT_VALUE, and is looked up again when these
    change.
    """

    kind: str
    pattern: re.Pattern[str]
    what: str
    of: Callable[[Container], Name]
    meant: Callable[[str, str, Networks], Name | None]
    networks: bool


def _anywhere(value: str, _: str, __: Networks) -> Name:
    return ("", value)


def _in_project(value: str, project: str, _: Networks) -> Name | None:
    return (project, value) if project else None


def _network(value: str, project: str, networks: Networks) -> Name:
    """As compose's file calls it in the same project, or by its full name."""
    if not project:
        return ("", value)
    if networks is None:  # it is not known which one is meant, so none is
        return (project, value)
    local = f"{project}_{value}"
    return ("", local if local in networks else value)


_ENTRIES = (
    PeerKind(
        kind="container",
        pattern=_DOCKER_NAME,
        what="name of Docker's",
        of=lambda container: ("", container.name),
        meant=_anywhere,
        networks=False,
    ),
    PeerKind(
        kind="service",
        pattern=_DOCKER_NAME,
        what="name of Docker's",
        of=lambda container: (container.project, container.service if container.project else ""),
        meant=_in_project,
        networks=False,
    ),
    PeerKind(
        kind="project",
        pattern=_DOCKER_NAME,
        what="name of Docker's",
        of=lambda container: ("", container.project),
        meant=_anywhere,
        networks=False,
    ),
    PeerKind(
        kind="network",
        pattern=_DOCKER_NAME,
        what="name of Docker's",
        of=lambda container: ("", container.network),
        meant=_network,
        networks=True,
    ),
)
NAMED = {each.kind: each for each in _ENTRIES}
if len(NAMED) != len(_ENTRIES) or {PREFIX, HOST, "any", "itself"} & NAMED.keys():
    raise TypeError("two kinds of peers have the same name")
