"""What an answer of Docker's is worth: who has gone since it was asked for.

Docker's lists and look-ups take their time, and meanwhile its events say who goes. So we keep a time of our own, which
goes on with each coming and going: whoever has gone after Docker was asked is not there, whatever it answers.
"""

from __future__ import annotations


class EventClock:
    """Not thread-safe. A place is a network's and a container's ID; without a network it is all of a container's."""

    def __init__(self) -> None:
        self.now = 0
        #: Answers to what was asked for before are too old.
        self._floor = 0
        self._asked = 0
        #: Who has gone, and has not been said to have come back.
        self._gone: set[tuple[str, str]] = set()
        #: When each last went.
        self._left: dict[tuple[str, str], int] = {}

    def tick(self) -> int:
        """Something was told; returns the moment."""
        self.now += 1
        return self.now

    def leaves(self, network: str, container: str) -> None:
        """Note that a container disconnected now from a network, or from all ("")."""
        self._gone.add((network, container))
        self._left[network, container] = self.tick()

    def returns(self, network: str, container: str) -> None:
        """Note that a container connected to a network."""
        self._gone -= {(network, container), ("", container)}

    def forget(self, container: str) -> None:
        """The container does not exist any more. That it went counts on, for answers that are still under way."""
        self._gone = {(n, c) for n, c in self._gone if c != container}

    def start_over(self) -> None:
        """Goodbyes may have been missed: they count no more, and no answer to what was asked for before now."""
        self._gone.clear()
        self.doubt()

    def doubt(self) -> None:
        """No answer counts to what was asked for before now."""
        self._floor = self.tick()

    def too_old(self, asked: int) -> bool:
        """True if an answer requested at `asked` must not be used: events were missed since, or newer lists came."""
        return asked < self._floor

    def list_came(self, asked: int) -> None:
        """A list of everything: what was asked for before the one before it was asked for is too old from now on."""
        self._floor = max(self._floor, self._asked)
        self._asked = asked
        self._left = {place: when for place, when in self._left.items() if when > self._floor}

    def has_left(self, network: str, container: str, asked: int) -> bool:
        """True if whoever was there when Docker was asked has gone since."""
        places = ((network, container), ("", container))
        return any(place in self._gone or self._left.get(place, 0) > asked for place in places)
