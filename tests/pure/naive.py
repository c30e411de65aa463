"""A second reader of the label language, for the tests: slow, literal, word by word, without a line of the plugin's.

`rules`, `rates` … return the meaning of a value, or None if it is wrong; `accepts`, `may_open` decide about one flow.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
#: The addresses of a name: "service:api" → addresses.
Names = Mapping[str, Set[Address]]


@dataclass(frozen=True)
class Item:
    """One rule: a protocol, its ports, and the peers as they are written (None: all)."""

    proto: str
    first: int
    last: int
    peers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Flow:
    """A flow: `peer` is the address at the other end."""

    proto: str
    port: int
    peer: Address


def rules(text: str, word: str = "from") -> list[Item] | None:
    return _all([_item(part, word) for part in parts]) if (parts := _parts(text)) else None


def denies(text: str) -> list[Item] | None:
    found = rules(text, "from")
    return found if found and all(item.peers is None for item in found) and "from" not in text.lower() else None


def egress(text: str) -> list[Item] | str | None:
    word = text.strip().lower()
    return word if word in ("all", "none") else rules(text, "to")


def rates(text: str) -> list[tuple[Item, int, str, int]] | None:
    found = _all([_rate(part) for part in parts]) if (parts := _parts(text)) else None
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
    if found and any(burst * seconds[unit] / count > 30 * 86400 for _, count, unit, burst in found):
        return None  # a source would have to be remembered for longer than 30 days
    return found


def word(text: str, *known: str) -> str | None:
    return text.strip().lower() if text.strip().lower() in known else None


def _all(found: list[object]) -> list | None:  # type: ignore[type-arg]
    return None if None in found else found


def _parts(text: str) -> list[str]:
    """Return the parts between commas and line ends; none if the value is empty or too long."""
    parts = [part.strip() for part in text.replace("\n", ",").split(",")]
    if parts[-1] == "":
        del parts[-1]
    return parts if len(text) <= 4096 and len(parts) <= 256 else []


def _close(text: str) -> str:
    """Return the text without the optional blanks around `-` and `/`."""
    words = " ".join(text.split())
    for sign in "-/":
        words = sign.join(each.strip() for each in words.split(sign))
    return words


def _item(part: str, by: str) -> Item | None:
    words = part.split()
    at = next((n for n, each in enumerate(words) if each.lower() == by), None)
    found = _what(" ".join(words[:at]))
    if found is None or at is None:
        return found
    peers = tuple(words[at + 1 :])
    if not peers or not all(map(_is_peer, peers)):
        return None
    return found if "any" in {peer.lower() for peer in peers} else Item(found.proto, found.first, found.last, peers)


def _what(text: str) -> Item | None:
    text = _close(text)
    if text.lower() in ("gre", "esp", "ah"):
        return Item(text.lower(), 0, 0)
    ports, *proto = text.split("/")
    if len(proto) > 1 or (proto and proto[0].lower() not in ("tcp", "udp", "sctp")):
        return None
    name = proto[0].lower() if proto else "tcp"
    if ports == "*":
        return Item(name, 1, 65535)
    ends = [_number(end, 5) for end in ports.split("-")]
    if len(ends) > 2 or None in ends:
        return None
    first, last = int(ends[0] or 0), int(ends[-1] or 0)
    return Item(name, first, last) if 1 <= first <= last <= 65535 else None


def _number(text: str, digits: int) -> int | None:
    return int(text) if 0 < len(text) <= digits and set(text) <= set(string.digits) else None


def _rate(part: str) -> tuple[Item, int, str, int] | None:
    words = _close(part).split()
    if len(words) == 2:
        words += ["burst", "5"]
    if len(words) != 4 or words[2].lower() != "burst" or words[1].count("/") != 1:
        return None
    what, (many, unit), burst = _what(words[0]), words[1].split("/"), _number(words[3], 9)
    count = _number(many, 9)
    if what is None or what.first == 0 or not count or not burst or count > 1_000_000 or burst > 65535:
        return None
    return (what, count, unit.lower(), burst) if unit.lower() in ("second", "minute", "hour", "day") else None


def _is_peer(token: str) -> bool:
    if token.lower() in ("any", "host"):
        return True
    kind, colon, name = token.partition(":")
    if colon and kind.lower() in ("container", "service", "project", "network"):
        letters = set(string.ascii_letters + string.digits)
        return name != "" and name[0] in letters and set(name) <= letters | set("_.-")
    address, slash, length = token.partition("/")
    if set(address) - set(string.hexdigits + ":.") or (slash and _number(length, 3) is None):
        return False
    try:
        prefix = ip_network(token)
    except ValueError:
        return False
    return not (isinstance(prefix, IPv6Network) and prefix.network_address.ipv4_mapped)


def is_with(item: Item, peer: Address, names: Names, *, host: Set[Address] = frozenset()) -> bool:
    """True if the rule matches the flow's other end. `host`: the host's addresses, where they apply."""
    if item.peers is None:
        return True
    for token in item.peers:
        kind, _, name = token.partition(":")
        if kind.lower() in ("container", "service", "project", "network"):
            if peer in names.get(f"{kind.lower()}:{name}", ()):
                return True
        elif token.lower() == "host":
            if peer in host:
                return True
        elif peer in ip_network(token):
            return True
    return False


def is_about(item: Item, flow: Flow) -> bool:
    return item.proto == flow.proto and item.first <= flow.port <= item.last


@dataclass
class Reading:
    """The rules of all places together."""

    allow: list[Item]
    deny: list[Item]
    policy: str
    egress: list[Item] | str | None


def read(places: Iterable[Mapping[str, str]]) -> Reading:
    """Read `places`, from the least to the most specific one: right labels by their keys, in lower case."""
    spec = Reading([], [], "default", None)
    for place in places:
        spec.allow += rules(place["fw.allow"]) or [] if "fw.allow" in place else []
        spec.deny += denies(place["fw.deny"]) or [] if "fw.deny" in place else []
        if "fw.policy" in place:
            spec.policy = place["fw.policy"].strip().lower()
        if "fw.egress" in place:
            spec.egress = egress(place["fw.egress"])
    return spec


def accepts(spec: Reading, flow: Flow, names: Names, published: Set[tuple[str, int]] = frozenset()) -> bool:
    """True if a container with these labels accepts the flow. `published`: ports that -p opens (FW_PUBLISHED=allow)."""
    about = [item for item in spec.allow if is_about(item, flow)]
    if any(is_with(item, flow.peer, names) for item in about):
        return True
    if any(is_about(item, flow) for item in spec.deny) or any(item.peers is not None for item in about):
        return False
    if spec.policy == "closed":
        return False
    if spec.policy == "open" or (flow.proto, flow.port) in published:
        return True
    return flow.proto == "tcp" and flow.port in (22, 80, 443)


def may_open(spec: Reading, flow: Flow, names: Names, host: Set[Address] = frozenset()) -> bool:
    """True if a container with these labels may open the connection."""
    if spec.egress is None or spec.egress == "all":
        return True
    if isinstance(spec.egress, str):
        return False
    return any(is_about(item, flow) and is_with(item, flow.peer, names, host=host) for item in spec.egress)
