"""The expectations for attacks of a hostile container on its neighbour and on the host, on both kinds of networks.

On a docker-fw network none of the attack leaves the container. Docker networks are as Docker makes them (SECURITY.md,
"Between containers of one network"): there the tables are what such an attack does, with a kernel's default sysctls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .case import NOTHING, Case

_ROUTER, _ADVERT = frozenset({"icmpv6 134"}), frozenset({"icmpv6 136"})
#: Linux takes a whole message from an atomic fragment, and ignores it if it was put together of several (RFC 6980).
_ROUTED = (_ROUTER, frozenset({"target: addresses", "target: routes"}))
_IGNORED = (_ROUTER, NOTHING)
_DIVERTED = (_ADVERT, frozenset({"target: neighbours"}))
_HOST = (NOTHING, frozenset({"host: neighbours"}))
#: The tool solicits first. The redirect has no effect: the target's route is by the host's global address.
_REDIRECTED = (frozenset({"icmpv6 135", "icmpv6 137"}), NOTHING)
_OVERLAP = (frozenset({"part of icmpv6 128", "unreadable"}), NOTHING)
#: On Docker networks: what arrives at the neighbour, and what changes.
ON_DOCKER: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "fake_router26: plain": _ROUTED,
    "fake_router26: behind a hop-by-hop header": _ROUTED,
    "fake_router26: in an atomic fragment": _ROUTED,
    "fake_router26: behind a hop-by-hop header, in three atomic fragments": _ROUTED,
    "fake_router26: as the host": _ROUTED,
    "fake_router26: a large destination header, in fragments": _IGNORED,
    "fake_router26: full evasion": _IGNORED,
    "fake_router26: overlapping fragments (first wins)": _OVERLAP,
    "fake_router26: overlapping fragments (last wins)": _OVERLAP,
    "fake_advertise6: the gateway's address, plain": _DIVERTED,
    "fake_advertise6: the gateway's address, behind a hop-by-hop header": _DIVERTED,
    "fake_advertise6: the gateway's address, in an atomic fragment": (_ADVERT, NOTHING),
    "fake_advertise6: the gateway's address, a large destination header, in fragments": (_ADVERT, NOTHING),
    "fake_advertise6: the gateway's address, full evasion": (_ADVERT, NOTHING),
    "fake_advertise6: the target's address, plain": _HOST,
    "fake_advertise6: the target's address, behind a hop-by-hop header": _HOST,
    "ra6: plain": _ROUTED,
    "ra6: in fragments": _IGNORED,
    "ra6: behind destination options": _IGNORED,
    "ra6: hop-by-hop": _IGNORED,
    # The tool sends to a multicast MAC, so the neighbour receives the frame, too.
    "ra6: to the host, plain": _IGNORED,
    "ra6: to the host, in fragments": _IGNORED,
    "ra6: to the host, behind destination options": _IGNORED,
    "ra6: to the host, hop-by-hop": _IGNORED,
    "na6: the gateway's address, plain": _DIVERTED,
    "na6: the gateway's address, in fragments": (_ADVERT, NOTHING),
    "na6: the gateway's address, behind destination options": (_ADVERT, NOTHING),
    "na6: the gateway's address, hop-by-hop": (_ADVERT, NOTHING),
    "na6: the target's address, plain": (_ADVERT, frozenset({"host: neighbours"})),
    "na6: the target's address, in fragments": (_ADVERT, NOTHING),
    "na6: the target's address, behind destination options": (_ADVERT, NOTHING),
    "na6: the target's address, hop-by-hop": (_ADVERT, NOTHING),
    "rd6: as the router, plain": _REDIRECTED,
    "rd6: as the router, in fragments": _REDIRECTED,
    "rd6: as the router, behind destination options": _REDIRECTED,
    "rd6: as the router, hop-by-hop": _REDIRECTED,
}
#: On docker-fw networks: the first fragment of an echo request, which the advertisement would overwrite, is harmless.
_ECHO_PART = frozenset({"part of icmpv6 128"})
#: A later fragment of a message of which the first did not leave the container.
_REST = frozenset({"part of an unknown packet"})
ON_OURS: Mapping[str, frozenset[str]] = {
    "fake_router26: overlapping fragments (first wins)": _ECHO_PART,
    "fake_router26: overlapping fragments (last wins)": _ECHO_PART,
    "ra6: in fragments": _REST,
    "ra6: to the host, in fragments": _REST,
    "na6: the gateway's address, in fragments": _REST,
    "na6: the target's address, in fragments": _REST,
}


def neighbour(tool: str, name: str, command: str, **more: Any) -> Iterator[Case]:
    """Yield a hostile neighbour's attack, on a docker-fw network and on a Docker network."""
    title = f"{tool}: {name}"
    arrives, changes = ON_DOCKER.get(title, (NOTHING, NOTHING))
    ours = ON_OURS.get(title, NOTHING)
    quick = name.endswith(("plain", "in fragments"))
    yield Case(tool, name, command, ours, "neighbour", ("docker-fw",), quick=quick, **more)
    yield Case(tool, name, command, arrives, "neighbour", ("Docker",), changes, **more)
