"""The table that closes every bridge from before Docker starts until docker-fw does, as text for the host's `nft`.

It is docker-fw's own table with every element that closes and none that opens, so that docker-fw replaces it in one
transaction and nothing is open in between. It exempts the host's other bridges by name: docker-fw itself uses their
indices, which differ from boot to boot and exist only while the bridge does.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

from plugin.docker.bridges import SETTLE, Bridges
from plugin.docker.client import DockerApi
from plugin.docker.snapshot import DockerSnapshot
from plugin.fwctl.host.closed_elements import closed_elements
from plugin.jsonio import INTERFACE_NAME
from plugin.kernel import link_monitor
from plugin.model import DockerUnavailable, FwError, Prefix
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.document import document, element_text
from plugin.nftables.features import Features
from plugin.nftables.sets import TABLE, Element
from plugin.policy.frozen import FrozenDict
from plugin.policy.saved import SavedState
from plugin.policy.view import evaluated
from plugin.settings import Settings

#: Docker bridges that may be created later.
DOCKERS = ("docker0", "docker_gwbridge")
_HEAD = f"""\
# docker-fw: this table is active from before Docker starts until docker-fw starts and replaces it.
# Every bridge is closed, except for ICMP and for connections that containers open. Also closed: what containers with
# fw.egress open, published ports that no label opens, banned addresses. docker-fw keeps this file current. The program
# that loads it adds bans that expire: #until UNIX-TIME SET ELEMENT

# Fails if the table exists: docker-fw's own table is never replaced by this one, nor added to.
create table inet {TABLE}
"""


def nft_text(
    mark: int,
    dockers: Collection[str],
    unmanaged: Collection[str],
    closed: Iterable[Element] = (),
    bans: Mapping[Prefix, float] = MappingProxyType({}),
    *,
    late_fib: bool = True,
) -> str:
    """Return the file for nft: every bridge is closed but `unmanaged`; within a bridge containers talk freely.

    `closed`: more elements that close. `bans`: their ends (Unix time; 0: permanent). The script adds those that expire,
    because a time-out in the file would start again at each boot. `late_fib`: the kernel has `late_fib`
    and `labels` (`Features`).
    """
    lasting, ending = ban_elements(bans, 0)  # seconds from 1970 on
    elements = (*_elements(dockers, unmanaged), *(e for e in closed if e.set != "unmanaged"), *lasting)
    untils = "".join(f"#until {until} {e.set} {element_text(e)}\n" for e, until in sorted(ending.items(), key=str))
    names = ", ".join(f'"{name}"' for name in sorted(unmanaged))
    others = f" fib saddr oifname != {{ {names} }}" if unmanaged else ""
    features = Features(bridge=False, listeners=False, cgroups=False, late_fib=late_fib, labels=late_fib)
    text = document(mark, {*elements}, features, unmanaged=unmanaged)
    neighbours = f"insert rule inet {TABLE} inbound fib daddr . iif oif exists accept\n" if late_fib else ""
    return f"""{_HEAD}{text}
# Networks created after this file was written: a packet whose destination is routed by the link it came from stays
# within one bridge (Linux 5.19 or newer); and no other link opens connections with a container's source address.
{neighbours}insert rule inet {TABLE} reverse_path_elsewhere fib saddr oifname "br-*"{others} goto deny
{untils}"""


def _elements(dockers: Collection[str], unmanaged: Collection[str]) -> Iterator[Element]:
    for bridge in {*DOCKERS, *dockers}:
        yield Element("dockers", (bridge,))
        yield Element("protected_bridges", (bridge,))
    for bridge in {*DOCKERS, *dockers, *unmanaged}:
        yield Element("same_bridge", (bridge, bridge))


def closing_text(
    state: SavedState,
    dockers: Collection[str],
    unmanaged: Collection[str],
    settings: Settings,
    *,
    late_fib: bool = True,
) -> str:
    """Return the file for a saved state. `dockers`, `unmanaged`: bridges by name."""
    named = frozenset(filter(INTERFACE_NAME.fullmatch, unmanaged))
    return nft_text(settings.mark, dockers, named, closed_elements(state, settings), state.bans, late_fib=late_fib)


def first_text(
    look: DockerSnapshot,
    bridges: tuple[Collection[str], Collection[str]],
    bans: Mapping[Prefix, float],
    settings: Settings,
    *,
    late_fib: bool = True,
) -> str:
    """Return the file as `fwctl boot install` writes it, from Docker's listing and the bans of a running docker-fw."""
    known = evaluated(settings.defaults, look.facts()).state
    state = dataclasses.replace(known, bans=FrozenDict(bans))
    return closing_text(state, *bridges, settings, late_fib=late_fib)


def named_in(text: str, name: str) -> frozenset[str]:
    """Return the bridges that a file of `nft_text` has in this set."""
    found = re.search(rf"^add element inet {TABLE} {name} {{ (.*) }}$", text, re.MULTILINE)
    return _named(found[1].replace('"', "").split(", ")) if found else frozenset()


def bridges(
    api: DockerApi, uplinks: Callable[[], set[str]], wait: Callable[[float], None] = time.sleep
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the host's bridges by name: Docker's, and those that neither Docker nor docker-fw made.

    Takes seconds, because Docker creates a bridge before it lists the network. Raises FwError.
    """
    known = Bridges(uplinks)
    try:
        known.see(link_monitor.links().values())
        wait(SETTLE)
        dockers, complete = api.bridges()
        there = {link.name for link in link_monitor.links().values()}
    except (DockerUnavailable, OSError) as error:
        raise FwError(
            f"{error}; only Docker knows which bridges are its own: start it, and give its socket "
            "(-v /:/host, or FW_DOCKER_SOCKET=PATH)"
        ) from error
    if missing := dockers - there:
        # A container in its own network namespace sees none of the host's bridges, so none would be exempted.
        raise FwError(
            f"Docker's bridge {min(missing)} is not visible from here; run this in the host's network: "
            "docker run --network host …"
        )
    known.set_listed(dockers, known.now(), complete=complete)
    return _named(known.dockers() | dockers), _named(known.unmanaged())


def _named(bridges: Iterable[str]) -> frozenset[str]:
    """Drop names that nft would have to quote: such a bridge is closed, and not exempted."""
    return frozenset(filter(INTERFACE_NAME.fullmatch, bridges))
