"""The registry of peers by name: how a kind is written, and which name a rule refers to. Pure.

Parsing, messages, the index of names, the state file and the output of `fwctl status` use it.
`plugin.fwctl.check.hints` has the message for such a peer that matches no container, and its import fails if a kind is
missing.

Two kinds are not names: "prefix", whose value is an address or a prefix, and "host". The table knows these; names are
resolved to prefixes before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from plugin.model import Container

#: The compose project in which a name is looked up ("": anywhere), and the name; an empty name matches no container.
Name = tuple[str, str]
#: The names of all networks that Docker lists; None until Docker has listed them.
Networks = Collection[str] | None
#: Docker's own rule for names (moby, daemon/names), and compose's names derived from it.
_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
#: Kinds that are not names.
PREFIX, HOST = "prefix", "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerKind:
    """A kind of peer.

    `kind`: the part before the colon. `pattern`: the allowed text after it; `what` describes it in a message. `of`:
    the name that a container has. `meant`: the name that a rule refers to by this value; it gets the value, the
    compose project of the rule's own container ("" without one), and Docker's networks. It returns None for no name at
    all. `networks`: the name depends on whether Docker has a network VALUE or PROJECT_VALUE, and is resolved again
    when these change.
    """

    kind: str
    pattern: re.Pattern[str]
    what: str
    of: Callable[[Container], Name]
    meant: Callable[[str, str, Networks], Name | None]
    networks: bool

    def __post_init__(self) -> None:
        # It is read in lower case, and must not be the beginning of an IPv6 address.
        if not re.fullmatch(r"[a-z]+", self.kind) or not re.search(r"[g-z]", self.kind):
            raise TypeError(
                f"{self.kind!r} cannot be a kind of peer: use lower-case letters, not hexadecimal digits alone"
            )


def _anywhere(value: str, _: str, __: Networks) -> Name:
    return ("", value)


def _in_project(value: str, project: str, _: Networks) -> Name | None:
    return (project, value) if project else None


def _network(value: str, project: str, networks: Networks) -> Name:
    """Return the network by its key in the compose file of the same project, or by its full name."""
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
        what="valid Docker name",
        of=lambda container: ("", container.name),
        meant=_anywhere,
        networks=False,
    ),
    PeerKind(
        kind="service",
        pattern=_DOCKER_NAME,
        what="valid Docker name",
        of=lambda container: (container.project, container.service if container.project else ""),
        meant=_in_project,
        networks=False,
    ),
    PeerKind(
        kind="project",
        pattern=_DOCKER_NAME,
        what="valid Docker name",
        of=lambda container: ("", container.project),
        meant=_anywhere,
        networks=False,
    ),
    PeerKind(
        kind="network",
        pattern=_DOCKER_NAME,
        what="valid Docker name",
        of=lambda container: ("", container.network),
        meant=_network,
        networks=True,
    ),
)
NAMED = {each.kind: each for each in _ENTRIES}
if len(NAMED) != len(_ENTRIES) or {PREFIX, HOST, "any", "itself"} & NAMED.keys():
    raise TypeError("two kinds of peers have the same name")
