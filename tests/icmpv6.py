"""The registry of ICMPv6 messages that RFC 4890 names, and of the verdict for each. `python -m tests.icmpv6` writes it.

`tests/kernel/test_icmpv6.py` sends every type and code of every row in every direction and compares. The document is
docs/icmpv6.md; a pure test fails if it differs from this registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs/icmpv6.md"
START, END = "<!-- generated: python -m tests.icmpv6 -->", "<!-- end of the generated table -->"

#: The RFC's sections on transit and on local traffic, and the category of each.
SECTIONS = {
    "4.3.1": "must not be dropped",
    "4.3.2": "should not be dropped",
    "4.3.3": "is dropped anyway",
    "4.3.4": "needs a policy",
    "4.3.5": "should be dropped",
    "4.4.1": "must not be dropped",
    "4.4.2": "should not be dropped",
    "4.4.3": "is dropped anyway",
    "4.4.4": "needs a policy",
    "4.4.5": "should be dropped",
}
#: The directions, in the order of the table's columns, and the kind of traffic to which the RFC counts each.
DIRECTIONS = {
    "inbound": "4.3",
    "in_flow": "4.3",
    "outbound": "4.3",
    "to_host": "4.4",
    "from_host": "4.4",
    "neighbour": "4.4",
}
#: Types below this one are errors, which quote the packet that they are about (RFC 4443 section 2.1).
INFORMATIONAL = 128
ECHO_REPLY, ROUTER_ADVERT, REDIRECT = 129, 134, 137

ACCEPT, DROP = "accept", "drop"
#: The bridge of a docker-fw network drops the message already; that of a Docker network does not.
DROP_BY_OURS = "drop (Docker networks: accept)"
_UNRELATED = "Only an answer to an echo request of the container belongs to a flow."
_ROUTER = "A container is not a router for the host or for other networks (CVE-2020-13401)."
_FLOOR = "Accepted, because the article on which the base rests lists it. "
_FORWARDED = "The receiver ignores a message that was forwarded: its hop limit is not 255 (RFC 4861 section 7.1)."
_NO_MULTICAST = "No multicast group exists across a router here, and a message of a link is not forwarded."
_QUERIER = "Only the host is a multicast querier: a query of a container cuts off its neighbours (RFC 4541)."
_UNKNOWN_ERROR = "An error about a flow of the container is passed to its protocol (RFC 4443 section 2.4 b)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. `types`: first and last of each range. `codes`: those that the row is about; empty: all.

    `transit`, `local`: the sections that name it. The verdicts: `inbound` is from outside to a container, about no
    flow; `in_flow` the same about a flow that the container opened ("" if the type belongs to none); `outbound` from a
    container to outside; `to_host`, `from_host` between a container and its host; `neighbour` between containers of
    one docker-fw network. `why`: the reason, where a verdict differs from the RFC, and notes.
    """

    name: str
    types: tuple[tuple[int, int], ...]
    codes: tuple[int, ...] = ()
    transit: str
    local: str
    inbound: str = DROP
    in_flow: str = ""
    outbound: str = ACCEPT
    to_host: str = ACCEPT
    from_host: str = ACCEPT
    neighbour: str = ACCEPT
    why: str = ""

    def messages(self) -> Iterator[tuple[int, int]]:
        """Yield each type with each code to send; a row about all codes is tried with the first 8, and the last."""
        for first, last in self.types:
            few = (0, 255) if last > first else (*range(8), 255)
            yield from ((kind, code) for kind in range(first, last + 1) for code in self.codes or few)

    @property
    def written(self) -> str:
        """The types and codes as text."""
        text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in self.types)
        if not self.codes:
            return text
        codes = f"{self.codes[0]}" if len(self.codes) == 1 else f"{self.codes[0]}-{self.codes[-1]}"
        return f"{text}, code {codes}"


_ERROR = {"inbound": ACCEPT, "in_flow": ACCEPT}
ROWS = (
    Row(name="destination unreachable", types=((1, 1),), transit="4.3.1", local="4.4.1", **_ERROR),
    Row(name="packet too big", types=((2, 2),), transit="4.3.1", local="4.4.1", **_ERROR),
    Row(name="time exceeded, in transit", types=((3, 3),), codes=(0,), transit="4.3.1", local="4.4.1", **_ERROR),
    Row(name="time exceeded, reassembly", types=((3, 3),), codes=(1,), transit="4.3.2", local="4.4.2", **_ERROR),
    Row(name="parameter problem, header field", types=((4, 4),), codes=(0,), transit="4.3.2", local="4.4.2", **_ERROR),
    Row(
        name="parameter problem, next header, option",
        types=((4, 4),),
        codes=(1, 2),
        transit="4.3.1",
        local="4.4.1",
        **_ERROR,
    ),
    Row(
        name="unallocated errors",
        types=((5, 99), (102, 126)),
        transit="4.3.4",
        local="4.4.4",
        in_flow=ACCEPT,
        why=_UNKNOWN_ERROR,
    ),
    Row(
        name="private experiments, errors",
        types=((100, 101),),
        transit="4.3.5",
        local="4.4.5",
        in_flow=ACCEPT,
        why=_UNKNOWN_ERROR,
    ),
    Row(
        name="reserved for more errors",
        types=((127, 127),),
        transit="4.3.5",
        local="4.4.5",
        in_flow=ACCEPT,
        why=_UNKNOWN_ERROR,
    ),
    Row(name="echo request", types=((128, 128),), transit="4.3.1", local="4.4.1", inbound=ACCEPT),
    Row(name="echo reply", types=((129, 129),), transit="4.3.1", local="4.4.1", in_flow=ACCEPT, why=_UNRELATED),
    Row(
        name="multicast listener query",
        types=((130, 130),),
        transit="4.3.3",
        local="4.4.1",
        outbound=DROP_BY_OURS,
        to_host=DROP_BY_OURS,
        neighbour=DROP,
        why=f"{_NO_MULTICAST} {_QUERIER}",
    ),
    Row(
        name="multicast listener report, done, report v2",
        types=((131, 132), (143, 143)),
        transit="4.3.3",
        local="4.4.1",
        why=_NO_MULTICAST,
    ),
    Row(name="router solicitation", types=((133, 133),), transit="4.3.3", local="4.4.1", why=_FORWARDED),
    Row(
        name="router advertisement",
        types=((134, 134),),
        transit="4.3.3",
        local="4.4.1",
        inbound=ACCEPT,
        outbound=DROP,
        to_host=DROP,
        neighbour=DROP,
        why=f"{_FLOOR}{_FORWARDED} {_ROUTER}",
    ),
    Row(
        name="neighbour solicitation, advertisement",
        types=((135, 136),),
        transit="4.3.3",
        local="4.4.1",
        inbound=ACCEPT,
        why=f"{_FLOOR}{_FORWARDED}",
    ),
    Row(
        name="redirect",
        types=((137, 137),),
        transit="4.3.3",
        local="4.4.4",
        outbound=DROP,
        to_host=DROP,
        neighbour=DROP,
        why=_ROUTER,
    ),
    Row(name="router renumbering", types=((138, 138),), transit="4.3.5", local="4.4.3"),
    Row(name="node information query, response", types=((139, 140),), transit="4.3.5", local="4.4.4"),
    Row(name="inverse neighbour discovery", types=((141, 142),), transit="4.3.3", local="4.4.1", why=_FORWARDED),
    Row(
        name="Mobile IPv6: home agent discovery, prefixes",
        types=((144, 147),),
        transit="4.3.2",
        local="4.4.3",
        why="No container is a home agent or a mobile node, and the base opens nothing that no container needs.",
    ),
    Row(name="SEND: certification path", types=((148, 149),), transit="4.3.3", local="4.4.1", why=_FORWARDED),
    Row(name="Seamoby, experimental", types=((150, 150),), transit="4.3.4", local="4.4.3"),
    Row(
        name="multicast router advertisement",
        types=((151, 151),),
        transit="4.3.3",
        local="4.4.1",
        outbound=DROP_BY_OURS,
        to_host=DROP_BY_OURS,
        neighbour=DROP,
        why=f"{_NO_MULTICAST} A container is no multicast router for its neighbours (RFC 4286).",
    ),
    Row(
        name="multicast router solicitation, termination",
        types=((152, 153),),
        transit="4.3.3",
        local="4.4.1",
        why=_NO_MULTICAST,
    ),
    Row(name="unallocated informational", types=((154, 199), (202, 254)), transit="4.3.4", local="4.4.5"),
    Row(name="private experiments, informational", types=((200, 201),), transit="4.3.5", local="4.4.5"),
    Row(name="reserved for more informational", types=((255, 255),), transit="4.3.5", local="4.4.5"),
)

#: The ICMP (IPv4) types that are accepted from outside, about no flow.
ACCEPTED4 = {
    3: "destination unreachable, with `fragmentation needed`: path MTU discovery (RFC 1191)",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}


def table() -> str:
    """Return the generated part of the document."""
    head = "| type | message | RFC 4890: transit, local | " + " | ".join(map(_head, DIRECTIONS)) + " | reason |"
    lines = [head, "|" + "---|" * (head.count(" | ") + 1)]
    for row in ROWS:
        sections = f"{row.transit} {SECTIONS[row.transit]}, {row.local} {SECTIONS[row.local]}"
        verdicts = " | ".join(getattr(row, name) or "–" for name in DIRECTIONS)
        lines.append(f"| {row.written} | {row.name} | {sections} | {verdicts} | {row.why} |")
    four = [f"| {kind} | {name} |" for kind, name in ACCEPTED4.items()]
    return "\n".join([*lines, "", "| ICMP type | accepted from outside, over IPv4 |", "|---|---|", *four])


def _head(name: str) -> str:
    return {
        "inbound": "from outside",
        "in_flow": "the same, in a flow",
        "outbound": "to outside",
        "to_host": "to the host",
        "from_host": "from the host",
        "neighbour": "to a neighbour",
    }[name]


def written(text: str) -> str:
    """Return the document with its generated part as it should be."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
