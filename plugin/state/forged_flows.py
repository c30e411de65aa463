"""Which flows end when a bridge gets a subnet: those from and to it that the host only forwarded.

An outsider may have opened such a flow before, with the address of a future container as its source. The rules refuse
such a source only while the host has a route to it through a bridge that they protect. For docker-fw's own bridges
`Links.make_bridge` cuts these flows, before a container can join.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from plugin.kernel import conntrack
from plugin.kernel.link_monitor import Link
from plugin.model import Prefix


class ForgedFlows:
    """Compares the subnets of other programs' bridges with those of the last call.

    `protected`: the bridges whose addresses were no valid sources from outside before this start, None if that is
    unknown: their flows stay. `later` queues long work and returns at once.
    """

    def __init__(self, protected: Collection[str] | None, later: Callable[[Callable[[], object]], object]) -> None:
        self._protected = protected
        self._later = later
        #: The index of each bridge that is up, with each of its subnets. None before the first call.
        self._known: set[tuple[int, Prefix]] | None = None

    def see(self, links: Iterable[Link], subnets: Mapping[int, Iterable[Prefix]], unmanaged: Collection[str]) -> None:
        """Cut the flows of subnets that are new since the last call, on bridges that are not `unmanaged`.

        `subnets`: by the index of a link.
        """
        bridges = {link.index: link.name for link in links if link.bridge and link.up and not link.ours}
        there = {(index, subnet) for index in bridges for subnet in subnets.get(index, ())}
        if self._known is None:
            self._known = {each for each in there if self._protected is None or bridges[each[0]] in self._protected}
        new = [subnet for index, subnet in there - self._known if bridges[index] not in unmanaged]
        self._known = there
        if new:
            self._later(partial(conntrack.cut_forwarded, new))
