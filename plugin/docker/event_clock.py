"""Decide whether an answer from Docker is current: which containers left since it was requested.

Docker's lists and look-ups take time, and meanwhile its events report departures. So docker-fw keeps a clock that
advances with each connection and departure. A container that left after the request is not there, whatever the answer
contains.

Docker lists a container as running for some time after it reported that it ended: Docker 20.10 reports that first, then
frees the addresses, then changes its list (moby's daemon/monitor.go; later versions report it last). So what was left
is not there until Docker reports that it is connected again, and no answer from before that report counts for it.
"""

from __future__ import annotations


class EventClock:
    """Not thread-safe.

    A place is the ID of a network and of a container; without a network it means all of the container's, without a
    container the network itself.
    """

    def __init__(self) -> None:
        self.now = 0
        #: Answers requested before this moment are stale.
        self._floor = 0
        self._asked = 0
        #: By container, the networks that it left ("": all), and to which no return was reported.
        self._gone: dict[str, set[str]] = {}
        #: The last moment at which each place was not there.
        self._left: dict[tuple[str, str], int] = {}
        #: The moment of each container's last change of name.
        self._renamed: dict[str, int] = {}

    def tick(self) -> int:
        """Advance the clock, because Docker reported something; return the moment."""
        self.now += 1
        return self.now

    def leaves(self, network: str, container: str) -> None:
        """Note that a container disconnected now from a network, or from all ("")."""
        self._gone.setdefault(container, set()).add(network)
        self._left[network, container] = self.tick()

    def returns(self, network: str, container: str) -> None:
        """Note that a container connected to a network; answers from before may list what it had earlier."""
        gone = self._gone.get(container, set())
        for place in gone & {network, ""}:
            gone.remove(place)
            self._left[place, container] = self.tick()
        if not gone:
            self._gone.pop(container, None)

    def renamed(self, container: str) -> None:
        """Note that a container has another name now."""
        self._renamed[container] = self.tick()

    def forget(self, container: str) -> None:
        """Note that a container does not exist any more; answers that are under way may list it."""
        self._gone.pop(container, None)
        self._left["", container] = self.tick()

    def network_gone(self, network: str) -> None:
        """Note that a network does not exist any more; answers that are under way may list it."""
        self._left[network, ""] = self.tick()

    def start_over(self) -> None:
        """Discard departures, because some may have been missed. Answers requested before now are stale."""
        self._gone.clear()
        self.invalidate()

    def invalidate(self) -> None:
        """Make all answers requested before now stale."""
        self._floor = self.tick()

    def too_old(self, asked: int) -> bool:
        """True if an answer requested at `asked` must not be used: events were missed since, or newer lists came."""
        return asked < self._floor

    def list_came(self, asked: int) -> None:
        """Note a full listing. Answers requested before the previous full listing are stale."""
        self._floor = max(self._floor, self._asked)
        self._asked = asked
        self._left = {place: when for place, when in self._left.items() if when > self._floor}
        self._renamed = {container: when for container, when in self._renamed.items() if when > self._floor}

    def has_left(self, network: str, container: str, asked: int) -> bool:
        """True if the container has left since Docker was asked. Without a container: if the network was removed."""
        gone = self._gone.get(container, ())
        return any(place in gone or self._left.get((place, container), 0) > asked for place in (network, ""))

    def has_other_name(self, container: str, asked: int) -> bool:
        """True if the container was renamed since Docker was asked."""
        return self._renamed.get(container, 0) > asked
