"""A case: one run of one tool, and exactly what the attacked side may receive of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The network of the attacked container: of docker-fw's driver, or of Docker's bridge driver.
Kind = Literal["docker-fw", "Docker"]
KINDS: tuple[Kind, ...] = ("docker-fw", "Docker")
#: "outsider": a host on the other side of the uplink. "neighbour": a hostile container on the target's network.
Sender = Literal["outsider", "neighbour"]
SENDERS: tuple[Sender, ...] = ("outsider", "neighbour")

#: The attacked containers' label opens TCP 8080 and UDP 5353, in addition to TCP 22, 80 and 443. Their servers also
#: listen on the closed ports, so that a packet that arrives there is answered.
LABELS = {"fw.allow": "8080, 5353/udp"}
OPEN_TCP, OPEN_UDP, CLOSED_TCP, CLOSED_UDP = 8080, 5353, 9090, 9053
#: An echo request, which may reach every container.
ECHO4, ECHO6 = "icmp 8", "icmpv6 128"
#: Errors that the outsider's kernel sends when a server answers a tool that does not listen.
REPLIES = frozenset({"icmp 3", "icmpv6 1"})
#: Seconds that a tool that never ends may run.
LONGEST = 8
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One run of a tool. `command` is a template, with words of `bed.Spot.words`."""

    tool: str
    name: str
    command: str
    #: What arrives at the target, exactly: "tcp 8080", "icmpv6 128" (see `arrivals`). From outside without `REPLIES`.
    arrives: frozenset[str] = NOTHING
    sender: Sender = "outsider"
    #: The network on which the target is. What a neighbour may do differs between them.
    kinds: tuple[Kind, ...] = KINDS
    #: What changes in the target and on the host: "target: routes", "host: neighbours" (see `bed.picture`).
    changes: frozenset[str] = NOTHING
    #: For nmap: the state that it reports for exactly those ports of the protocol that `fwctl status` lists as open.
    finds: tuple[str, str] = ("", "")
    #: A command in the target while the tool runs, to make the target ask what the tool answers falsely.
    target_does: str = ""
    #: Seconds after which a tool that never ends is ended. 0: the tool ends by itself.
    ended_after: float = 0
    #: True: part of `make test`.
    quick: bool = False
    #: The reason for an expectation that is not obvious.
    note: str = ""

    def __post_init__(self) -> None:
        if self.ended_after > LONGEST:
            raise ValueError(f"{self.title}: a tool that never ends may run for at most {LONGEST} s")

    @property
    def title(self) -> str:
        """Return its tool and name."""
        return f"{self.tool}: {self.name}"


@dataclass(frozen=True)
class NotApplicable:
    """A case of a tool that is not run, and the reason."""

    tool: str
    name: str
    reason: str
